"""A shard on its way between hosts: pieces to their owners, added up, and the sums back to all (CC-1 to CC-4).

Where hosts are in several groups, float32 as it is goes to the owners among the hosts of a group; what they add up goes the
same way between groups, encoded; and the sums go back among the hosts of each group, as they are: groups have decoded the
same bytes. What is slow, the links between groups, thus carries what one host would send, however many a group has.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from workers.collectives.exchange import INSIDE, FlatExchange
from workers.collectives.lanes import Lanes, Piece
from workers.collectives.left_out import UNTOUCHED, LeftOut, check_overflow
from workers.collectives.levels import Levels
from workers.collectives.tasks import Turns, Way
from workers.compression.bucketed import Encoded
from workers.compression.casts import NoneCodec
from workers.compression.codec import Codec
from workers.compression.gradients import GradientCompression
from workers.compression.shards import goes_directly

FRAME_BYTES = 144
"""What gloo puts on a link for each message of an all-to-all beside its content, an empty one too: sender and receiver say
that they are ready, and the message has a head. Only where little is sent, as with low rank, it is anything at all."""

NONE_CODEC = NoneCodec()

OUT = 0
"""Phases are in pairs, out and back."""

AGAIN = 2
"""The second pair, after so many phases."""

LARGE_BYTES = 1 << 18
"""From a lane of so many on, what goes to members before this one and what goes to those behind it are two operations.

