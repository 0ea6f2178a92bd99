"""Letters between ranks in the place of gloo, so that nothing but the test decides who gets what."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from workers.collectives.exchange import INSIDE, Done, FlatExchange, Topology, Underway


class Cut(NamedTuple):
    """What never comes: of the operations of a phase the one with this number, counted from 0 in each step."""

    phase: int
    number: int


class Post:
    """What members of one generation have sent each other and nobody has read."""

    def __init__(self) -> None:
        self._letters: dict[tuple[Cut, int, int], Tensor] = {}
        self._lock = threading.Lock()

    def put(self, operation: Cut, sender: int, receiver: int, letter: Tensor) -> None:
        with self._lock:
            self._letters[operation, sender, receiver] = letter.detach().clone()

    def take(self, operation: Cut, sender: int, receiver: int) -> Tensor | None:
        with self._lock:
            return self._letters.pop((operation, sender, receiver), None)


class Letters(Underway):
    """An operation that is done when `read` says so."""

    def __init__(self, read: Callable[[], bool]) -> None:
        self._read, self._here = read, False

    def ready(self) -> bool:
        self._here = self._here or self._read()
        return self._here

    def block(self, seconds: float) -> None:
        threading.Event().wait(min(seconds, 0.0005))


class PostalExchange(FlatExchange):
    """The operations of one member over links, which `cut` ends: it gets nothing of that one, and the
    others get on. As gloo does, it writes what it has not received yet into its operands long after they were abandoned.

    Args:
        abandoned: operands of this process's earlier operations that were never complete.
    """

    def __init__(self, topology: Topology, post: Post, abandoned: list[Tensor]) -> None:
        super().__init__(topology)
        self._post, self._abandoned = post, abandoned
        self._begun: dict[int, int] = {}
        self._missing: dict[tuple[int, int], Tensor] = {}
        self._issued: dict[int, int] = defaultdict(int)
        self.cut: Cut | None = None
        self.reached = threading.Event()

    def begin(self, cut: Cut | None) -> None:
        """A step."""
        self.cut, self._begun = cut, dict(self._issued)
        self.reached.clear()

    @property
    def operations(self) -> dict[int, int]:
        """How many this step has had so far in each phase."""
        return {phase: number - self._begun.get(phase, 0) for phase, number in self._issued.items()}

    def bury(self) -> list[Tensor]:
        """The operands of what has not come; it may still come at any time."""
        return [*self._abandoned, *self._missing.values()]

    def all_to_all(self, received: Tensor, sent: Tensor, receive: list[int], send: list[int], phase: int = 0) -> Underway:
        members = range(self.topology.world) if phase < INSIDE else self.topology.group
        letters, rooms = sent.split(send), received.split(receive)
        assert sum(send[m] for m in members) == len(sent) and sum(receive[m] for m in members) == len(received)
        return self._exchange(phase, {m: letters[m] for m in members}, {m: rooms[m] for m in members}, lambda: None)

    def all_reduce(self, buffer: Tensor, *, largest: bool = False) -> Underway | Done:
        return self._sum(buffer, range(self.topology.world), largest=largest)

    def sum_in_lane(self, buffer: Tensor) -> Underway | Done:
        return self._sum(buffer, self.topology.lane)

    def _sum(self, buffer: Tensor, members: Sequence[int], *, largest: bool = False) -> Letters:
        parts = torch.empty(len(members), len(buffer), dtype=buffer.dtype)

        def add_up() -> None:
            buffer.copy_(parts.amax(dim=0) if largest else parts.sum(dim=0))

        rooms = dict(zip(members, parts.unbind(), strict=True))
        return self._exchange(0, dict.fromkeys(members, buffer), rooms, add_up)

    def _exchange(
        self, phase: int, sent: Mapping[int, Tensor], missing: dict[int, Tensor], then: Callable[[], None]
    ) -> Letters:
        """What goes to each member, and room for what comes from each."""
        mine, post = self.topology.index, self._post
        operation = Cut(phase, self._issued[phase])
        in_step = Cut(phase, operation.number - self._begun.get(phase, 0))
        self._issued[phase] += 1
        for member, letter in sent.items():
            post.put(operation, mine, member, letter)
        serial = sum(self._issued.values())
        self._missing |= {(serial, member): room for member, room in missing.items()}

        def read() -> bool:
            for room in self._abandoned:
                room.view(torch.uint8).fill_(0xFF)  # NaN
            if in_step == self.cut:
                self.reached.set()
                return False
            for member, room in list(missing.items()):
                letter = post.take(operation, member, mine)
                if letter is not None:
                    room.copy_(letter)
                    del missing[member], self._missing[serial, member]
            if not missing:
                then()
            return not missing

        return Letters(read)
