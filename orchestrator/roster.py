"""What the coordinator knows of the job's hosts and workers, and the constants it judges by."""

from __future__ import annotations

from collections import deque
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
    attached: bool = True
    detached_at: float = 0.0
    met: bool = True  # its agent has attached before
    spawning: deque[float] = field(default_factory=deque)  # when each start counts as failed
    exits: deque[float] = field(default_factory=deque)
    crashes: int = 0  # in a row, before a worker became useful


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
    replace_wait: float = 300.0
    crash_limit: int = 5
    busy: float = 600.0  # how long an evaluation, a first step, or the end of a script may take
    spawn_timeout: float = 90.0  # a process that has not said hello by then counts as never started
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
