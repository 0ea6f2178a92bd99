"""No process that a benchmark started outlives it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from benchmarks.system import Running, System, environment

DAEMON = textwrap.dedent(
    """
    import os, signal, sys
    written, writing = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            with open(sys.argv[1], "w") as file:  # a FIFO: the reader waits here for the pid
                file.write(str(os.getpid()))
            os.write(writing, b".")
            signal.pause()
        os._exit(0)
    os.read(written, 1)
    if sys.argv[2] == "stay":
        signal.pause()
    """
)


def is_gone(pid: int) -> bool:
    """Whether no process has this pid; a zombie still has it."""
    return not Path(f"/proc/{pid}").exists()


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    path = tmp_path / "pid"
    os.mkfifo(path)
    return path


def keep(fifo: Path, what: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", DAEMON, str(fifo), what]
    return subprocess.Popen([sys.executable, "-m", "benchmarks.keeper", *command], env=environment())


def test_a_daemon_is_ended_on_sigterm(fifo: Path) -> None:
    keeper = keep(fifo, "stay")
    daemon = int(fifo.read_text())
    keeper.terminate()
    assert keeper.wait() == 128 + signal.SIGTERM
    assert is_gone(daemon)


def test_a_daemon_is_ended_when_the_command_ends(fifo: Path) -> None:
    keeper = keep(fifo, "leave")
    daemon = int(fifo.read_text())
    assert keeper.wait() == 0
    assert is_gone(daemon)


def test_the_status_of_the_command_is_passed_on() -> None:
    command = [sys.executable, "-m", "benchmarks.keeper", sys.executable, "-c"]
    assert subprocess.run([*command, "raise SystemExit(3)"], env=environment(), check=False).returncode == 3
    killed = "import os; os.kill(os.getpid(), 9)"
    assert subprocess.run([*command, killed], env=environment(), check=False).returncode == 128 + 9


def test_a_running_system_is_ended_with_its_context(tmp_path: Path, fifo: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    system = System(
        key="daemon",
        label="a daemon",
        settings="",
        module="os",
        install="",
        command=lambda _: [sys.executable, "-c", DAEMON, str(fifo), "stay"],
    )
    with pytest.raises(KeyboardInterrupt), Running(system, folder) as running:
        daemon = int(fifo.read_text())
        assert running.alive
        raise KeyboardInterrupt
    assert not running.alive
    assert is_gone(daemon)
