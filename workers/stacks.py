"""Where a rank stands, asked by its agent with a signal and answered without the help of what the rank is doing (GM-19).

The handler is `faulthandler`'s: it needs no interpreter lock, and it runs in the very thread that is asked about, so that
it reads nobody else's frames. A stopped process does not answer.
"""

from __future__ import annotations

import asyncio
import ctypes
import faulthandler
import re
import signal
import sysconfig
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from workers.page import Page

ASK = signal.SIGURG
"""A process that has not prepared for it ignores it."""

SECONDS = 0.7
"""In which a thread that is awake has answered, on a busy machine too."""

LOOK_SECONDS = 0.04
MOST_FRAMES = 8

_FRAME = re.compile(r'^  File "(?P<file>.*)", line (?P<line>\d+) in (?P<function>.*)$', re.MULTILINE)
_ROOT = f"{Path(__file__).resolve().parent.parent}/"
_LIBRARIES = tuple(f"{sysconfig.get_path(name)}/" for name in ("stdlib", "platstdlib", "purelib", "platlib"))


def stack_path(folder: Path, worker: str) -> Path:
    """Where a worker's thread writes its stack, on its host."""
    return folder / f"{worker}.stack"


def show_on_request(folder: Path, worker: str, page: Page) -> None:
    """From now on the calling thread, and no other, answers. Where the file cannot be made, it does not."""
    with suppress(OSError):
        # The file stays open, and with it its descriptor, for as long as the handler is there.
        faulthandler.register(ASK, stack_path(folder, worker).open("ab"), all_threads=False, chain=False)
        page.set_thread(threading.get_native_id())


@dataclass(frozen=True)
class Asked:
    """A thread of another process, 0 where it does not answer, and the file that it answers in."""

    pid: int
    thread: int
    path: Path


async def look(asked: Mapping[str, Asked], seconds: float = SECONDS) -> dict[str, list[str]]:
    """The frames of each thread, as `frames_in` gives them; empty for those that do not answer within `seconds`."""
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    before = {name: _size(each.path) for name, each in asked.items()}
    sizes = before.copy()
    silent = {name for name, each in asked.items() if _interrupt(each)}
    while silent and loop.time() < until:
        await asyncio.sleep(LOOK_SECONDS)
        for name in list(silent):
            size = _size(asked[name].path)
            if before[name] < size == sizes[name]:  # an answer comes in many small pieces
                silent.remove(name)
            sizes[name] = size
    return {name: frames_in(_read(each.path, before[name])) for name, each in asked.items()}


def frames_in(text: str) -> list[str]:
    """`file:line function` of the frames that are not in libraries, or of all where each is; the innermost first."""
    frames = [(each["file"], each["line"], each["function"]) for each in _FRAME.finditer(text)]
    own = [frame for frame in frames if not _is_library(frame[0])]
    return [f"{file.removeprefix(_ROOT)}:{line} {function}" for file, line, function in (own or frames)[:MOST_FRAMES]]


def _is_library(file: str) -> bool:
    return file.startswith(("<", *_LIBRARIES)) and not file.startswith(f"{_ROOT}workers/")


def _interrupt(asked: Asked) -> bool:
    """Send the signal to that thread alone; False where there is none, or nobody knows how."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not asked.thread or not hasattr(libc, "tgkill"):
        return False
    return bool(libc.tgkill(asked.pid, asked.thread, int(ASK)) == 0)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _read(path: Path, offset: int) -> str:
    try:
        return path.read_bytes()[offset:].decode(errors="replace")
    except OSError:
        return ""
