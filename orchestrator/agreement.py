"""What all ranks hold after a step: who deviates leaves, and the job goes back to where all held the same (GM-17)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quantarion.v1 import control_pb2 as pb

from orchestrator.digests import Comparison, Digests
from orchestrator.errors import ExitCode
from orchestrator.governor.codes import Code
from orchestrator.governor.config import Mode
from workers import wire

if TYPE_CHECKING:
    from orchestrator.coordinator import Coordinator


class Agreement:
    """Of one coordinator."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._job = coordinator
        self._digests = Digests(coordinator.journal.remembered.sound)

    @property
    def sound(self) -> int:
        """The last step after which all were seen to hold the same."""
        return self._digests.sound

    def agreed(self, step: int) -> None:
        """What all hold after it is the same."""
        self._digests.sound = step
        self._job.journal.write({"entry": "sound", "step": step})

    def distrust(self, sound: int) -> None:
        """What was seen since `sound` does not count."""
        self._digests.sound = sound
        self._job.journal.distrust(sound)

    def told(self, worker: str, digest: pb.StateDigest) -> None:
        """By a rank, of its state."""
        state, machine = wire.state_from_wire(digest.state), self._job.machine
        if state.generation != machine.generation:
            return
        found = self._digests.tell(worker, state, digest.digest, machine.configured)
        if found is not None and machine.rolling_back is None:
            self._compared(found)

    def _compared(self, found: Comparison) -> None:
        """All members have told what they hold. Where that differs, who deviates is out of the generation that goes
        back."""
        job, step, sound = self._job, found.state.step, self.sound
        if found.unanimous:
            self.agreed(step)
            return
        fields = {"step": step, "hosts": list(found.deviating), "split": found.split, "sound": sound}
        job.event("digests_differ", fields)
        for host in found.deviating:
            job.governing.convict(host, Code.SDC_DIGEST, job.now())
        if job.spec.governor.certain is not Mode.ENFORCE:
            return
        job.remove_convicted()
        job.journal.distrust(sound)
        if self._digests.leave(found):
            text = f"ranks hold other bytes after step {step}, and did so before: something changes them on each by itself"
            job.do(job.machine.give_up(ExitCode.BUG, f"{text} (DIGEST_SPLIT); see docs/governor.md"))
            return
        code = "DIGEST_SPLIT" if found.split else "SDC_DIGEST"
        job.do(job.machine.roll_back(sound, f"ranks hold other bytes after step {step} ({code})", job.now()))
