"""An all-reduce that can be abandoned, over the topology of one generation.

gloo cannot abort: when a member of a ring dies only its neighbours see an error. So every operation is asynchronous and is
waited for in slices, between which the caller looks at its agent's bell (EP-7). An abandoned exchange is left to run into
its time-out in a graveyard; the next generation uses fresh groups on a fresh store prefix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from itertools import pairwise
from typing import Any, Protocol

import torch
import torch.distributed as dist

from workers.collectives.buckets import Row
from workers.collectives.ordered import Node, SumOrder, fold

SLICE_SECONDS = 0.01
"""How long a wait goes without looking at the bell."""

PHASES = 4
"""Of a bucket's way: two exchanges, each of shards to their owners and of sums to everybody. Low rank needs both; others
use the second one for half of a large message (`links.LARGE_BYTES`). Each phase has its own gloo group, as gloo matches the
operations of a group by their order, and a phase of one bucket must not wait for another's."""

INSIDE = PHASES
"""Where hosts are in several groups, `INSIDE + p` is what belongs to phase p among the members of one group. It has gloo
groups of its own, one for each group of hosts: there nobody waits for a slow link."""


class Abandoned(Exception):
    """A directive came: the operation is given up, its result is garbage."""


class ExchangeError(Exception):
    """A peer's connection broke in the middle of an operation."""


@dataclass(frozen=True)
class Place:
    """One member's seat: its number, its host, the address its sockets bind to, and the group of its host: the hosts of a
    site or a rack, between which links are faster than to those of other groups. All members of a host have the same."""

    rank: int
    host: str
    address: str
    group: str = ""


@dataclass(frozen=True)
class Topology:
    """Members in the order of the ring, by group, host and rank; `index` is ours. Hosts and groups follow from places."""

    places: tuple[Place, ...]
    index: int

    @property
    def world(self) -> int:
        return len(self.places)

    @cached_property
    def groups(self) -> Groups:
        found: dict[str, list[int]] = {}
        for member, place in enumerate(self.places):
            found.setdefault(place.group, []).append(member)
        return tuple(map(tuple, found.values()))

    @cached_property
    def group(self) -> tuple[int, ...]:
        """The members of ours, this one too."""
        return next(group for group in self.groups if self.index in group)

    @cached_property
    def hosts(self) -> Hosts:
        """By where they are, whether they share memory or not."""
        found: dict[str, list[int]] = {}
        for member, place in enumerate(self.places):
            found.setdefault(place.host, []).append(member)
        return tuple(map(tuple, found.values()))

    @cached_property
    def lane(self) -> tuple[int, ...]:
        """The members that have the shard that this one has of a bucket, one of each host. None, not even this one, where
        hosts have unequally many ranks or are in several groups: there shards overlap, or sums go by levels."""
        if len(self.groups) > 1 or len({len(members) for members in self.hosts}) > 1:
            return ()
        position = next(members.index(self.index) for members in self.hosts if self.index in members)
        return tuple(members[position] for members in self.hosts)

    def units(self, hosts: Hosts) -> Hosts | Groups:
        """Between what gradients are encoded: groups where there are several, `hosts` otherwise."""
        return self.groups if len(self.groups) > 1 else hosts


Hosts = tuple[tuple[int, ...], ...]
"""Members by host, each host's in the order of the ring."""

Groups = tuple[tuple[int, ...], ...]
"""Members by group, each group's in the order of the ring."""


class Pending(Protocol):
    """One operation in flight."""

    def wait(self, stop: Callable[[], bool]) -> None:
        """Return when it is done. Raises Abandoned as soon as `stop()`, ExchangeError when a peer is lost."""


