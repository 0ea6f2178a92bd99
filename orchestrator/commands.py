"""What operators ask of a running job, and what it answers: how it is; commands that a guard may refuse."""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import TYPE_CHECKING

from quantarion.v1 import control_pb2 as pb
from quantarion.v1 import operator_pb2 as op

from orchestrator import membership as ms
from orchestrator.governor.events import Asked, Wish
from orchestrator.governor.hosts import HostState
from orchestrator.jobspec import JobSpec
from workers import wire

if TYPE_CHECKING:
    from orchestrator.coordinator import Coordinator


class Commands:
    """Of one coordinator. What is refused comes back with the name of the guard and a sentence, and has changed nothing."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._job = coordinator

    # ------------------------------------------------------------------ how it is

    def status(self, driver: bool) -> op.StatusReply:
        """The job as it is now. `driver`: the process that started it asks."""
        job, machine = self._job, self._job.machine
        if driver:
            job.driver_lives()
        phase = job.phase if job.phase in ("finished", "failed", "stopping") else _phase(machine)
        reply = op.StatusReply(
            job=job.spec.name,
            phase=phase,
            step=machine.pace.step,
            total_steps=job.reports.total_steps,
            generation=wire.generation_to_wire(machine.generation),
            message=job.message or _held(machine, job.spec),
            exit_code=job.exit_code,
            coordinator_pid=os.getpid(),
            discarded=machine.discarded,
        )
        if job.gauges.phi is not None:
            reply.phi = job.gauges.phi
        if job.gauges.lockstep is not None:
            reply.lockstep, reply.out_of_phase = job.gauges.lockstep
        reply.ranks.extend(map(self._rank, sorted(machine.workers.values(), key=lambda w: (w.rank is None, w.rank or 0))))
        names = [*machine.hosts, *(host for host in job.governing.records if host not in machine.hosts)]
        spares = set(machine.roster.spares)
        reply.hosts.extend(self._host(name, spares) for name in names)
        return reply

    def _rank(self, view: ms.WorkerView) -> op.RankStatus:
        state, step = self._job.reports.last_seen(view.worker)
        is_member = view.role is ms.Role.MEMBER
        rank = view.rank if is_member and view.rank is not None else -1
        state = state if is_member else view.role.value
        return op.RankStatus(rank=rank, host=view.host, pid=view.pid, state=state, step=step, worker=view.worker)

    def _host(self, name: str, spares: Collection[str]) -> op.HostStatus:
        job = self._job
        view, record = job.machine.hosts.get(name), job.governing.records.get(name)
        reply = op.HostStatus(host=name, state="gone")
        if view is not None:
            here = "spare" if name in spares else "healthy"
            state = "leaving" if view.leaving else here if view.attached else "detached" if view.met else "starting"
            reply.state, reply.address, reply.group = state, view.address, view.group
            reply.agent_pid, reply.through = job.streams.agent_pid(name), job.streams.through(name)
            if view.attached:
                _show_resources(reply, job.observing.last(name))
        if record is not None:
            reply.standing, reply.trust, reply.evictions = record.state.value, record.trust, len(record.evictions)
            reply.excluded, reply.returns_at = record.excluded, record.returns_at or 0.0
            if record.score.value is not None:
                reply.score = record.score.value
            reply.reason = record.score.reason.value if record.score.reason is not None else ""
        reply.short_of.extend(code.value for code in job.governing.shortages(name))
        return reply

    # ------------------------------------------------------------------ commands

    def stop(self, request: op.StopRequest) -> op.StopReply:
        """Checkpoint and end, or end at once."""
        self._job.stop(request.reason or "an operator asked for it", request.now)
        return op.StopReply(accepted=True, message="stopping")

    def change(self, command: str, request: op.HostRequest | op.ScaleRequest | op.CheckpointRequest) -> op.OperatorReply:
        """`drain`, `evict`, `readmit`, `scale` or `checkpoint`; on record whatever comes of it."""
        if isinstance(request, op.ScaleRequest):
            reply, asked = self._scale(request), dict[str, object](hosts=request.hosts)
        elif isinstance(request, op.CheckpointRequest):
            reply = self._checkpoint()
            asked = dict[str, object](id=request.id, step=reply.step)
        else:
            reply = {"drain": self._drain, "evict": self._evict, "readmit": self._readmit}[command](request)
            asked = dict[str, object](host=request.host, reason=request.reason)
        self._job.event("operator", {"command": command, **asked, "accepted": reply.accepted, "guard": reply.guard})
        return reply

    def _drain(self, request: op.HostRequest) -> op.OperatorReply:
        job, host = self._job, request.host
        refused = self._stale(request.generation) or self._not_present(host) or self._too_few(host)
        if refused is not None:
            return refused
        job.drain(host, request.reason or "an operator drains it")
        return _done(f"{host} leaves after the step")

    def _evict(self, request: op.HostRequest) -> op.OperatorReply:
        job, host = self._job, request.host
        refused = self._stale(request.generation) or self._not_present(host) or self._too_few(host)
        if refused is not None:
            return refused
        if host not in job.governing.records:  # it has trained nothing yet
            job.drain(host, request.reason or "an operator evicts it")
        else:
            job.governing.tell(Asked(job.now(), host, Wish.EVICT))
            job.govern()
        return _done(f"{host} is removed after the step; it comes back once it is readmitted")

    def _readmit(self, request: op.HostRequest) -> op.OperatorReply:
        job, host = self._job, request.host
        if (refused := self._stale(request.generation)) is not None:
            return refused
        record = job.governing.records.get(host)
        if job.forgive(host):
            return _done(f"{host} may be taken again")
        if record is None:
            return self._unknown(host)
        if record.state is not HostState.COOLING:
            return _refused("already", f"{host} is {record.state.value}, and not kept away")
        job.governing.tell(Asked(job.now(), host, Wish.READMIT))
        job.govern()
        return _done(f"{host} is tested and taken back as soon as its node is free")

    def _scale(self, request: op.ScaleRequest) -> op.OperatorReply:
        job, hosts = self._job, request.hosts
        if (refused := self._stale(request.generation)) is not None:
            return refused
        spec = job.spec
        if hosts < spec.hosts.min:
            return _refused("min_hosts", f"{hosts} is less than hosts.min, which is {spec.hosts.min}")
        if hosts * spec.ranks_per_host > spec.global_batch:
            most = spec.global_batch // spec.ranks_per_host
            return _refused(
                "global_batch", f"{hosts} hosts have more ranks than a batch has samples; ask for {most} or less"
            )
        many = f"up to {hosts} host{'' if hosts == 1 else 's'}"
        if hosts == job.machine.roster.most_hosts:
            return _refused("already", f"the job runs on {many} already")
        leaving = job.scale(hosts)
        return _done(f"{many} from now on" + (f"; to leave: {', '.join(leaving)}" if leaving else ""))

    def _checkpoint(self) -> op.OperatorReply:
        job = self._job
        if (refused := self._stale(pb.Generation())) is not None:
            return refused
        if job.saving.step:
            return _refused("already", f"the state after step {job.saving.step} is being saved already")
        step = job.saving.ask()
        return op.OperatorReply(accepted=True, message=f"the state after step {step} is saved", step=step)

    # ------------------------------------------------------------------ guards

    def _stale(self, generation: pb.Generation) -> op.OperatorReply | None:
        """The command was meant for another membership, or comes when the job has ended."""
        job, asked = self._job, wire.generation_from_wire(generation)
        if job.done.is_set() or job.machine.stopping:
            return _refused("not_running", f"{job.spec.name} is ending")
        if asked.counter and asked < job.machine.generation:
            return _refused("stale_generation", f"the job is in generation {job.machine.generation} by now, not in {asked}")
        return None

    def _unknown(self, host: str) -> op.OperatorReply:
        known = ", ".join(self._job.machine.hosts) or "none"
        return _refused("unknown_host", f"the job has no host '{host}' (it has: {known})")

    def _not_present(self, host: str) -> op.OperatorReply | None:
        view = self._job.machine.hosts.get(host)
        if view is None:
            return self._unknown(host)
        return _refused("already", f"{host} is leaving: {view.leaving}") if view.leaving else None

    def _too_few(self, host: str) -> op.OperatorReply | None:
        """Without `host`."""
        least = self._job.spec.hosts.min
        staying = [view.host for view in self._job.machine.hosts.values() if not view.leaving and view.host != host]
        if len(staying) >= least:
            return None
        return _refused(
            "min_hosts", f"without {host} there are {len(staying)} hosts, fewer than hosts.min, which is {least}"
        )


def _show_resources(reply: op.HostStatus, beat: pb.Beat) -> None:
    """What is not known stays absent."""
    for sensor in ("memory", "disk", "load", "cpu"):
        if beat.HasField(sensor):
            setattr(reply, sensor, getattr(beat, sensor))


def _done(message: str) -> op.OperatorReply:
    return op.OperatorReply(accepted=True, message=message)


def _refused(guard: str, message: str) -> op.OperatorReply:
    return op.OperatorReply(accepted=False, message=message, guard=guard)


def _phase(machine: ms.Membership) -> str:
    if machine.stopping:
        return "stopping"
    match machine.phase:
        case ms.JobPhase.WAITING:
            return "starting" if machine.hosts else "waiting"
        case ms.JobPhase.TRAINING:
            return "training"
        case ms.JobPhase.FORMING if machine.below_min_since is not None or machine.quorum.lost_at is not None:
            return "waiting"
        case _:
            return "starting" if not machine.pace.step else "training"


def _held(machine: ms.Membership, spec: JobSpec) -> str:
    if machine.quorum.lost_at is not None:
        return f"members stay as they are: too many hosts cannot be reached ({', '.join(sorted(machine.out_of_reach))})"
    if machine.below_min_since is None:
        return ""
    return f"training is held: fewer than hosts.min={spec.hosts.min} hosts are ready"
