"""CC-2 and CC-7 among real processes that share memory: stopped, continued and killed at any moment."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from workers.collectives.exchange import Abandoned, ExchangeError, Pending
from workers.collectives.shared import HostExchange, HostMemory, Layout
from workers.identity import Generation
from workers.page import Page

SIZES = (100_000, 1, 65, 20_000, 63, 0, 50_000, 4096)
LAYOUT = Layout(max(SIZES), 3, (20_000,))
IN_FLIGHT = 5
ENDLESS = 10**9
REPLY_SECONDS = 60.0

PROCESSES = get_context("forkserver")
PROCESSES.set_forkserver_preload(["torch.distributed", "numpy"])


def gradient(member: int, number: int) -> torch.Tensor:
    """What a member gives to an operation. Sums of such numbers differ with the order of the summands."""
    size = SIZES[number % len(SIZES)]
    values = np.random.default_rng(number).standard_normal(size, np.float32)
    return torch.from_numpy(np.roll(values, member) * np.float32(1.7) ** member)


def is_maximum(number: int) -> bool:
    return number % 7 == 6


def is_lent(number: int) -> bool:
    return SIZES[number % len(SIZES)] == 20_000


def expected(members: Sequence[int], number: int) -> bytes:
    """Digest of what every member must have after the operation."""
    total = gradient(members[0], number)
    for member in members[1:]:
        part = gradient(member, number)
        total = torch.maximum(total, part) if is_maximum(number) else total + part
    return digest(total)


def digest(tensor: torch.Tensor) -> bytes:
    return blake2b(tensor.numpy().tobytes(), digest_size=8).digest()


class Order(NamedTuple):
    """What a test tells a member: operations `first` to `last` of a generation with these members."""

    counter: int
    members: tuple[int, ...]
    first: int
    last: int


class Reply(NamedTuple):
    """How an order ended: done, abandoned, or failed. Digests of the operations that were finished, in their order."""

    outcome: str
    digests: list[bytes]


def memory_of(folder: Path, member: int) -> Path:
    return folder / f"{member}.memory"


def serve(folder: Path, member: int, pipe: Connection) -> None:
    """A member's process: obeys until its pipe closes. Its page counts the operations that it has begun."""
    torch.set_num_threads(1)
    memory = HostMemory(memory_of(folder, member), LAYOUT)
    page = Page(folder / f"{member}.page")
    pipe.send(None)
    while True:
        try:
            order = pipe.recv()
        except EOFError:
            return
        if order == "scribble":
            scribble(memory, page)
            pipe.send(None)
        else:
            pipe.send(obey(order, folder, member, memory, page))


def obey(order: Order, folder: Path, member: int, memory: HostMemory, page: Page) -> Reply:
    digests: list[bytes] = []
    bell = page.bell

    def stop() -> bool:
        return page.bell != bell

    def finish(pending: Pending, bucket: torch.Tensor) -> None:
        pending.wait(stop)
        digests.append(digest(bucket))

    try:
        paths = [memory_of(folder, each) for each in order.members]
        exchange = HostExchange(memory, paths, Generation(1, order.counter))
        flying: list[tuple[Pending, torch.Tensor]] = []
        for number in range(order.first, order.last + 1):
            bucket = gradient(member, number)
            while len(flying) == IN_FLIGHT or (is_lent(number) and flying):
                finish(*flying.pop(0))
            if is_lent(number):
                bucket = exchange.lend(0, stop).copy_(bucket)
            flying.append((exchange.all_reduce(bucket, largest=is_maximum(number)), bucket))
            page.set_step(number, 0.0)
        while flying:
            finish(*flying.pop(0))
    except Abandoned:
        return Reply("abandoned", digests)
    except ExchangeError as error:
        return Reply(str(error), digests)
    return Reply("done", digests)


def scribble(memory: HostMemory, page: Page) -> None:
    """Write nonsense over everything that this process can write to, until the bell rings."""
    bell, words = page.bell, list(memory.own.words)
    while page.bell == bell:
        page.count_exchange()
        for slot in memory.own.slots:
            slot[:] = 1e30
        for index in range(1, len(words)):
            memory.own.words[index] = 2**63
        time.sleep(0.001)
    for index, word in enumerate(words):
        memory.own.words[index] = word


