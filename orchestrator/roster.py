"""What the coordinator knows of the job's hosts and workers, and the constants it judges by."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from workers.identity import NOWHERE, Generation, StateId
from workers.protocol import Answer


class Role(StrEnum):
    """What a worker process is for."""

    IDLE = "idle"  # preloaded, waits to be needed
    JOINING = "joining"  # copies state beside the running job
    READY = "ready"  # may enter the next generation
    MEMBER = "member"


class JobPhase(StrEnum):
    WAITING = "waiting"  # for hosts.min hosts
    FORMING = "forming"  # PREPARE is out
    SYNCING = "syncing"  # CONFIGURE is out
    TRAINING = "training"
    ENDED = "ended"


@dataclass
class WorkerView:
    worker: str
    host: str
    pid: int
    peer_address: str
    shared_memory: bool = False
    role: Role = Role.IDLE
    rank: int | None = None
    state: StateId = NOWHERE
    answer: Answer | None = None
    off_line_since: Generation | None = None
    running: bool = False
    finished: bool = False
    useful: bool = False  # has trained
    up_at: float = 0.0
    busy: bool = False  # in code of the task whose length nobody knows
    moved_at: float = 0.0  # its beats last showed that it does something


@dataclass
class HostView:
    host: str
    address: str
    group: str = ""  # of hosts with fast links between them
    attached: bool = True
    detached_at: float = 0.0
    met: bool = True  # its agent has attached before
    spawning: deque[float] = field(default_factory=deque)  # when each start counts as failed
    exits: deque[float] = field(default_factory=deque)
    crashes: int = 0  # in a row, before a worker became useful
    told_at: float | None = None  # when its workers were told to end, as it leaves
    bequeaths: bool = True  # where it leaves, what it owes goes to those that stay
    leaving: str = ""  # why it was told to go; in no generation any more once others have what it has
    short_of_disk: bool = False  # others write logs and checkpoints before it does
    light: bool = False  # its ranks are to have half the work
    at_once: bool = False  # where it leaves: it waits for the end of no step, and nobody for its answer


@dataclass(frozen=True)
class Rules:
    """The constants of membership (the JobSpec's `hosts`, `ranks_per_host`, `limits`)."""

    hosts_min: int
    hosts_max: int
    ranks_per_host: int
    spares_per_host: int
    agent_grace: float = 20.0
    exits_allowed: int = 5
    exits_window: float = 600.0
    exits_together: float = 1.0  # seconds within which exits of a host have one cause, and count as one
    replace_wait: float = 300.0
    crash_limit: int = 5
    apply_failures_allowed: int = 3  # within exits_window
    busy: float = 600.0  # how long an evaluation, a first step, or the end of a script may take
    spawn_timeout: float = 90.0  # a process that has not said hello by then counts as never started
    probe: bool = False  # the links between the hosts are measured before the first generation
    probe_limit: float = 8.0  # after which the first generation waits for that no longer
    farewell: float = 30.0  # seconds that the workers of a host that leaves have to end, and to hand over what they owe
    error_settle: float = 0.25  # an exchange error is usually followed by the news of a death


@dataclass
class Incident:
    """Something that took members away, until the world is full again."""

    t: float
    kind: str
    host: str
    rank: int | None
    world: int  # ranks before it
    recovered: bool = False


class Roster:
    """Every host and worker, and what can be asked of them without knowing what goes on."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.most_hosts = rules.hosts_max
        """That train; the others are spares. Whoever scales the job changes it."""
        self.hosts: dict[str, HostView] = {}
        self.workers: dict[str, WorkerView] = {}
        self._on: dict[str, dict[str, WorkerView]] = {}  # the same, by host

    def add(self, worker: WorkerView) -> None:
        """One that nobody knew."""
        self.workers[worker.worker] = worker
        self._on.setdefault(worker.host, {})[worker.worker] = worker

    def remove(self, worker: str) -> WorkerView | None:
        """The one that is gone; None where nobody knew it."""
        view = self.workers.pop(worker, None)
        if view is not None:
            mine = self._on[view.host]
            del mine[worker]
            if not mine:
                del self._on[view.host]
        return view

    def in_role(self, *roles: Role) -> list[WorkerView]:
        return [w for w in self.workers.values() if w.role in roles]

    @property
    def members(self) -> list[WorkerView]:
        return self.in_role(Role.MEMBER)

    @property
    def candidates(self) -> list[WorkerView]:
        """Who may be in the next generation."""
        return self.in_role(Role.MEMBER, Role.READY)

    def on(self, host: str) -> list[WorkerView]:
        return list(self._on.get(host, {}).values())

    @property
    def away(self) -> list[HostView]:
        """Hosts whose agent has no stream."""
        return [h for h in self.hosts.values() if not h.attached]

    @property
    def leaving(self) -> list[HostView]:
        return [host for host in self.hosts.values() if host.leaving]

    @property
    def can_do_without_the_leaving(self) -> bool:
        """A member elsewhere has the state."""
        return any(w.running and not self.hosts[w.host].leaving for w in self.members)

    @property
    def active(self) -> set[str]:
        """Hosts that take part, or are about to; without those that leave."""
        return {w.host for w in self.workers.values() if w.role is not Role.IDLE and not self.hosts[w.host].leaving}

    @property
    def spares(self) -> list[str]:
        """Hosts that wait for another one to go, while as many take part as there are to be (GM-37)."""
        active = self.active
        if len(active) < self.most_hosts:
            return []
        return [host.host for host in self.hosts.values() if host.host not in active and not host.leaving]

    def complete(self, host: str) -> bool:
        """Could this host give all its ranks to a first generation?"""
        view = self.hosts.get(host)
        idle = [w for w in self.on(host) if w.role is Role.IDLE]
        return view is not None and view.attached and not view.leaving and len(idle) >= self.rules.ranks_per_host

    def promote_idle(self) -> None:
        """Idle workers into the next generation, where hosts lack ranks."""
        spares = self.spares
        for view in self.hosts.values():
            mine = self.on(view.host)
            idle = [worker for worker in mine if worker.role is Role.IDLE]
            if view.attached and not view.leaving and view.host not in spares:
                for worker in idle[: max(0, self.rules.ranks_per_host - (len(mine) - len(idle)))]:
                    worker.role = Role.READY

    def free_ranks(self) -> Iterator[int]:
        """That no worker has now, the lowest first, without end."""
        taken = {w.rank for w in self.workers.values() if w.rank is not None}
        rank = 0
        while True:
            if rank not in taken:
                yield rank
            rank += 1

    def seat(self, workers: Iterable[WorkerView]) -> list[WorkerView]:
        """Give the lowest free rank to each that has none (GM-5); in the order of the ring.

        A rank is a name, which its worker keeps; the place in the ring follows from the topology alone.
        """
        seated, free = self.in_ring(workers), self.free_ranks()
        for worker in seated:
            if worker.rank is None:
                worker.rank = next(free)
            worker.role = Role.MEMBER
        return self.in_ring(seated)

    def in_ring(self, workers: Iterable[WorkerView]) -> list[WorkerView]:
        """By group, host and rank: those of one host stand next to each other, and so do the hosts of a group (CC-9); last
        the hosts without a group. In its group a host that is short of disk comes last, as the first of the ring writes
        (GM-21)."""
        hosts = {host: number for number, host in enumerate(self.hosts)}
        unseated = len(self.workers)  # behind all that have a rank
        return sorted(
            workers,
            key=lambda w: (
                not self.group(w.host),
                self.group(w.host),
                self.hosts[w.host].short_of_disk,
                hosts[w.host],
                w.rank if w.rank is not None else unseated,
            ),
        )

    def group(self, host: str) -> str:
        """Of hosts with fast links between them; '' where none is known."""
        return self.hosts[host].group

    @property
    def short(self) -> bool:
        """True where a known host is away, or a generation's rank has no process: a member may be missing."""
        ranks = sorted(w.rank for w in self.members if w.rank is not None)
        return ranks != list(range(len(ranks))) or bool(self.away)

    @property
    def lacking(self) -> bool:
        """Fewer members than the hosts have room for, or fewer hosts than the job needs."""
        staying = [host for host in self.hosts.values() if not host.leaving]
        full = min(len(staying), self.most_hosts) * self.rules.ranks_per_host
        return len(self.members) < full or len(staying) < self.rules.hosts_min
