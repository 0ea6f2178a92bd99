"""Gangs of real engines in one process, whose steps can be broken off at any point of any bucket's way.

Letters between ranks stand in for gloo (`letters.py`); shared memory is real, and so are the engines, the rank's state
machines, and what a donor offers.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.workers.collectives.letters import Cut, Post, PostalExchange
from workers.collectives.buckets import BucketPlan
from workers.collectives.exchange import Abandoned, Hosts, Place, Topology
from workers.collectives.reducer import Reducer
from workers.collectives.shared import HostExchange, HostMemory
from workers.compression.choice import Plan
from workers.compression.gradients import GradientCompression
from workers.engine import Engine
from workers.faults import Faults
from workers.identity import GENESIS, NO_GENERATION, Generation, StateId
from workers.protocol import PrepareOrder, RankMachine, RankState, Sync
from workers.transfer import Commit

PATIENCE_SECONDS = 60.0


class Linear(nn.Module):
    """A loss whose gradients are what is given."""

    def __init__(self, shapes: Mapping[str, Sequence[int]]) -> None:
        super().__init__()
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(*shape)))

    def forward(self, gradients: Mapping[str, Tensor]) -> Tensor:
        return torch.stack([(p * gradients[name]).sum() for name, p in self.named_parameters()]).sum()


MEMBERS: list[Member] = []


class Member:
    """One rank: its engine, its machine, and the host it is on."""

    def __init__(
        self, number: int, host: int, shapes: Mapping[str, Sequence[int]], make: Callable[[BucketPlan], GradientCompression]
    ) -> None:
        self.number, self.host = number, host
        self.machine = RankMachine(state=GENESIS, healed=True)
        self.model = Linear(shapes)
        optimizer = torch.optim.SGD(self.model.parameters(), lr=1.0)
        faults = Faults([], Path(), dict)
        self.engine = Engine(self.model, optimizer, machine=self.machine, faults=faults, compression=make)
        self.memory: HostMemory | None = None
        self._seat: tuple[PostalExchange, Reducer] | None = None
        MEMBERS.append(self)

    def forget(self) -> None:
        """Let go of all memory: hooks of parameters keep an engine for ever."""
        self.engine._reducer = self.engine._exchange = self.memory = self._seat = None
        self.engine._pending.clear()

    @property
    def compression(self) -> GradientCompression:
        return self.engine.compression

    @property
    def plan(self) -> Plan:
        """Of its next step."""
        return self.compression._policy(self.machine.state.step + 1)

    @property
    def exchange(self) -> PostalExchange:
        """Of the last generation it was in."""
        assert self._seat is not None
        return self._seat[0]

    @property
    def reducer(self) -> Reducer:
        assert self._seat is not None
        return self._seat[1]

    def sit(self, topology: Topology, post: Post, hosts: Hosts, shared: HostExchange | None) -> None:
        """Take a place in a new generation."""
        abandoned = self._seat[0].bury() if self._seat else []
        self.compression.begin_generation(topology.units(hosts))
        exchange = PostalExchange(topology, post, abandoned)
        self._seat = exchange, Reducer(exchange, hosts, shared, self.compression)
        self.machine.train()

    def owed(self) -> Tensor:
        """float64 [n], by parameter: what this rank owes."""
        state = self.compression.memory.state_dict()
        parts = [state.get(name, torch.zeros(p.shape)).reshape(-1) for name, p in self.model.named_parameters()]
        return torch.cat(parts).double()


@dataclass
class Outcome:
    """Of one attempt at a step."""

    commits: dict[int, Commit] = field(default_factory=dict)
    """By member, by their numbers: who has applied it."""
    given: Tensor = field(default_factory=lambda: torch.empty(0))
    """float64 [n]: the sum of all gradients."""

    def applied(self, members: Sequence[Member]) -> Tensor:
        """float64 [n]: the reduced gradients, of which all that committed have the same bits."""
        rows = [[t.clone() for t in commit.tensors] for commit in self.commits.values()]
        for row in rows[1:]:
            for ours, theirs in zip(row, rows[0], strict=True):
                assert torch.equal(ours.view(torch.int32), theirs.view(torch.int32))
        plan = members[0].engine.staging.plan
        parts = [rows[0][slot.bucket][slot.start : slot.start + slot.numel] for slot in plan.slots]
        return torch.cat(parts).double()


class Ranks:
    """The members of a gang, from generation to generation; the test is the coordinator.

    Args:
        folder: for the memory that the ranks of a host share.
        shapes: of the parameters, by name.
        make: what each rank keeps to compress its gradients.
        groups: the name of the group of each host, in the next generation; those it does not name are in one.
    """

    def __init__(
        self,
        folder: Path,
        shapes: Mapping[str, Sequence[int]],
        make: Callable[[BucketPlan], GradientCompression],
        groups: Mapping[int, str] | None = None,
    ) -> None:
        self.groups = dict(groups or {})
        self._folder, self._shapes, self._make = folder, shapes, make
        self.members: list[Member] = []
        self.generation = NO_GENERATION
        self._made = 0
        self._threads = ThreadPoolExecutor(16)

    def make(self, host: int) -> Member:
        """A new rank with the model as it is built."""
        self._made += 1
        return Member(self._made, host, self._shapes, self._make)

    # ------------------------------------------------------------------ generations

    def enter(self, members: Sequence[Member], donor: Member | None = None) -> None:
        """A new generation of these: whoever is behind gets to where the `donor` is, by commits or as a whole.

        Raises AssertionError where somebody is not at its state afterwards.
        """
        self.generation = Generation(1, self.generation.counter + 1)
        state = donor.machine.state if donor else members[0].machine.state
        ordered = sorted(members, key=lambda m: m.host)
        for member in ordered:
            member.machine.on_prepare(PrepareOrder(self.generation))
            member.machine.close()
        for member in sorted(ordered, key=lambda m: m is not donor):
            sync = member.machine.on_configure(self.generation, state, member.machine.healed)
            if sync is not Sync.GO_ON:
                assert donor is not None
                self._catch_up(member, donor)
            assert member.machine.state == state and member.machine.healed
        self.members = ordered
        self._connect()

    def _catch_up(self, member: Member, donor: Member) -> None:
        while member.machine.state != donor.machine.state:
            offer = donor.engine.recent.find_offer(member.machine.state, self.generation)
            if offer is None:
                donor.engine.recent.serve_snapshot(donor.engine.capture)
                continue
            if offer.snapshot is not None:
                member.engine.restore(offer.snapshot)
            for commit in offer.commits:
                member.engine.replay(commit)
        member.machine.synced(member.machine.state, member.machine.previous)

    def _connect(self) -> None:
        hosts = sorted({member.host for member in self.members})
        by_host: Hosts = tuple(tuple(i for i, m in enumerate(self.members) if m.host == host) for host in hosts)
        groups = self.groups
        places = tuple(Place(i, f"host-{m.host}", "", groups.get(m.host, "")) for i, m in enumerate(self.members))
        post = Post()
        for member in self.members:
            if member.memory is None:
                path = self._folder / f"{member.number}.memory"
                member.memory = HostMemory(path, member.engine.shared_layout)
        together = [next(local for local in by_host if i in local) for i in range(len(places))]
        paths = [[self._memory(i).path for i in local] for local in together]

        def connect(i: int) -> None:
            shared = HostExchange(self._memory(i), paths[i], self.generation) if len(paths[i]) > 1 else None
            self.members[i].sit(Topology(places, i), post, by_host, shared)

        list(self._threads.map(connect, range(len(places))))
        self.hosts = by_host
        self.units = self.members[0].exchange.topology.units(by_host)

    def _memory(self, index: int) -> HostMemory:
        memory = self.members[index].memory
        assert memory is not None
        return memory

    # ------------------------------------------------------------------ steps

    def step(
        self,
        gradients: Sequence[Mapping[str, Tensor]],
        samples: Sequence[int],
        cuts: Mapping[int, Cut] | None = None,
        completing: Sequence[int] = (),
    ) -> Outcome:
        """An attempt at the step of all members.

        Args:
            gradients: of each member's mean loss, by parameter.
            samples: of each member.
            cuts: where the exchange of a member, by its number, is broken off.
            completing: members that nevertheless come to the end of the step; the directive to abandon it comes afterwards,
                and without any as soon as all cuts are reached.
        """
        batch = sum(samples)
        outcome = Outcome(given=self._given(gradients, samples))
        directive = threading.Event()
        for member in self.members:
            member.exchange.begin((cuts or {}).get(member.number))

        def one(i: int) -> Commit | None:
            member = self.members[i]
            engine = member.engine
            try:
                engine.begin_step(member.exchange, directive.is_set, None, member.reducer)
                if samples[i]:
                    engine.backward(member.model(gradients[i]), samples[i], batch, last=True)
                engine.finish_exchange(batch)
            except Abandoned:
                engine.discard()
                return None
            assert member.machine.phase is RankState.TRAINING
            assert member.machine.may_apply(self.generation)
            meta: dict[str, Any] = {"kind": "step", "hosts": [len(self.units), min(map(len, self.units))]}
            return engine.apply_step(meta, self.generation)

        running = {m.number: self._threads.submit(one, i) for i, m in enumerate(self.members)}
        try:
            if cuts:
                exchanges = [member.exchange for member in self.members if member.number in cuts]
                _wait(running, lambda: all(exchange.reached.is_set() for exchange in exchanges))
                _wait(running, lambda: all(running[number].done() for number in completing))
                directive.set()
            _wait(running, lambda: all(each.done() for each in running.values()))
        finally:
            directive.set()
        found = {number: each.result() for number, each in running.items()}
        outcome.commits = {number: commit for number, commit in found.items() if commit is not None}
        return outcome

    def _given(self, gradients: Sequence[Mapping[str, Tensor]], samples: Sequence[int]) -> Tensor:
        batch = sum(samples)
        each = [
            torch.cat([(gradients[i][name] * (n / batch)).reshape(-1) for name in self._shapes]).double()
            for i, n in enumerate(samples)
        ]
        return torch.stack(each).sum(0)

    # ------------------------------------------------------------------ what must hold

    def owed(self, members: Sequence[Member] | None = None) -> Tensor:
        """float64 [n]: what all of them owe together."""
        return torch.stack([member.owed() for member in (self.members if members is None else members)]).sum(0)

    def states(self) -> set[StateId]:
        return {member.machine.state for member in self.members}

    def digests(self) -> set[str]:
        return {member.engine.replica.digest() for member in self.members}


def _wait(running: Mapping[int, Future[Commit | None]], reached: Callable[[], bool]) -> None:
    """Until `reached()`. Raises what a member has raised, AssertionError after `PATIENCE_SECONDS`."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not reached():
        for each in running.values():
            if each.done():
                each.result()
        assert time.monotonic() < deadline, {number: each.done() for number, each in running.items()}
        threading.Event().wait(0.0005)
