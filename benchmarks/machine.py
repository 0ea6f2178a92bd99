"""How a result was made, for the foot of its page: the command, the machine and the versions; no host name, no path."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.system import ROOT

PACKAGES = ("torch", "ray", "torchft", "quantarion")


def made_by(command: str) -> str:
    """The last lines of a results page, without the newline at its end."""
    return f"Made by\n\n```\n{command}\n```\n\non {describe()}"


def commit() -> str:
    """Of this source, short, with a + where files have changed since; empty where git does not say."""
    try:
        words = [
            subprocess.run(["git", "-C", ROOT, *command], capture_output=True, text=True, check=True).stdout.strip()
            for command in (["rev-parse", "--short=7", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        ]
    except (OSError, subprocess.CalledProcessError):
        return ""
    return words[0] + ("+" if words[1] else "")


def describe() -> str:
    """Cores, processor, memory, kernel, Python, packages and the date."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    packages = [f"{name} {found}" for name in PACKAGES if (found := _version(name))]
    parts = [
        f"{len(os.sched_getaffinity(0))} cores of {_processor()}",
        f"{memory:.0f} GiB",
        f"{platform.system()} {platform.release().split('-')[0]}",
        f"Python {platform.python_version()}",
        *packages,
    ]
    return f"{', '.join(parts)}; {datetime.now(UTC):%Y-%m-%d}."


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
