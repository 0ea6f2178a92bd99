"""`governor` of the JobSpec: every number that the policy goes by."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Self

from pydantic import Field, Strict, model_validator

from orchestrator.governor.codes import NOISY, Code
from orchestrator.governor.signals import SIGNALS, Limits, Signal
from workers.settings import Config


class Mode(StrEnum):
    """What is done about a verdict (GM-41)."""

    SHADOW = "shadow"
    """It is logged."""
    ADVISE = "advise"
    """An operator is asked."""
    ENFORCE = "enforce"


class SignalConfig(Config):
    """Limits of one noisy signal; what is not given stays as it is."""

    good: float | None = None
    alert: float | None = None
    bad: float | None = None
    mode: Annotated[Mode, Strict(False)] | None = None


class GovernorConfig(Config):
    """When hosts are suspected, removed and taken back."""

    certain: Annotated[Mode, Strict(False)] = Field(
        Mode.ENFORCE, description="What is done about evidence that does not come from a host that is well."
    )
    noisy: Annotated[Mode, Strict(False)] = Field(
        Mode.SHADOW,
        description="The same for measurements that chance and load move too. `quantarion governor calibrate` says when "
        "the record is long enough for `enforce`.",
    )
    signals: dict[Annotated[Code, Strict(False)], SignalConfig] = Field(
        default={},
        description="Limits and modes of single noisy signals.",
        examples=[{"STRAGGLER": {"alert": 1.5, "mode": "enforce"}}],
    )
    evaluation: float = Field(10.0, gt=0, description="Seconds of a window in which hosts are compared.")
    apart: float = Field(20.0, gt=0, description="Seconds between two alerts of a host that count as two.")
    remember: float = Field(
        300.0,
        gt=0,
        description="Seconds in which a second alert puts a host into quarantine, and without "
        "one of which a suspect host is healthy again.",
    )
    retry: float = Field(60.0, gt=0, description="Seconds for which a removal that a guard refuses is tried again.")
    probation_steps: int = Field(50, ge=0, description="Committed steps without alert that a probation lasts at least.")
    change_cost: float = Field(5.0, ge=0, description="Seconds that a removal costs the job.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        for code in self.signals:
            if code not in NOISY:
                raise ValueError(f"governor.signals has {code}, which has no limits; write one of {', '.join(NOISY)}")
            limits = self.signal(code).limits
            if not (limits.good < limits.alert < limits.bad or limits.good > limits.alert > limits.bad):
                raise ValueError(
                    f"governor.signals.{code} has good {limits.good:g}, alert {limits.alert:g} and bad {limits.bad:g}, but "
                    "alert has to be between the others"
                )
            if (limits.bad > limits.good) != (SIGNALS[code].limits.bad > SIGNALS[code].limits.good):
                low, high = ("good", "bad") if SIGNALS[code].limits.bad > SIGNALS[code].limits.good else ("bad", "good")
                raise ValueError(f"governor.signals.{code} is the wrong way round: {low} has to be less than {high}")
        return self

    def signal(self, code: Code) -> Signal:
        """A noisy one, as it is configured."""
        usual, own = SIGNALS[code], self.signals.get(code)
        if own is None:
            return usual
        good, alert, bad = (
            before if value is None else value
            for before, value in zip(usual.limits, (own.good, own.alert, own.bad), strict=True)
        )
        return Signal(Limits(good, alert, bad), usual.peers, usual.both)

    def mode(self, code: Code) -> Mode:
        if code is Code.OPERATOR_EVICT:  # who asks for it has been asked
            return Mode.ENFORCE
        own = self.signals.get(code)
        if own is not None and own.mode is not None:
            return own.mode
        return self.noisy if code in NOISY else self.certain
