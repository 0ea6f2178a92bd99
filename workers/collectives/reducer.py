"""The buckets of one generation on their ways over hosts and links (CC-1 to CC-6).

A bucket's way: what this rank owes is added; the ranks of the host add up a shard each in the memory they share; each
sends the pieces of its shard to their owners on other hosts, encoded; the owners add them up in float32 and send the
encoded sums back; everybody decodes the same bytes, the owner too (CC-4); the ranks of the host put the shards together.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from workers.collectives.exchange import PHASES, FlatExchange, Hosts
from workers.collectives.lanes import Lanes, Piece, lanes
from workers.collectives.shared import HostExchange
from workers.collectives.tasks import Task, Tasks, Turns, Way
from workers.compression.casts import NoneCodec
from workers.compression.codec import Codec
from workers.compression.finite import NonFiniteError
from workers.compression.gradients import GradientCompression
from workers.errors import TaskError

OUT, BACK, OUT_AGAIN, BACK_AGAIN = range(PHASES)
ON_HOST = PHASES
"""Operations in shared memory have an order for each channel of it: that of whole buckets, of P, of Q."""

CHANNELS = 3

DIRECT_ELEMENTS = 1 << 12
"""A sum of so few elements goes from everybody to everybody: one exchange and not two."""


NONE_CODEC = NoneCodec()


class Reducer:
    """Starts the sums of a step and lets them get on. Calls are in the same order on all members, in one thread.

    Args:
        exchange: over the links.
        hosts: the members that share memory, by host; one that shares none is a host of its own.
        on_host: the exchange in the memory of this member's host, None where it is alone there.
        compression: of this rank; outlives the generation.
    """

    def __init__(
        self, exchange: FlatExchange, hosts: Hosts, on_host: HostExchange | None, compression: GradientCompression
    ) -> None:
        self._exchange, self._on_host, self._compression = exchange, on_host, compression
        self._hosts = hosts
        places, mine = exchange.topology.places, exchange.topology.index
        self._remote = [place.host != places[mine].host for place in places]
        self._lanes: dict[tuple[int, int], Lanes] = {}
        self._tasks, self._turns, self._number = Tasks(), Turns(PHASES + CHANNELS), 0
        self._backward_ended: float | None = None
        self.sent_bytes = 0
        """Payload that this rank has put on links since the last `begin`."""

    def begin(self) -> None:
        """A step begins."""
        self._tasks.clear()
        self._turns, self._number, self.sent_bytes = Turns(PHASES + CHANNELS), 0, 0
        self._backward_ended = None

    def abandon(self) -> None:
        """Forget what is on its way; the next generation has another reducer."""
        self._tasks.clear()

    def progress(self) -> None:
        """Let all sums get on; called now and then while the rank computes."""
        self._tasks.progress()

    def sum_bucket(self, bucket: int, gradient: Tensor) -> Task:
        """Start to sum `gradient`, float32 [n], in place, as the plan in force has it compressed."""
        choice = self._compression.choice(bucket)
        number = self._take_number()
        if choice.codec == "powersgd":
            way = self._low_rank(number, bucket, gradient)
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

    # ------------------------------------------------------------------ ways

    def _sharded(self, number: int, bucket: int, gradient: Tensor, codec: Codec) -> Way:
        self._skip(number, OUT_AGAIN, BACK_AGAIN, ON_HOST + 1, ON_HOST + 2)
        self._compensate(bucket, gradient)
        yield from self._over_hosts(number, gradient, codec, bucket, (OUT, BACK), ON_HOST)

    def _over_hosts(
        self, number: int, values: Tensor, codec: Codec, bucket: int | None, phases: tuple[int, int], on_host: int
    ) -> Way:
        """Sum `values`, float32 [n], in place; what the codec leaves out is owed to the `bucket`, if it is one."""
        cut = self._lanes_of(len(values), codec.granularity)
        operation, local = None, values
        if self._on_host is not None:
            yield self._turns.turn(on_host, number)
            operation = self._on_host.reduce_scatter(values, cuts=cut.cuts, channel=on_host - ON_HOST)
            self._turns.over(on_host, number)
            yield _OnHost(self._on_host, lambda: operation.summed)
            local = operation.shard
        else:
            self._skip(number, on_host)
        yield from self._over_links(number, cut, local, codec, bucket, phases)
        if operation is not None:
            assert self._on_host is not None
            operation.all_gather()
            yield _OnHost(self._on_host, lambda: operation.done)

    def _over_links(
        self, number: int, cut: Lanes, local: Tensor, codec: Codec, bucket: int | None, phases: tuple[int, int]
    ) -> Way:
        """Sum `local`, this rank's shard, in place over the hosts."""
        start, lossy = cut.shard.start, codec.name != "none"
        sent, receive, send = self._encode_pieces(cut, local, codec, bucket)
        received = torch.empty(sum(receive), dtype=torch.uint8)
        yield from self._transfer(number, phases[0], received, sent, receive, send)
        inbox = _by_member(received, receive)
        payloads = []
        for piece in (piece for piece in cut.owned if piece.size and len(piece.members) > 1):
            total = local[piece.part.start - start : piece.part.stop - start]
            self._add_up(piece, inbox, codec, total, bucket)
            payloads.append((piece, self._encode_sum(piece, total, codec, bucket if lossy else None)))
        sent, send = _for_members(cut, payloads)
        receive = [sum(codec.nbytes(_length(part)) for part in parts) for parts in cut.others]
        received = torch.empty(sum(receive), dtype=torch.uint8)
        if bucket is not None:
            self._compression.encoded(bucket)
        yield from self._transfer(number, phases[1], received, sent, receive, send)
        for mail, parts in zip(_by_member(received, receive), cut.others, strict=True):
            for part in parts:
                payload, mail = _take(mail, codec.nbytes(_length(part)))
                self._decode(codec, payload, local[part.start - start : part.stop - start], bucket)

    def _low_rank(self, number: int, bucket: int, gradient: Tensor) -> Way:
        self._skip(number, ON_HOST)
        self._compensate(bucket, gradient)
        views = self._compression.views(bucket, gradient)
        begun = time.perf_counter()
        iteration = self._compression.powersgd(bucket).start(views)
        spent = time.perf_counter() - begun
        yield from self._sum(number, iteration.p, OUT, BACK, ON_HOST + 1)
        begun = time.perf_counter()
        q = iteration.middle(iteration.p)
        own = torch.empty_like(gradient)
        iteration.own(self._compression.views(bucket, own))
        self._compression.memory.settle(bucket, 0, gradient, own)
        self._compression.encoded(bucket)
        self._compression.encoded_in(bucket, len(gradient), spent + time.perf_counter() - begun)
        yield from self._sum(number, q, OUT_AGAIN, BACK_AGAIN, ON_HOST + 2)
        begun = time.perf_counter()
        iteration.finish(q, out=views)
        self._compression.decoded_in(bucket, len(gradient), time.perf_counter() - begun)

    def _exact(self, number: int, values: Tensor, largest: bool) -> Way:
        self._skip(number, OUT_AGAIN, BACK_AGAIN, ON_HOST + 1, ON_HOST + 2)
        if len(values) > DIRECT_ELEMENTS and not largest:
            yield from self._sum(number, values, OUT, BACK, ON_HOST)
            return
        self._skip(number, BACK, ON_HOST)
        world, mine = self._exchange.topology.world, self._exchange.topology.index
        if world == 1 or not len(values):
            return
        sizes = [0 if member == mine else len(values) for member in range(world)]
        received, sent = torch.empty(sum(sizes)), values.repeat(world - 1)
        begun = time.perf_counter()
        yield from self._transfer(number, OUT, received, sent, sizes, sizes)
        self._compression.answered_in(time.perf_counter() - begun)
        parts = list(received.split(len(values)))
        parts.insert(mine, values.clone())
        values.copy_(torch.stack(parts).amax(dim=0) if largest else _in_order(parts))

    def _sum(self, number: int, values: Tensor, out: int, back: int, on_host: int) -> Way:
        """Sum `values`, float32 [n], in place, as float32 and with nothing owed."""
        yield from self._over_hosts(number, values, NONE_CODEC, None, (out, back), on_host)

    # ------------------------------------------------------------------ steps of a way

    def _compensate(self, bucket: int, gradient: Tensor) -> None:
        if not self._compression.alters(bucket):
            return
        try:
            self._compression.memory.compensate(bucket, gradient)
        except NonFiniteError as error:
            self._compression.refused(error)
            gradient.zero_()

    def _encode_pieces(
        self, cut: Lanes, local: Tensor, codec: Codec, bucket: int | None
    ) -> tuple[Tensor, list[int], list[int]]:
        """This rank's payloads to the owners, one behind the other; bytes to receive from and to send to each member."""
        start = cut.shard.start
        send = [sum(codec.nbytes(_length(part)) for part in parts) for parts in cut.others]
        receive = [
            sum(codec.nbytes(piece.size) for piece in cut.owned if member != cut.index and member in piece.members)
            for member in range(cut.world)
        ]
        sent = torch.empty(sum(send), dtype=torch.uint8)
        lossy = codec.name != "none"
        decoded = local.clone() if lossy else local
        at = 0
        for member, parts in enumerate(cut.others):
            for part in parts:
                here, length = slice(part.start - start, part.stop - start), codec.nbytes(_length(part))
                key = f"{bucket} {member} {part.start}"
                payload = self._encode(codec, local[here], bucket, key, sent[at : at + length])
                if lossy:
                    self._decode(codec, payload, decoded[here], bucket)
                at += length
        if bucket is not None and self._compression.alters(bucket):
            self._compression.memory.settle(bucket, start, local, decoded)
            self._compression.memory.settle_rest(bucket, cut.shard)
        return sent, receive, send

    def _encode_sum(self, piece: Piece, total: Tensor, codec: Codec, bucket: int | None) -> Tensor:
        """The payload of the sum of a piece, which becomes what everybody decodes (CC-4)."""
        if bucket is None:
            return codec.encode(total)
        memory, start = self._compression.memory, piece.part.start
        try:
            memory.compensate_sum(bucket, start, total)
        except NonFiniteError:
            raise TaskError(
                "the sum of the ranks' gradients overflows float32, although each of them is finite: lower the learning "
                "rate, or write clip_norm: 1.0"
            ) from None
        payload = self._encode(codec, total, bucket, f"{bucket} sum {start}")
        exact = total.clone()
        self._decode(codec, payload, total, bucket)
        memory.settle_sum(bucket, start, exact, total)
        return payload

    def _add_up(self, piece: Piece, inbox: list[Tensor], codec: Codec, total: Tensor, bucket: int | None) -> None:
        """The sum of what all members of the piece have, in their order, into `total`, which holds what this one has."""
        parts: list[Tensor] = []
        for member in piece.members:
            if member == self._exchange.topology.index:
                parts.append(total.clone())
            else:
                payload, inbox[member] = _take(inbox[member], codec.nbytes(piece.size))
                parts.append(torch.empty(piece.size))
                self._decode(codec, payload, parts[-1], bucket)
        total.copy_(_in_order(parts))

    def _encode(self, codec: Codec, x: Tensor, bucket: int | None, key: str, out: Tensor | None = None) -> Tensor:
        begun = time.perf_counter()
        payload = codec.encode(x, key=key, out=out)
        if bucket is not None:
            self._compression.encoded_in(bucket, len(x), time.perf_counter() - begun)
        return payload

    def _decode(self, codec: Codec, payload: Tensor, out: Tensor, bucket: int | None) -> None:
        begun = time.perf_counter()
        codec.decode(payload, len(out), out=out)
        if bucket is not None:
            self._compression.decoded_in(bucket, len(out), time.perf_counter() - begun)

    def _transfer(
        self, number: int, phase: int, received: Tensor, sent: Tensor, receive: list[int], send: list[int]
    ) -> Way:
        """Sizes in elements of `received` and `sent`, for each member."""
        if self._exchange.topology.world == 1:
            return
        yield self._turns.turn(phase, number)
        operation = self._exchange.all_to_all(received, sent, receive, send, phase)
        self._turns.over(phase, number)
        links = sum(size for size, remote in zip(send, self._remote, strict=True) if remote) * sent.element_size()
        self.sent_bytes += links
        begun = time.perf_counter()
        yield operation
        if links:
            self._compression.transferred(links, begun, time.perf_counter())

    def _skip(self, number: int, *phases: int) -> None:
        for phase in phases:
            self._turns.over(phase, number)

    def _lanes_of(self, n: int, granularity: int) -> Lanes:
        key = n, granularity
        if key not in self._lanes:
            self._lanes[key] = lanes(n, self._hosts, self._exchange.topology.index, granularity)
        return self._lanes[key]


