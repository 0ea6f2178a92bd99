"""The harness's side of a cell: starts its ranks on the hosts of a lab, tells all of them the same, and ends them."""

from __future__ import annotations

import contextlib
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from multiprocessing.connection import wait
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.lab import Lab, Traffic
from benchmarks.links.line import Line, Lost, Message

START_SECONDS = 120.0
ANSWER_SECONDS = 400.0
FIRST_PORT, NUM_PORTS = 20_000, 10_000


class CellFailed(Exception):
    """A rank raised, ended or hung; one line."""


class Hosts:
    """The hosts of a lab, each with a process that has the data in memory and forks ranks. Ended with the lab."""

    def __init__(self, lab: Lab, folder: Path, models: Sequence[str], data: Path | None) -> None:
        self.lab = lab
        self._path, self._cells = folder / "line", 0
        self._stack = ExitStack()
        self._listener = self._stack.enter_context(socket.socket(socket.AF_UNIX))
        self._listener.bind(str(self._path))
        self._listener.listen(256)
        self.log = self._stack.enter_context((folder / "output.log").open("ab"))
        command = [sys.executable, "-m", "benchmarks.links.host", str(self._path)]
        for host in lab.hosts:
            words = [*command, str(host.index), "" if data is None else str(data.absolute()), *models]
            host.popen(words, env={"TORCH_CPP_LOG_LEVEL": "ERROR"}, stdout=self.log, stderr=self.log)
        found = sorted(self._accept(len(lab.hosts), 0), key=lambda pair: int(pair[0]["host"]))
        self._lines = [line for _, line in found]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for line in self._lines:
            line.close()
        self._stack.close()

    def start(self, hosts: int, ranks: int, cell: Message) -> Gang:
        """Fork `ranks` ranks on each of the first `hosts` hosts, beside other gangs. Raises CellFailed."""
        port = FIRST_PORT + self._cells % NUM_PORTS
        self._cells += 1
        place = {"hosts": hosts, "ranks": ranks, "address": self.lab.hosts[0].address, "port": port}
        lines = self._lines[:hosts]
        for line in lines:
            line.send({"start": cell | place})
        try:
            greeted = sorted(self._accept(hosts * ranks, port), key=lambda pair: int(pair[0]["rank"]))
            gang = Gang([line for _, line in greeted], ranks, lines, port)
            gang.answers()
        except BaseException:
            _end(lines, port)
            raise
        return gang

    def traffic(self, hosts: int) -> list[Traffic]:
        """Of the first `hosts` cables."""
        return self.lab.traffic()[:hosts]

    def _accept(self, count: int, port: int) -> list[tuple[Message, Line]]:
        """Each connection that comes, with its first word; what a cell with another port has left does not count."""
        deadline = time.monotonic() + START_SECONDS
        found: list[tuple[Message, Line]] = []
        while len(found) < count:
            self._listener.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                line = Line(self._listener.accept()[0])
            except TimeoutError as error:
                raise CellFailed(f"{len(found)} of {count} processes came up") from error
            with contextlib.suppress(Lost):
                greeting = line.receive(START_SECONDS)
                if greeting["port"] == port:
                    found.append((greeting, line))
        return found


class Gang:
    """The ranks of one cell, in rank order; a context that ends them."""

    def __init__(self, ranks: list[Line], ranks_per_host: int, hosts: list[Line], port: int) -> None:
        self._ranks, self._ranks_per_host, self._hosts, self._port = ranks, ranks_per_host, hosts, port

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for line in self._ranks:
            line.close()
        _end(self._hosts, self._port)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """A gang that is stopped goes on for as long as this. Where ranks wait only, gloo's threads still wake up a hundred
        times a second each, and many gangs together would take a processor."""
        _tell(self._hosts, {"go on": self._port})
        try:
            yield
        finally:
            self.stop()

    def stop(self) -> None:
        """SIGSTOP to its ranks."""
        _tell(self._hosts, {"stop": self._port})

    def ask(self, message: Message) -> list[Message]:
        """Tell all ranks, and wait for all. Raises CellFailed as soon as one has an error, is gone, or is silent."""
        for line in self._ranks:
            self._tell(line, message)
        return self.answers()

    def ask_one(self, message: Message) -> Message:
        """Tell rank 0 only."""
        self._tell(self._ranks[0], message)
        return self._answer(self._ranks[0])

    def answers(self) -> list[Message]:
        """One of each rank, whichever comes first."""
        found: dict[int, Message] = {}
        waiting = {line.socket: rank for rank, line in enumerate(self._ranks)}
        deadline = time.monotonic() + ANSWER_SECONDS
        while waiting:
            ready = wait(list(waiting), timeout=max(0.0, deadline - time.monotonic()))
            if not ready:
                silent = ", ".join(map(str, sorted(waiting.values())))
                raise CellFailed(f"ranks {silent} said nothing for {ANSWER_SECONDS:g} s")
            for each in ready:
                rank = waiting.pop(each)  # type: ignore[arg-type]
                found[rank] = self._answer(self._ranks[rank])
        return [found[rank] for rank in range(len(self._ranks))]

    def by_host(self, values: Sequence[Any]) -> list[list[Any]]:
        """Of one value per rank: those of each host."""
        step = self._ranks_per_host
        return [list(values[first : first + step]) for first in range(0, len(values), step)]

    def _tell(self, line: Line, message: Message) -> None:
        try:
            line.send(message)
        except Lost as error:
            raise CellFailed(f"rank {self._ranks.index(line)}: {error}") from error

    def _answer(self, line: Line) -> Message:
        try:
            answer = line.receive(ANSWER_SECONDS)
        except Lost as error:
            raise CellFailed(f"rank {self._ranks.index(line)}: {error}") from error
        if "error" in answer:
            raise CellFailed(f"rank {self._ranks.index(line)}: {answer['error']}")
        return answer


def _end(hosts: Sequence[Line], port: int) -> None:
    """Kill a gang's ranks on these hosts, and wait until they are gone. Raises CellFailed where a host is gone itself."""
    _tell(hosts, {"end": port})


def _tell(hosts: Sequence[Line], message: Message) -> None:
    """All of them, and wait until they have done it. Raises CellFailed where one is gone."""
    try:
        for line in hosts:
            line.send(message)
        for line in hosts:
            line.receive(START_SECONDS)
    except Lost as error:
        raise CellFailed(f"a host is gone: {error}") from error
