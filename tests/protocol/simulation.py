"""The real state machines of coordinator and ranks on a simulated network, driven by random choices (EP-19).

Messages travel in order per host and direction and may be lost with their stream; hosts, workers and the coordinator may
die at any moment; partitions cut the stream but not the exchange. Nothing here knows what the machines should do: it only
delivers, breaks, and checks the invariants.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field
from itertools import pairwise

from orchestrator import membership as ms
from workers.identity import GENESIS, NO_GENERATION, NOWHERE, Generation, StateId, next_lineage
from workers.protocol import Answer, PrepareOrder, RankMachine, RankState, Sync

NODE_DEATH_SECONDS = 15.0
"""From the end of a host until Ray says that its node is dead, or its node is taken again and nothing of it is there."""


class Violation(AssertionError):
    """An invariant does not hold."""


@dataclass
class Commit:
    before: StateId
    after: StateId
    contributors: frozenset[str]


@dataclass
class Worker:
    """A rank: its machine, what it was told, what it is doing. `bytes` stands for the real content of its state."""

    name: str
    host: str
    machine: RankMachine = field(default_factory=RankMachine)
    inbox: deque[object] = field(default_factory=deque)
    plan: ms.Plan | None = None
    donors: tuple[str, ...] = ()
    rank: int | None = None
    bytes: StateId | None = None
    ready: bool = False
    failed_in: Generation | None = None
    raised: bool = False  # the task has raised: it only waits to be told to leave


@dataclass
class Host:
    name: str
    attached: bool = False
    partitioned: bool = False
    up: deque[tuple[object, ...]] = field(default_factory=deque)  # to the coordinator
    down: deque[ms.Action] = field(default_factory=deque)  # to the ranks
    exits: list[str] = field(default_factory=list)


class Simulation:
    """One run. `choose` is the only source of randomness."""

    TRAINING = 10**9
    """Hosts that train at most."""

    def __init__(self, seed: int, hosts: int, ranks: int, spares: int = 1) -> None:
        self.random = random.Random(seed)
        self.now = 0.0
        self.rules = ms.Rules(
            hosts_min=1, hosts_max=self.TRAINING, ranks_per_host=ranks, spares_per_host=spares, crash_limit=10**9
        )
        self.incarnation = 0
        self.hosts: dict[str, Host] = {}
        self.workers: dict[str, Worker] = {}
        self.contributions: dict[tuple[Generation, tuple[int, int]], set[str]] = {}
        self.plans: dict[Generation, ms.Plan] = {}
        self.commits: dict[StateId, Commit] = {}
        self.journal: tuple[Generation, bool, dict[str, str]] = (NO_GENERATION, False, {})
        self.names = iter(range(10**9))
        self.groups: dict[str, str] = {}
        self.leaving: dict[str, str] = {}
        self.rolling_back: int | None = None
        self.voters: dict[str, str] = {}
        self.told_to_run: set[tuple[Generation, str]] = set()
        self.dead: dict[str, float] = {}  # hosts of which nothing runs any more, and since when
        self.machine: ms.Membership | None = None
        self.best_line = 0
        self.restarts = 0
        self.start_coordinator()
        for _ in range(hosts):
            self.add_host()

    # ------------------------------------------------------------------ faults

    def start_coordinator(self) -> None:
        self.incarnation += 1
        self.machine = ms.Membership(self.rules, self.incarnation)
        generation, formed, hosts = self.journal
        if hosts:
            plan = self.plans.get(generation)
            members = {m.worker: m.rank for m in plan.members} if plan else {}
            told = (self.groups, self.leaving, self.rolling_back, self.voters)
            self.machine.recover(hosts, generation, formed, members, self.now, 6.0, *told)

    def kill_coordinator(self) -> None:
        self.machine = None
        for host in self.hosts.values():
            self._reset(host)

    def add_host(self, group: str | None = None) -> None:
        """In one of two groups unless told otherwise."""
        if self.machine is None:
            return
        number = next(self.names)
        name = f"host-{number}"
        self.hosts[name] = Host(name)
        group = self.groups[name] = "ba"[number % 2] if group is None else group
        generation, formed, hosts = self.journal
        self.journal = (generation, formed, {**hosts, name: name})
        self.do(self.machine.expect_host(name, name, self.now, group))

    def kill_worker(self, name: str) -> None:
        worker = self.workers.pop(name)
        host = self.hosts.get(worker.host)
        if host is None:
            return
        if host.attached:
            host.up.append(("exit", name))
        else:
            host.exits.append(name)

    def kill_host(self, name: str) -> None:
        for worker in [w for w in self.workers.values() if w.host == name]:
            del self.workers[worker.name]
        self.dead[name] = self.now
        host = self.hosts.pop(name)
        if host.attached and self.machine is not None:
            self.do(self.machine.detach(name, self.now))

    def partition(self, name: str) -> None:
        """Nobody who decides or removes anything reaches the host; it does not know, and its peers hear it."""
        self.hosts[name].partitioned = True
        self.cut_stream(name)

    def mend(self, name: str) -> None:
        """Whoever is no part of the job any more is ended by its own Ray."""
        self.hosts[name].partitioned = False
        if self.machine is not None and name not in self.machine.hosts:
            self._end_host(name)

    def tell_of_dead_nodes(self) -> None:
        """What is certain, after a while."""
        for name in sorted(self.machine.out_of_reach & self.dead.keys() if self.machine is not None else ()):
            if self.machine is not None and self.now - self.dead[name] >= NODE_DEATH_SECONDS:
                self.do(self.machine.node_died(name, self.now))

    def send_away(self, name: str, *, at_once: bool) -> None:
        """It is drained, or evicted."""
        if self.machine is not None:
            self.do(self.machine.leave(name, "sent away", self.now, at_once=at_once))

    def raise_task(self, name: str) -> None:
        """The task raises on one rank alone."""
        worker = self.workers[name]
        worker.raised = True
        self.tell(worker, "raised")

    def cut_stream(self, name: str) -> None:
        host = self.hosts[name]
        was = host.attached
        self._reset(host)
        if was and self.machine is not None:
            self.do(self.machine.detach(name, self.now))

    def _reset(self, host: Host) -> None:
        """In flight is lost; exits are told again with the next hello."""
        host.exits += [str(m[1]) for m in host.up if m[0] == "exit"]
        host.attached = False
        host.up.clear()
        host.down.clear()

    # ------------------------------------------------------------------ the coordinator's world

    def do(self, actions: list[ms.Action]) -> None:
        for action in actions:
            match action:
                case ms.SendPrepare() | ms.SendConfigure() | ms.SendJoin() | ms.SendExit() | ms.KillWorker():
                    if isinstance(action, ms.SendConfigure):
                        self._check_plan(action.plan)
                    assert self.machine is not None
                    view = self.machine.workers.get(action.worker)
                    host = self.hosts.get(view.host) if view else None
                    if host is not None and host.attached:
                        host.down.append(action)
                case ms.SpawnWorker(host_name, _):
                    if host_name in self.hosts:
                        worker = Worker(f"w{next(self.names)}", host_name)
                        self.workers[worker.name] = worker
                        if self.hosts[host_name].attached:
                            self.hosts[host_name].up.append(("up", worker.name))
                case ms.DropHost(host_name):
                    generation, formed, hosts = self.journal
                    self.journal = (generation, formed, {h: a for h, a in hosts.items() if h != host_name})
                    if host_name in self.hosts and not self.hosts[host_name].partitioned:
                        self._end_host(host_name)
                case ms.Record("generation", _):
                    assert self.machine is not None
                    self.journal = (self.machine.generation, True, self.journal[2])
                    members = self.machine.plan.members if self.machine.plan is not None else ()
                    self.voters = {m.worker: m.host for m in members}
                case ms.Record("host_lost", fields) if fields["certain"]:
                    self.voters = {w: host for w, host in self.voters.items() if host != fields["host"]}
                case ms.Record("host_leaves", fields):
                    self.leaving[str(fields["host"])] = str(fields["reason"])
                case ms.Record("rolls_back", fields):
                    self.rolling_back = int(str(fields["at_most"]))
                case ms.Record("rolled_back", _):
                    self.rolling_back = None
                case ms.EndJob(code, message):
                    raise Violation(f"the job ended with {code}: {message}")

    def _end_host(self, name: str) -> None:
        for worker in [w for w in self.workers.values() if w.host == name]:
            del self.workers[worker.name]
        del self.hosts[name]
        self.dead[name] = self.now

    def _check_quorum(self, plan: ms.Plan) -> None:
        """GM-30: the hosts that have promised are no fewer than the others that live and hold the state, as the coordinator
        knows. Who was told to go need not promise."""
        before = max((g for g in self.plans if g < plan.generation), default=None)
        if before is None or plan.stop:
            return
        members = self.plans[before].members
        alive = [m for m in members if m.worker in self.workers and self.workers[m.worker].machine.healed]
        agreed = {m.host for m in alive if self.workers[m.worker].machine.promised >= plan.generation}
        known = {m.host for m in alive if m.on_line or (before, m.worker) in self.told_to_run}
        missing = known - agreed - self.leaving.keys()
        if len(agreed) < len(missing):
            raise Violation(f"{plan.generation} has the agreement of {sorted(agreed)}, but not of {sorted(missing)}")

    def _check_plan(self, plan: ms.Plan) -> None:
        """No unhealed authority; nothing that a surviving healed member holds is given up; one plan per generation, and
        with a quorum."""
        if plan.generation not in self.plans:
            self._check_quorum(plan)
        known = self.plans.setdefault(plan.generation, plan)
        if known != plan:
            raise Violation(f"two plans for {plan.generation}")
        if len({m.rank for m in plan.members}) != len(plan.members):
            raise Violation(f"a rank is given twice in {plan.generation}")
        ring = [(m.group, m.host) for m in plan.members]
        if [group for group, _ in ring] != sorted(group for group, _ in ring):
            raise Violation(f"the groups of {plan.generation} do not follow one another: {ring}")
        if sum(a != b for a, b in pairwise(ring)) != len(set(ring)) - 1:
            raise Violation(f"a host of {plan.generation} is torn: {ring}")
        for member in plan.members:
            worker = self.workers.get(member.worker)
            if worker is None or worker.machine.promised != plan.generation or worker.machine.generation >= plan.generation:
                continue
            machine = worker.machine
            if member.donor and not plan.first and (not machine.healed or machine.state != plan.authority):
                raise Violation(f"{plan.generation}: {member.worker} is a donor but is {machine}")

    # ------------------------------------------------------------------ steps of the world

    def attach(self, name: str) -> None:
        host = self.hosts[name]
        if self.machine is None or name not in self.machine.hosts or host.partitioned:
            return
        host.attached = True
        for left in host.exits:
            self.do(self.machine.worker_exit(left, -9, self.now))
        host.exits.clear()
        if name not in self.machine.hosts:  # it has left with the last of its ranks
            return
        described = [self._describe(w) for w in self.workers.values() if w.host == name]
        self.do(self.machine.attach(name, name, described, self.now))

    def _describe(self, worker: Worker) -> tuple[ms.WorkerView, RankState, Answer]:
        view = ms.WorkerView(worker.name, worker.host, 1, worker.name, rank=worker.rank, state=worker.machine.state)
        return view, worker.machine.phase, worker.machine.answer()

    def deliver_up(self, name: str) -> None:
        host = self.hosts[name]
        message = host.up.popleft()
        machine = self.machine
        if machine is None:
            return
        kind, who, rest = message[0], str(message[1]), message[2:]
        if kind == "exit":
            self.do(machine.worker_exit(who, -9, self.now))
        elif kind == "up" and who in self.workers:
            self.do(machine.worker_up(*self._describe(self.workers[who]), self.now))
        elif kind == "prepared":
            self.do(machine.prepared(who, rest[0], self.now))  # type: ignore[arg-type]
        elif kind == "running":
            self.told_to_run.add((rest[0], who))  # type: ignore[arg-type]
            self.do(machine.running(who, rest[0], str(rest[1]), 0.0, self.now))  # type: ignore[arg-type]
        elif kind == "ready":
            self.do(machine.ready(who, rest[0], self.now))  # type: ignore[arg-type]
        elif kind == "failed":
            self.do(machine.exchange_failed(who, rest[0], "", self.now))  # type: ignore[arg-type]
        elif kind == "join_failed":
            self.do(machine.join_failed(who, self.now))
        elif kind == "raised" and machine.formed:
            others = [w for w in machine.workers.values() if w.role is ms.Role.MEMBER and w.worker != who]
            if others:  # else the job ends, rightly
                self.do(machine.failed(who, 1, "", next(self.names), self.now))

    def deliver_down(self, name: str) -> None:
        action = self.hosts[name].down.popleft()
        worker = self.workers.get(action.worker)  # type: ignore[union-attr]
        if worker is None:
            return
        if isinstance(action, ms.KillWorker):
            self.kill_worker(worker.name)
        else:
            worker.inbox.append(action)

    def tell(self, worker: Worker, *message: object) -> None:
        host = self.hosts.get(worker.host)
        if host is not None and host.attached:
            host.up.append((message[0], worker.name, *message[1:]))

    def step_worker(self, name: str) -> None:
        """One thing a rank does at a poll point."""
        worker = self.workers[name]
        machine = worker.machine
        if worker.raised:
            told = any(isinstance(action, ms.SendExit) for action in worker.inbox)
            if told or self.random.random() < 0.05:  # its agent loses patience with it
                self.kill_worker(name)
        elif worker.inbox:
            self._hear(worker)
        elif machine.must_close:
            worker.plan = None
            worker.failed_in = None
            self.tell(worker, "prepared", machine.close())
        elif worker.plan is not None and machine.phase is RankState.PREPARED:
            worker.donors = ()
            self._enter(worker)
        elif machine.phase is RankState.SYNCING:
            self._sync(worker)
        elif machine.phase is RankState.TRAINING:
            self._train(worker)
        elif worker.donors and not worker.ready and machine.on_join():
            pass
        elif machine.phase is RankState.JOINING:
            self._join(worker)

    def _hear(self, worker: Worker) -> None:
        action = worker.inbox.popleft()
        if isinstance(action, ms.SendPrepare):
            worker.machine.on_prepare(PrepareOrder(action.generation, action.at_step))
        elif isinstance(action, ms.SendConfigure):
            worker.plan = action.plan
        elif isinstance(action, ms.SendJoin):
            worker.donors = tuple(d.worker for d in action.donors)
            worker.ready = False  # a restarted coordinator asks again
        elif isinstance(action, ms.SendExit):
            self.kill_worker(worker.name)

    def _enter(self, worker: Worker) -> None:
        plan = worker.plan
        assert plan is not None
        mine = next((m for m in plan.members if m.worker == worker.name), None)
        if mine is None:
            worker.plan = None
            return
        authority = NOWHERE if plan.first else plan.authority
        sync = worker.machine.on_configure(plan.generation, authority, mine.on_line)
        if sync is None:
            worker.plan = None
            return
        worker.rank = mine.rank
        if plan.first and mine.donor:
            worker.machine.synced(GENESIS, GENESIS)
            worker.bytes = GENESIS
        elif sync is Sync.GO_ON and worker.bytes != authority:
            raise Violation(f"{worker.name} goes on with the bytes of {worker.bytes} as {authority}")

    def _sync(self, worker: Worker) -> None:
        plan, machine = worker.plan, worker.machine
        if plan is None:
            return
        if not machine.healed or (not plan.first and machine.state != plan.authority):
            donors = [m.worker for m in plan.members if m.donor and m.worker != worker.name]
            if not self._copy_from(worker, donors):
                return
        machine.train()
        self.tell(worker, "running", plan.generation, "")

    def _copy_from(self, worker: Worker, donors: list[str]) -> bool:
        """Catch up by commits where the donor's line leads on from our state, else copy all; may break off half-way."""
        alive = [self.workers[d] for d in donors if d in self.workers and self.workers[d].machine.healed]
        if not alive:
            return False
        donor = self.random.choice(alive)
        state = donor.machine.state
        chain = self._chain(worker.machine.state, state)
        if chain is None or self.random.random() < 0.3:
            worker.machine.lost_state()
            worker.bytes = None
            if self.random.random() < 0.1:
                return False
            worker.bytes = donor.bytes
            worker.machine.synced(state, donor.machine.previous)
            return True
        for commit in chain:
            worker.machine.committed(commit.after)
            worker.bytes = commit.after
            if self.random.random() < 0.05:
                return False
        worker.machine.synced(state, donor.machine.previous)
        return True

    def _chain(self, have: StateId, want: StateId) -> list[Commit] | None:
        chain: list[Commit] = []
        while want != have:
            commit = self.commits.get(want)
            if commit is None or len(chain) > 8:
                return None
            chain.append(commit)
            want = commit.before
        return chain[::-1]

    def _join(self, worker: Worker) -> None:
        if self._copy_from(worker, list(worker.donors)):
            worker.machine.healed = False
            if not worker.ready:
                worker.ready = True
                self.tell(worker, "ready", worker.machine.state)
        elif not any(d in self.workers for d in worker.donors):
            worker.machine.phase = RankState.IDLE
            worker.donors, worker.ready = (), False
            self.tell(worker, "join_failed")

    def _train(self, worker: Worker) -> None:
        """Contribute, then perhaps complete: possible once everyone has contributed, certain only while all live."""
        machine, generation = worker.machine, worker.machine.generation
        plan = self.plans[generation]
        members = {m.worker for m in plan.members}
        key = (generation, (machine.state.step + 1, 0))
        given = self.contributions.setdefault(key, set())
        if worker.name not in given:
            given.add(worker.name)
            return
        if given == members:
            if members <= set(self.workers) or self.random.random() < 0.5:
                self._apply(worker, frozenset(given))
                return
        if worker.failed_in != generation and not members <= set(self.workers):
            worker.failed_in = generation
            self.tell(worker, "failed", generation)

    def _apply(self, worker: Worker, contributors: frozenset[str]) -> None:
        machine = worker.machine
        if not machine.may_apply(machine.generation):
            raise Violation(f"{worker.name} would apply after its promise")
        before = machine.state
        if worker.bytes != before:
            raise Violation(f"{worker.name} says {before} but holds {worker.bytes}")
        step = before.step + 1
        content = hash((step, machine.generation, contributors)) & (2**64 - 1)
        after = StateId(step, 0, machine.generation, next_lineage(before, step, 0, machine.generation, content))
        commit = Commit(before, after, contributors)
        known = self.commits.setdefault(after, commit)
        if known != commit:
            raise Violation(f"two commits called {after}")
        for other in self.workers.values():
            state = other.machine.state
            same_generation = other.machine.generation == machine.generation and other.machine.phase is RankState.TRAINING
            if same_generation and other.machine.healed and state.step == step and state != after:
                raise Violation(f"two lines in {machine.generation}: {state} and {after}")
        machine.committed(after)
        worker.bytes = after

    # ------------------------------------------------------------------ the line

    def check_line(self) -> int:
        """The healed members' states lie on one line, which holds every step once; returns its length."""
        assert self.machine is not None
        members = [
            w
            for w in self.workers.values()
            if w.machine.phase is RankState.TRAINING and w.machine.generation == self.machine.generation
        ]
        if not members:
            return 0
        top = max(members, key=lambda w: w.machine.state.step)
        line: dict[int, StateId] = {}
        state = top.machine.state
        while state != GENESIS:
            line[state.step] = state
            commit = self.commits[state]
            plan_members = {m.worker for m in self.plans[state.generation].members}
            if commit.contributors != plan_members:
                raise Violation(f"step {state.step} lacks contributions: samples were lost")
            if commit.before.step != state.step - 1:
                raise Violation(f"{state} follows {commit.before}")
            state = commit.before
        for worker in members:
            state = worker.machine.state
            if state != GENESIS and line.get(state.step) != state:
                raise Violation(f"{worker.name} trains on another line: {state}, not {line.get(state.step)}")
            if worker.machine.healed and worker.bytes != state:
                raise Violation(f"{worker.name} says {state} but holds {worker.bytes}")
        return len(line)