class _OnHost:
    """What the ranks of this host do in the memory they share; nothing there happens in the background."""

    def __init__(self, exchange: HostExchange, reached: Callable[[], bool]) -> None:
        self._exchange, self._reached = exchange, reached
        self._idle = 0

    def ready(self) -> bool:
        if not self._reached():
            self._exchange.progress()
        return self._reached()

    def block(self, seconds: float) -> None:
        self._idle += 1
        if self._idle < 50:
            os.sched_yield()
        else:
            time.sleep(min(seconds, 100e-6))


def _length(part: slice) -> int:
    return int(part.stop - part.start)


def _in_order(parts: Sequence[Tensor]) -> Tensor:
    """((part 0 + part 1) + part 2) + …, into the first one."""
    total = parts[0]
    for part in parts[1:]:
        total += part
    return total


def _by_member(received: Tensor, sizes: list[int]) -> list[Tensor]:
    return list(received.split(sizes))


def _take(mail: Tensor, size: int) -> tuple[Tensor, Tensor]:
    return mail[:size], mail[size:]


def _for_members(cut: Lanes, payloads: Sequence[tuple[Piece, Tensor]]) -> tuple[Tensor, list[int]]:
    """What goes to each member of the payloads of the pieces that are in its lanes too."""
    each = [
        [payload for piece, payload in payloads if member in piece.members and member != cut.index]
        for member in range(cut.world)
    ]
    flat = [payload for parts in each for payload in parts]
    sent = torch.cat(flat) if flat else torch.empty(0, dtype=torch.uint8)
    return sent, [sum(map(len, parts)) for parts in each]
