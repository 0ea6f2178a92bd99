"""A checkpoint that somebody wants now: ranks are told of it until one lies on disk, whoever dies meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator import membership as ms

if TYPE_CHECKING:
    from orchestrator.coordinator import Coordinator

AGAIN_SECONDS = 1.0
"""Who did not hear of it hears it then: the first of the ring may be another by now, an agent have been away."""

EXACT = "exact"
"""The tier that it has; `workers.checkpoint` has the name too, and loads torch."""


class Saving:
    """Of one coordinator. `step`: after it the state is to be saved; 0: nobody waits for that."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._job = coordinator
        self.step = coordinator.journal.remembered.save
        self._told_at = float("-inf")

    def ask(self) -> int:
        """The step: one that no rank has passed yet, so that all tell a digest of the same state; the last one at most."""
        job, pace = self._job, self._job.machine.pace
        step = pace.soon(job.now()) or pace.step + 1
        total = job.reports.total_steps
        self.step = min(step, total) if total else step
        self._told_at = float("-inf")
        job.journal.write({"entry": "save", "step": self.step})
        self.tick()
        return self.step

    def tick(self) -> None:
        """Tell all members: any of them may be the first of the ring next."""
        machine, now = self._job.machine, self._job.now()
        if self.step and machine.phase is ms.JobPhase.TRAINING and now - self._told_at >= AGAIN_SECONDS:
            self._told_at = now
            self._job.do([ms.SendSave(worker.worker, self.step) for worker in machine.roster.members])

    def published(self, step: int, tier: str) -> None:
        """A checkpoint lies on disk; it may be the one."""
        if self.step and step >= self.step and tier == EXACT:
            self.step = 0
            self._job.journal.write({"entry": "saved"})
