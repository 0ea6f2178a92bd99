"""What a host would train with: hosts that have something else are not let in (GM-9)."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from quantarion.v1 import control_pb2

FOLDERS = {
    "workers": Path(__file__).parent,
    "orchestrator": Path(__file__).parents[1] / "orchestrator",
    "quantarion/v1": Path(control_pb2.__file__).parent,
}
"""Those that are imported: what else lies on the path under these names is nothing."""

_DIGEST_BYTES = 16


def software(job_folder: Path) -> dict[str, str]:
    """Of this process, by what it is of; what is not there is "".

    Returns:
        `python` (major and minor version), `torch` (version, whatever it was built for), `quantarion` (BLAKE2b-128 over its
        sources), `job` and `script` (BLAKE2b-128 of the job's `job.json`, and of the script that this names).
    """
    job = _read(job_folder / "job.json")
    return {
        "python": ".".join(platform.python_version_tuple()[:2]),
        "torch": _version("torch").partition("+")[0],
        "quantarion": sources(),
        "job": _digest([job]) if job else "",
        "script": _script(job),
    }


@cache
def sources() -> str:
    """Digest of the Python files of this installation, wherever it lies."""
    files = []
    for name, root in FOLDERS.items():
        files += [(f"{name}/{path.relative_to(root).as_posix()}", path) for path in root.rglob("*.py")]
    return _digest(part for name, path in sorted(files) for part in (name.encode(), _read(path)))


def _script(job: bytes) -> str:
    """Looked for where workers do."""
    try:
        values = json.loads(job)
        script, begun = values["task"]["script"], Path(values.get("started_in") or ".")
    except (ValueError, KeyError, TypeError, AttributeError):
        return ""
    if not isinstance(script, str) or not script:
        return ""
    content = _read((begun if os.path.isdir(begun) and os.access(begun, os.X_OK) else Path()) / script)
    return _digest([content]) if content else ""


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _digest(parts: Iterable[bytes]) -> str:
    """Of the parts and their borders."""
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()
