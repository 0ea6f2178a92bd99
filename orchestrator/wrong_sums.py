"""Sums over the ranks that are not what was put in: who adds up wrongly leaves, and the job goes back (GM-16)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from orchestrator.errors import ExitCode
from orchestrator.governor.codes import Code
from orchestrator.governor.config import Mode

if TYPE_CHECKING:
    from orchestrator.coordinator import Coordinator

MOST_UNEXPLAINED = 3
"""Times that sums may be wrong and nobody be found whose they are."""


class WrongSums:
    """Of one coordinator."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._job = coordinator
        self._unexplained = 0

    def told(self, fields: Mapping[str, Any]) -> None:
        """By a rank, as by all of its generation. `members` own the pieces that were wrong, `culprit` is the one whose
        fault it is, or -1, both as places in the generation; up to step `right` no sum was found wrong."""
        job, machine = self._job, self._job.machine
        plan = machine.plan
        if plan is None or machine.rolling_back is not None or list(machine.generation) != list(fields["generation"]):
            return
        places = len(plan.members)
        hosts = sorted({plan.members[place].host for place in fields["members"] if 0 <= place < places})
        culprit = int(fields["culprit"])
        host = plan.members[culprit].host if 0 <= culprit < places else ""
        step, sound = int(fields["step"]), min(job.digests.sound, int(fields["right"]))
        job.event("wrong_sums", {"step": step, "hosts": hosts, "culprit": host, "sound": sound})
        if host:
            job.governing.convict(host, Code.REDUCE_CHECK, job.now())
        if job.spec.governor.certain is not Mode.ENFORCE:
            return
        job.remove_convicted()
        job.digests.sound = sound
        job.journal.distrust(sound)
        self._unexplained = 0 if host else self._unexplained + 1
        if self._unexplained >= MOST_UNEXPLAINED:
            text = f"sums over the ranks were wrong {self._unexplained} times, of step {step} last"
            text += ", and nobody knows whose fault it is (REDUCE_CHECK); see docs/governor.md"
            job.do(machine.give_up(ExitCode.BUG, text))
            return
        job.do(machine.roll_back(sound, f"sums of step {step} were wrong (REDUCE_CHECK)", job.now()))
