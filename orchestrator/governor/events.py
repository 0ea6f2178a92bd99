"""What the policy is told, as data that can be logged and read again (GM-10). Times are seconds of one clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from orchestrator.governor.codes import Code
from orchestrator.governor.readings import Observation


@dataclass(frozen=True)
class Joined:
    """A host takes part from here on; `first`: in the first generation. Otherwise handshake and host test were passed."""

    time: float
    host: str
    group: str
    first: bool


@dataclass(frozen=True)
class Observed:
    """The end of a window: what was seen of each host in it, after so many committed steps.

    `singles`: what was seen in single steps of it, one after the other, where pools are made of those (GM-40).
    """

    time: float
    observations: Mapping[str, Observation]
    steps: int
    singles: tuple[Mapping[str, Observation], ...] = ()


@dataclass(frozen=True)
class Evidence:
    """Something that does not come from a host that is well."""

    time: float
    host: str
    code: Code


@dataclass(frozen=True)
class Late:
    """Its heartbeat is overdue on all paths, but not dead."""

    time: float
    host: str


@dataclass(frozen=True)
class Beat:
    """One that was late has sent a heartbeat in time."""

    time: float
    host: str


@dataclass(frozen=True)
class Fenced:
    """An evicted host cannot write any more."""

    time: float
    host: str


@dataclass(frozen=True)
class HostTested:
    """The host test has ended."""

    time: float
    host: str
    passed: bool


@dataclass(frozen=True)
class Left:
    """It is gone as planned."""

    time: float
    host: str


class Wish(StrEnum):
    EVICT = "evict"
    READMIT = "readmit"
    """It may be tested at once, whatever its cooldown, and is not excluded any more."""


@dataclass(frozen=True)
class Asked:
    """By an operator."""

    time: float
    host: str
    wish: Wish


@dataclass(frozen=True)
class Scaled:
    """The job wants so many hosts from now on."""

    time: float
    hosts: int


@dataclass(frozen=True)
class Tick:
    """Time passes."""

    time: float


Event = Joined | Observed | Evidence | Late | Beat | Fenced | HostTested | Left | Asked | Scaled | Tick

_KINDS: dict[str, type[Any]] = {
    kind.__name__.lower(): kind
    for kind in (Joined, Observed, Evidence, Late, Beat, Fenced, HostTested, Left, Asked, Scaled, Tick)
}


def as_dict(event: Event) -> dict[str, Any]:
    """Plain values, which `from_dict` reads."""
    plain: dict[str, Any] = {"event": type(event).__name__.lower(), **vars(event)}
    if isinstance(event, Observed):
        plain["observations"] = _plain(event.observations)
        plain["singles"] = [_plain(each) for each in event.singles]
        if not event.singles:
            del plain["singles"]
    return plain


def _plain(observations: Mapping[str, Observation]) -> dict[str, dict[str, float]]:
    """What is not known is left out."""
    known = ((host, vars(each).items()) for host, each in observations.items())
    return {host: {name: value for name, value in values if value is not None} for host, values in known}


def _seen(plain: Mapping[str, Mapping[str, float]]) -> dict[str, Observation]:
    return {host: Observation(**each) for host, each in plain.items()}


def from_dict(plain: Mapping[str, Any]) -> Event:
    """Raises ValueError where it is no event."""
    kind = _KINDS.get(str(plain.get("event")))
    if kind is None:
        raise ValueError(f"{plain.get('event')!r} is no event of the governor; one is {', '.join(_KINDS)}")
    fields = {key: value for key, value in plain.items() if key != "event"}
    try:
        if kind is Evidence:
            fields["code"] = Code(fields["code"])
        elif kind is Asked:
            fields["wish"] = Wish(fields["wish"])
        elif kind is Observed:
            fields["observations"] = _seen(fields["observations"])
            fields["singles"] = tuple(map(_seen, fields.get("singles", ())))
        event: Event = kind(**fields)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"a {plain['event']} event of the governor cannot be read: {error}") from None
    return event