A member of gloo's says that it is ready to receive only behind all that it is sending to the same peer. So of two that send
each other one large message, one begins when the other has ended, and links that carry as much each way at the same time
stand half idle. As two operations, in process groups of their own, the messages have connections of their own."""


def _nothing_more() -> None:
    return


class _Leg(NamedTuple):
    """Bytes that went over links, and when, in seconds of `time.perf_counter`."""

    nbytes: int
    begun: float
    ended: float


class LinkExchange:
    """Over the links of one generation. A way has a `number`, which decides when its turn comes in a phase.

    Args:
        exchange: whose operations carry it.
        compression: of this rank.
        rings: whether what members of a lane hold, `Topology.lane`, are the shards of buckets: it is so where all ranks of
            each host share memory.
        in_place: whether operations may write into the shards themselves. An abandoned one may do so at any later time
            (EP-7), so not where that is memory which outlives the generation.
    """

    def __init__(self, exchange: FlatExchange, compression: GradientCompression, *, rings: bool, in_place: bool) -> None:
        self._exchange, self._compression, self._in_place = exchange, compression, in_place
        topology = exchange.topology
        self._rings = rings and bool(topology.lane)
        places, mine = topology.places, topology.places[topology.index]
        self._everybody = range(topology.world)
        self._leaves = [place.host != mine.host for place in places]
        self._crosses = self._leaves if len(topology.groups) == 1 else [place.group != mine.group for place in places]
        """Of each member: what goes to it leaves this host; it takes a link that gradients are encoded for."""
        self._index = topology.index
        self.miscounts = False
        """For drills: the next sum that this member makes for others is wrong."""
        self.begin(Turns(0))

    def begin(self, turns: Turns) -> None:
        """A step begins, whose ways take their turns by these."""
        self.turns = turns
        self.sent_bytes = 0
        """What this rank has put on links to other hosts: payloads, and gloo's frames."""
        self._out: dict[tuple[int, int], _Leg] = {}
        self._both_ways: set[int] = set()

    def go_both_ways(self, number: int, levels: Levels, codec: Codec) -> bool:
        """Let this way take the phases of the second pair too, where what it sends is large: all members do so alike.
        Returns whether it does."""
        if levels.between.alone or self.adds_up_in_ring(codec) or codec.nbytes(levels.between.longest) < LARGE_BYTES:
            return False
        self._both_ways.add(number)
        return True

    def sum_shard(
        self, number: int, levels: Levels, local: Tensor, codec: Codec, phases: tuple[int, int], left_out: LeftOut
    ) -> Way:
        """Sum `local`, float32, this rank's shard, in place; `left_out` gets what the codec leaves out.

        Which way it is depends on the bucket alone, so all members take the same, those too that have no shard of it; and
        in a group all of its members do.
        """
        between = levels.between
        if between.alone:
            return self._nothing(number, phases, left_out)
        if codec.name != "none" and left_out.is_thin and _is_small(between, codec):
            way = self._directly(number, between, local, codec, phases, left_out)
        elif self.adds_up_in_ring(codec) and not left_out.is_thin:
            way = self._in_lane(number, between, local, codec, phases, left_out)
        elif codec.name != "none":
            way = self._encoded(number, between, local, codec, phases, left_out)
        else:
            way = self._plain(number, between, local, phases, left_out)
        return way if levels.inside is None else self._in_group(number, levels.inside, local, way, phases)

    def sum_directly(self, number: int, values: Tensor, phase: int, *, largest: bool) -> Way:
        """Everybody sends `values`, float32 [n], to everybody: one exchange for what is small."""
        world = self._exchange.topology.world
        if world == 1 or not values.numel():
            return
        sizes = [values.numel()] * world
        received, sent = torch.empty(sum(sizes)), values.repeat(world)
        begun = time.perf_counter()
        yield from self._transfer(number, phase, received, sent, sizes, sizes, answered=False)
        self._compression.answered_in(time.perf_counter() - begun)
        parts = received.view(world, -1)
        values.copy_(parts.amax(dim=0) if largest else _in_order(parts.unbind()))

    def sum_in_ring(self, number: int, values: Tensor, phase: int) -> Way:
        """By gloo's own all-reduce, which sends as much as the other ways and copies less: among the members of a lane, or
        among all where ranks share no memory."""
        topology = self._exchange.topology
        members = len(topology.lane) if self._rings else topology.world
        if members == 1:
            return
        yield self.turns.turn(phase, number)
        operation = self._exchange.sum_in_lane(values) if self._rings else self._exchange.all_reduce(values)
        self.turns.over(phase, number)
        begun = time.perf_counter()
        yield operation
        nbytes = 2 * values.nbytes * (members - 1) // members
        self.sent_bytes += nbytes
        self._compression.transferred(nbytes, begun, time.perf_counter())

    # ------------------------------------------------------------------ in rings of those who hold the same shard

    def adds_up_in_ring(self, codec: Codec) -> bool:
        """Whether the members of a lane add up what they have by gloo's ring."""
        return self._rings and (codec.name == "none" or codec.sums_in is not None)

    def _in_lane(
        self, number: int, cut: Lanes, local: Tensor, codec: Codec, phases: tuple[int, int], left_out: LeftOut
    ) -> Way:
        """All of it takes its turn in the first phase: the operations of a lane have one order."""
        self._over(phases[1], number)
        if codec.sums_in is None:
            left_out.nothing()
            values = local if self._in_place else local.clone()
        else:
            decoded = torch.empty_like(local)
            left_out.begin(cut.shard.start, local, codec)
            payload = self._encode(codec, local, left_out, "")
            self._decode(codec, payload, decoded, left_out)
            left_out.of_held([Encoded(cut.shard.start, local, decoded)] if local.numel() else [], codec)
            left_out.known()
            values = payload.view(codec.sums_in)
        if not local.numel():
            self.turns.over(phases[0], number)
            return
        yield from self.sum_in_ring(number, values, phases[0])
        if codec.sums_in is not None:
            self._decode(codec, payload, local, left_out)
            check_overflow(local)
        elif not self._in_place:
            local.copy_(values)

    # ------------------------------------------------------------------ float32 as it is

    def _nothing(self, number: int, phases: tuple[int, int], left_out: LeftOut) -> Way:
        """On one host nothing is encoded."""
        for phase in phases:
            self._over(phase, number)
            self._over(INSIDE + phase, number)
        left_out.nothing()
        yield from ()

    def _plain(self, number: int, cut: Lanes, local: Tensor, phases: tuple[int, int], left_out: LeftOut) -> Way:
        yield from self._to_owners(number, cut, local, phases[0], left_out.nothing)
        yield from self._from_owners(number, cut, local, phases[1])

    def _in_group(self, number: int, inside: Lanes, local: Tensor, between: Way, phases: tuple[int, int]) -> Way:
        """The way `between` groups, which is of what this member owns of its group's sum, and what is around it."""
        out, back = (INSIDE + phase for phase in phases)
        if inside.alone:
            self._over(out, number)
            self._over(back, number)
            yield from between
        else:
            yield from self._to_owners(number, inside, local, out)
            yield from between
            yield from self._from_owners(number, inside, local, back)

    def _to_owners(
        self, number: int, cut: Lanes, local: Tensor, phase: int, meanwhile: Callable[[], None] = _nothing_more
    ) -> Way:
        """Everybody's pieces to their owners: in `local` the pieces that this member owns are summed."""
        sent, receive, send = self._pieces(cut, local, NONE_CODEC, UNTOUCHED, None)
        received = torch.empty(sum(receive), dtype=torch.uint8)
        yield from self._transfer(number, phase, received, sent, receive, send, meanwhile)
        inbox = list(received.split_with_sizes(receive))
        for piece, total in _shared(cut, local):
            self._add_up(piece, inbox, NONE_CODEC, total, UNTOUCHED)

    def _from_owners(self, number: int, cut: Lanes, local: Tensor, phase: int) -> Way:
        """The pieces that this member owns, as they are in `local`, to all, and everybody else's into `local`."""
        payloads = [(piece, NONE_CODEC.encode(total)) for piece, total in _shared(cut, local)]
        yield from self._sums_back(number, cut, local, NONE_CODEC, phase, payloads, UNTOUCHED, _nothing_more)

    # ------------------------------------------------------------------ encoded

    def _encoded(
        self, number: int, cut: Lanes, local: Tensor, codec: Codec, phases: tuple[int, int], left_out: LeftOut
    ) -> Way:
        start, decoded = cut.shard.start, torch.empty_like(local)
        places = [(part.start, slice(part.start - start, part.stop - start)) for part in cut.held]
        held = [Encoded(first, local[here], decoded[here]) for first, here in places]
        for part in held:
            left_out.begin(part.start, part.compensated, codec)
            part.decoded.copy_(part.compensated)
        sent, receive, send = self._pieces(cut, local, codec, left_out, decoded)
        left_out.of_held(held, codec)
        received = torch.empty(sum(receive), dtype=torch.uint8)
        yield from self._transfer(number, phases[0], received, sent, receive, send)
        inbox = list(received.split_with_sizes(receive))
        payloads = []
        for piece, total in _shared(cut, local):
            self._add_up(piece, inbox, codec, total, left_out)
            payloads.append((piece, self._encode_sum(piece, total, codec, left_out)))
        yield from self._sums_back(number, cut, local, codec, phases[1], payloads, left_out, left_out.known)

    def _directly(
        self, number: int, cut: Lanes, local: Tensor, codec: Codec, phases: tuple[int, int], left_out: LeftOut
    ) -> Way:
        """Everybody's to everybody in its lanes: one transfer, where that is little, and everybody adds up the same."""
        self.turns.over(phases[1], number)
        start, decoded = cut.shard.start, torch.empty_like(local)
        here = [slice(lane.start - start, lane.stop - start) for lane in cut.mine]
        held = [Encoded(lane.start, local[p].clone(), decoded[p]) for lane, p in zip(cut.mine, here, strict=True)]
        payloads = []
        for part in held:
            left_out.begin(part.start, part.compensated, codec)
            payloads.append(self._encode(codec, part.compensated, left_out, ""))
            self._decode(codec, payloads[-1], part.decoded, left_out)
        left_out.of_held(held, codec)
        shared = [
            [i for i, lane in enumerate(cut.mine) if member in lane.members and member != cut.index]
            for member in range(cut.world)
        ]
        flat = [payloads[i] for lanes in shared for i in lanes]
        sent = torch.cat(flat) if flat else torch.empty(0, dtype=torch.uint8)
        sizes = [sum(payloads[i].numel() for i in lanes) for lanes in shared]
        received = torch.empty(sum(sizes), dtype=torch.uint8)
        yield from self._transfer(number, phases[0], received, sent, sizes, sizes, left_out.known, answered=False)
        inbox = list(received.split_with_sizes(sizes))
        for i, (lane, place) in enumerate(zip(cut.mine, here, strict=True)):
            mail = []
            for member in lane.members:
                if member != cut.index:
                    payload, inbox[member] = _take(inbox[member], payloads[i].numel())
                    mail.append(payload)
            parts = self._decode_all(codec, mail, lane.stop - lane.start, left_out)
            parts.insert(lane.members.index(cut.index), held[i].decoded)
            local[place] = _in_order(parts)

    def _pieces(
        self, cut: Lanes, local: Tensor, codec: Codec, left_out: LeftOut, decoded: Tensor | None
    ) -> tuple[Tensor, list[int], list[int]]:
        """This rank's payloads to the owners, one behind the other; bytes to receive from and to send to each member.

        Args:
            decoded: as `local`; gets what the payloads stand for.
        """
        start = cut.shard.start
        send = [sum(codec.nbytes(_length(part)) for part in parts) for parts in cut.others]
        receive = [
            sum(codec.nbytes(piece.size) for piece in cut.owned if member != cut.index and member in piece.members)
            for member in range(cut.world)
        ]
        sent = torch.empty(sum(send), dtype=torch.uint8)
        at = 0
        for member, parts in enumerate(cut.others):
            for part in parts:
                here, length = slice(part.start - start, part.stop - start), codec.nbytes(_length(part))
                key = f"{left_out.bucket} {member} {part.start}"
                payload = self._encode(codec, local[here], left_out, key, sent[at : at + length])
                if decoded is not None:
                    self._decode(codec, payload, decoded[here], left_out)
                at += length
        return sent, receive, send

    def _encode_sum(self, piece: Piece, total: Tensor, codec: Codec, left_out: LeftOut) -> Tensor:
        """The payload of the sum of a piece, which becomes what everybody decodes (CC-4)."""
        start = piece.part.start
        left_out.compensate_sum(start, total)
        payload = self._encode(codec, total, left_out, f"{left_out.bucket} sum {start}")
        exact = total.clone()
        self._decode(codec, payload, total, left_out)
        left_out.of_sum(start, exact, total)
        return payload

    def _add_up(self, piece: Piece, inbox: list[Tensor], codec: Codec, total: Tensor, left_out: LeftOut) -> None:
        """The sum of what all members of the piece have, in their order, into `total`, which holds what this one has."""
        parts: list[Tensor] = []
        for member in piece.members:
            if member == self._index:
                parts.append(total.clone())
            else:
                payload, inbox[member] = _take(inbox[member], codec.nbytes(piece.size))
                parts.append(torch.empty(piece.size))
                self._decode(codec, payload, parts[-1], left_out)
        total.copy_(_in_order(parts))
        if self.miscounts:
            total[:1] += 1.0 + 10 * total.norm()
            self.miscounts = False

    def _sums_back(
        self,
        number: int,
        cut: Lanes,
        local: Tensor,
        codec: Codec,
        phase: int,
        payloads: Sequence[tuple[Piece, Tensor]],
        left_out: LeftOut,
        meanwhile: Callable[[], None],
    ) -> Way:
        """The sums of the own pieces to all, and everybody else's into `local`."""
        start = cut.shard.start
        sent, send = _for_members(cut, payloads)
        receive = [sum(codec.nbytes(_length(part)) for part in parts) for parts in cut.others]
        received = torch.empty(sum(receive), dtype=torch.uint8)
        yield from self._transfer(number, phase, received, sent, receive, send, meanwhile)
        for mail, parts in zip(received.split_with_sizes(receive), cut.others, strict=True):
            for part in parts:
                payload, mail = _take(mail, codec.nbytes(_length(part)))
                self._decode(codec, payload, local[part.start - start : part.stop - start], left_out)

    # ------------------------------------------------------------------ one operation

    def _transfer(
        self,
        number: int,
        phase: int,
        received: Tensor,
        sent: Tensor,
        receive: list[int],
        send: list[int],
        meanwhile: Callable[[], None] = _nothing_more,
        *,
        answered: bool = True,
    ) -> Way:
        """Sizes in elements of `received` and `sent`, for each member; `meanwhile` is done while they are on their way.
        `answered`: the phase after this one brings back what became of it, and only that tells that all has arrived."""
        if self._exchange.topology.world == 1:
            meanwhile()
            return
        operations = [_Operands(received, sent, receive, send, phase)]
        if number in self._both_ways:
            operations = _both_ways(operations[0], self._index)
        underway, begun = [], 0.0
        for operands in operations:
            yield self.turns.turn(operands.phase, number)
            begun = begun or time.perf_counter()
            underway.append(self._exchange.all_to_all(*operands))
            self.turns.over(operands.phase, number)
        meanwhile()
        yield from underway
        members = self._everybody if phase < INSIDE else self._exchange.topology.group
        left, crossed = (
            sum(send[member] * sent.element_size() + len(operations) * FRAME_BYTES for member in members if far[member])
            for far in (self._leaves, self._crosses)
        )
        self.sent_bytes += left
        if crossed:
            self._measure(number, phase, _Leg(crossed, begun, time.perf_counter()), answered)

    def _over(self, phase: int, number: int) -> None:
        """Nothing is issued there."""
        self.turns.over(phase, number)
        if number in self._both_ways:
            self.turns.over(phase + AGAIN, number)

    def _measure(self, number: int, phase: int, leg: _Leg, answered: bool) -> None:
        """Of the links that gradients are encoded for. What is sent may lie in the system's buffers when an operation is
        over, and what comes may have come before it began, so only a way out and back takes its time."""
        if not answered:
            self._compression.transferred(*leg)
        elif phase % 2 == OUT:
            self._out[number, phase] = leg
        else:
            out = self._out.pop((number, phase - 1))
            between = leg.begun - out.ended
            self._compression.transferred(out.nbytes + leg.nbytes, out.begun + between, leg.ended, transfers=2)

    def _encode(self, codec: Codec, x: Tensor, left_out: LeftOut, key: str, out: Tensor | None = None) -> Tensor:
        begun = time.perf_counter()
        payload = codec.encode(x, key=key, out=out)
        left_out.encoded_in(x.numel(), time.perf_counter() - begun)
        return payload

    def _decode_all(self, codec: Codec, payloads: Sequence[Tensor], n: int, left_out: LeftOut) -> list[Tensor]:
        """Of n elements each: float32 [n]."""
        if not payloads:
            return []
        begun = time.perf_counter()
        decoded = codec.decode_all(torch.stack(list(payloads)), n)
        left_out.decoded_in(decoded.numel(), time.perf_counter() - begun)
        return list(decoded.unbind())

    def _decode(self, codec: Codec, payload: Tensor, out: Tensor, left_out: LeftOut) -> None:
        begun = time.perf_counter()
        codec.decode(payload, out.numel(), out=out)
        left_out.decoded_in(out.numel(), time.perf_counter() - begun)


