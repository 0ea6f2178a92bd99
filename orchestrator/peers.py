"""Who takes part in a job's control plane, and how a certificate names them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from workers.tls import SCHEME


class Role(StrEnum):
    """What a peer may do."""

    COORDINATOR = "coordinator"
    """Answers the others."""
    AGENT = "agent"
    """Attaches the one host that it is for."""
    OPERATOR = "operator"
    """Asks and commands."""


@dataclass(frozen=True)
class Peer:
    """One of them."""

    role: Role
    host: str = ""  # of an agent

    def __str__(self) -> str:
        return f"agent of {self.host}" if self.role is Role.AGENT else self.role.value

    def uri(self, job: str) -> str:
        """The name in its certificate: `quantarion://job/demo/agent/host-1`."""
        return f"{SCHEME}{job}/{self.role.value}" + (f"/{self.host}" if self.role is Role.AGENT else "")


COORDINATOR, OPERATOR = Peer(Role.COORDINATOR), Peer(Role.OPERATOR)


def peer_named(uris: Iterable[str], job: str) -> Peer | None:
    """Whom a certificate with these names is for; None where that is nobody in this job, or not one alone."""
    found = {peer for uri in uris if (peer := _parse(uri, job)) is not None}
    return found.pop() if len(found) == 1 else None


def _parse(uri: str, job: str) -> Peer | None:
    start = f"{SCHEME}{job}/"
    if not uri.startswith(start):
        return None
    role, slash, host = uri.removeprefix(start).partition("/")
    if role not in set(Role) or bool(slash) != (role == Role.AGENT) or bool(host) != (role == Role.AGENT) or "/" in host:
        return None
    return Peer(Role(role), host)


def server_name(job: str) -> str:
    """The host name in the coordinator's certificate. No DNS knows it: the coordinator moves, its name stays."""
    return f"coordinator.{job}"
