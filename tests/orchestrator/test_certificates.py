"""The certificates of a job: whom they are for, how long they are good, and what becomes of their files."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator import certificates as module
from orchestrator.authority import AUTHORITY_DAYS, DAY, SKEW_SECONDS, Authority, Described, describe
from orchestrator.certificates import AUTHORITY, DAYS, OVERLAP_SECONDS, Certificates, file_of, operators_trouble, warnings
from orchestrator.errors import ExitCode, UserError
from orchestrator.peers import COORDINATOR, OPERATOR, Peer, Role, peer_named
from workers import tls

NOW = 1_700_000_000.0
HOST_1 = Peer(Role.AGENT, "host-1")

hosts = st.from_regex(r"[a-z0-9][a-z0-9.-]{0,62}", fullmatch=True)
jobs = st.from_regex(r"[a-z0-9][a-z0-9-]{0,62}", fullmatch=True)
peers = st.one_of(st.sampled_from([COORDINATOR, OPERATOR]), hosts.map(lambda host: Peer(Role.AGENT, host)))


@pytest.fixture
def made(tmp_path: Path) -> Certificates:
    """Those of the job `demo` with one host, made NOW."""
    certificates = Certificates(tmp_path / "demo", "demo")
    assert certificates.keep(["host-1"], NOW) == [COORDINATOR, OPERATOR, HOST_1]
    return certificates


def of(certificates: Certificates, peer: Peer) -> Described:
    (found,) = describe((certificates.folder / file_of(peer)).read_bytes(), "demo")
    return found


def contents(certificates: Certificates) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in certificates.folder.glob("*.pem")}


# ---------------------------------------------------------------------- names


@given(peers, jobs)
def test_a_peer_is_whom_its_certificate_names(peer: Peer, job: str) -> None:
    assert peer_named([peer.uri(job)], job) == peer
    assert peer_named(["https://elsewhere", peer.uri(job)], job) == peer


@given(peers, jobs, jobs)
def test_a_certificate_of_another_job_names_nobody(peer: Peer, job: str, other: str) -> None:
    assert job == other or peer_named([peer.uri(other)], job) is None


@pytest.mark.parametrize(
    "uris",
    [
        [],
        ["quantarion://job/demo/agent"],
        ["quantarion://job/demo/agent/"],
        ["quantarion://job/demo/agent/host-1/operator"],
        ["quantarion://job/demo/operator/"],
        ["quantarion://job/demo/operator/host-1"],
        ["quantarion://job/demo/root"],
        ["quantarion://job/demo/"],
        ["quantarion://job/demo/operator", "quantarion://job/demo/agent/host-1"],
        ["quantarion://job/demo/agent/host-2", "quantarion://job/demo/agent/host-1"],
    ],
)
def test_a_name_that_is_not_exactly_one_names_nobody(uris: list[str]) -> None:
    assert peer_named(uris, "demo") is None


def test_names_of_the_longest_jobs_and_hosts_fit_into_certificates() -> None:
    job, peer = "j" * 63, Peer(Role.AGENT, "h" * 200)
    authority = Authority.new(job, NOW)
    for each in (peer, COORDINATOR, OPERATOR):
        (found,) = describe(authority.issue(each, job, NOW, DAY).certificate, job)
        assert (found.peer, found.issuer) == (each, authority.name)


# ---------------------------------------------------------------------- making and keeping


def test_only_their_owner_can_read_them(made: Certificates) -> None:
    assert stat.S_IMODE(made.folder.stat().st_mode) == 0o700
    assert made.folder.name == ".demo.tls"
    files = list(made.folder.iterdir())
    assert len(files) == 7 and {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


def test_what_is_good_is_kept_as_it_is(made: Certificates) -> None:
    before = contents(made)
    assert made.keep(["host-1"], NOW + 59 * DAY) == []
    assert contents(made) == before
    assert made.keep(["host-1", "host-2"], NOW) == [Peer(Role.AGENT, "host-2")]
    assert made.keep(["host-1"], NOW + 61 * DAY) == [COORDINATOR, OPERATOR, HOST_1]


def test_they_are_good_from_an_hour_before_for_as_many_days_as_they_were_made_for(tmp_path: Path) -> None:
    certificates = Certificates(tmp_path / "demo", "demo")
    assert certificates.init(NOW, 3) == [COORDINATOR, OPERATOR]
    certificates.keep(["host-1"], NOW)
    for peer in (COORDINATOR, OPERATOR, HOST_1):
        found = of(certificates, peer)
        assert (found.begins, found.ends) == (NOW - SKEW_SECONDS, NOW + 3 * DAY)
    assert certificates.keep(["host-1"], NOW + 1.9 * DAY) == []
    assert certificates.keep(["host-1"], NOW + 2.1 * DAY) == [COORDINATOR, OPERATOR, HOST_1]
    assert of(certificates, HOST_1).ends == pytest.approx(NOW + 5.1 * DAY, abs=1.0)
    certificates.rotate(NOW, days=7)
    assert of(certificates, HOST_1).ends == NOW + 7 * DAY == NOW + certificates.lifetime()


def test_a_job_has_one_authority_only(made: Certificates) -> None:
    with pytest.raises(UserError, match=r"has certificates already; replace them with: .*certs rotate demo"):
        made.init(NOW)


def test_without_certificates_there_is_nothing_to_replace(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no certificates yet; make some with: .*certs init demo"):
        Certificates(tmp_path / "demo", "demo").rotate(NOW)


@pytest.mark.parametrize("days", [-1, AUTHORITY_DAYS + 1])
def test_days_that_no_certificate_lives_are_refused(tmp_path: Path, days: int) -> None:
    certificates = Certificates(tmp_path / "demo", "demo")
    with pytest.raises(UserError, match=f"--days is {days}, but certificates live for 1 to 3650 days"):
        certificates.init(NOW, days)
    assert not certificates.exist


def test_at_the_end_of_their_authority_they_are_not_made_again_and_again(made: Certificates) -> None:
    late = NOW + (AUTHORITY_DAYS - 20) * DAY
    assert made.keep([], late) == [COORDINATOR, OPERATOR]
    assert of(made, OPERATOR).ends == NOW + AUTHORITY_DAYS * DAY
    assert made.keep([], late + DAY) == []


@pytest.mark.parametrize("damage", [b"", b"torn", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_damaged_or_missing_files_are_made_again(made: Certificates, damage: bytes) -> None:
    path = made.folder / file_of(HOST_1)
    if damage:
        path.write_bytes(damage)
    else:
        path.unlink()
    assert made.keep(["host-1"], NOW) == [HOST_1]
    assert of(made, HOST_1).peer == HOST_1
    (made.folder / tls.TRUSTED).write_bytes(damage)
    assert made.keep(["host-1"], NOW) == []
    assert made.trusted() == {of(made, HOST_1).issuer}
    (made.folder / module.LIFETIME).write_bytes(damage)
    assert made.lifetime() == DAYS * DAY


def test_a_certificate_in_the_file_of_another_is_replaced(made: Certificates) -> None:
    (made.folder / file_of(HOST_1)).write_bytes((made.folder / file_of(OPERATOR)).read_bytes())
    assert made.keep(["host-1"], NOW) == [HOST_1]


def test_a_damaged_authority_is_told_with_what_to_do(made: Certificates) -> None:
    (made.folder / AUTHORITY).write_text("torn")
    for call in (lambda: made.keep([], NOW), lambda: made.rotate(NOW)):
        with pytest.raises(
            UserError, match=r"authority.pem is damaged; make another with: .*certs rotate demo --ca"
        ) as told:
            call()
        assert told.value.exit_code == ExitCode.STORAGE
    made.rotate(NOW, authority=True)
    assert made.keep(["host-1"], NOW) == []


def test_a_killed_writer_leaves_the_file_as_it_was(made: Certificates, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(made)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", full)
    with pytest.raises(OSError, match=r"No space"):
        made.rotate(NOW)
    assert contents(made) == before
    assert [path.name for path in made.folder.glob(".*.pem.*")] == []


# ---------------------------------------------------------------------- replacing


def test_rotating_replaces_all_of_them_and_keeps_the_authority(made: Certificates) -> None:
    before, trusted = contents(made), made.trusted()
    assert made.rotate(NOW + DAY) == [COORDINATOR, OPERATOR, HOST_1]
    after = contents(made)
    changed = {file for file in before if before[file] != after[file]}
    assert changed == {file_of(peer) for peer in (COORDINATOR, OPERATOR, HOST_1)}
    assert made.trusted() == trusted == {of(made, HOST_1).issuer}


def test_the_authority_before_is_trusted_for_an_hour(made: Certificates) -> None:
    old = made.trusted()
    later = NOW + DAY
    assert made.rotate(later, authority=True) == [COORDINATOR, OPERATOR, HOST_1]
    new = {of(made, HOST_1).issuer}
    assert new.isdisjoint(old) and made.trusted() == new | old
    assert made.keep(["host-1"], later + OVERLAP_SECONDS - 1.0) == [] and made.trusted() == new | old
    assert made.keep(["host-1"], later + OVERLAP_SECONDS) == [] and made.trusted() == new


def test_an_authority_that_nobody_should_trust_is_not_trusted_any_more(made: Certificates) -> None:
    old = made.trusted()
    made.rotate(NOW + DAY, authority=True, at_once=True)
    assert made.trusted() == {of(made, HOST_1).issuer} and made.trusted().isdisjoint(old)


def test_what_the_old_authority_has_signed_meanwhile_is_replaced(made: Certificates) -> None:
    """By a coordinator that had read the old one when it was replaced, on storage without locks."""
    stale = contents(made)[file_of(HOST_1)]
    made.rotate(NOW + DAY, authority=True)
    (made.folder / file_of(HOST_1)).write_bytes(stale)
    assert made.keep(["host-1"], NOW + DAY) == [HOST_1]


# ---------------------------------------------------------------------- their end


def test_a_warning_comes_when_nobody_renews_them(made: Certificates) -> None:
    def told(now: float) -> list[tuple[str, str]]:
        return warnings(made.inventory(), "demo", now)

    assert told(NOW) == told(NOW + 74 * DAY) == []
    almost = dict(told(NOW + 76 * DAY))
    assert set(almost) == {file_of(peer) for peer in (COORDINATOR, OPERATOR, HOST_1)}
    rotate = "replace it with: quantarion certs rotate demo"
    assert almost["agent-host-1.pem"] == f"the certificate of the agent of host-1 of demo ends in 14.0 days; {rotate}"
    over = dict(told(NOW + 92 * DAY))
    assert over["operator.pem"] == f"the certificate of the operator of demo has expired 2.0 days ago; {rotate}"
    late = NOW + (AUTHORITY_DAYS - 29) * DAY
    made.keep(["host-1"], late)
    assert dict(told(late)) == {tls.TRUSTED: f"the authority of demo ends in 29.0 days; {rotate} --ca"}


def test_an_operator_is_told_what_is_wrong_with_his_certificate(made: Certificates, tmp_path: Path) -> None:
    job = tmp_path / "demo"
    path = made.folder / tls.OPERATOR
    assert operators_trouble(job, "demo", NOW) is None
    assert "has expired 1.0 days ago" in str(operators_trouble(job, "demo", NOW + (DAYS + 1) * DAY))
    path.write_text("torn")
    assert operators_trouble(job, "demo", NOW) == f"{path} is damaged; replace it with: quantarion certs rotate demo"
    path.unlink()
    assert operators_trouble(job, "demo", NOW) is None
    path.mkdir()
    told = f"{path} cannot be read (Is a directory); only who can read it may operate demo"
    assert operators_trouble(job, "demo", NOW) == told


def test_the_inventory_leaves_out_what_is_damaged(made: Certificates) -> None:
    (made.folder / file_of(HOST_1)).write_text("torn")
    found = [(entry.file, entry.is_authority) for entry in made.inventory()]
    assert found == [(tls.TRUSTED, True), (tls.COORDINATOR, False), (tls.OPERATOR, False)]
    assert json.loads((made.folder / module.LIFETIME).read_text()) == {"days": DAYS}
