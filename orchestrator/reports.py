"""What ranks say of themselves, and what follows from it."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from quantarion.v1 import control_pb2 as pb

from orchestrator import membership as ms
from orchestrator.governor.codes import Code
from orchestrator.non_finite import NonFinite
from orchestrator.wrong_sums import WrongSums
from workers import wire

if TYPE_CHECKING:
    from orchestrator.coordinator import Coordinator


@dataclass
class Seen:
    """The last beat of one worker."""

    step: int = 0
    state: str = "starting"
    moved: tuple[int, int] = (0, 0)


class Reports:
    """Of one coordinator. Workers are told of by the agent of their own host alone.

    Attributes:
        seen: of each worker that has had a beat and has not exited.
        total_steps: of the job; 0 before a rank has said it.
        non_finite: whose losses and gradients were not finite.
    """

    def __init__(self, coordinator: Coordinator) -> None:
        self._job = coordinator
        self._wrong_sums = WrongSums(coordinator)
        self.non_finite = NonFinite()
        self.seen: dict[str, Seen] = {}
        self.total_steps = 0

    def last_seen(self, worker: str) -> tuple[str, int]:
        """State and step in its last beat."""
        seen = self.seen.get(worker, Seen())
        return seen.state, seen.step

    def beat(self, beat: pb.Beat) -> None:
        """Of the workers of a host."""
        machine, now = self._job.machine, self._job.now()
        for progress in beat.progress:
            if progress.worker not in machine.workers:
                continue
            seen = self.seen.setdefault(progress.worker, Seen())
            moved = (progress.micro_batch, progress.exchanges)
            if moved != seen.moved:
                machine.activity(progress.worker, now)
            seen.step, seen.state, seen.moved = progress.step, progress.state, moved
            machine.busy(progress.worker, progress.busy)
            generation = wire.generation_from_wire(progress.generation)
            machine.heard(progress.worker, generation, progress.collectives, progress.polls, now)
            view = machine.workers.get(progress.worker)
            if view is not None and view.running:  # else it may say where it was before the job went back
                machine.progress(progress.step, progress.step_seconds, now)

    def told(self, report: pb.RankReport) -> None:
        """By a rank itself."""
        job, machine, worker, now = self._job, self._job.machine, report.worker, self._job.now()
        match report.WhichOneof("body"):
            case "prepared":
                job.do(machine.prepared(worker, wire.answer_from_wire(report.prepared), now))
            case "ready":
                job.do(machine.ready(worker, wire.state_from_wire(report.ready.state), now))
            case "running":
                running = report.running
                generation = wire.generation_from_wire(running.generation)
                job.do(machine.running(worker, generation, running.how, running.seconds, now))
            case "exchange_failed":
                failed = report.exchange_failed
                generation = wire.generation_from_wire(failed.generation)
                job.do(machine.exchange_failed(worker, generation, failed.error, now))
            case "published":
                published = report.published
                fields = {"path": published.path, "tier": published.tier, "step": published.step}
                sizes = {"bytes": published.bytes, "raw_bytes": published.raw_bytes, "seconds": published.seconds}
                job.event("checkpoint", {**fields, **sizes})
                job.saving.published(published.step, published.tier)
            case "finished":
                machine.progress(wire.state_from_wire(report.finished.state).step, 0.0, now)  # no beat says it any more
                job.do(machine.finished(worker, now))
            case "failed":
                self._failed(worker, report.failed)
            case "note":
                self._note(worker, report.note, now)
            case "wrong_sums":
                self._wrong_sums.told(worker, report.wrong_sums)
            case "digest":
                job.agreement.told(worker, report.digest)

    def _failed(self, worker: str, failed: pb.Failed) -> None:
        job, view = self._job, self._job.machine.workers.get(worker)
        if failed.device_lost and view is not None and job.machine.can_spare(view.host):
            job.event("device_lost", {"host": view.host, "rank": view.rank, "error": failed.error})
            job.governing.convict(view.host, Code.DEVICE_LOST, job.now())
            job.remove_convicted()
            if view.host in job.machine.hosts:  # it stays, for now at least; and the task is not to blame
                job.do([ms.SendExit(worker, failed.error)])
            return
        job.do(job.machine.failed(worker, failed.exit_code, failed.error, failed.step, job.now()))
        if failed.traceback and job.machine.phase is ms.JobPhase.ENDED:
            with contextlib.suppress(OSError):  # a full disk must not keep the job from ending
                (job.folder / "traceback.txt").write_text(failed.traceback)

    def _note(self, worker: str, note: pb.Note, now: float) -> None:
        job, machine = self._job, self._job.machine
        if note.kind == "apply_failed":
            job.do(machine.apply_failed(worker, note.json, now))
        elif note.kind == "join_failed":
            job.do(machine.join_failed(worker, now))
        else:
            fields = json.loads(note.json)
            if note.kind == "plan":
                self.total_steps = int(fields["total_steps"])
            elif note.kind == "non_finite" and worker in machine.workers:
                host, step, again = machine.workers[worker].host, int(fields["step"]), bool(fields["again"])
                if self.non_finite.told(host, step, again=again):
                    job.event("non_finite_job", {"step": step, "code": Code.NONFINITE_JOB.value})
            elif note.kind == "finite_again":
                self.non_finite.finite(int(fields["step"]), now)
            elif note.kind == "resumed":
                job.journal.trust()
                job.agreement.agreed(int(fields["step"]))
            job.event(note.kind, fields)