class _Operands(NamedTuple):
    """Of an all-to-all."""

    received: Tensor
    sent: Tensor
    receive: list[int]
    send: list[int]
    phase: int


def _both_ways(operands: _Operands, index: int) -> list[_Operands]:
    """As two operations: member `index` sends in the first to those behind it and receives from those before it, and in
    the second the other way round, and from itself."""
    received, sent, receive, send, phase = operands
    there, here = sum(send[: index + 1]), sum(receive[:index])
    return [
        _Operands(
            received[:here],
            sent[there:],
            [size if member < index else 0 for member, size in enumerate(receive)],
            [size if member > index else 0 for member, size in enumerate(send)],
            phase,
        ),
        _Operands(
            received[here:],
            sent[:there],
            [size if member >= index else 0 for member, size in enumerate(receive)],
            [size if member <= index else 0 for member, size in enumerate(send)],
            phase + AGAIN,
        ),
    ]


def _is_small(cut: Lanes, codec: Codec) -> bool:
    """The same for all members."""
    return all(goes_directly(codec.nbytes(lane.stop - lane.start), len(lane.members)) for lane in cut.lanes)


def _length(part: slice) -> int:
    return int(part.stop - part.start)


def _in_order(parts: Sequence[Tensor]) -> Tensor:
    """((part 0 + part 1) + part 2) + …, into the first one."""
    total = parts[0]
    for part in parts[1:]:
        total += part
    return total


def _take(mail: Tensor, size: int) -> tuple[Tensor, Tensor]:
    return mail[:size], mail[size:]


def _shared(cut: Lanes, local: Tensor) -> list[tuple[Piece, Tensor]]:
    """The pieces that this member adds up for others too, and what it has of each itself, a view of `local`."""
    start = cut.shard.start
    pieces = (piece for piece in cut.owned if piece.size and len(piece.members) > 1)
    return [(piece, local[piece.part.start - start : piece.part.stop - start]) for piece in pieces]


def _for_members(cut: Lanes, payloads: Sequence[tuple[Piece, Tensor]]) -> tuple[Tensor, list[int]]:
    """What goes to each member of the payloads of the pieces that are in its lanes too."""
    each = [
        [payload for piece, payload in payloads if member in piece.members and member != cut.index]
        for member in range(cut.world)
    ]
    flat = [payload for parts in each for payload in parts]
    sent = torch.cat(flat) if flat else torch.empty(0, dtype=torch.uint8)
    return sent, [sum(map(len, parts)) for parts in each]
