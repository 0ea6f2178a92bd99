"""The buckets of one generation on their ways over hosts and links (CC-1 to CC-6).

A bucket's way: what this rank owes is added, to its shard only when the host has summed it; the ranks of the host add up a
shard each, in the memory they share or on their devices; each sends the pieces of its shard to their owners on other hosts,
encoded; the owners add them up in float32 and send the encoded sums back; everybody decodes the same bytes, the owner too
(CC-4); the ranks of the host put the shards together. With several groups of hosts, this is between groups, and
`LinkExchange` has a level more. Where all hosts have as many ranks, gradients under `none` and `bf16-ring` go by gloo's own
ring instead, one for each shard.

Nobody waits in a circle: all members take a way through its phases in the same order, those inside a group around those
between groups; in each it waits for the ways before it, never for one behind it, and for nothing of other members but the
same phase of itself.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

from workers.coherence.reduce_check import NOBODY, Piece
from workers.collectives.exchange import INSIDE, PHASES, FlatExchange, Hosts
from workers.collectives.left_out import OVERFLOW, UNTOUCHED, Collected, LeftOut, Owed
from workers.collectives.levels import Levels, levels
from workers.collectives.links import NONE_CODEC, LinkExchange
from workers.collectives.on_host import OnHost
from workers.collectives.shared import Patience
from workers.collectives.tasks import BRIEFLY_SECONDS, Task, Tasks, Turns, Way
from workers.compression.codec import Codec
from workers.compression.finite import NonFiniteError, is_finite
from workers.compression.gradients import GradientCompression
from workers.errors import TaskError

OUT, BACK, OUT_AGAIN, BACK_AGAIN = range(PHASES)
ON_HOST = INSIDE + PHASES
"""Operations in shared memory have an order for each channel of it: that of whole buckets, of P, of Q."""

CHANNELS = 3

YIELDS = 5
"""Of a wait for others on this host, during which all other ways are looked at each time."""

DIRECT_ELEMENTS = 1 << 12
"""A sum of so few elements goes from everybody to everybody: one exchange and not two."""


class Reducer:
    """Starts the sums of a step and lets them get on. Calls are in the same order on all members, in one thread.

    Args:
        exchange: over the links.
        hosts: the members that share memory, by host; one that shares none is a host of its own.
        on_host: the exchange among the members of this one's host, None where it is alone there.
        compression: of this rank; outlives the generation.
        nan_tells: where a gradient that is altered goes by gloo's ring and is not finite, its sum is NaN on all members,
            and `spoilt` says so, instead of zeros being added. Nobody has to be told of it otherwise.
    """

    def __init__(
        self,
        exchange: FlatExchange,
        hosts: Hosts,
        on_host: OnHost | None,
        compression: GradientCompression,
        *,
        nan_tells: bool = False,
    ) -> None:
        self._exchange, self._on_host, self._compression = exchange, on_host, compression
        self._hosts, self._nan_tells = hosts, nan_tells
        self.spoilt: set[int] = set()
        """Buckets whose sums in this step are not finite, the same on all members; only with `nan_tells`."""
        rings = hosts == exchange.topology.hosts
        self._links = LinkExchange(exchange, compression, rings=rings, in_place=on_host is None)
        self._levels: dict[tuple[int, int], Levels] = {}
        if compression.controller is not None:
            compression.controller.alike = exchange.alike
        self.one_level = len(hosts) == exchange.topology.world and len(exchange.topology.groups) == 1
        self._tasks, self._turns, self._number = Tasks(), Turns(0), 0
        self._low_rank_before = False
        self._backward_ended: float | None = None

    def begin(self) -> None:
        """A step begins."""
        self._tasks.clear()
        self.spoilt.clear()
        self._turns = Turns(ON_HOST + CHANNELS)
        self._links.begin(self._turns)
        self._number, self._backward_ended, self._low_rank_before = 0, None, False

    @property
    def sent_bytes(self) -> int:
        """What this rank has put on links to other hosts since the last `begin`: payloads and gloo's frames."""
        return self._links.sent_bytes

    def abandon(self) -> None:
        """Forget what is on its way; the next generation has another reducer."""
        self._tasks.clear()

    def progress(self) -> bool:
        """Let all sums get on; called now and then while the rank computes. True where something was done."""
        return self._tasks.progress()

    def sum_bucket(self, bucket: int, gradient: Tensor) -> Task:
        """Start to sum `gradient`, float32 [n], in place, as the plan in force has it compressed."""
        choice = self._compression.choice(bucket)
        number = self._take_number()
        if choice.is_low_rank:
            self._low_rank_before = True
            way = self._low_rank(number, bucket, gradient, self._compression.codec(choice))
        else:
            way = self._sharded(number, bucket, gradient, self._compression.codec(choice))
        return self._tasks.start(self._timed(bucket, way))

    def backward_ended(self) -> None:
        """What is exchanged from here on is not hidden any more."""
        self._backward_ended = time.perf_counter()

    def _timed(self, bucket: int, way: Way) -> Way:
        begun = time.perf_counter()
        yield from way
        ended = time.perf_counter()
        self._compression.summed_in(bucket, ended - begun, (self._backward_ended or ended) - begun)

    def sum_exactly(self, values: Tensor, *, largest: bool = False) -> Task:
        """Start to sum `values`, float32 [n], in place, uncompressed, or to take the `largest` of each element."""
        number = self._take_number()
        return self._tasks.start(self._exact(number, values, largest))

    def _take_number(self) -> int:
        self._number += 1
        return self._number - 1

    def goes_in_ring(self, bucket: int) -> bool:
        """Whether its sum is gloo's own all-reduce, as the plan in force has it compressed."""
        choice = self._compression.choice(bucket)
        if not self.one_level or choice.is_low_rank:
            return False
        codec = self._compression.codec(choice)
        return codec.name == "none" or (codec.sums_in is not None and self._exchange.topology.world > 1)

    def miscount(self) -> None:
        """For drills: the next sum that is made here for others is wrong."""
        self._links.miscounts = True

    @property
    def members(self) -> int:
        """Who exchanges."""
        return self._exchange.topology.world

    def pieces(self, bucket: int) -> list[Piece]:
        """Who adds up which elements of a bucket, as the plan in force has it compressed; none where sums are rounded on
        their way, which nobody is owed."""
        n, choice = self._compression.plan.gradient_sizes[bucket], self._compression.choice(bucket)
        codec = self._compression.codec(choice)
        if codec.sums_in is not None:
            return []
        if choice.is_low_rank or self.goes_in_ring(bucket) or self._links.adds_up_in_ring(codec):
            return [(0, n, NOBODY)]
        lanes = self._levels_of(n, codec.granularity).between.lanes
        owned = ((part, owner) for lane in lanes for part, owner in zip(lane.pieces, lane.members, strict=True))
        return [(part.start, part.stop, owner) for part, owner in owned if part.start < part.stop]

    # ------------------------------------------------------------------ ways

    def _sharded(self, number: int, bucket: int, gradient: Tensor, codec: Codec) -> Way:
        self._skip(number, ON_HOST + 1, ON_HOST + 2)
        exact, memory = codec.name == "none", self._compression.memory
        if exact and self._compression.alters(bucket):
            memory.settle_all(bucket)
        cut = self._levels_of(gradient.numel(), codec.granularity)
        in_ring = self.goes_in_ring(bucket)
        refused = math.nan if in_ring and self._nan_tells else 0.0
        self._compensate(bucket, gradient, cut.between.shard if self._in_shards(cut) else None, refused=refused)
        if exact:
            self._compression.encoded(bucket)
        if in_ring:
            self._skip(number, INSIDE + OUT, BACK, OUT_AGAIN, BACK_AGAIN, ON_HOST)
            if codec.sums_in is None:
                yield from self._links.sum_in_ring(number, gradient, OUT)
            else:
                yield from self._encoded_in_ring(number, bucket, gradient, codec, codec.sums_in)
            if self._compression.alters(bucket) and not is_finite(gradient):
                self._not_finite(bucket)
        else:
            self._spread(number, cut, codec)
            owed = Owed(self._compression, bucket)
            yield from self._over_hosts(number, gradient, codec, (OUT, BACK), ON_HOST, owed)

    def _encoded_in_ring(self, number: int, bucket: int, gradient: Tensor, codec: Codec, dtype: torch.dtype) -> Way:
        """What ranks have encoded is added up, and rounded, as it is."""
        compression, n = self._compression, gradient.numel()
        begun = time.perf_counter()
        payload = codec.encode(gradient)
        between = time.perf_counter()
        draft = codec.decode(payload, n, out=compression.memory.draft(bucket))
        compression.decoded_in(bucket, n, time.perf_counter() - between)
        torch.sub(gradient, draft, out=draft)
        compression.encoded(bucket)
        compression.encoded_in(bucket, n, between - begun)
        yield from self._links.sum_in_ring(number, payload.view(dtype), OUT)
        begun = time.perf_counter()
        codec.decode(payload, n, out=gradient)
        compression.decoded_in(bucket, n, time.perf_counter() - begun)

    def _low_rank(self, number: int, bucket: int, gradient: Tensor, codec: Codec) -> Way:
        """`codec`: of P and Q."""
        self._skip(number, ON_HOST)
        self._compensate(bucket, gradient)
        views = self._compression.views(bucket, gradient)
        begun = time.perf_counter()
        iteration = self._compression.powersgd(bucket).start(views, alike=self._exchange.alike)
        spent = time.perf_counter() - begun
        left_p = torch.zeros_like(iteration.p)
        yield from self._over_hosts(number, iteration.p, codec, (OUT, BACK), ON_HOST + 1, Collected(left_p))
        begun = time.perf_counter()
        q = iteration.middle(iteration.p)
        spent += time.perf_counter() - begun
        left_q = torch.zeros_like(q)

        def settle() -> None:
            begun = time.perf_counter()
            draft = self._compression.memory.draft(bucket)
            iteration.rest(left_p, left_q, self._compression.views(bucket, draft))
            self._compression.encoded(bucket)
            self._compression.encoded_in(bucket, gradient.numel(), spent + time.perf_counter() - begun)

        yield from self._over_hosts(number, q, codec, (OUT_AGAIN, BACK_AGAIN), ON_HOST + 2, Collected(left_q, settle))
        begun = time.perf_counter()
        iteration.finish(q, out=views)
        self._compression.decoded_in(bucket, gradient.numel(), time.perf_counter() - begun)

    def _exact(self, number: int, values: Tensor, largest: bool) -> Way:
        self._skip(number, ON_HOST + 1, ON_HOST + 2)
        if values.numel() > DIRECT_ELEMENTS and not largest:
            self._spread(number, self._levels_of(values.numel(), NONE_CODEC.granularity), NONE_CODEC)
            yield from self._over_hosts(number, values, NONE_CODEC, (OUT, BACK), ON_HOST, UNTOUCHED)
        else:
            self._skip(number, INSIDE + OUT, BACK, OUT_AGAIN, BACK_AGAIN, ON_HOST)
            yield from self._links.sum_directly(number, values, OUT, largest=largest)

    def _over_hosts(
        self, number: int, values: Tensor, codec: Codec, phases: tuple[int, int], on_host: int, left_out: LeftOut
    ) -> Way:
        """Sum `values`, float32 [n], in place; `left_out` gets what the codec leaves out."""
        cut = self._levels_of(values.numel(), codec.granularity)
        operation, local = None, values
        if self._on_host is not None:
            yield self._turns.turn(on_host, number)
            operation = self._on_host.reduce_scatter(values, cuts=cut.cuts, channel=on_host - ON_HOST)
            self._turns.over(on_host, number)
            yield _OnHost(self._on_host, lambda: operation.summed)
            local = operation.shard
            if self._in_shards(cut):
                left_out.compensate_shard(cut.between.shard.start, local)
        else:
            self._skip(number, on_host)
        yield from self._links.sum_shard(number, cut, local, codec, phases, left_out)
        if operation is not None:
            assert self._on_host is not None
            operation.all_gather()
            yield _OnHost(self._on_host, lambda: operation.done)

    # ------------------------------------------------------------------ steps of a way

    def _in_shards(self, cut: Levels) -> bool:
        """Whether what this rank owes to its shard is added to the sum of its host, and not to its own gradient."""
        return self._on_host is not None and not cut.between.alone

    def _compensate(self, bucket: int, gradient: Tensor, apart: slice | None = None, *, refused: float = 0.0) -> None:
        """A gradient that is not finite becomes `refused`."""
        if not self._compression.alters(bucket):
            return
        try:
            self._compression.memory.compensate(bucket, gradient, apart=apart)
        except NonFiniteError as error:
            self._compression.refused(error)
            gradient.fill_(refused)

    def _not_finite(self, bucket: int) -> None:
        """The sum of a bucket."""
        if not self._nan_tells:
            raise TaskError(OVERFLOW)
        self.spoilt.add(bucket)

    def _skip(self, number: int, *phases: int) -> None:
        """A phase that is left out between groups is so inside of them."""
        for phase in phases:
            self._turns.over(phase, number)
            if phase < PHASES:
                self._turns.over(INSIDE + phase, number)

    def _spread(self, number: int, cut: Levels, codec: Codec) -> None:
        """Over the phases of the second pair too, where that is worth it, and no turn there has to be waited for."""
        if self._low_rank_before or not self._links.go_both_ways(number, cut, codec):
            self._skip(number, OUT_AGAIN, BACK_AGAIN)

    def _levels_of(self, n: int, granularity: int) -> Levels:
        key = n, granularity
        if key not in self._levels:
            topology = self._exchange.topology
            self._levels[key] = levels(n, self._hosts, topology.groups, topology.index, granularity)
        return self._levels[key]


class _OnHost:
    """What the ranks of this host do in the memory they share; nothing there happens in the background."""

    def __init__(self, exchange: OnHost, reached: Callable[[], bool]) -> None:
        self._exchange, self._reached = exchange, reached
        self._patience = Patience(YIELDS)

    def ready(self) -> bool:
        if not self._reached():
            self._exchange.progress()
        return self._reached()

    def block(self, seconds: float) -> None:
        self._patience.pause(min(seconds, BRIEFLY_SECONDS))
