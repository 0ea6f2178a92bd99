"""Sums over the ranks that are not what was put in: who adds up wrongly leaves, and the job goes back (GM-16)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from quantarion.v1 import control_pb2 as pb

from orchestrator.errors import ExitCode
from orchestrator.governor.codes import Code
from orchestrator.governor.config import Mode
from workers import wire

if TYPE_CHECKING:
    from orchestrator.coordinator import Coordinator

MOST_UNEXPLAINED = 3
"""Times in a row that sums may be wrong and nobody be found whose they are."""

Finding = tuple[int, int, tuple[int, ...]]
"""Step, the last step before it of which no sum was found wrong, and owners."""


class WrongSums:
    """Of one coordinator. All ranks find the same, so what most hosts say counts: one that lies moves nobody."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._job = coordinator
        self._generation = coordinator.machine.generation
        self._told: dict[Finding, set[str]] = {}
        self._unexplained = 0

    def told(self, worker: str, found: pb.WrongSums) -> None:
        """By a rank of the generation that trains."""
        machine = self._job.machine
        plan, generation = machine.plan, wire.generation_from_wire(found.generation)
        if plan is None or machine.rolling_back is not None or generation != machine.generation:
            return
        if generation != self._generation:
            self._generation, self._told = generation, {}
        hosts = {member.worker: member.host for member in plan.members}
        if worker not in hosts:
            return
        finding = found.step, found.right, tuple(found.owners)
        said = self._told.setdefault(finding, set())
        said.add(hosts[worker])
        if 2 * len(said) > len(set(hosts.values())):
            self._told.clear()
            self._act(*finding, [member.host for member in plan.members])

    def _act(self, step: int, right: int, owners: Sequence[int], places: Sequence[str]) -> None:
        """`places`: the hosts of all members, in their order."""
        job = self._job
        hosts = sorted({places[owner] for owner in owners if 0 <= owner < len(places)})
        culprit = hosts[0] if len(owners) == len(hosts) == 1 and len(places) > 2 else ""
        sound = min(job.agreement.sound, right)
        job.event("wrong_sums", {"step": step, "hosts": hosts, "culprit": culprit, "sound": sound})
        if culprit:
            job.governing.convict(culprit, Code.REDUCE_CHECK, job.now())
        if job.spec.governor.certain is not Mode.ENFORCE:
            return
        job.remove_convicted()
        job.agreement.distrust(sound)
        self._unexplained = 0 if culprit else self._unexplained + 1
        if self._unexplained >= MOST_UNEXPLAINED:
            text = f"sums over the ranks were wrong {self._unexplained} times, of step {step} last"
            text += ", and nobody knows whose fault it is (REDUCE_CHECK); see docs/governor.md"
            job.do(job.machine.give_up(ExitCode.BUG, text))
            return
        job.do(job.machine.roll_back(sound, f"sums of step {step} were wrong (REDUCE_CHECK)", job.now()))
