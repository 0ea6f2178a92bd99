"""One host of the lab: has torch and the data in memory, and forks the ranks of a cell in a moment.

    python -m benchmarks.links.host SOCKET INDEX FOLDER MODEL...

It does what `Hosts` (gang.py) sends: {"start": …} forks this host's ranks of a cell, {"stop": PORT} and {"go on": PORT}
stop those that have this port and let them go on, {"end": PORT} kills them.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path

import torch

from benchmarks.links import methods
from benchmarks.links.line import Line, Lost, Message
from benchmarks.links.rank import serve
from benchmarks.links.tasks import TASKS, Data


def warm_up() -> None:
    """Import now what the first rank would import otherwise, and every rank again."""
    import torch._dynamo  # noqa: F401

    for method in methods.METHODS.values():
        if method.available:
            __import__(method.module)


def fork_ranks(path: Path, cell: Message, index: int, data: dict[str, Data]) -> list[int]:
    """The pids of this host's ranks; each connects to `path` by itself and never returns here."""
    pids = []
    for local in range(int(cell["ranks"])):
        pid = os.fork()
        if pid == 0:
            try:
                serve(Line.to(path), cell, index, local, data)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(0)
        pids.append(pid)
    return pids


def tell(pids: Iterable[int], number: int) -> None:
    """This signal, to all."""
    for pid in pids:
        os.kill(pid, number)


def end(pids: Iterable[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)  # not reaped yet, so the pid is still its own
        os.waitpid(pid, 0)


def main(path: Path, index: int, folder: Path | None, models: list[str]) -> None:
    """Serve until the harness is gone."""
    torch.set_num_threads(1)
    data = {model: TASKS[model].load(folder) for model in models}
    warm_up()
    line = Line.to(path)
    line.send({"host": index, "port": 0})
    pids: dict[int, list[int]] = {}
    try:
        while True:
            message = line.receive()
            if "start" in message:
                pids[int(message["start"]["port"])] = fork_ranks(path, message["start"], index, data)
                continue
            if "end" in message:
                end(pids.pop(int(message["end"]), ()))
            elif "stop" in message:
                tell(pids[int(message["stop"])], signal.SIGSTOP)
            else:
                tell(pids[int(message["go on"])], signal.SIGCONT)
            line.send({"host": index, "done": True})
    except Lost:
        end(pid for ranks in pids.values() for pid in ranks)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]) if sys.argv[3] else None, sys.argv[4:])