class Exchange(Protocol):
    """The collective of one generation. Later forms differ in route and codec, not in this."""

    def all_reduce(self, buffer: torch.Tensor, *, largest: bool = False) -> Pending:
        """Start to sum `buffer` over all members in place, or to take the `largest` of each element.

        Calls are in the same order everywhere.
        """

    def sum_in_order(self, nodes: Sequence[tuple[Node, Row]], order: SumOrder, out: Row) -> Sequence[Pending]:
        """Start to add up the leaves of a step along their tree; `out` is the same bits on any number of members.

        Args:
            nodes: what this member has added up already, and `order` says that it has.

        Returns:
            An operation for each bucket, to be waited for one after the other.
        """


class Underway:
    """An operation of gloo in flight."""

    def __init__(self, work: dist.Work) -> None:
        self._work = work

    def wait(self, stop: Callable[[], bool]) -> None:
        while not self.ready():
            if stop():
                raise Abandoned
            self.block(SLICE_SECONDS)

    def ready(self) -> bool:
        """True where it is done. Raises ExchangeError where it has failed."""
        if not self._work.is_completed():
            return False
        try:
            self._work.wait()
        except RuntimeError as error:
            raise ExchangeError(str(error).split("\n")[0]) from None
        return True

    def block(self, seconds: float) -> None:
        """Return when it is done or has failed, or after `seconds`."""
        with suppress(RuntimeError):
            self._work.wait(timedelta(seconds=seconds))

    @property
    def settled(self) -> bool:
        return self._work.is_completed()


class Done:
    """A world of one has nothing to wait for."""

    def wait(self, stop: Callable[[], bool]) -> None:
        if stop():
            raise Abandoned

    def ready(self) -> bool:
        return True

    def block(self, seconds: float) -> None:
        return


class FlatExchange:
    """Gloo's collectives, in the process groups of a generation; in none for a world of one.

    Args:
        groups: of gloo over all members, one for each phase.
        inside: over the members of this one's group, one for each phase; none where nobody asks for such an exchange.
        lane: over `topology.lane`; None where that is everybody, or nobody but this member.
        alike: all members have the same `workers.compression.product.fingerprint`.
    """

    def __init__(
        self,
        topology: Topology,
        groups: Sequence[Any] = (),
        inside: Sequence[Any] = (),
        lane: Any = None,
        *,
        alike: bool = False,
    ) -> None:
        self.topology, self.alike = topology, alike
        self._groups, self._inside, self._lane = groups, inside, lane
        self._flying: list[Underway] = []

    def all_reduce(self, buffer: torch.Tensor, *, largest: bool = False) -> Underway | Done:
        if not self._groups:
            return Done()
        return self._all_reduce(self._groups[0], buffer, dist.ReduceOp.MAX if largest else dist.ReduceOp.SUM)

    def sum_in_lane(self, buffer: torch.Tensor) -> Underway | Done:
        """Start to sum `buffer` over `topology.lane` in place. Calls are in the same order on all of its members."""
        if len(self.topology.lane) == 1:
            return Done()
        return self._all_reduce(self._groups[0] if self._lane is None else self._lane, buffer, dist.ReduceOp.SUM)

    def sum_in_order(self, nodes: Sequence[tuple[Node, Row]], order: SumOrder, out: Row) -> Sequence[Pending]:
        mine = [[(node, row.buckets[index]) for node, row in nodes] for index in range(len(out.buckets))]
        if not self._groups:
            for target, whole in zip(out.buckets, mine, strict=True):
                target.copy_(fold(whole))
            return [Done()]
        found = [_InOrder(self, target, part, order) for target, part in zip(out.buckets, mine, strict=True)]
        for bucket, following in pairwise(found):
            bucket.following = following
        return found

    def all_to_all(
        self, received: torch.Tensor, sent: torch.Tensor, receive: list[int], send: list[int], phase: int = 0
    ) -> Underway:
        """Start to send `send[m]` elements of `sent` to member m, one member's behind the other's, and to receive
        `receive[m]` of them; from `INSIDE` on among the members of this one's group, the others' sizes are 0."""
        options = dist.AllToAllOptions()
        if phase < INSIDE:
            return self._start(lambda: self._groups[phase].alltoall_base(received, sent, receive, send, options))
        here, there = ([sizes[member] for member in self.topology.group] for sizes in (receive, send))
        return self._start(lambda: self._inside[phase - INSIDE].alltoall_base(received, sent, here, there, options))

    def all_gather(self, gathered: torch.Tensor, mine: torch.Tensor) -> Underway:
        """Start to put everybody's `mine`, of one length, one behind the other."""
        return self._start(lambda: self._groups[0]._allgather_base(gathered, mine))

    def _all_reduce(self, group: Any, buffer: torch.Tensor, operation: dist.ReduceOp.RedOpType) -> Underway:
        options: Any = dist.AllreduceOptions()  # its type stub wants another type
        options.reduceOp = operation
        return self._start(lambda: group.allreduce([buffer], options))

    def _start(self, operation: Callable[[], dist.Work]) -> Underway:
        try:
            pending = Underway(operation())
        except RuntimeError as error:
            raise ExchangeError(str(error).split("\n")[0]) from None
        self._flying = [p for p in self._flying if not p.settled]
        self._flying.append(pending)
        return pending

    @property
    def settled(self) -> bool:
        """True once no operation can write to its operand any more."""
        return all(p.settled for p in self._flying)


