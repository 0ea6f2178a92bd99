"""How a benchmark starts a system of many processes, and how it is sure to end every one of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

ROOT = Path(__file__).resolve().parent.parent

_COMMON = {
    "OMP_NUM_THREADS": "1",
    "GLOO_SOCKET_IFNAME": "lo",
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "PYTHONUNBUFFERED": "1",
}


@dataclass(frozen=True)
class System:
    """One row of a table: what it is called, what must be installed, and the command that starts it in a folder.

    Its workers find that folder in their command line and append their commits to the log there.
    """

    key: str
    label: str
    settings: str
    module: str
    install: str
    command: Callable[[Path], list[str]]
    environment: Mapping[str, str] = field(default_factory=dict)
    python: str = sys.executable

    def missing(self) -> str | None:
        """The sentence that says what is not installed, or None when the system can be started."""
        try:
            command = [self.python, "-c", f"import {self.module}"]
            code = subprocess.run(command, capture_output=True, check=False, env=environment())
        except OSError as error:
            return f"{self.label}: {self.python} cannot be run ({error.strerror})"
        return None if code.returncode == 0 else f"not installed: {self.install}"


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment with the settings every system shares (one thread per rank, loopback) and `extra`."""
    paths = [str(ROOT), str(ROOT / "proto" / "generated"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, **_COMMON, "PYTHONPATH": os.pathsep.join(filter(None, paths)), **(extra or {})}


class Running:
    """A started system: a context that ends all its processes on the way out, whatever happened."""

    def __init__(self, system: System, folder: Path) -> None:
        self.folder = folder
        temporary = folder / "tmp"
        temporary.mkdir()
        with (folder / "output.log").open("ab") as output:
            self._keeper = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.keeper", *system.command(folder)],
                env=environment({"TMPDIR": str(temporary), "XDG_RUNTIME_DIR": str(temporary), **system.environment}),
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    @property
    def alive(self) -> bool:
        """Whether the command that was started has not ended."""
        return self._keeper.poll() is None

    def stop(self) -> None:
        """End every process of the system; returns when none is left. A second call does nothing."""
        self._keeper.terminate()
        self._keeper.wait()


def exit_on_signals() -> None:
    """Turn SIGTERM and SIGHUP into SystemExit, so that contexts end their processes as they do on Ctrl-C."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    signal.signal(signal.SIGHUP, leave)
