"""Who is a member: the coordinator's side of the elastic step, as a pure state machine (EP-8 to EP-15).

Events are method calls that carry the time; what is to be done about them comes back as a list of actions. No clock, no
socket, no Ray: the shell (`coordinator.py`) and the model-checking test drive the same object.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping, Sequence

from orchestrator.actions import (
    Action,
    AskStacks,
    DropHost,
    EndJob,
    KillWorker,
    MeasureLinks,
    MemberPlan,
    Plan,
    Record,
    SendConfigure,
    SendExit,
    SendJoin,
    SendPrepare,
    SendSave,
    SpawnWorker,
)
from orchestrator.hangs import ANSWER_SECONDS, SHOW_SECONDS, Hangs
from orchestrator.incidents import Incidents
from orchestrator.pace import Pace
from orchestrator.quorum import Quorum, Votes
from orchestrator.roster import HostView, Incident, JobPhase, Role, Roster, Rules, WorkerView
from orchestrator.staffing import Staffing
from workers.identity import NO_GENERATION, NOWHERE, Generation, StateId
from workers.protocol import Answer, RankState

__all__ = [
    "Action",
    "AskStacks",
    "DropHost",
    "EndJob",
    "HostView",
    "Incident",
    "JobPhase",
    "KillWorker",
    "MeasureLinks",
    "MemberPlan",
    "Membership",
    "Plan",
    "Record",
    "Role",
    "Rules",
    "SendConfigure",
    "SendExit",
    "SendJoin",
    "SendPrepare",
    "SendSave",
    "SpawnWorker",
    "WorkerView",
]

MOST_DONORS = 64
"""That a joiner is told of, which asks one after the other."""


class Membership:
    """The machine. `generation` is the last one that was configured, `round_generation` the one being formed."""

    def __init__(self, rules: Rules, incarnation: int) -> None:
        self.rules = rules
        self.roster = Roster(rules)
        self.hosts, self.workers = self.roster.hosts, self.roster.workers
        self.pace, self.hangs, self.quorum = Pace(), Hangs(self.roster), Quorum(self.roster)
        self.incarnation = incarnation
        self.counter = 0
        self.phase = JobPhase.WAITING
        self.generation = NO_GENERATION
        self.round_generation = NO_GENERATION
        self.waiting: set[str] = set()  # in FORMING: who has not promised
        self.syncing: set[str] = set()  # in SYNCING: who has not said that it runs
        self.is_held = False  # events of one message come together: `go_on` decides what follows
        self._is_due = False
        self._awaited = ""  # a host that the first generation waits for
        self.plan: Plan | None = None
        self.reason = ""
        self.at_step = 0
        self.round_started = 0.0
        self.stopping = False
        self.ending: tuple[int, str] = (130, "")  # how a job that is stopped ends: exit code, and why
        self.formed = False
        self.discarded = 0
        self.expected_hosts: set[str] = set()
        self.attempt_step = 0
        self.attempt = 0
        self.exchange_error_at: float | None = None
        self.below_min_since: float | None = None
        self.incidents, self._staffing = Incidents(), Staffing(self.roster)
        self.placing = False  # hosts are being started: a first generation waits until it is known which (EP-13)
        self.probe_until: float | None = None  # a first generation waits for the probe; None: none has begun
        self.recovering_until: float | None = None  # a restarted coordinator waits for its hosts
        self.apply_failures: deque[float] = deque()  # when
        self._configured: dict[str, str] = {}
        self.recovered_members: dict[str, int] = {}
        self.failed_steps: set[int] = set()  # after which the task has raised on a member
        self._hung: set[str] = set()  # workers that hold the others up, until the next generation
        self.rolling_back: int | None = None  # to a checkpoint of this step or before: no member's state counts

    # ------------------------------------------------------------------ events: hosts

    def expect_host(self, host: str, address: str, now: float, group: str = "") -> list[Action]:
        """Placement has started an agent there; the first generation waits for it."""
        self.expected_hosts.add(host)
        if host not in self.hosts:
            self.hosts[host] = HostView(host, address, group, attached=False, detached_at=now, met=False)
        return self._staffing.start(self.hosts[host], now)

    def recover(
        self,
        hosts: dict[str, str],
        generation: Generation,
        formed: bool,
        members: dict[str, int],
        now: float,
        settle: float,
        groups: Mapping[str, str] | None = None,
        leaving: Mapping[str, str] | None = None,
        rolling_back: int | None = None,
        voters: Mapping[str, str] | None = None,
    ) -> None:
        """A restarted coordinator: hosts known from the journal have `settle` seconds to attach before it decides.

        `hosts` are their addresses, `groups` the groups of those that have one, `leaving` why some were told to go;
        `members` are the ranks of the last generation's workers: some may not have received its CONFIGURE yet;
        `rolling_back` is of a `roll_back` that has not come to its end; `voters` are those members, with their hosts, whose
        end is not certain.
        """
        self.quorum.begin(voters or {}, groups or {})
        self.recovered_members, self.rolling_back = members, rolling_back
        for host, address in hosts.items():
            view = self.hosts[host] = HostView(host, address, (groups or {}).get(host, ""), attached=False, detached_at=now)
            view.leaving = (leaving or {}).get(host, "")
        self.generation = generation
        self.formed = formed
        self.recovering_until = now + settle

    def attach(
        self, host: str, address: str, workers: list[tuple[WorkerView, RankState, Answer]], now: float
    ) -> list[Action]:
        """An agent's stream is up; `workers` are the processes alive there, as they describe themselves."""
        view = self.hosts.get(host)
        actions: list[Action] = []
        if view is None:
            view = self.hosts[host] = HostView(host, address)
        self.expected_hosts.add(host)
        view.address = address
        view.attached = view.met = True
        alive = {worker.worker for worker, _, _ in workers}
        self.quorum.found(host, alive)
        for known in [w for w in self.roster.on(host) if w.worker not in alive]:
            actions += self.worker_exit(known.worker, -9, now)
        for worker, state, answer in workers:
            actions += self._meet(worker, state, answer, now)
        actions += self._decide(now)
        return actions

    def detach(self, host: str, now: float) -> list[Action]:
        """The agent's stream was reset. Its ranks may go on training: nobody is evicted for it (EP-14)."""
        view = self.hosts.get(host)
        if view is None or not view.attached or self.phase is JobPhase.ENDED:
            return []
        view.attached = False
        view.detached_at = now
        actions: list[Action] = [Record("agent_lost", {"host": host})]
        return actions + self._decide(now)

    def host_lost(self, host: str, reason: str, now: float, *, certain: bool = True) -> list[Action]:
        """The host is gone for good: its members leave, its placement is released. Where that is not `certain`, only if the
        others are enough without it (GM-30)."""
        if host not in self.hosts:
            return []
        return self._lose(host, reason, now, certain=certain) + self._decide(now)

    def _lose(self, host: str, reason: str, now: float, *, certain: bool) -> list[Action]:
        """Without what follows from it."""
        view = self.hosts[host]
        if certain:
            self.quorum.found(host, ())
        elif not self._can_do_without(host):
            return self.quorum.wait(self._votes(), now)
        gone = self.roster.on(host)
        fields: dict[str, object] = {"host": host, "reason": reason, "certain": certain}
        actions: list[Action] = [Record("host_lost", fields), *self._remove(host)]
        for worker in gone:
            if worker.role is Role.MEMBER and not view.leaving:
                self.incidents.add(Incident(now, "host_lost", host, worker.rank, self._planned()))
        if any(worker.role is Role.MEMBER for worker in gone):
            actions += self._member_left(f"host {host} lost", now)
        return actions

    def scaled(self, hosts: int, now: float) -> list[Action]:
        """So many train at most from now on; who is to leave for that is told apart."""
        self.roster.most_hosts = hosts
        return self._decide(now)

    def node_died(self, host: str, now: float) -> list[Action]:
        """Ray says that the host's machine is dead; it may have been given up already."""
        if host in self.hosts:
            return self.host_lost(host, "its node is dead", now)
        self.quorum.found(host, ())
        return self._decide(now)

    @property
    def out_of_reach(self) -> set[str]:
        """Hosts of which it is not known whether they live."""
        return {view.host for view in self.roster.away} | (self.quorum.hosts - self.hosts.keys())

    def can_spare(self, host: str) -> bool:
        """A member elsewhere, which stays, has the state (GM-35)."""
        others = (w for w in self.roster.members if w.host != host and not self.hosts[w.host].leaving)
        return any(w.running or self._eligible(w) for w in others)

    def _remove(self, host: str) -> list[Action]:
        """Forget it and what runs there, and release its placement."""
        del self.hosts[host]
        self.expected_hosts.discard(host)
        for worker in self.roster.on(host):
            self.roster.remove(worker.worker)
            self.waiting.discard(worker.worker)
        return [DropHost(host)]

    @property
    def configured(self) -> dict[str, str]:
        """The hosts of the members of the generation that was configured last, by worker; of those that are known, where
        another coordinator has configured it."""
        if self.plan is not None:
            return self._configured
        return {w: self.workers[w].host if w in self.workers else "" for w in self.recovered_members}

    def leave(self, host: str, reason: str, now: float, *, at_once: bool = False, bequeaths: bool = True) -> list[Action]:
        """The host is to go, though it lives: its ranks are in no generation from the next step boundary on (EP-16), or,
        `at_once`, from now on, at the cost of the step that is under way. It goes once others have what it has, which what
        it owes belongs to, if it `bequeaths` that (CC-12)."""
        view = self.hosts.get(host)
        if view is None or view.leaving or self.phase is JobPhase.ENDED:
            return []
        view.leaving, view.bequeaths = reason, bequeaths
        actions: list[Action] = [Record("host_leaves", {"host": host, "reason": reason})]
        if at_once:
            actions += self._close(view, now)
        return actions + self._decide(now)

    def hasten(self, host: str, now: float) -> list[Action]:
        """A host that leaves can wait for the end of a step no longer."""
        view = self.hosts.get(host)
        if view is None or not view.leaving or view.at_once or view.told_at is not None or self.phase is JobPhase.ENDED:
            return []
        return self._close(view, now) + self._decide(now)

    def _close(self, leaving: HostView, now: float) -> list[Action]:
        """The generation ends at once, without an answer of that host, if another has the state."""
        leaving.at_once = True
        if self.phase is JobPhase.WAITING or not self.roster.can_do_without_the_leaving:
            return []
        return self._begin(leaving.leaving, now)

    def short_of_disk(self, hosts: Collection[str]) -> None:
        """Of these the ranks write no logs and checkpoints from the next generation on, where another host of their group
        can (GM-21). Nothing is begun for it."""
        for view in self.hosts.values():
            view.short_of_disk = view.host in hosts

    def lighten(self, hosts: Collection[str]) -> None:
        """Of these the ranks get half of the samples that others get (GM-21). Where that changes anything, a generation of
        the same members begins at the end of a step."""
        for view in self.hosts.values():
            view.light = view.host in hosts

    @property
    def light_hosts(self) -> set[str]:
        """That have less to do in the present generation."""
        return {member.host for member in self.plan.members if member.light} if self.plan is not None else set()

    def _to_lighten(self, hosts: Collection[str]) -> set[str]:
        """Of these members; where it would be all, there is nobody who could do more."""
        light = {host for host in hosts if host in self.hosts and self.hosts[host].light}
        return light if light < set(hosts) else set()

    def roll_back(self, at_most: int, reason: str, now: float) -> list[Action]:
        """What members hold is wrong since after step `at_most`: the gang begins anew from a checkpoint of that step or
        before (GM-17)."""
        if self.phase is JobPhase.ENDED:
            return []
        self.rolling_back = at_most
        actions: list[Action] = [Record("rolls_back", {"at_most": at_most, "reason": reason})]
        if self.phase is not JobPhase.WAITING:
            actions += self._begin(reason, now)
        return actions + self._decide(now)

    # ------------------------------------------------------------------ events: workers

    def worker_up(self, worker: WorkerView, state: RankState, answer: Answer, now: float) -> list[Action]:
        """A worker process has said hello to its agent."""
        if worker.host not in self.hosts:
            return [KillWorker(worker.worker, "its host is not part of the job")]
        return self._meet(worker, state, answer, now) + self._decide(now)

    def worker_exit(self, worker: str, status: int, now: float) -> list[Action]:
        """Its agent saw the process exit (pidfd)."""
        self.quorum.ended(worker)
        view = self.roster.remove(worker)
        if view is None:
            return []
        self.waiting.discard(worker)
        host = self.hosts.get(view.host)
        actions: list[Action] = [
            Record(
                "worker_exit",
                {
                    "host": view.host,
                    "rank": view.rank,
                    "pid": view.pid,
                    "worker": worker,
                    "signal": -status if status < 0 else None,
                    "status": status,
                    "role": view.role.value,
                },
            )
        ]
        if host is not None and not host.leaving and self.phase is not JobPhase.ENDED:
            actions += self._staffing.exited(host, view, now)
            if hopeless := self._staffing.given_up(host, f" (last exit status {status})"):
                return actions + self._end(9, hopeless)
        if view.role is Role.MEMBER and self.phase is not JobPhase.ENDED:
            self.incidents.add(Incident(now, "worker_killed", view.host, view.rank, self._planned()))
            actions += self._member_left(f"rank {view.rank} on {view.host} exited", now)
        return actions + self._decide(now)

    def stillborn(self, host: str, now: float) -> list[Action]:
        """A worker process that was started there has died before it said hello."""
        view = self.hosts.get(host)
        if view is None or not view.spawning or self.phase is JobPhase.ENDED:
            return []
        actions = self._staffing.stillborn(view)
        if hopeless := self._staffing.given_up(view):
            return actions + self._end(9, hopeless)
        return actions + self._decide(now)

    def prepared(self, worker: str, answer: Answer, now: float) -> list[Action]:
        """A rank promised."""
        view = self.workers.get(worker)
        if view is None:
            return []
        view.answer = answer
        view.state = answer.state
        view.running = False
        self._hung.discard(worker)
        if answer.generation == self.round_generation:
            self.waiting.discard(worker)
            if self.phase is JobPhase.FORMING and view.role is Role.MEMBER and answer.state.step < self.at_step:
                # It has finished and trains no more: nobody will reach that step, so close at once.
                return self._begin(self.reason, now)
        if self.phase is JobPhase.TRAINING and view.role is Role.MEMBER and answer.generation > self.generation:
            return self._begin("a rank closed for an earlier coordinator", now)
        if self.phase is JobPhase.FORMING and self.waiting:
            return []  # nothing follows from it before all have answered
        return self._decide(now)

    def ready(self, worker: str, state: StateId, now: float) -> list[Action]:
        """A joiner is at most one step behind."""
        view = self.workers.get(worker)
        if view is None or view.role is not Role.JOINING:
            return []
        view.role = Role.READY
        view.state = state
        return self._decide(now)

    def join_failed(self, worker: str, now: float) -> list[Action]:
        """No donor could help; the worker is idle again."""
        view = self.workers.get(worker)
        if view is not None and view.role in (Role.JOINING, Role.READY):
            view.role = Role.IDLE
        return self._decide(now)

    def running(self, worker: str, generation: Generation, how: str, seconds: float, now: float) -> list[Action]:
        """A member stands at the authority's state with its groups up."""
        view = self.workers.get(worker)
        if view is None or generation != self.generation or self.phase is not JobPhase.SYNCING:
            return []
        view.running = view.useful = True
        self.quorum.healed(worker, view.host, self.roster.group(view.host))
        self.syncing.discard(worker)
        self.pace.progress_at = now
        actions: list[Action] = [
            Record("running", {"generation": list(generation), "rank": view.rank, "how": how, "seconds": seconds})
        ]
        return actions if self.syncing else actions + self._decide(now)

    def exchange_failed(self, worker: str, generation: Generation, error: str, now: float) -> list[Action]:
        """A neighbour's socket error. Usually the news of the death is on its way already."""
        if generation != self.generation or self.phase in (JobPhase.WAITING, JobPhase.ENDED):
            return []
        if self.phase is JobPhase.FORMING:
            # The step that the others are to close at will not be committed.
            return self._begin(self.reason, now) if self.at_step else []
        if self.exchange_error_at is not None:
            return []  # it is no news
        view = self.workers.get(worker)
        rank = view.rank if view else None
        self.exchange_error_at = now
        fields: dict[str, object] = {"rank": rank, "generation": list(generation), "error": error}
        return [Record("exchange_failed", fields), *self._decide(now)]

    def apply_failed(self, worker: str, error: str, now: float) -> list[Action]:
        """An exception inside apply: that rank is unhealed and is healed by the next generation (EP-11)."""
        view = self.workers.get(worker)
        actions: list[Action] = [Record("apply_failed", {"rank": view.rank if view else None, "error": error})]
        self.apply_failures.append(now)
        while self.apply_failures[0] < now - self.rules.exits_window:
            self.apply_failures.popleft()
        if len(self.apply_failures) > self.rules.apply_failures_allowed:
            return actions + self._end(1, f"apply failed {len(self.apply_failures)} times, last: {error}")
        return actions + self._begin("apply failed", now)

    def finished(self, worker: str, now: float) -> list[Action]:
        """The task has returned on that rank."""
        view = self.workers.get(worker)
        if view is None:
            return []
        view.finished = True
        if any(w.role is Role.MEMBER and not w.finished for w in self.workers.values()):
            return []
        return self._decide(now)

    def failed(self, worker: str, exit_code: int, message: str, step: int, now: float) -> list[Action]:
        """The task raised after `step` committed steps.

        Bad input or a bug is the same everywhere and ends the job. What befalls one rank alone (its memory, its disk, its
        device) costs that rank; whether it was that shows when the others compute the same step.
        """
        view = self.workers.get(worker)
        if self.phase is JobPhase.ENDED or (view is None and self.formed):
            return []
        others = any(w is not view for w in self.roster.members)
        if view is None or not self.formed or not others or step in self.failed_steps:
            return self._end(exit_code, message)
        if view.role is Role.MEMBER:
            self.failed_steps.add(step)
        fields: dict[str, object] = {"host": view.host, "rank": view.rank, "step": step, "error": message}
        return [Record("task_error", fields), SendExit(worker, message), *self._decide(now)]

    # ------------------------------------------------------------------ events: job

    def go_on(self, now: float) -> list[Action]:
        """What follows from the events since the machine was held."""
        is_due = self._is_due
        self.is_held = self._is_due = False
        return self._decide(now) if is_due else []

    def progress(self, step: int, longest_step: float, now: float) -> None:
        """From the beats: the highest step that any rank has seen."""
        self.pace.saw(step, longest_step, now)

    def activity(self, worker: str, now: float) -> None:
        """A worker made progress other than a step (a micro-batch, a collect round, a copy)."""
        view = self.workers.get(worker)
        if view is not None:
            view.moved_at = now
            if view.role is Role.MEMBER:
                self.pace.progress_at = now

    def busy(self, worker: str, busy: bool) -> None:
        """From the beats: the worker is in code of the task whose length nobody knows."""
        view = self.workers.get(worker)
        if view is not None:
            view.busy = busy

    def heard(self, worker: str, generation: Generation, collectives: int, polls: int, now: float) -> None:
        """From the beats: how many collectives of `generation` the worker has finished, how often it has looked for
        directives (GM-19)."""
        if generation == self.generation:
            self.hangs.heard(worker, collectives, polls, now)

    def stop(self, reason: str, now: float, *, requeue: bool = False) -> list[Action]:
        """Finish the step, checkpoint, end; `requeue`: with an exit code that says to start the job again."""
        if self.stopping or self.phase is JobPhase.ENDED:
            return []
        self.stopping = True
        if requeue:
            self.ending = 75, reason
        actions: list[Action] = [Record("stopping", {"reason": reason, "requeue": requeue})]
        if not self.roster.members:
            return actions + self._end_stopped("stopped before the first step")
        return actions + self._begin(reason, now, self.pace.soon(now) if self.phase is JobPhase.TRAINING else 0)

    def give_up(self, exit_code: int, message: str) -> list[Action]:
        """There is no way to go on."""
        return [] if self.phase is JobPhase.ENDED else self._end(exit_code, message)

    def probed(self, groups: Mapping[str, str], now: float) -> list[Action]:
        """The probe is over, well or not; hosts without a group get what it has found."""
        for host, group in groups.items():
            if host in self.hosts and not self.hosts[host].group:
                self.hosts[host].group = group
        self.probe_until = now
        return self._decide(now)

    def tick(self, now: float) -> list[Action]:
        """Time passes: limits run out."""
        if self.phase is JobPhase.ENDED:
            return []
        actions: list[Action] = []
        if self.hangs.stood_still(now):
            self.pace.progress_at = now
        actions += self._watch_quorum(now)
        for host in self.roster.away:
            grace = self.rules.agent_grace if host.met else self.rules.spawn_timeout
            if now - host.detached_at > grace:
                actions += self._lose(host.host, f"no agent for {grace:g} s", now, certain=False)
        allowed = self._patience + 2 * SHOW_SECONDS  # if they hang, that is found first
        if self.phase is JobPhase.FORMING and self.at_step and now - self.round_started > allowed:
            actions += self._begin(f"{self.reason}: the ranks did not reach step {self.at_step}", now)
        forming_for = now - self.round_started
        if self.phase is JobPhase.FORMING and self._due() and forming_for > self.pace.answer_limit + 5.0:
            for worker in sorted(self.waiting):
                view = self.workers.get(worker)
                if (
                    view is not None
                    and self.hosts[view.host].attached
                    and (not view.busy or worker in self._hung or forming_for > self.rules.busy + 5.0)
                ):
                    reason = f"rank {view.rank} neither answers nor can be killed"
                    actions += self._lose(view.host, reason, now, certain=False)
        for view in self.workers.values():
            if view.role is Role.JOINING and self.hosts[view.host].attached and now - view.moved_at > self._patience:
                actions.append(KillWorker(view.worker, "it stands still while it should copy the state"))
                view.moved_at = now
        actions += self._look_for_hang(now)
        if self.phase is JobPhase.SYNCING and now - self.pace.progress_at > max(30.0, self._patience):
            actions += self._begin("a member did not get running", now)
        return actions + self._decide(now)

    # ------------------------------------------------------------------ inside

    def _meet(self, worker: WorkerView, state: RankState, answer: Answer, now: float) -> list[Action]:
        """Learn of a process, or learn again after a reconnection; repeat what it may have missed."""
        known = self.workers.get(worker.worker)
        if known is None:
            known = worker
            self.roster.add(worker)
            known.up_at = known.moved_at = now
            if self.hosts[worker.host].spawning:
                self.hosts[worker.host].spawning.popleft()
            actions: list[Action] = [Record("worker_up", {"host": worker.host, "pid": worker.pid, "worker": worker.worker})]
            if worker.worker in self.recovered_members:
                known.rank = self.recovered_members[worker.worker]
            if self.formed and (answer.configured != NO_GENERATION or worker.worker in self.recovered_members):
                # Adopted by a restarted coordinator.
                known.role = Role.MEMBER if known.rank is not None else Role.IDLE
                known.useful = True
                if answer.configured < self.generation:
                    known.off_line_since = self.generation
                elif answer.configured > self.generation:  # the journal was lost
                    for other in self.workers.values():
                        if other is not known and other.role is Role.MEMBER:
                            other.off_line_since = answer.configured
                    self.generation = answer.configured
        else:
            actions = []
            known.peer_address, known.shared_memory = worker.peer_address, worker.shared_memory
            known.moved_at = now
        known.answer = answer
        known.state = answer.state
        known.finished = state is RankState.FINISHED
        known.running = state in (RankState.TRAINING, RankState.FINISHED) and answer.configured == self.generation
        if known.running:
            self.syncing.discard(worker.worker)
        return actions + self._repeat(known)

    def _repeat(self, view: WorkerView) -> list[Action]:
        """What is due to a worker right now; receivers ignore what they have already done."""
        if self.phase is JobPhase.ENDED:
            return [SendExit(view.worker, "the job has ended")]
        if self.phase is JobPhase.FORMING and view.worker in self.waiting:
            if view.answer is not None and view.answer.generation == self.round_generation:
                self.waiting.discard(view.worker)
                return []
            return [self._prepare(view.worker)]
        if self.phase is JobPhase.SYNCING and self.plan is not None and not view.running:
            if any(m.worker == view.worker for m in self.plan.members):
                return [SendConfigure(view.worker, self.plan)]
        if view.role is Role.JOINING and (donors := self._donors(view.host)):
            return [SendJoin(view.worker, donors)]
        return []

    def _decide(self, now: float) -> list[Action]:
        """Whatever can go on, goes on."""
        if self.phase is JobPhase.ENDED:
            return []
        if self.is_held:
            self._is_due = True
            return []
        actions: list[Action] = []
        if self.recovering_until is not None:
            if not self._recovery_complete(now):
                return actions
            self.recovering_until = None
            actions += self._adopt(now)
        actions += self._reveal_lost_hosts(now)
        actions += self._dismiss(now)
        candidates = self.roster.candidates
        if not candidates and self.stopping:
            return actions + self._end_stopped("stopped; no rank was left to save the last state")
        if not candidates:
            self.phase = JobPhase.WAITING  # everyone is gone: the gang is formed anew, from the newest checkpoint
            for worker in self.workers.values():
                worker.role = Role.IDLE  # there is nobody left to copy from
            actions += self._try_first(now)
        if self.phase is JobPhase.FORMING and self.rolling_back is not None:
            self.roster.promote_idle()  # nobody has a state that they could copy first
        if self.phase is JobPhase.FORMING and not self.waiting and not self.stopping:
            staying = [w for w in candidates if not self.hosts[w.host].leaving]
            wanted = staying if self._suffice(staying) else candidates
            if any(w.answer is None or w.answer.generation != self.round_generation for w in wanted):
                actions += self._begin("join", now)  # training is held for hosts, and here is one
        if self.phase is JobPhase.SYNCING and all(w.running for w in self.roster.members):
            self.phase = JobPhase.TRAINING
            self.pace.resumed(now)
            actions += self._recovered(now)
        if self.phase is JobPhase.TRAINING and all(w.finished for w in self.roster.members):
            return actions + (self._end_stopped("stopped") if self.stopping else self._end(0, "finished"))
        if self.phase is JobPhase.TRAINING and not self.stopping:
            at_step = self.pace.soon(now)
            can_do = self.roster.can_do_without_the_leaving
            leaving = [view for view in self.roster.leaving if can_do and view.told_at is None]
            hasty = any(view.at_once for view in leaving)
            if leaving and (at_step or hasty or now > self.pace.resumed_at + self.pace.answer_limit):  # soon it is known
                actions += self._begin(leaving[0].leaving, now, 0 if hasty else at_step)
            elif self.roster.in_role(Role.READY):
                actions += self._begin("join", now, at_step)
            elif at_step and self.plan is not None:
                if self._to_lighten({member.host for member in self.plan.members}) != self.light_hosts:
                    actions += self._begin("load", now, at_step)
        if self.phase is JobPhase.FORMING and not self.waiting:
            actions += self._configure(now)
        actions += self._dismiss(now)
        actions += self._fill(now)
        return actions

    def _dismiss(self, now: float) -> list[Action]:
        """Hosts that leave and are in no generation any more: their workers are told to end, and then they are gone."""
        actions: list[Action] = []
        for view in self.roster.leaving:
            mine = self.roster.on(view.host)
            if any(worker.role is Role.MEMBER for worker in mine):
                continue
            if view.told_at is None:
                view.told_at = now
                for worker in mine:
                    worker.role = Role.IDLE  # what it may still say makes it no member
                    actions.append(self._farewell(worker.worker, view))
            if not mine or not view.attached or now > view.told_at + self.rules.farewell:
                actions += [Record("host_left", {"host": view.host}), *self._remove(view.host)]
        return actions

    def _farewell(self, worker: str, host: HostView) -> SendExit:
        """With heirs, if they go on without it."""
        reason = f"{host.host} leaves the job"
        if self.plan is None:
            return SendExit(worker, reason)
        staying = [w.peer_address for w in self.roster.members if not self.hosts[w.host].leaving]
        heirs = tuple(staying) if host.bequeaths and worker not in self.configured else ()
        return SendExit(worker, reason, heirs, self.plan.authority)

    def _reveal_lost_hosts(self, now: float) -> list[Action]:
        """An exchange error with a reset stream means the host is gone; with all streams up, go on without a verdict."""
        if self.exchange_error_at is None or self.phase not in (JobPhase.TRAINING, JobPhase.SYNCING):
            return []
        member_hosts = {w.host for w in self.roster.members}
        away = [h for h in self.roster.away if h.host in member_hosts]
        if now - self.exchange_error_at < self.rules.error_settle:
            return []  # news of an exit on a host that is there would explain it
        actions: list[Action] = []
        for host in away:  # of several, the error tells of one alone
            reason = "its agent's stream was reset and a peer saw its sockets close"
            actions += self._lose(host.host, reason, now, certain=len(away) == 1)
        if self.exchange_error_at is not None:
            actions += self._begin("an exchange failed", now)
        return actions

    def _recovery_complete(self, now: float) -> bool:
        assert self.recovering_until is not None
        return all(h.attached for h in self.hosts.values()) or (now >= self.recovering_until and self._has_quorum())

    def _adopt(self, now: float) -> list[Action]:
        """Every known host has attached (or had its time): go on with the generation that trains, or form a new one."""
        members = self.roster.members
        if not members:
            self.formed = False
            return []
        self.pace.progress_at = now
        self.hangs.begin(now)
        if all(w.running for w in members) and not self.roster.short and self.rolling_back is None:
            self.phase = JobPhase.TRAINING
            return []
        return self._begin("coordinator restarted", now)

    def _try_first(self, now: float) -> list[Action]:
        """The gang is held until hosts.min are ready, and those that are being started with them (EP-13)."""
        all_are_needed = len(self.expected_hosts) <= self.roster.most_hosts
        if not self.formed and (self.placing or (all_are_needed and self._awaits_a_host())):
            return []
        ready_hosts = [h for h in self.hosts if self.roster.complete(h)]
        if len(ready_hosts) < self.rules.hosts_min:
            return self._hold(now) if self.formed else []  # the first time hosts.wait is the limit
        if len(ready_hosts) < self.roster.most_hosts and any(not self.roster.complete(h) for h in self.expected_hosts):
            return []
        if self.rules.probe and not self.formed and self.probe_until is None:
            self.probe_until = now + self.rules.probe_limit
            return [MeasureLinks({host: self.hosts[host].address for host in ready_hosts})]
        if self.probe_until is not None and now < self.probe_until:
            return []
        for host in ready_hosts[: self.roster.most_hosts]:
            mine = [w for w in self.roster.on(host) if w.role is Role.IDLE]
            for worker in mine[: self.rules.ranks_per_host]:
                worker.role = Role.READY
        return self._begin("first generation", now)

    def _awaits_a_host(self) -> bool:
        """One that is being started lacks workers. The one that did when last looked at is looked at first: many hosts
        come, each with news."""
        if self._awaited not in self.expected_hosts or self.roster.complete(self._awaited):
            self._awaited = next((host for host in self.expected_hosts if not self.roster.complete(host)), "")
        return self._awaited != ""

    def _member_left(self, reason: str, now: float) -> list[Action]:
        if self.phase in (JobPhase.TRAINING, JobPhase.SYNCING):
            return self._begin(reason, now)
        if self.phase is JobPhase.FORMING and self.at_step:
            # The step that the others wait for will not be committed: close at once.
            return self._begin(reason, now)
        return []

    def _begin(self, reason: str, now: float, at_step: int = 0) -> list[Action]:
        """Open a round: a new generation number, PREPARE to everyone who may be in it."""
        if self.phase is JobPhase.TRAINING and at_step == 0:
            self.discarded += 1
        self.counter += 1
        self.round_generation = Generation(self.incarnation, self.counter)
        self.phase = JobPhase.FORMING
        self.reason, self.at_step, self.round_started = reason, at_step, now
        self.exchange_error_at = None
        candidates, spares = self.roster.candidates, self.roster.can_do_without_the_leaving
        self.waiting = {w.worker for w in candidates if not (spares and self.hosts[w.host].at_once)}
        fields: dict[str, object] = {
            "generation": list(self.round_generation),
            "reason": reason,
            "at_step": at_step,
        }
        actions: list[Action] = [Record("prepare", fields)]
        actions += [self._prepare(worker.worker) for worker in candidates]
        return actions

    def _prepare(self, worker: str) -> SendPrepare:
        if worker in self._hung and not self.at_step:
            return SendPrepare(worker, self.round_generation, self.at_step, ANSWER_SECONDS)
        timeout = self.pace.answer_limit
        if self.at_step:
            timeout += self._patience  # after which `tick` asks again, for an answer at once
        return SendPrepare(worker, self.round_generation, self.at_step, timeout, self.rules.busy)

    def _configure(self, now: float) -> list[Action]:
        """Everyone has promised: name the authority and the members, or hold until there are enough hosts."""
        promised = [
            w for w in self.roster.candidates if w.answer is not None and w.answer.generation == self.round_generation
        ]
        if promised and not self._has_quorum():
            return self.quorum.wait(self._votes(), now)
        staying = [w for w in promised if not self.hosts[w.host].leaving]
        if self._suffice(staying):
            promised = staying
            for host in self.roster.leaving:
                for worker in self.roster.on(host.host):
                    worker.role = Role.IDLE
        enough = len({w.host for w in promised}) >= self.rules.hosts_min
        if not promised or not (enough or self.stopping):
            return self._hold(now, promised)
        return self._issue(promised, now)

    def _suffice(self, staying: list[WorkerView]) -> bool:
        """The others may go: one of these has the state, or nobody's counts."""
        return any(map(self._eligible, staying)) or (self.rolling_back is not None and bool(staying))

    def _hold(self, now: float, promised: Sequence[WorkerView] = ()) -> list[Action]:
        """Too few hosts can train: save what there is and wait for more, but not for ever (GM-33)."""
        if self.below_min_since is None:
            self.below_min_since = now
            holders = [worker for worker in promised if self._eligible(worker)]
            holder = max(holders, key=lambda worker: worker.state.position, default=None)
            return [] if holder is None else [SendSave(holder.worker, holder.state.step, held=True)]
        if now - self.below_min_since > self.rules.replace_wait:
            reason = f"fewer than hosts.min={self.rules.hosts_min} hosts for {self.rules.replace_wait:g} s"
            return self.stop(reason, now, requeue=True)
        return []

    # ------------------------------------------------------------------ quorum

    def _votes(self) -> Votes:
        return self.quorum.votes(self.round_generation if self.phase is JobPhase.FORMING else None, self.waiting)

    def _has_quorum(self) -> bool:
        """Who only saves what there is and ends needs none."""
        return self.stopping or self.quorum.allows(self._votes())

    def _can_do_without(self, host: str) -> bool:
        """Nobody is certain that it is gone."""
        self.quorum.doubt(host)
        return host not in self.quorum.hosts or self._has_quorum()

    def _watch_quorum(self, now: float) -> list[Action]:
        if self.quorum.lost_at is None:
            return []
        if self._has_quorum():
            for view in self.roster.away:  # hosts that were out of reach together come back one after the other
                view.detached_at = now
            return self.quorum.is_back(now)
        hopeless = self.quorum.given_up(self._votes(), self.pace.progress_at, now)
        return self._end(9, hopeless) if hopeless else []

    # ------------------------------------------------------------------ hangs

    def _look_for_hang(self, now: float) -> list[Action]:
        """Nothing gets on for too long: ask where ranks stand, then judge, and go on in a new generation (GM-19)."""
        trains = self.phase is JobPhase.TRAINING or (self.phase is JobPhase.FORMING and not self._due())
        if not trains or now - self.pace.progress_at <= self._patience:
            self.hangs.forget()
            return []
        if not self.hangs.is_known(now):
            return [*self.hangs.ask(now)]
        limit, hang = self._patience, self.hangs.judge(now)
        actions = hang.records(self.generation, self.pace.step, limit)
        if hopeless := hang.hopeless(self.pace.step):
            return actions + self._end(9, hopeless)
        self._hung = {each.worker for each in hang.culprits}
        return actions + self._begin(hang.reason, now)

    # ------------------------------------------------------------------ a new generation

    def _issue(self, promised: list[WorkerView], now: float) -> list[Action]:
        self.below_min_since = None
        eligible = [w for w in promised if self._eligible(w)]
        on_lines = {w.worker for w in eligible}
        first = not eligible
        promised = self.roster.seat(promised)
        authority = NOWHERE if first else max((w.state for w in eligible), key=lambda s: s.position)
        if authority.step + 1 == self.attempt_step and not first:
            self.attempt += 1
        else:
            self.attempt = 0 if self.at_step or first else 1
        self.attempt_step = authority.step + 1
        generation = self.round_generation
        light = self._to_lighten({worker.host for worker in promised})
        members = []
        for worker in promised:
            on_line = worker.worker in on_lines
            donor = worker is promised[0] if first else on_line and worker.state == authority
            members.append(
                MemberPlan(
                    worker.worker,
                    worker.rank or 0,
                    worker.host,
                    worker.peer_address,
                    worker.state,
                    donor,
                    on_line,
                    worker.shared_memory,
                    self.roster.group(worker.host),
                    worker.host in light,
                )
            )
            worker.off_line_since = None if on_line else generation
            worker.running = worker.finished = False
        for other in self.workers.values():
            if other.role is not Role.MEMBER:
                other.off_line_since = generation
        self.plan = Plan(generation, tuple(members), authority, self.attempt, first, self.stopping, self.rolling_back)
        self._configured = {member.worker: member.host for member in members}
        self.syncing = set(self._configured)
        self.generation = generation
        self.quorum.begin({m.worker: m.host for m in members if m.on_line}, {m.host: m.group for m in members})
        self.hangs.begin(now)
        self._hung.clear()
        if first:
            self.pace.begins_anew()
        self.phase = JobPhase.SYNCING
        self.formed = True
        self.pace.progress_at = now
        self.exchange_error_at = None
        fields: dict[str, object] = {
            "generation": list(generation),
            "members": [
                {"rank": m.rank, "host": m.host, "pid": self.workers[m.worker].pid, "worker": m.worker} for m in members
            ],
            "authority_step": authority.step,
            "attempt": self.attempt,
            "reason": self.reason,
            "discarded": self.discarded,
        } | ({"light": sorted(light)} if light else {})
        actions: list[Action] = [Record("generation", fields)]
        return actions + [SendConfigure(m.worker, self.plan) for m in members]

    def _eligible(self, worker: WorkerView) -> bool:
        """May be the authority: healed, and in every generation that could have committed since its own (EP-9, EP-11)."""
        answer = worker.answer
        if self.rolling_back is not None or answer is None or not answer.healed or worker.role is not Role.MEMBER:
            return False
        return worker.off_line_since is None or answer.configured >= worker.off_line_since

    def _recovered(self, now: float) -> list[Action]:
        """All members run. Close the incidents that this generation answers."""
        assert self.plan is not None
        actions: list[Action] = []
        if self.rolling_back is not None:
            self.rolling_back = None
            actions.append(Record("rolled_back", {"generation": list(self.generation)}))
        world, full = len(self.plan.members), not self.roster.lacking
        return actions + self.incidents.answered(self.generation, world, now, full=full)

    def _planned(self) -> int:
        """Ranks of the generation that was configured last."""
        return len(self.plan.members) if self.plan is not None else len(self.recovered_members)

    def _fill(self, now: float) -> list[Action]:
        """Promote idle workers where a host lacks ranks; start processes where it lacks workers."""
        if self.stopping or self.recovering_until is not None:
            return []
        training, formed = self.phase is JobPhase.TRAINING, self.formed
        promotes = formed and (training or (self.phase is JobPhase.FORMING and not self.waiting))
        has_begun = formed and self.phase is not JobPhase.WAITING
        return self._staffing.fill(now, promotes=promotes, formed=has_begun, training=training, donors=self._donors)

    def _donors(self, host: str) -> tuple[MemberPlan, ...]:
        """Members that a joiner on `host` may copy from: those of its group first, the last of the ring first, as its
        first ones write logs and checkpoints; those who leave at last."""
        members = self.roster.in_ring(w for w in self.roster.members if w.running or self._eligible(w))[::-1]
        group = self.roster.group(host)
        members.sort(key=lambda w: (bool(self.hosts[w.host].leaving), self.roster.group(w.host) != group))
        told = members[:MOST_DONORS]
        return tuple(MemberPlan(w.worker, w.rank or 0, w.host, w.peer_address, w.state, True, True) for w in told)

    def _due(self) -> bool:
        """Have the ranks to answer by now? While the step they are to close at is not committed, they have not."""
        return self.at_step == 0 or self.pace.step >= self.at_step

    @property
    def _patience(self) -> float:
        """Seconds in which nothing at all may happen; longer while a member is in the task's own code."""
        if any(w.busy for w in self.roster.members):
            return self.rules.busy
        return self.hangs.patience(self.pace.patience)

    def _end_stopped(self, message: str) -> list[Action]:
        """`message` where the ending has no reason of its own."""
        exit_code, reason = self.ending
        return self._end(exit_code, reason or message)

    def _end(self, exit_code: int, message: str) -> list[Action]:
        self.phase = JobPhase.ENDED
        kind = "finished" if exit_code in (0, 130) else "failed"
        actions: list[Action] = [Record(kind, {"step": self.pace.step, "message": message, "exit_code": exit_code})]
        actions += [SendExit(worker, message) for worker in self.workers]
        return [*actions, EndJob(exit_code, message)]
