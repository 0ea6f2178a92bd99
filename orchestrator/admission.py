"""Who may ask what: an agent attaches the host that its certificate names, an operator asks and commands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc

from orchestrator.peers import Peer, Role
from orchestrator.turned_away import Check, Tally, TurnedAway

Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True)
class Caller:
    """Who is at the other end of a connection."""

    peer: Peer
    address: str  # that it came from
    issuer: str  # name of the authority that has signed its certificate
    ends: float  # when that expires, Unix seconds


class Admission:
    """Asked at the begin of each call.

    Args:
        caller: who is behind a connection, by gRPC's name for it; None where nobody has shown a certificate there. Without
            this function nobody has to.
        tally: of those who are turned away.
    """

    def __init__(self, caller: Callable[[str], Caller | None] | None, tally: Tally) -> None:
        self._caller, self._tally = caller, tally

    async def admit(self, context: Context, role: Role, host: str | None = None) -> None:
        """Ends the call where the caller has not `role`, or is not the agent of `host` where one is given."""
        if self._caller is None:
            return
        caller = self._caller(context.peer())
        found = objection(caller.peer if caller is not None else None, role, host)
        if found is None:
            return
        check, message = found
        self._tally.add(TurnedAway(check, caller.address if caller is not None else context.peer(), message))
        status = grpc.StatusCode.UNAUTHENTICATED if caller is None else grpc.StatusCode.PERMISSION_DENIED
        await context.abort(status, f"refused by the check '{check.value}': {message}")

    def may_lead(self, leader: str, host: str, *, appointed: bool) -> bool:
        """Whether the agent of `leader` may attach `host` too (GM-4): where it has to show a certificate, which names its
        own host alone, only if the coordinator has `appointed` it to; it has seen the certificate of the other."""
        if self._caller is None or leader == host or appointed:
            return True
        message = f"the agent of {leader[:64]!r} says that it leads {host[:64]!r}, which nobody has appointed it to"
        self._tally.add(TurnedAway(Check.IDENTITY, leader[:64], message))
        return False


def objection(peer: Peer | None, role: Role, host: str | None) -> tuple[Check, str] | None:
    """The check that `peer` does not pass as `role`, and as the agent of `host` where one is given, with a sentence."""
    if peer is None:
        return Check.CERTIFICATE, "no certificate was shown on this connection"
    if peer.role is not role:
        return Check.ROLE, f"this is for the {role.value}s of the job, and the certificate is that of the {peer}"
    if host is not None and host != peer.host:
        return Check.IDENTITY, f"the certificate is that of the {peer}, but it says that it is the agent of {host[:64]!r}"
    return None
