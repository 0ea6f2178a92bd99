"""Worker processes: started where a host lacks them, promoted where it lacks ranks; and what to think of those that die."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from orchestrator.actions import Action, MemberPlan, Record, SendJoin, SpawnWorker
from orchestrator.roster import HostView, Role, Roster, Rules, WorkerView

_CRASHES = (
    "{crashes} workers in a row died on {host} before they could train{last}; see logs/worker-{host}.log and "
    "logs/coordinator.log in the job's folder"
)


class Staffing:
    """Of the hosts in `roster`."""

    def __init__(self, roster: Roster) -> None:
        self._roster = roster

    @property
    def _rules(self) -> Rules:
        return self._roster.rules

    def start(self, host: HostView, now: float) -> list[Action]:
        """All the processes of a host that has none."""
        return self._spawn(host, self._rules.ranks_per_host + self._rules.spares_per_host, now)

    def fill(
        self, now: float, *, promotes: bool, formed: bool, training: bool, donors: Callable[[str], Sequence[MemberPlan]]
    ) -> list[Action]:
        """What is lacking on the hosts.

        Args:
            promotes: whether idle workers may begin to copy state.
            formed: whether there is a generation, so that a new process can wait for those that join.
            training: whether that trains.
            donors: for a joiner on a host.
        """
        actions: list[Action] = []
        wanted = self._rules.ranks_per_host + self._rules.spares_per_host
        active = self._roster.active
        for host in self._roster.hosts.values():
            if host.attached and not host.leaving:
                mine = self._roster.on(host.host)
                has_place = host.host in active or len(active) < self._roster.most_hosts
                if promotes and has_place and any(worker.role is Role.IDLE for worker in mine):
                    joins = self._promote(host, mine, donors, now)
                    active |= {host.host} if joins else set()
                    actions += joins
                if host.spawning or len(mine) < wanted:
                    actions += self._replace(host, wanted, mine, formed=formed, training=training, now=now)
        return actions

    def _promote(
        self, host: HostView, mine: list[WorkerView], donors: Callable[[str], Sequence[MemberPlan]], now: float
    ) -> list[Action]:
        actions: list[Action] = []
        idle = [worker for worker in mine if worker.role is Role.IDLE]
        for joiner in idle[: max(0, self._rules.ranks_per_host - (len(mine) - len(idle)))]:
            found = tuple(donors(host.host))
            if not found:
                break
            joiner.role = Role.JOINING
            joiner.moved_at = now
            actions.append(SendJoin(joiner.worker, found))
        return actions

    def _replace(
        self, host: HostView, wanted: int, mine: list[WorkerView], *, formed: bool, training: bool, now: float
    ) -> list[Action]:
        while host.spawning and host.spawning[0] <= now:
            host.spawning.popleft()
        lacks = wanted - len(mine) - len(host.spawning)
        if lacks <= 0:
            return []
        unsettled = not training or bool(self._roster.in_role(Role.JOINING))
        # A replacement can wait until the joiners that it would compete with for the processor are in.
        waits = formed and unsettled and any(worker.role in (Role.IDLE, Role.JOINING) for worker in mine)
        return [] if waits else self._spawn(host, lacks, now)

    def _spawn(self, host: HostView, count: int, now: float) -> list[Action]:
        delay = 0.0 if host.crashes == 0 else min(30.0, 2.0 ** (host.crashes - 1))
        host.spawning.extend([now + delay + self._rules.spawn_timeout] * count)
        return [SpawnWorker(host.host, delay)] * count

    # ------------------------------------------------------------------ what dies

    def exited(self, host: HostView, worker: WorkerView, now: float) -> list[Action]:
        """Too many exits in a while are evidence against the host (GM-36a)."""
        rules, exits = self._rules, host.exits
        host.crashes = 0 if worker.useful else host.crashes + 1
        if exits and now - exits[-1] <= rules.exits_together:
            return []
        exits.append(now)
        while exits[0] < now - rules.exits_window:
            exits.popleft()
        if len(exits) != rules.exits_allowed + 1:
            return []
        return [Record("evidence", {"host": host.host, "code": "PROC_EXIT", "exits": len(exits)})]

    def stillborn(self, host: HostView) -> list[Action]:
        """One that was started has died before it said hello."""
        host.spawning.popleft()
        host.crashes += 1
        return [Record("worker_stillborn", {"host": host.host, "crashes": host.crashes})]

    def given_up(self, host: HostView, last: str = "") -> str | None:
        """Why the job has to end: no worker lives long enough there, and none has trained anywhere."""
        if host.crashes < self._rules.crash_limit or any(worker.useful for worker in self._roster.workers.values()):
            return None
        return _CRASHES.format(crashes=host.crashes, host=host.host, last=last)
