"""The coordinator's side of the probe: which hosts measure their link when, and what came of it (CC-9).

The hosts measure in the rounds of a tournament, so that no host is in two measurements at once; after `BUDGET_SECONDS`
the rest is left out. Nothing that goes wrong here is more than a sentence.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from quantarion.v1 import control_pb2 as pb

from orchestrator.link_groups import Pair, found_groups, rounds
from workers.probe import TOKEN_BYTES, Link

BUDGET_SECONDS = 5.0
OPEN_SECONDS = 1.0
"""For the hosts to say where they wait."""
EXTRA_SECONDS = 0.5
"""Of a measurement, for connecting and round trips."""
DIRECTION_SECONDS = (0.05, 0.25)
"""That a direction of a link is measured for, at least and at most."""
FAST = 1.25e9
"""Bytes/s, 10 Gbit/s: above this a probe says more of the processors than of the link, and all links are alike."""
_ROUND_OVERHEAD = 0.1

Send = Callable[[str, pb.CoordinatorMessage], None]


@dataclass
class Findings:
    """What a probe has measured. `links` are as the first host of each pair sees them."""

    addresses: Mapping[str, str]  # by host
    links: dict[Pair, Link] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)  # a sentence for each
    seconds: float = 0.0

    def groups(self, told: Mapping[str, str]) -> dict[str, str]:
        """Of the hosts that are not told one; a link counts by its slower direction."""
        rates = {pair: min(FAST, max(1.0, min(link.sent, link.received))) for pair, link in self.links.items()}
        return found_groups(list(self.addresses), rates, told)

    def record(self, told: Mapping[str, str], found: Mapping[str, str]) -> dict[str, object]:
        """For events.jsonl: matrices [host][host] of bytes/s, from row to column, and of seconds."""
        hosts = list(self.addresses)
        rates: dict[Pair, float] = {}
        round_trips: dict[Pair, float] = {}
        for (a, b), link in self.links.items():
            rates[a, b], rates[b, a] = round(link.sent), round(link.received)
            round_trips[a, b] = round_trips[b, a] = link.round_trip
        return {
            "hosts": hosts,
            "addresses": list(self.addresses.values()),
            "bytes_per_second": [[rates.get((a, b)) for b in hosts] for a in hosts],
            "round_trip_seconds": [[round_trips.get((a, b)) for b in hosts] for a in hosts],
            "measured": len(self.links),
            "pairs": len(hosts) * (len(hosts) - 1) // 2,
            "seconds": self.seconds,
            "failures": self.failures,
            "found": dict(found),
            "groups": {host: told.get(host) or found.get(host, "") for host in hosts},
        }


class LinkProbe:
    """One probe of the links between hosts, by their agents. `send(host, message)` must not block."""

    def __init__(self, addresses: Mapping[str, str], send: Send) -> None:
        self.findings = Findings(addresses)
        self._send = send
        self._ports: dict[str, int] = {}
        self._waiting: dict[str, str] = {}  # hosts whose answer is to come, with the peer that it is about
        self._answered = asyncio.Event()

    async def run(self) -> Findings:
        """At most `BUDGET_SECONDS`."""
        now = asyncio.get_running_loop().time
        begun = now()
        addresses = self.findings.addresses
        try:
            await self._open(secrets.token_bytes(TOKEN_BYTES))
            ready = [host for host in addresses if host in self._ports]
            tournament = rounds(ready)
            seconds = _direction_seconds(len(tournament))
            share = (BUDGET_SECONDS - OPEN_SECONDS) / max(1, len(tournament))
            for all_pairs in tournament:
                pairs = [(a, b) for a, b in all_pairs if a in self._ports and b in self._ports]
                left = begun + BUDGET_SECONDS - now()
                if left < 2 * seconds + _ROUND_OVERHEAD:
                    break
                await self._round(pairs, seconds, min(left, max(share, 2 * seconds + EXTRA_SECONDS)))
        finally:
            for host in addresses:
                self._send(host, pb.CoordinatorMessage(probe_close=pb.ProbeClose()))
        self.findings.seconds = now() - begun
        return self.findings

    async def _open(self, token: bytes) -> None:
        self._waiting = dict.fromkeys(self.findings.addresses, "")
        for host in self.findings.addresses:
            order = pb.ProbeOpen(token=token, seconds=BUDGET_SECONDS)
            self._send(host, pb.CoordinatorMessage(probe_open=order))
        for host in await self._silent_after(OPEN_SECONDS):
            self._fail(f"{host} does not answer")

    async def _round(self, pairs: list[Pair], seconds: float, limit: float) -> None:
        peers = dict(pairs)
        self._waiting = dict(peers)
        for host, peer in pairs:
            address = f"{self.findings.addresses[peer]}:{self._ports[peer]}"
            order = pb.ProbeLink(peer=peer, address=address, seconds=seconds, limit=limit - _ROUND_OVERHEAD)
            self._send(host, pb.CoordinatorMessage(probe_link=order))
        for host in await self._silent_after(limit):
            self._fail(f"{host} to {peers[host]}: no answer in time")

    async def _silent_after(self, limit: float) -> list[str]:
        """Wait until everybody has answered, at most `limit` seconds; who has not."""
        try:
            async with asyncio.timeout(limit):
                while self._waiting:
                    self._answered.clear()
                    await self._answered.wait()
        except TimeoutError:
            pass
        silent = list(self._waiting)
        self._waiting = {}
        return silent

    def _fail(self, sentence: str) -> None:
        self.findings.failures.append(sentence)

    def _has_answered(self, host: str, peer: str) -> None:
        if self._waiting.get(host) == peer:
            del self._waiting[host]
            self._answered.set()

    def port(self, host: str, said: pb.ProbePort) -> None:
        """Where a host waits."""
        if said.port:
            self._ports[host] = said.port
        else:
            self._fail(f"{host} cannot wait for probes: {said.error}")
        self._has_answered(host, "")

    def measured(self, host: str, said: pb.MeasuredLink) -> None:
        """What a host has measured."""
        if said.error:
            self._fail(f"{host} to {said.peer}: {said.error}")
        elif {host, said.peer} <= set(self.findings.addresses):
            self.findings.links[host, said.peer] = Link(said.round_trip, said.sent, said.received)
        self._has_answered(host, said.peer)

    def lost(self, host: str) -> None:
        """Its stream broke: nobody waits for it any more."""
        if host in self.findings.addresses:
            self._ports.pop(host, None)
            self._fail(f"{host} has gone")
            self._has_answered(host, self._waiting.get(host, ""))


def _direction_seconds(num_rounds: int) -> float:
    """So that all rounds fit into the budget, as far as that can be."""
    shortest, longest = DIRECTION_SECONDS
    share = (BUDGET_SECONDS - OPEN_SECONDS) / max(1, num_rounds)
    return min(longest, max(shortest, (share - _ROUND_OVERHEAD) / 2))
