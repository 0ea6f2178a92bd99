"""The job that a storm falls upon: hosts in a lab, all rules of the governor in force, one idle worker on each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.gang.lab import LabGang
from benchmarks.model import GLOBAL_BATCH
from benchmarks.storm.disk import SmallDisk
from benchmarks.storm.kinds import Kind
from benchmarks.storm.schedule import Planned
from orchestrator.jobspec import JobSpec

PROGRAM = Path(__file__).with_name("program.py")
NAME = "job"
ENDLESS = 1_000_000
CHECKPOINT_EVERY = 50
"""Steps."""


def armed_fault(fault: Planned) -> str | None:
    """As the JobSpec names it, for those kinds that a rank does to itself once it is told to (`workers.faults`)."""
    match fault.kind:
        case Kind.FLIP:
            return f"after_apply_alone@armed={fault.number}=flip"
        case Kind.NAN:
            return f"in_backward@armed={fault.number}=nan"
        case _:
            return None


@dataclass
class StormGang(LabGang):
    """Of the program beside this file."""

    seed: int = 0
    hosts_min: int = 1
    spares: int = 1
    faults: Sequence[str] = ()
    disk: SmallDisk = field(kw_only=True)

    def _spec(self) -> JobSpec:
        return JobSpec.model_validate(
            {
                "name": NAME,
                "storage": str(self.storage),
                "seed": self.seed,
                "global_batch": GLOBAL_BATCH,
                "micro_batch": 64,
                "governor": {"certain": "enforce", "noisy": "enforce"},
                "hosts": {"min": self.hosts_min, "max": self.hosts},
                "ranks_per_host": self.ranks_per_host,
                "spares_per_host": self.spares,
                "task": {"script": str(PROGRAM)},
                "phases": {"fp32_epochs": ENDLESS, "qat_epochs": 0},
                "evaluate_every": 0,
                "checkpoint": {"every": CHECKPOINT_EVERY, "at_end": False},
                "faults": list(self.faults),
            }
        )

    def _furnish(self) -> None:
        self.disk.mount(self.folder / "checkpoints")
