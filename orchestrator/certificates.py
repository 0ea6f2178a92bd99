"""The certificates of one job, in the folder beside the job's: made, renewed, replaced (`workers/tls.py` says where).

Who can read that folder has the authority's key and so can be anybody in this job; it is for the user alone who runs the
job (mode 0700). Every file is replaced as a whole, so that a reader meets the old or the new one.
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from orchestrator.authority import AUTHORITY_DAYS, DAY, SKEW_SECONDS, Authority, Described, Pair, describe
from orchestrator.errors import ExitCode, UserError, command
from orchestrator.peers import COORDINATOR, OPERATOR, Peer, Role
from workers import tls

AUTHORITY = "authority.pem"
LIFETIME = "lifetime.json"
DAYS = 90
"""For which a certificate is made where nobody says how long."""

RENEWED_AT = 1 / 3
"""What is left of a certificate's life when the coordinator makes another."""
WARNED_AT = 1 / 6
"""What is left of it when something must have kept the coordinator from that."""
WARNED_DAYS = 30
"""Before the end of an authority, which only an operator replaces."""
OVERLAP_SECONDS = 3600.0
"""For which the authority before the present one is still trusted."""


@dataclass(frozen=True)
class Entry:
    """A certificate in the folder."""

    file: str
    is_authority: bool
    certificate: Described


class Certificates:
    """Of the job `job` whose folder is `job_folder`. Times are Unix seconds; every call may raise OSError."""

    def __init__(self, job_folder: Path, job: str) -> None:
        self.job, self.folder = job, tls.tls_folder(job_folder)

    @property
    def exist(self) -> bool:
        """Has the job an authority?"""
        return (self.folder / AUTHORITY).exists()

    def init(self, now: float, days: int | None = None) -> list[Peer]:
        """Make the authority, and the certificates of the coordinator and of operators, which are good for `days`.

        Raises:
            UserError: the job has certificates already, or `days` is more than an authority lives.
        """
        with self._locked():
            if self.exist:
                raise UserError(f"{self.folder} has certificates already; replace them with: {self._command('rotate')}")
            self._live(days or DAYS)
            self._begin(Authority.new(self.job, now), b"")
            return self._renew([COORDINATOR, OPERATOR], now)

    def keep(self, hosts: Iterable[str], now: float) -> list[Peer]:
        """See to it that the coordinator, operators and the agents of `hosts` have good ones; whose are new.

        New is what was missing or damaged, has lived for two thirds of its life, or is of an earlier authority.

        Raises:
            UserError: the authority is damaged.
        """
        with self._locked():
            if not self.exist:
                self._live(DAYS)
                self._begin(Authority.new(self.job, now), b"")
            self._trust(now)
            return self._renew([COORDINATOR, OPERATOR, *(Peer(Role.AGENT, host) for host in hosts)], now)

    def rotate(self, now: float, *, authority: bool = False, at_once: bool = False, days: int | None = None) -> list[Peer]:
        """Replace every certificate there is, and with `authority` the authority too; whose are new.

        The authority before is trusted for OVERLAP_SECONDS beside the new one, or not any more with `at_once`.

        Raises:
            UserError: there are none, the authority is damaged, or `days` is more than an authority lives.
        """
        with self._locked():
            if not self.exist:
                raise UserError(f"{self.folder} has no certificates yet; make some with: {self._command('init')}")
            if days is not None:
                self._live(days)
            if authority:
                trusted = b"" if at_once else self._read(tls.TRUSTED)
                self._begin(Authority.new(self.job, now), trusted)
            agents = [entry.certificate.peer for entry in self.inventory() if not entry.is_authority]
            hosts = sorted(peer.host for peer in agents if peer is not None and peer.role is Role.AGENT)
            peers = [COORDINATOR, OPERATOR, *(Peer(Role.AGENT, host) for host in hosts)]
            return self._renew(peers, now, every=True)

    def trusted(self) -> set[str]:
        """Names of the authorities whose word is taken."""
        return {each.name for each in _described(self._read(tls.TRUSTED), self.job)}

    def inventory(self) -> list[Entry]:
        """All of them, the authorities first, the newest of those first; files that are damaged are left out."""
        entries = [Entry(tls.TRUSTED, True, each) for each in _described(self._read(tls.TRUSTED), self.job)]
        for path in sorted(self.folder.glob("*.pem")):
            if path.name not in (tls.TRUSTED, AUTHORITY):
                entries += [Entry(path.name, False, each) for each in _described(self._read(path.name), self.job)]
        return entries

    def lifetime(self) -> float:
        """Seconds that a new certificate is good for."""
        with suppress(OSError, ValueError, TypeError, KeyError):
            return float(json.loads(self._read(LIFETIME))["days"]) * DAY
        return DAYS * DAY

    def _command(self, what: str, *words: str) -> str:
        return command("certs", what, self.job, *words, storage=self.folder.parent)

    # ------------------------------------------------------------------ under the lock

    def _live(self, days: int) -> None:
        if not 1 <= days <= AUTHORITY_DAYS:
            raise UserError(f"--days is {days}, but certificates live for 1 to {AUTHORITY_DAYS} days; write for example 90")
        self._write(LIFETIME, json.dumps({"days": days}).encode())

    def _begin(self, authority: Authority, trusted: bytes) -> None:
        """`trusted` are certificates of authorities before it. First of all everybody trusts the new one."""
        self._write(tls.TRUSTED, authority.pair.certificate + trusted)
        self._write(AUTHORITY, authority.pair.pem)

    def _authority(self) -> Authority:
        try:
            return Authority(Pair(*tls.split(self._read(AUTHORITY))))
        except (ValueError, tls.Damaged):
            again = self._command("rotate", "--ca")
            raise UserError(f"{self.folder / AUTHORITY} is damaged; make another with: {again}", ExitCode.STORAGE) from None

    def _trust(self, now: float) -> None:
        """The present authority always; one before it until the overlap is over."""
        authority = self._authority()
        found = _described(self._read(tls.TRUSTED), self.job)
        if authority.name not in {each.name for each in found}:
            self._write(tls.TRUSTED, authority.pair.certificate + (self._read(tls.TRUSTED) if found else b""))
        elif len(found) > 1 and now >= authority.begun + OVERLAP_SECONDS:
            self._write(tls.TRUSTED, authority.pair.certificate)

    def _renew(self, peers: Iterable[Peer], now: float, *, every: bool = False) -> list[Peer]:
        authority, lifetime = self._authority(), self.lifetime()
        stale = [peer for peer in peers if every or self._is_stale(peer, authority, now, lifetime)]
        for peer in stale:
            self._write(file_of(peer), authority.issue(peer, self.job, now, lifetime).pem)
        return stale

    def _is_stale(self, peer: Peer, authority: Authority, now: float, lifetime: float) -> bool:
        content = self._read(file_of(peer))
        found = _described(content, self.job)
        if len(found) != 1 or b"PRIVATE KEY-----" not in content:
            return True
        if (found[0].peer, found[0].issuer) != (peer, authority.name):
            return True
        if peer.role is Role.AGENT and tls.leader_name(self.job, peer.host) not in found[0].servers:
            return True  # of a release in which agents led nobody
        could_end = min(now + lifetime, authority.ends)
        return found[0].ends - now < lifetime * RENEWED_AT and could_end > found[0].ends + 1.0

    def _read(self, name: str) -> bytes:
        """Empty where there is none."""
        try:
            return (self.folder / name).read_bytes()
        except FileNotFoundError:
            return b""

    def _write(self, name: str, content: bytes) -> None:
        """Whole or not at all, and for nobody else to read."""
        descriptor, partial = tempfile.mkstemp(prefix=f".{name}.", dir=self.folder)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, self.folder / name)
        except BaseException:
            with suppress(OSError):
                os.unlink(partial)
            raise

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One writer at a time; on storage without locks one hopes for it, and `keep` puts right what did not fit."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            with suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)