class _InOrder:
    """One bucket on its way: every member adds up a shard of everybody's subtrees, and gives the sum to all."""

    def __init__(
        self, exchange: FlatExchange, target: torch.Tensor, mine: Sequence[tuple[Node, torch.Tensor]], order: SumOrder
    ) -> None:
        self._exchange, self._target = exchange, target
        self.following: _InOrder | None = None
        world = exchange.topology.world
        nodes = [order.nodes(member) for member in range(world)]
        self._nodes = [node for each in nodes for node in each]
        self._shard = -(-len(target) // world)
        sizes = [len(each) * self._shard for each in nodes]
        self._received = torch.empty(sum(sizes))
        sent = _by_shard([tensor for _, tensor in mine], world, self._shard)
        self._parts = exchange.all_to_all(self._received, sent, sizes, [len(mine) * self._shard] * world)
        fits = len(target) == world * self._shard
        self._gathered = target if fits else torch.empty(world * self._shard)
        self._sums: Pending | None = None

    def wait(self, stop: Callable[[], bool]) -> None:
        """The next bucket is added up while the sums of this one are still on their way."""
        sums = self._add_up(stop)
        if self.following is not None:
            self.following._add_up(stop)
        sums.wait(stop)
        if self._gathered is not self._target:
            self._target.copy_(self._gathered[: len(self._target)])

    def _add_up(self, stop: Callable[[], bool]) -> Pending:
        if self._sums is None:
            self._parts.wait(stop)
            total = fold(zip(self._nodes, self._received.split(self._shard), strict=True))
            self._sums = self._exchange.all_gather(self._gathered, total)
        return self._sums


def _by_shard(tensors: Sequence[torch.Tensor], world: int, shard: int) -> torch.Tensor:
    """float32 [world, len(tensors), shard], flat: each member's shard of every tensor [n]; with zeros behind the last."""
    if len(tensors) == 1 and len(tensors[0]) == world * shard:
        return tensors[0]
    sent = torch.zeros(world, len(tensors), shard)
    for index, tensor in enumerate(tensors):
        whole, rest = divmod(len(tensor), shard)
        sent[:whole, index] = tensor[: whole * shard].view(whole, shard)
        if rest:
            sent[whole, index, :rest] = tensor[whole * shard :]
    return sent.flatten()


class Graveyard:
    """Keeps abandoned exchanges until their operations have run out: destroying a busy group blocks."""

    def __init__(self) -> None:
        self._dead: list[FlatExchange] = []

    def bury(self, exchange: FlatExchange) -> None:
        self._dead = [e for e in self._dead if not e.settled]
        if not exchange.settled:
            self._dead.append(exchange)

    def __len__(self) -> int:
        return len(self._dead)
