"""Whether enough hosts agree to a new generation (GM-30).

PREPARED is the agreement: a host that has promised commits nothing of the generation before. One that is only out of reach
may do so, and counts among those of whom more than half have to agree. One whose ranks have ended for certain does not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Set
from typing import NamedTuple

from orchestrator.actions import Action, Record
from orchestrator.governor.codes import Code
from orchestrator.governor.guards import Quorum as Outcome
from orchestrator.governor.guards import quorum
from orchestrator.roster import Roster
from workers.identity import Generation

SMALLEST_GROUP = 3
"""Hosts. Of a group of two, one host would be half."""


class Votes(NamedTuple):
    """Hosts that agree, or still may; and hosts that cannot be asked."""

    agreeing: frozenset[str]
    unreachable: frozenset[str]


class Quorum:
    """The hosts of the generation that was configured last, and what has become of them.

    A rank has a vote if it has the state: it was on the line when that generation began, or has got to run in it.
    """

    def __init__(self, roster: Roster) -> None:
        self._roster = roster
        self._voters: dict[str, str] = {}  # worker: host
        self._groups: dict[str, str] = {}
        self._doubted: set[str] = set()  # said to be gone, by somebody who is not certain
        self.lost_at: float | None = None  # seconds; since when it is waited for

    # ------------------------------------------------------------------ what happens to hosts

    def begin(self, voters: Mapping[str, str], groups: Mapping[str, str]) -> None:
        """A generation is configured: `voters` are the ranks in it that have the state, with their hosts."""
        self._voters, self._groups = dict(voters), dict(groups)
        self._doubted.clear()

    def healed(self, worker: str, host: str, group: str) -> None:
        """A rank of it has the state from now on."""
        self._voters[worker], self._groups[host] = host, group

    def ended(self, worker: str) -> None:
        """The process has, for certain."""
        self._voters.pop(worker, None)

    def found(self, host: str, alive: Collection[str]) -> None:
        """It is certain which processes of the host are alive."""
        self._doubted.discard(host)
        self._voters = {worker: at for worker, at in self._voters.items() if at != host or worker in alive}

    def doubt(self, host: str) -> None:
        """It seems to be gone, which is not certain."""
        self._doubted.add(host)

    @property
    def hosts(self) -> set[str]:
        """That have a vote."""
        return set(self._voters.values())

    # ------------------------------------------------------------------ whether they agree

    def votes(self, forming: Generation | None, waiting: Set[str]) -> Votes:
        """As it stands.

        Args:
            forming: the generation that ranks are asked to promise for; None where they are not asked yet.
            waiting: workers whose promise is waited for.
        """
        agreeing, unreachable = set(), set()
        for host in self.hosts:
            view = self._roster.hosts.get(host)
            workers = [self._roster.workers[worker] for worker in self._on(host) if worker in self._roster.workers]
            promised = [w.answer for w in workers if w.answer is not None and w.answer.generation == forming]
            if view is None or not view.attached or (host in self._doubted and not promised):
                unreachable.add(host)
            elif forming is None or any(answer.healed for answer in promised) or not waiting.isdisjoint(self._on(host)):
                agreeing.add(host)
        return Votes(frozenset(agreeing), frozenset(unreachable))

    def _on(self, host: str) -> list[str]:
        return [worker for worker, at in self._voters.items() if at == host]

    def allows(self, votes: Votes) -> bool:
        """Whether these are enough. A host that is neither among them has no vote: what it holds is not the state, or it
        was told to go at once."""
        voting = votes.agreeing | votes.unreachable
        groups = _spread({host: self._groups.get(host, "") for host in self.hosts & voting})
        return not groups or quorum(groups, votes.agreeing) is not Outcome.NO

    # ------------------------------------------------------------------ where they do not

    def wait(self, votes: Votes, now: float) -> list[Action]:
        """Members stay as they are until enough hosts are there, or are dead for certain. Said once."""
        if self.lost_at is not None:
            return []
        self.lost_at = now
        fields: dict[str, object] = {"agreeing": sorted(votes.agreeing), "unreachable": sorted(votes.unreachable)}
        return [Record("quorum_lost", {"code": Code.QUORUM_LOST.value, **fields})]

    def is_back(self, now: float) -> list[Action]:
        """Enough hosts agree."""
        if self.lost_at is None:
            return []
        seconds, self.lost_at = now - self.lost_at, None
        return [Record("quorum_back", {"seconds": seconds})]

    def given_up(self, votes: Votes, progress_at: float, now: float) -> str | None:
        """Why the job has to end: it has waited for too long. Not while the generation before trains on."""
        limit = self._roster.rules.replace_wait
        if self.lost_at is None or now - max(self.lost_at, progress_at) <= limit:
            return None
        lacking, among = len(votes.unreachable), len(votes.agreeing | votes.unreachable)
        return (
            f"{lacking} of {among} hosts cannot be reached, too many to go on without them; waited {limit:g} s for them "
            "(hosts.replace_wait)"
        )


def _spread(groups: Mapping[str, str]) -> dict[str, str]:
    """The groups over which the agreement is spread: hosts of smaller ones count with the largest."""
    sizes = Counter(groups.values())
    largest = max(sizes, key=lambda group: (sizes[group], group), default="")
    return {host: group if sizes[group] >= SMALLEST_GROUP else largest for host, group in groups.items()}