def file_of(peer: Peer) -> str:
    """The file with the key and the certificate of a peer."""
    match peer.role:
        case Role.COORDINATOR:
            return tls.COORDINATOR
        case Role.OPERATOR:
            return tls.OPERATOR
        case Role.AGENT:
            return tls.agent_file(peer.host)


def warnings(inventory: Iterable[Entry], job: str, now: float) -> list[tuple[str, str]]:
    """What ends soon, though it should have been replaced by now: a file, and a sentence about it."""
    found = []
    for entry in inventory:
        certificate, lived = entry.certificate, entry.certificate.begins + SKEW_SECONDS
        limit = WARNED_DAYS * DAY if entry.is_authority else (certificate.ends - lived) * WARNED_AT
        if certificate.ends - now < limit:
            found.append((entry.file, _expiry(entry, job, now)))
    return found


def _expiry(entry: Entry, job: str, now: float) -> str:
    """One sentence: when it ends or has ended, and what to do."""
    whose = "the authority" if entry.is_authority else f"the certificate of the {entry.certificate.peer or entry.file}"
    days = (entry.certificate.ends - now) / DAY
    when = f"ends in {days:.1f} days" if days > 0 else f"has expired {-days:.1f} days ago"
    return f"{whose} of {job} {when}; replace it with: quantarion certs rotate {job}{' --ca' * entry.is_authority}"


def operators_trouble(job_folder: Path, job: str, now: float) -> str | None:
    """Why the operator's certificate of a job is of no use here, in one sentence; None where it looks good."""
    path = tls.tls_folder(job_folder) / tls.OPERATOR
    try:
        found = _described(path.read_bytes(), job)
    except FileNotFoundError:
        return None
    except OSError as error:
        return f"{path} cannot be read ({error.strerror}); only who can read it may operate {job}"
    if not found:
        return f"{path} is damaged; replace it with: quantarion certs rotate {job}"
    return _expiry(Entry(path.name, False, found[0]), job, now) if found[0].ends <= now else None


def _described(pem: bytes, job: str) -> list[Described]:
    """Empty where nothing can be read from it."""
    try:
        return describe(pem, job)
    except ValueError:
        return []
