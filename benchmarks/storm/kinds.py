"""What a storm is made of: the kinds of faults, whom each befalls, how long it lasts, and how it is told."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """Names for the command line, the records and the pages."""

    KILL = "kill"
    KILL_HOST = "kill_host"
    STOP = "stop"
    STOP_HOST = "stop_host"
    STARVE = "starve"
    CUT = "cut"
    SHAPE = "shape"
    FLIP = "flip"
    NAN = "nan"
    DISK = "disk"
    COORDINATOR = "coordinator"
    AGENT = "agent"
    DRAIN = "drain"


class Target(StrEnum):
    RANK = "rank"
    HOST = "host"
    JOB = "job"


RETURN_SECONDS = 15.0
"""For a host to be missed, placed again, tested and taken back, as a schedule reckons."""

STANDSTILL_SECONDS = 2.0
"""A host that does not answer for longer may be given up (GM-18)."""


@dataclass(frozen=True)
class Traits:
    """Of one kind.

    Attributes:
        words: what is done.
        target: whom it befalls.
        lasts: ranges of seconds, of which one is drawn, and from it a duration; (0, 0) for what is over at once.
        removes: whether the host may have to leave the job for it, where it lasts longer than `STANDSTILL_SECONDS`.
        alone: seconds after it in which nothing else is done, so that it can be told what came of it.
        color: of its marks.
    """

    words: str
    target: Target
    lasts: tuple[tuple[float, float], ...] = ((0.0, 0.0),)
    removes: bool = False
    alone: float = 0.0
    color: str = "#5a6470"


TRAITS = {
    Kind.KILL: Traits("kill -9 of a rank", Target.RANK, color="#c8372d"),
    Kind.KILL_HOST: Traits(
        "all processes of a host killed, its node away for a while", Target.HOST, ((3.0, 8.0),), True, color="#7d1a12"
    ),
    Kind.STOP: Traits(
        "SIGSTOP of a rank, until SIGCONT or its end", Target.RANK, ((0.5, 2.0), (30.0, 30.0)), True, color="#d98b1f"
    ),
    Kind.STOP_HOST: Traits(
        "SIGSTOP of all processes of a host", Target.HOST, ((0.5, 1.5), (30.0, 30.0)), True, color="#8a5a0c"
    ),
    Kind.STARVE: Traits("CPU starvation of a host", Target.HOST, ((15.0, 30.0),), True, color="#1e8c5a"),
    Kind.CUT: Traits("link of a host cut, and mended", Target.HOST, ((0.5, 1.5), (8.0, 12.0)), True, color="#6a3fb5"),
    Kind.SHAPE: Traits("link of a host slowed down, and back", Target.HOST, ((10.0, 20.0),), color="#b59be0"),
    Kind.FLIP: Traits("a bit of a parameter flipped on a rank", Target.RANK, ((20.0, 30.0),), True, 12.0, "#d6338a"),
    Kind.NAN: Traits("a loss and its gradient NaN on a rank", Target.RANK, ((20.0, 30.0),), True, 3.0, "#f08ac0"),
    Kind.DISK: Traits("disk of the checkpoints full, and emptied", Target.JOB, ((10.0, 20.0),), color="#5a6470"),
    Kind.COORDINATOR: Traits("kill -9 of the coordinator", Target.JOB, color="#2864b4"),
    Kind.AGENT: Traits("kill -9 of an agent", Target.HOST, color="#6ba3e0"),
    Kind.DRAIN: Traits("host drained by an operator, and readmitted", Target.HOST, ((5.0, 15.0),), True, color="#11a0a8"),
}
"""In the order of the pages. What `flip` and `nan` last is until an operator takes the host back, as if it were another."""


def away(kind: Kind, seconds: float) -> float:
    """For how long from its beginning its host may lack, as a schedule reckons; 0 where it stays."""
    traits = TRAITS[kind]
    return seconds + RETURN_SECONDS if traits.removes and seconds > STANDSTILL_SECONDS else 0.0


def held(kind: Kind, seconds: float) -> float:
    """For how long nothing else is done to the same host: two faults at once could not be told apart."""
    if TRAITS[kind].target is not Target.HOST and not TRAITS[kind].removes:
        return seconds
    return max(away(kind, seconds), seconds)
