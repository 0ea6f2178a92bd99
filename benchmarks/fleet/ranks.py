"""A simulated rank: the real state machine of one (`workers.protocol`), without model, data and peers.

What it holds is a name only: states follow one another with the step and nothing else, so that ranks in different processes
hold the same one after the same steps.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Self

from quantarion.v1 import control_pb2 as pb

from workers import wire
from workers.identity import GENESIS, NOWHERE, Generation, StateId, next_lineage
from workers.protocol import PrepareOrder, RankMachine, RankState

DIGEST_EVERY = 100
"""Steps from one digest to the next (GM-17)."""


class Line:
    """The states that ranks go through in a generation that goes on from `authority`."""

    def __init__(self, generation: Generation, authority: StateId) -> None:
        self._generation, self._states = generation, [authority]

    @property
    def begin(self) -> StateId:
        return self._states[0]

    def state(self, step: int) -> StateId:
        """After so many steps; the first one for any step before it."""
        states = self._states
        for after in range(states[-1].step + 1, step + 1):
            lineage = next_lineage(states[-1], after, 0, self._generation, after)
            states.append(StateId(after, 0, self._generation, lineage))
        return states[max(0, step - states[0].step)]


@dataclass(frozen=True)
class Seats:
    """A CONFIGURE, read once for all simulated ranks of a process.

    Attributes:
        ring: the names of the members, in its order; `places` has the place of each.
    """

    generation: Generation
    authority: StateId
    first: bool
    stop: bool
    ring: list[str]
    ranks: list[int]
    on_line: list[bool]
    places: dict[str, int]
    line: Line

    @classmethod
    def read(cls, packed: bytes) -> Self:
        configure = pb.Configure.FromString(packed)
        generation = wire.generation_from_wire(configure.generation)
        authority = GENESIS if configure.first else wire.state_from_wire(configure.authority)
        ring = [member.worker for member in configure.members]
        return cls(
            generation,
            authority,
            configure.first,
            configure.stop,
            ring,
            [member.rank for member in configure.members],
            [member.on_line for member in configure.members],
            {worker: place for place, worker in enumerate(ring)},
            Line(generation, authority),
        )

    def neighbours(self, worker: str) -> set[str]:
        """Whose sockets close when it dies."""
        place = self.places.get(worker)
        return set() if place is None else {self.ring[place - 1], self.ring[(place + 1) % len(self.ring)]} - {worker}


@dataclass
class SimulatedRank:
    """`number`: its rank, -1 while it has none; `told`: the step whose digest was told last."""

    worker: str
    host: str
    pid: int
    number: int = -1
    machine: RankMachine = field(default_factory=RankMachine)
    line: Line | None = None
    told: int = 0
    lives: bool = True

    @property
    def steps(self) -> int:
        """That it has made in this generation."""
        return 0 if self.line is None else self.machine.state.step - self.line.begin.step

    def is_training(self, generation: Generation) -> bool:
        machine = self.machine
        return self.lives and machine.phase is RankState.TRAINING and machine.generation == generation

    def reach(self, step: int) -> None:
        """The exchanges up to this step have ended; a joiner follows."""
        machine = self.machine
        follows = machine.phase in (RankState.TRAINING, RankState.JOINING)
        if follows and self.line is not None and step > machine.state.step:
            machine.previous, machine.state = self.line.state(step - 1), self.line.state(step)

    def prepare(self, order: PrepareOrder) -> None:
        self.machine.on_prepare(order)

    def close(self) -> pb.RankReport | None:
        """PREPARED, where it is to close what runs; else None."""
        if not self.machine.must_close:
            return None
        return pb.RankReport(worker=self.worker, prepared=wire.answer_to_wire(self.machine.close()))

    def configure(self, seats: Seats) -> pb.RankReport | None:
        """RUNNING at once, where CONFIGURE is for it and not stale: there is nothing to copy and nobody to connect to."""
        place, machine = seats.places.get(self.worker), self.machine
        if place is None:
            return None
        sync = machine.on_configure(seats.generation, NOWHERE if seats.first else seats.authority, seats.on_line[place])
        if sync is None:
            return None
        machine.synced(seats.authority, seats.authority if seats.first else machine.previous)
        machine.train()
        self.number, self.line = seats.ranks[place], seats.line
        running = pb.Running(
            generation=wire.generation_to_wire(seats.generation),
            state=wire.state_to_wire(machine.state),
            how=sync.value,
            rank=self.number,
        )
        return pb.RankReport(worker=self.worker, running=running)

    def join(self, line: Line, step: int) -> pb.RankReport | None:
        """READY at once."""
        if not self.machine.on_join():
            return None
        self.line = line
        self.machine.previous, self.machine.state = line.state(step - 1), line.state(step)
        return pb.RankReport(worker=self.worker, ready=pb.Ready(state=wire.state_to_wire(self.machine.state)))

    def digest(self) -> pb.RankReport | None:
        """Of the last state whose step is a multiple of `DIGEST_EVERY`, once."""
        step = self.machine.state.step - self.machine.state.step % DIGEST_EVERY
        if self.line is None or self.machine.phase is not RankState.TRAINING or step <= self.told:
            return None
        self.told = step
        state = self.line.state(step)
        if state.step != step or state.generation != self.machine.generation:
            return None  # committed by a generation before
        content = blake2b(state.lineage.to_bytes(8, "big"), digest_size=16).digest()
        return pb.RankReport(worker=self.worker, digest=pb.StateDigest(state=wire.state_to_wire(state), digest=content))

    def failed(self) -> pb.RankReport:
        """A neighbour's sockets have closed."""
        generation = wire.generation_to_wire(self.machine.generation)
        failure = pb.ExchangeFailed(generation=generation, error="connection reset by peer")
        return pb.RankReport(worker=self.worker, exchange_failed=failure)

    def up(self, address: str) -> pb.WorkerUp:
        machine = self.machine
        return pb.WorkerUp(
            worker=self.worker,
            pid=self.pid,
            peer_address=f"{address}:40000",
            state=wire.state_to_wire(machine.state),
            previous=wire.state_to_wire(machine.previous),
            generation=wire.generation_to_wire(machine.generation),
            promised=wire.generation_to_wire(machine.promised),
            healed=machine.healed,
            phase=machine.phase.value,
            rank=self.number,
        )
