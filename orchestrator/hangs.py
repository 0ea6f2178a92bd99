"""Nothing gets on: who holds the others up, and whose fault that is (GM-19).

A collective needs a part of every member. So who waits in one is innocent: it looks for directives all the time, and who
stands still does not. Those that stand still are the culprits, unless they are more than those that wait for them: then the
cause is one that they have in common. Where all wait, or none does, those agree that have finished the same collective last
and stand at the same place of the code; who is outside of a majority is a culprit. Where all agree nobody is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from orchestrator.actions import Action, AskStacks, Record
from orchestrator.governor.codes import Code
from orchestrator.roster import Roster, WorkerView
from workers.identity import Generation

SHOW_SECONDS = 0.8
"""That agents have to say where their ranks stand. A hang is on record at most that long after its limit."""

FRESH_SECONDS = 3.0
"""Six beats. What was said before is no news of a rank; one that has looked for directives since then does so still."""

STALLED_SECONDS = 3.0
"""Between two looks, after which whoever looks has stood still itself, and heard nothing meanwhile."""

MOST_IN_A_ROW = 3
"""Hangs with no collective finished between them, after which a job ends: it would hang for ever."""

ANSWER_SECONDS = 1.0
"""That a culprit has to answer the PREPARE that follows: it has stood still for the whole limit already."""


@dataclass(frozen=True)
class Stand:
    """Where a member stands: the collectives of the generation that it has finished, whether it waits for others, and the
    innermost frames of its thread, as far as it shows them."""

    worker: str
    host: str
    rank: int
    collectives: int
    waits: bool
    frames: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """File and function of the innermost frame; empty where it shows none."""
        file, _, rest = self.frames[0].rpartition(":") if self.frames else ("", "", "")
        return f"{file} {rest.partition(' ')[2]}" if file else ""


def culprits(stands: Sequence[Stand]) -> tuple[Stand, ...]:
    """Of those that hold each other up, who is to blame."""
    still, waiting = [each for each in stands if not each.waits], [each for each in stands if each.waits]
    if still and waiting:
        return tuple(still) if len(still) <= len(waiting) else ()
    sets = Counter(_agreement(each) for each in stands)
    for agreement, size in sets.most_common(1):
        if 2 * size > len(stands):
            return tuple(each for each in stands if _agreement(each) != agreement)
    return ()


def _agreement(stand: Stand) -> tuple[int, str]:
    """Equal for those that agree. Who waits is in one slice of a wait or another, which says nothing."""
    return stand.collectives, "" if stand.waits else stand.place


@dataclass(frozen=True)
class Hang:
    """What was found out about one.

    Attributes:
        seconds: since the last collective finished anywhere.
        unheard: hosts of members of which no news is known; then nobody is blamed.
        in_a_row: hangs with no collective finished between them, this one too.
        guilty: hosts, and how often each was a culprit lately, this time too; where that is evidence against it.
    """

    stands: tuple[Stand, ...]
    culprits: tuple[Stand, ...]
    seconds: float
    unheard: tuple[str, ...]
    in_a_row: int
    guilty: dict[str, int]

    def records(self, generation: Generation, step: int, limit: float) -> list[Action]:
        """For events.jsonl, and what counts against hosts.

        Args:
            generation: that trains.
            step: the last one that was committed.
            limit: seconds in which something should have happened.
        """
        fields: dict[str, object] = {
            "generation": list(generation),
            "step": step,
            "seconds": self.seconds,
            "limit": limit,
            "culprits": [{"host": each.host, "rank": each.rank} for each in self.culprits],
            "numbers": {str(each.rank): each.collectives for each in self.stands},
            "waiting": sorted(each.rank for each in self.stands if each.waits),
            "stacks": {str(each.rank): list(each.frames) for each in self.stands},
            "unheard": list(self.unheard),
            "in_a_row": self.in_a_row,
        }
        evidence = [{"host": host, "code": Code.HANG_CULPRIT.value, "hangs": hangs} for host, hangs in self.guilty.items()]
        return [Record("hang", fields), *(Record("evidence", dict(each)) for each in evidence)]

    @property
    def reason(self) -> str:
        """For the generation that follows."""
        who = ", ".join(f"rank {each.rank} on {each.host}" for each in self.culprits)
        return f"{who} hang{'s' if len(self.culprits) == 1 else ''}" if who else "no progress"

    def hopeless(self, step: int) -> str | None:
        """Why the job has to end: it would hang again."""
        if self.in_a_row < MOST_IN_A_ROW:
            return None
        places = Counter(each.place for each in self.stands if each.place and (each in self.culprits or not self.culprits))
        where = f", most of them in {places.most_common(1)[0][0]}" if places else ""
        who = "the same ranks hang again, or others in their place" if self.culprits else "all ranks stand still together"
        return (
            f"no collective has finished after step {step} in {self.in_a_row} generations, one after the other: "
            f"{who}{where}; events of kind hang in events.jsonl say where each rank stood"
        )


@dataclass
class _Heard:
    """From the beats: of one member, in the generation that trains."""

    collectives: int
    polls: int
    at: float
    polled_at: float


class Hangs:
    """Of one job. Times are seconds of one clock.

    Args:
        roster: whom the coordinator knows.
    """

    def __init__(self, roster: Roster) -> None:
        self._roster = roster
        self._heard: dict[str, _Heard] = {}
        self._asked: set[str] = set()
        self._asked_at: float | None = None
        self._frames: dict[str, tuple[str, ...]] = {}
        self._looked_at: float | None = None
        self._finished_at = 0.0
        self._in_a_row = self._equal = 0
        self._blamed: list[tuple[float, str]] = []
        self._blamed_last: frozenset[str] = frozenset()

    def remember(self, blamed: Iterable[tuple[float, str]]) -> None:
        """When hosts were culprits, as an earlier coordinator has found."""
        self._blamed += blamed

    # ------------------------------------------------------------------ what is heard

    def begin(self, now: float) -> None:
        """Another generation trains from now on."""
        self._heard.clear()
        self._finished_at = now
        self.forget()

    def heard(self, worker: str, collectives: int, polls: int, now: float) -> None:
        """From a beat: how many collectives of this generation it has finished, how often it has looked for directives."""
        known = self._heard.get(worker)
        if collectives > (known.collectives if known is not None else 0):
            self._finished_at = now
            self._in_a_row = self._equal = 0
        polled_at = now if known is None or polls != known.polls else known.polled_at
        self._heard[worker] = _Heard(collectives, polls, now, polled_at)

    def shown(self, worker: str, frames: Iterable[str]) -> None:
        """Where it stands."""
        if worker in self._asked:
            self._asked.discard(worker)
            self._frames[worker] = tuple(frames)

    # ------------------------------------------------------------------ what is found

    def stood_still(self, now: float) -> bool:
        """To be asked again and again. True where it was not, for so long that the silence of others tells nothing."""
        before, self._looked_at = self._looked_at, now
        return before is not None and now - before > STALLED_SECONDS

    def patience(self, limit: float) -> float:
        """Seconds in which nothing may happen. Where all stood still together, steps may take longer than any before."""
        return limit * 2.0**self._equal

    def forget(self) -> None:
        """Something has happened."""
        self._asked_at = None
        self._asked.clear()
        self._frames.clear()

    def ask(self, now: float) -> list[AskStacks]:
        """Nothing gets on: the members whose agents hear us are to show where they stand. Nothing where they were asked, or
        where nobody hears us."""
        if self._asked_at is not None:
            return []
        by_host: dict[str, list[str]] = {}
        for member in self._members:
            by_host.setdefault(member.host, []).append(member.worker)
        if by_host:
            self._asked_at = now
            self._asked = {worker for workers in by_host.values() for worker in workers}
        return [AskStacks(host, tuple(workers)) for host, workers in by_host.items()]

    def is_known(self, now: float) -> bool:
        """All that were asked have answered, or have had the time to."""
        return self._asked_at is not None and (not self._asked or now - self._asked_at >= SHOW_SECONDS)

    def judge(self, now: float) -> Hang:
        """Of what is known."""
        stands = tuple(each for member in self._members if (each := self._stand(member, now)) is not None)
        known = {each.worker for each in stands}
        unheard = tuple(sorted({member.host for member in self._roster.members if member.worker not in known}))
        blamed = () if unheard else culprits(stands)
        if not unheard:
            self._in_a_row += 1
            self._equal += not blamed
        guilty = self._blame(blamed, stands, now)
        self.forget()
        return Hang(stands, blamed, now - self._finished_at, unheard, self._in_a_row, guilty)

    @property
    def _members(self) -> list[WorkerView]:
        """Those whose agents hear us."""
        return [member for member in self._roster.members if self._roster.hosts[member.host].attached]

    def _stand(self, member: WorkerView, now: float) -> Stand | None:
        heard = self._heard.get(member.worker)
        if heard is None or now - heard.at > FRESH_SECONDS or member.rank is None:
            return None
        waits = now - heard.polled_at <= FRESH_SECONDS
        frames = self._frames.get(member.worker, ())
        return Stand(member.worker, member.host, member.rank, heard.collectives, waits, frames)

    def _blame(self, blamed: Sequence[Stand], stands: Sequence[Stand], now: float) -> dict[str, int]:
        """One rank that hangs once is replaced, as one that exits is. It is evidence against the host where that was a
        culprit before, or where several ranks, all that it has, hang together. Where others hung in this collective before,
        hosts are not to blame."""
        hung, ranks = Counter(each.host for each in blamed), Counter(each.host for each in stands)
        moves_on = self._in_a_row > 1 and self._blamed_last and self._blamed_last.isdisjoint(hung)
        self._blamed = [each for each in self._blamed if each[0] > now - self._roster.rules.exits_window]
        self._blamed += [(now, host) for host in hung]
        times = Counter(host for _, host in self._blamed)
        self._blamed_last = frozenset(hung)
        if moves_on:
            return {}
        return {host: times[host] for host in hung if times[host] > 1 or hung[host] == ranks[host] > 1}
