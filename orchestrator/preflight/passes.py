"""A signed pass of the gate: for what it is, for how long, and whether one is valid (GM-40).

HMAC-SHA256 with a key that lies in the storage, over canonical JSON. It shows that whoever issued the pass could read that
key, and that nobody without it has changed the pass since; not who it was.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import platform
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from orchestrator.errors import ExitCode, UserError
from orchestrator.jobspec import JobSpec
from orchestrator.preflight.hosts import Host

VALID_SECONDS = 24 * 3600.0
FORMAT = 1
PACKAGES = ("torch", "ray", "numpy", "grpcio")
"""Whose versions are part of the code."""

_KEY_BYTES = 32
_NOT_OF_THE_PASS = {"name", "storage", "preflight"}
"""Keys of the JobSpec that change nothing of what was tested."""


@dataclass(frozen=True)
class Subject:
    """What a pass is for: hashes, 32 hex digits each.

    Attributes:
        code: this package's sources, the versions of what it stands on, and the task's script.
        config: the JobSpec, less its name and storage.
        topology: the hosts with their addresses, groups and ranks.
    """

    code: str
    config: str
    topology: str


def subject(spec: JobSpec, hosts: Sequence[Host]) -> Subject:
    """Raises UserError where the task's script cannot be read."""
    config = spec.model_dump(mode="json", exclude=_NOT_OF_THE_PASS)
    placed = [[host.address, host.group] for host in sorted(hosts)]
    topology = {"hosts": placed, "ranks_per_host": spec.ranks_per_host, "spares_per_host": spec.spares_per_host}
    return Subject(_code(spec.task.script), _hash(canonical(config)), _hash(canonical(topology)))


def canonical(value: Any) -> bytes:
    """The same bytes for the same JSON value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _hash(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _code(script: Path | None) -> str:
    root = Path(__file__).resolve().parents[2]
    rooms = sorted(path for room in ("orchestrator", "workers") for path in (root / room).rglob("*.py"))
    sources = {str(path.relative_to(root)): _hash(path.read_bytes()) for path in rooms}
    versions = {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}
    try:
        task = "" if script is None else _hash(script.read_bytes())
    except OSError as error:
        raise UserError(f"task.script: {script} cannot be read ({error.strerror}); write the path of a script") from None
    return _hash(canonical({"sources": sources, "versions": versions, "script": task}))


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


class Passes:
    """Those of one storage, in its folder `.control`: the key, and for each JobSpec the last pass."""

    def __init__(self, storage: Path) -> None:
        self._folder = storage.absolute() / ".control"
        self._key = self._folder / "preflight.key"

    def issue(self, subject: Subject, findings: list[dict[str, Any]], now: float) -> Path:
        """Write a pass that is valid from `now`, Unix seconds; its path. Raises UserError where nothing can be written."""
        content = {
            "format": FORMAT,
            "issued": now,
            "expires": now + VALID_SECONDS,
            **vars(subject),
            "findings": findings,
        }
        path = self.path(subject)
        try:
            signed = {**content, "signature": _signature(self._make_key(), content)}
            path.parent.mkdir(mode=0o700, exist_ok=True)
            partial = path.with_name(f".{path.name}.{os.getpid()}")
            partial.write_text(json.dumps(signed, indent=2) + "\n")
            partial.replace(path)
        except OSError as error:
            raise UserError(
                f"the pass cannot be written to {self._folder} ({error.strerror}); write --set storage=… of a folder that "
                "you may write",
                ExitCode.STORAGE,
            ) from None
        return path

    def objection(self, subject: Subject, now: float) -> str:
        """Why there is no pass for `subject` that is valid `now`, as the end of a sentence; '' where there is one."""
        try:
            found, key = json.loads(self.path(subject).read_text()), self._read_key()
        except FileNotFoundError:
            return "there is none for this JobSpec"
        except (OSError, ValueError, UserError) as error:
            return f"what lies in {self._folder} cannot be read ({error})"
        return objection(found, subject, key, now)

    def path(self, subject: Subject) -> Path:
        """Where the last pass for that JobSpec is."""
        return self._folder / "preflight" / f"{subject.config}.json"

    def _make_key(self) -> bytes:
        """The storage's key, made by whoever needs it first; readable for its owner alone."""
        self._folder.mkdir(parents=True, mode=0o700, exist_ok=True)
        try:
            file = os.open(self._key, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return self._read_key()
        key = secrets.token_bytes(_KEY_BYTES)
        try:
            os.write(file, key.hex().encode())
        finally:
            os.close(file)
        return key

    def _read_key(self) -> bytes:
        key = b""
        with suppress(ValueError):
            key = bytes.fromhex(self._key.read_text())
        if len(key) != _KEY_BYTES:
            raise UserError(f"{self._key} is no key; remove it, and the next pass has a new one", ExitCode.STORAGE)
        return key


def _signature(key: bytes, content: dict[str, Any]) -> str:
    return hmac.new(key, canonical(content), hashlib.sha256).hexdigest()


def objection(found: Any, subject: Subject, key: bytes, now: float) -> str:
    """What is wrong with a pass, as it was read, for `subject`; '' where nothing is."""
    if not isinstance(found, dict):
        return "the one for this JobSpec is damaged"
    content = {name: value for name, value in found.items() if name != "signature"}
    try:
        expected = _signature(key, content)
    except ValueError:  # it holds a number that JSON has not
        return "the one for this JobSpec is damaged"
    if not hmac.compare_digest(str(found.get("signature")).encode(), expected.encode()):
        return "the one for this JobSpec is not signed with the key of this storage"
    others = {"code": "another version of the code", "config": "another JobSpec", "topology": "other hosts"}
    for name, words in others.items():
        if found.get(name) != getattr(subject, name):
            return f"the last one is of {words}"
    if found.get("format") != FORMAT:
        return "the last one is of another version"
    if not float(found["issued"]) <= now < float(found["expires"]):
        return "the last one has expired" if now >= float(found["expires"]) else "the last one is of the future"
    return ""
