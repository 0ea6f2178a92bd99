"""`quantarion doctor`: says what works, sweeps what is dead, leaves what is alive."""

from __future__ import annotations

import mmap
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
from quantarion.v1 import operator_pb2

from orchestrator import doctor, reaper, sweep
from orchestrator.doctor import Verdict
from orchestrator.errors import ExitCode
from tests.orchestrator.fake_operator import FakeOperator, append, make_job, served
from workers.paths import SOCKET_PATH_BYTES, runtime_dir
from workers.readable import wait_readable

DRIVER = """
import os, subprocess, sys
from pathlib import Path
from orchestrator import reaper
environment = {**os.environ, **reaper.marks(Path(sys.argv[1]))}
children = [subprocess.Popen(["sleep", "1000"], env=environment, start_new_session=True) for _ in range(2)]
print(*(child.pid for child in children), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as cleanups:
        yield cleanups


def start_driver(
    folder: Path, environment: dict[str, str], stack: ExitStack, code: str = DRIVER
) -> tuple[subprocess.Popen[str], list[int]]:
    """A process that has started two marked ones, and the pids it prints; all are gone when the test is."""
    driver = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    stack.callback(lambda: reaper.kill(lambda each: each.folder == str(folder)))
    stack.callback(driver.wait)
    stack.callback(driver.kill)
    assert driver.stdout is not None
    return driver, [int(pid) for pid in driver.stdout.readline().split()]


def wait_for_end(pids: list[int], seconds: float = 30.0) -> None:
    """Until the processes are gone; fails after `seconds`."""
    for pid in pids:
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            assert wait_readable(pidfd, seconds), f"process {pid} lives on"
        finally:
            os.close(pidfd)


def make_old(folder: Path) -> Path:
    """Let a folder and what lies in it look two hours old."""
    then = time.time() - 7200
    for path in [*folder.rglob("*"), folder]:
        os.utime(path, (then, then), follow_symlinks=False)
    return folder


def test_a_good_machine_is_ready(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.run(tmp_path, sweep=False) == ExitCode.DONE
    text = capsys.readouterr().out
    assert text.splitlines()[-1] == "ready"
    for what in ("Python", "torch", "ray", "cores", "memory", "/dev/shm", "loopback", "storage", "clock", "compiler"):
        assert what in text
    assert list(tmp_path.iterdir()) == []


def test_storage_that_does_not_exist_yet_is_good(tmp_path: Path) -> None:
    checks = {check.what: check for check in doctor.examine(tmp_path / "runs" / "here")}
    assert checks["storage"].verdict is Verdict.GOOD
    assert str(tmp_path) in checks["storage"].found


def test_storage_that_cannot_be_written_is_bad(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.run(Path("/proc/quantarion"), sweep=False) == ExitCode.STORAGE
    assert "checks failed: storage" in capsys.readouterr().out


def test_a_missing_package_is_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(doctor._PACKAGES, "quantarion-no-such-package", (1, 0))
    bad = [check for check in doctor.examine(tmp_path) if check.verdict is Verdict.BAD]
    assert [(check.what, check.found) for check in bad] == [("quantarion-no-such-package", "not installed")]
    assert "pip install" in bad[0].advice


def test_an_older_package_is_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(doctor._PACKAGES, "ray", (99, 0))
    bad = [check for check in doctor.examine(tmp_path) if check.verdict is Verdict.BAD]
    assert [check.exit_code for check in bad] == [ExitCode.RAY]


def test_ep12_processes_of_a_dead_driver_are_ended_and_of_a_living_one_not(
    tmp_path: Path, child_environment: dict[str, str], stack: ExitStack
) -> None:
    dead, orphans = start_driver(tmp_path / "dead", child_environment, stack)
    _, children = start_driver(tmp_path / "alive", child_environment, stack)
    dead.kill()
    dead.wait()
    swept = sweep.orphans()
    wait_for_end(orphans)
    assert {f"ended process {pid}, left by a dead run of {tmp_path / 'dead'}" for pid in orphans} <= set(swept)
    assert all(reaper.identity(pid) is not None for pid in children)
    assert sweep.job_alive(make_job(tmp_path, "alive"))


def test_a_zombie_driver_is_dead(tmp_path: Path, child_environment: dict[str, str], stack: ExitStack) -> None:
    driver, orphans = start_driver(tmp_path / "dead", child_environment, stack)
    driver.kill()
    os.waitid(os.P_PID, driver.pid, os.WEXITED | os.WNOWAIT)  # ended, not yet reaped
    sweep.orphans()
    wait_for_end(orphans)


def test_a_later_process_with_the_drivers_pid_is_not_the_driver() -> None:
    mine = reaper.identity(os.getpid())
    assert mine is not None and reaper.is_alive(mine)
    pid, _, start = mine.partition(".")
    assert not reaper.is_alive(f"{pid}.{int(start) - 1}")
    assert not reaper.is_alive("")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_the_guardian_ends_what_a_killed_driver_leaves(
    tmp_path: Path, child_environment: dict[str, str], stack: ExitStack, how: signal.Signals
) -> None:
    folder = tmp_path / "left"
    folder.mkdir()
    (folder / "socket").write_text("")
    code = DRIVER.replace("print(", f"guardian = reaper.Guardian([Path({str(folder)!r})])\nprint(guardian.pid, ")
    driver, (guardian, *children) = start_driver(tmp_path, child_environment, stack, code)
    assert len(children) == 2
    assert guardian not in [child.pid for child in psutil.Process(driver.pid).children(recursive=True)]
    driver.send_signal(how)
    driver.wait()
    wait_for_end([*children, guardian])
    assert not folder.exists()


def test_folders_in_use_are_left_and_others_removed(stack: ExitStack) -> None:
    root = Path(f"/dev/shm/q-test-{os.getpid()}")
    stack.callback(lambda: subprocess.run(["rm", "-r", str(root)], check=True))
    bound, mapped, opened, unused, young = (root / name for name in ("bound", "mapped", "opened", "unused", "young"))
    for folder in (bound, mapped, opened, unused, young):
        folder.mkdir(parents=True)
        (folder / "page").write_bytes(b"\0" * mmap.PAGESIZE)
    listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
    listener.bind(str(bound / "agent.sock"))
    with (mapped / "page").open("r+b") as file:
        stack.enter_context(mmap.mmap(file.fileno(), 0))
    stack.enter_context((opened / "page").open())
    for folder in (bound, mapped, opened, unused):
        make_old(folder)
    assert sweep.runtime_folders([root, root / "missing"]) == [f"removed {unused}"]
    assert sorted(each.name for each in root.iterdir()) == ["bound", "mapped", "opened", "young"]


def half_written(folder: Path) -> Path:
    hidden = folder / "checkpoints" / ".tmp-step-9-gen-1.1-ab12cd34"
    hidden.mkdir(parents=True)
    (hidden / "shard-0.qins").write_text("half")
    (folder / "checkpoints" / "step-8-gen-1.1").mkdir()
    return hidden


def test_half_written_checkpoints_of_jobs_that_are_over_are_removed(tmp_path: Path) -> None:
    ended = make_job(tmp_path, "ended", address="203.0.113.7:1")
    append(ended / "control" / "journal.jsonl", {"entry": "started"}, {"entry": "ended", "exit_code": 0})
    killed = make_job(tmp_path, "killed", address="127.0.0.254:1")
    folders = [half_written(folder) for folder in (ended, killed)]
    assert len(sweep.checkpoints(tmp_path)) == 2
    assert not any(folder.exists() for folder in folders)
    assert (ended / "checkpoints" / "step-8-gen-1.1").exists()


def test_half_written_checkpoints_of_living_jobs_are_left(
    tmp_path: Path, child_environment: dict[str, str], stack: ExitStack
) -> None:
    address = stack.enter_context(served(FakeOperator(operator_pb2.StatusReply(job="answers", phase="training"))))
    answers = make_job(tmp_path, "answers", address=address)
    here = make_job(tmp_path, "here", address="127.0.0.254:1")  # its coordinator is away, its processes are not
    start_driver(here, child_environment, stack)
    folders = [make_old(half_written(folder)) for folder in (answers, here)]
    assert sweep.checkpoints(tmp_path) == []
    assert all(folder.exists() for folder in folders)


def test_a_silent_job_elsewhere_gets_time(tmp_path: Path) -> None:
    folder = make_job(tmp_path, "far")  # nobody says where its coordinator is
    hidden = half_written(folder)
    assert sweep.checkpoints(tmp_path) == []
    make_old(hidden)
    assert len(sweep.checkpoints(tmp_path)) == 1


@pytest.mark.parametrize("job", ["a", "x" * 63])
@pytest.mark.parametrize("base", ["/run", "/run/" + "long/" * 30])
def test_runtime_folders_are_short_enough_for_sockets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: str, base: str
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", base)
    folder = runtime_dir(job, tmp_path / job)
    assert len(str(folder / f"w{2**22}-01234567.page")) <= SOCKET_PATH_BYTES
    assert folder == runtime_dir(job, tmp_path / job)
    assert folder != runtime_dir(job, tmp_path / "elsewhere" / job)
