"""What the policy says, as data (section 4)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from orchestrator.governor.codes import Code, Scope, Weight
from orchestrator.governor.config import Mode


class Act(StrEnum):
    """What a verdict proposes to do with its target."""

    INFORM = "inform"
    RELIEVE = "relieve"
    SUSPECT = "suspect"
    TRUST_AGAIN = "trust_again"
    QUARANTINE = "quarantine"
    TEST = "test"
    EVICT = "evict"
    COOL = "cool"
    ADMIT = "admit"
    """To probation."""
    REGROUP = "regroup"
    PAUSE = "pause"
    ROLL_BACK = "roll_back"


@dataclass(frozen=True)
class Verdict:
    """`reasons` are all there were, the heaviest first, which it is named by; `guard` refuses what is proposed."""

    time: float
    target: str
    scope: Scope
    act: Act
    reasons: tuple[Code, ...]
    mode: Mode
    guard: str = ""
    rolls_back: bool = False

    @property
    def weight(self) -> Weight:
        return max((code.weight for code in self.reasons), default=Weight.ADVISORY)

    @property
    def is_in_force(self) -> bool:
        """It is to be acted on."""
        return self.mode is Mode.ENFORCE and not self.guard

    def record(self) -> dict[str, Any]:
        """For events.jsonl and the log that is replayed."""
        return {
            "t": self.time,
            "target": self.target,
            "scope": self.scope.value,
            "act": self.act.value,
            "reasons": [code.value for code in self.reasons],
            "mode": self.mode.value,
            "guard": self.guard,
            "rolls_back": self.rolls_back,
        }
