"""GM-19: where a rank stands, asked from another process, whatever it does."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from workers.page import Page
from workers.stacks import MOST_FRAMES, Asked, frames_in, look, stack_path

CHILD = """
import ctypes, sys, threading, time
from pathlib import Path
from workers.page import Page
from workers.stacks import show_on_request

folder = Path(sys.argv[1])

def sleeps():
    time.sleep(3600)

def holds_the_lock():
    while True:
        ctypes.PyDLL(None).sleep(3600)  # no other thread of this process runs meanwhile

def rank():
    show_on_request(folder, "w1", Page(folder / "w1.page", create=True))
    print("ready", flush=True)
    globals()[sys.argv[2]]()

threading.Thread(target=rank).start()
"""
SECONDS = 30.0
"""That a busy machine may need."""


@pytest.fixture
def child(tmp_path: Path, child_environment: dict[str, str]) -> Iterator[Callable[[str], Asked]]:
    """Start a process whose thread `rank` stands in the function of that name."""
    script = tmp_path / "task.py"
    script.write_text(CHILD)
    started: list[subprocess.Popen[str]] = []

    def start(function: str) -> Asked:
        command = [sys.executable, str(script), str(tmp_path), function]
        process = subprocess.Popen(command, env=child_environment, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        with closing(Page(tmp_path / "w1.page")) as page:
            return Asked(process.pid, page.thread, stack_path(tmp_path, "w1"))

    yield start
    for process in started:
        with process:
            process.kill()


def frames(asked: Asked, seconds: float = SECONDS) -> list[str]:
    return asyncio.run(look({"w1": asked}, seconds))["w1"]


def until_in(asked: Asked, function: str) -> list[str]:
    """It says that it is ready a moment before it is there."""
    for _ in range(100):
        if (found := frames(asked)) and found[0].endswith(f" {function}"):
            return found
    raise AssertionError(f"{found} is not in {function}")


@pytest.mark.parametrize("function", ["sleeps", "holds_the_lock"])
def test_gm19_a_thread_shows_where_it_stands_again_and_again(function: str, child: Callable[[str], Asked]) -> None:
    asked = child(function)
    found = until_in(asked, function)
    assert [frame.rpartition(" ")[2] for frame in found] == [function, "rank"]  # none of the library's
    assert found[0].startswith(f"{asked.path.parent}/task.py:")
    assert frames(asked) == found
    os.kill(asked.pid, 0)  # it lives


def test_gm19_a_stopped_process_shows_nothing(child: Callable[[str], Asked]) -> None:
    asked = child("sleeps")
    until_in(asked, "sleeps")
    os.kill(asked.pid, signal.SIGSTOP)
    assert frames(asked, 0.2) == []


def test_gm19_who_is_not_there_or_has_not_prepared_is_left_alone(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        for thread in (0, process.pid):
            assert frames(Asked(process.pid, thread, tmp_path / "none"), 0.2) == []
        assert process.poll() is None
        process.kill()
    assert frames(Asked(process.pid, process.pid, tmp_path / "none"), 0.2) == []


def test_gm19_frames_of_libraries_are_left_out_unless_there_are_no_others() -> None:
    library = f'  File "{os.__file__}", line 12 in walk\n  File "<frozen importlib._bootstrap>", line 3 in _load\n'
    own = '  File "/somewhere/task.py", line 40 in <lambda>\n'
    engine = f'  File "{Path(__file__).resolve().parents[2]}/workers/engine.py", line 9 in finish_exchange\n'
    assert frames_in(f"Stack (most recent call first):\n{library}{own}{engine}") == [
        "/somewhere/task.py:40 <lambda>",
        "workers/engine.py:9 finish_exchange",
    ]
    assert frames_in(library) == [f"{os.__file__}:12 walk", "<frozen importlib._bootstrap>:3 _load"]
    assert len(frames_in(own * 100)) == MOST_FRAMES
    assert frames_in("  File torn") == []