class Gang:
    """Processes by number, and what they are told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.counter = 0
        self._pipes: dict[int, Connection] = {}
        self._processes: dict[int, Any] = {}
        self._pages: dict[int, Page] = {}

    def start(self, members: Sequence[int]) -> None:
        for member in members:
            self._pages[member] = Page(self.folder / f"{member}.page", create=True)
            self._pipes[member], theirs = PROCESSES.Pipe()
            process = PROCESSES.Process(target=serve, args=(self.folder, member, theirs), daemon=True)
            process.start()
            theirs.close()
            self._processes[member] = process
        for member in members:
            self.hear(member)

    def train(self, members: Sequence[int], first: int, last: int) -> None:
        """Order these operations of a new generation."""
        self.counter += 1
        for member in members:
            self.tell(member, Order(self.counter, tuple(members), first, last))

    def tell(self, member: int, message: Any) -> None:
        self._pipes[member].send(message)

    def hear(self, member: int) -> Any:
        assert self._pipes[member].poll(REPLY_SECONDS), f"member {member} says nothing"
        return self._pipes[member].recv()

    def ring(self, member: int) -> None:
        self._pages[member].ring()

    def signal(self, member: int, number: int) -> None:
        os.kill(self._processes[member].pid, number)
        if number == signal.SIGSTOP:
            stat = Path(f"/proc/{self._processes[member].pid}/stat")
            await_(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T")
        elif number == signal.SIGKILL:
            self._processes[member].join()

    def reached(self, members: Sequence[int], number: int) -> None:
        """Wait until each of the members has begun that operation."""
        await_(lambda: all(self._pages[member].progress().step >= number for member in members))

    def scribbled(self, member: int) -> int:
        return self._pages[member].progress().exchanges

    def end(self) -> None:
        for pipe in self._pipes.values():
            pipe.close()
        for process in self._processes.values():
            process.kill()
            process.join()


def await_(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + REPLY_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.0005)


@pytest.fixture
def gang() -> Iterator[Gang]:
    folder = Path("/dev/shm", f"quantarion-test-{os.getpid()}-{os.urandom(4).hex()}")
    folder.mkdir(mode=0o700)
    gang = Gang(folder)
    yield gang
    gang.end()
    shutil.rmtree(folder)


def check(reply: Reply, members: Sequence[int], first: int) -> None:
    """What was finished is right, to the bit."""
    for number, found in enumerate(reply.digests, first):
        assert found == expected(members, number), f"operation {number}"


@pytest.mark.parametrize("world", [2, 4])
def test_cc2_every_rank_gets_the_sum_in_rank_order(gang: Gang, world: int) -> None:
    members = list(range(world))
    gang.start(members)
    gang.train(members, 0, 159)
    for member in members:
        reply = gang.hear(member)
        assert (reply.outcome, len(reply.digests)) == ("done", 160)
        check(reply, members, 0)


def test_cc7_a_stopped_rank_is_left_behind_and_reaches_nobody_when_it_goes_on(gang: Gang) -> None:
    """Again and again; in between it is a member again."""
    draw = random.Random(3)
    members = [0, 1, 2, 3]
    gang.start(members)
    first = 0
    for _ in range(4):
        gang.train(members, first, ENDLESS)
        stopped = draw.choice(members)
        others = [member for member in members if member != stopped]
        gang.reached(members, first + draw.randrange(5, 60))
        gang.signal(stopped, signal.SIGSTOP)
        finished = []
        for member in others:
            gang.ring(member)
            reply = gang.hear(member)
            assert reply.outcome == "abandoned"
            check(reply, members, first)
            finished.append(first + len(reply.digests))
        assert max(finished) - min(finished) <= IN_FLIGHT, "nobody gets on without the stopped rank"

        gang.train(others, min(finished), ENDLESS)
        gang.reached(others, min(finished) + 5)
        gang.signal(stopped, signal.SIGCONT)
        stale = gang.hear(stopped)
        assert "has left generation" in stale.outcome
        check(stale, members, first)
        assert first + len(stale.digests) <= max(finished) + IN_FLIGHT
        gang.tell(stopped, "scribble")
        scribbled = gang.scribbled(stopped)
        await_(lambda: gang.scribbled(stopped) > scribbled + 20)  # noqa: B023 - called before the loop goes on
        gang.ring(stopped)
        gang.hear(stopped)
        after = []
        for member in others:
            gang.ring(member)
            reply = gang.hear(member)
            assert reply.outcome == "abandoned"
            assert len(reply.digests) > 0
            check(reply, others, min(finished))
            after.append(min(finished) + len(reply.digests))
        first = min(after)

    gang.train(members, first, first + 40)
    for member in members:
        reply = gang.hear(member)
        assert (reply.outcome, len(reply.digests)) == ("done", 41)
        check(reply, members, first)


def test_cc7_a_killed_rank_costs_a_generation_and_nothing_else(gang: Gang) -> None:
    """100 operations and a replacement after each kill; the survivors go on in their memory."""
    draw = random.Random(5)
    members = [0, 1, 2, 3]
    gang.start(members)
    first = 0
    for replacement in range(4, 8):
        gang.train(members, first, ENDLESS)
        victim = draw.choice(members)
        gang.reached(members, first + draw.randrange(5, 25))
        time.sleep(draw.random() * 0.002)
        gang.signal(victim, signal.SIGKILL)
        memory_of(gang.folder, victim).unlink()
        members.remove(victim)
        finished = []
        for member in members:
            gang.ring(member)
            reply = gang.hear(member)
            assert reply.outcome == "abandoned"
            check(reply, sorted([*members, victim]), first)
            finished.append(first + len(reply.digests))
        gang.train(members, min(finished), min(finished) + 9)
        for member in members:
            reply = gang.hear(member)
            assert (reply.outcome, len(reply.digests)) == ("done", 10)
            check(reply, members, min(finished))
        first = min(finished) + 10
        gang.start([replacement])
        members.append(replacement)
    gang.train(members, first, first + 100)
    for member in members:
        reply = gang.hear(member)
        assert (reply.outcome, len(reply.digests)) == ("done", 101)
        check(reply, members, first)
