"""What the membership machine decides: small frozen records, carried out by the coordinator's shell."""

from __future__ import annotations

from dataclasses import dataclass

from workers.identity import NOWHERE, Generation, StateId


@dataclass(frozen=True)
class SendPrepare:
    """PREPARE to one worker; its agent kills it if it has not answered after `timeout` seconds."""

    worker: str
    generation: Generation
    at_step: int
    timeout: float
    busy_timeout: float = 0.0


@dataclass(frozen=True)
class MemberPlan:
    """One line of a CONFIGURE."""

    worker: str
    rank: int
    host: str
    peer_address: str
    state: StateId
    donor: bool
    on_line: bool
    shared_memory: bool = False
    group: str = ""
    light: bool = False  # has half of the samples that others have


@dataclass(frozen=True)
class Plan:
    """A generation: what CONFIGURE says to every member."""

    generation: Generation
    members: tuple[MemberPlan, ...]  # in the order of the ring; the first one writes logs and checkpoints
    authority: StateId
    attempt: int
    first: bool
    stop: bool
    at_most: int | None = None  # where first: checkpoints of later steps are wrong


@dataclass(frozen=True)
class SendConfigure:
    worker: str
    plan: Plan


@dataclass(frozen=True)
class SendJoin:
    worker: str
    donors: tuple[MemberPlan, ...]


@dataclass(frozen=True)
class SendExit:
    """`heirs`: peer addresses of ranks that go on, from the state `authority`, and may take what this one owes."""

    worker: str
    reason: str
    heirs: tuple[str, ...] = ()
    authority: StateId = NOWHERE


@dataclass(frozen=True)
class SendSave:
    """A checkpoint is wanted after `step`; `held`: of what the worker holds while it waits, be it the first or not."""

    worker: str
    step: int
    held: bool = False


@dataclass(frozen=True)
class KillWorker:
    """Ask the agent to kill a process of its host."""

    worker: str
    reason: str


@dataclass(frozen=True)
class AskStacks:
    """Nothing gets on: ask the agent of `host` where these processes stand. Nothing waits for the answer for long."""

    host: str
    workers: tuple[str, ...]


@dataclass(frozen=True)
class SpawnWorker:
    host: str
    delay: float = 0.0


@dataclass(frozen=True)
class DropHost:
    """Its placement group and agent are to be removed."""

    host: str


@dataclass(frozen=True)
class MeasureLinks:
    """Probe the links between these hosts; `probed` tells what came of it."""

    addresses: dict[str, str]  # by host


@dataclass(frozen=True)
class Record:
    """An event for events.jsonl and the log."""

    kind: str
    fields: dict[str, object]


@dataclass(frozen=True)
class EndJob:
    exit_code: int
    message: str


Action = (
    SendPrepare
    | SendConfigure
    | SendJoin
    | SendExit
    | SendSave
    | KillWorker
    | AskStacks
    | SpawnWorker
    | DropHost
    | MeasureLinks
    | Record
    | EndJob
)
