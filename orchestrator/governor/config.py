"""`governor` of the JobSpec: every number that the policy goes by."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Self

from pydantic import Field, Strict, model_validator

from orchestrator.governor.codes import NOISY, RESOURCES, Code
from orchestrator.governor.signals import RESOURCE_LIMITS, SIGNALS, Limits, Signal
from workers.settings import Config


class Mode(StrEnum):
    """What is done about a verdict (GM-41)."""

    SHADOW = "shadow"
    """It is logged."""
    ADVISE = "advise"
    """An operator is asked."""
    ENFORCE = "enforce"


class Pools(StrEnum):
    """Which values of hosts go into the pools of residuals (section 5)."""

    EVALUATIONS = "evaluations"
    """Those that hosts are judged by."""
    STEPS = "steps"
    """Those of single steps, as heartbeats tell them (GM-40)."""


class ResourceConfig(Config):
    """Limits of one resource; what is not given stays as it is."""

    good: float | None = None
    alert: float | None = None

    def limits(self, usual: Limits) -> Limits:
        return _replaced(usual, self.good, self.alert, None)


class SignalConfig(Config):
    """Limits of one noisy signal; what is not given stays as it is."""

    good: float | None = None
    alert: float | None = None
    bad: float | None = None
    mode: Annotated[Mode, Strict(False)] | None = None

    def limits(self, usual: Limits) -> Limits:
        return _replaced(usual, self.good, self.alert, self.bad)


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
    relief: Annotated[Mode, Strict(False)] = Field(
        Mode.ENFORCE,
        description="What is done for hosts that are short of memory, disk or processors, or too hot; nobody is removed "
        "for it.",
    )
    signals: dict[Annotated[Code, Strict(False)], SignalConfig] = Field(
        default={},
        description="Limits and modes of single noisy signals.",
        examples=[{"STRAGGLER": {"alert": 1.5, "mode": "enforce"}}],
    )
    resources: dict[Annotated[Code, Strict(False)], ResourceConfig] = Field(
        default={},
        description="Limits of RESOURCE_MEMORY and RESOURCE_DISK (shares that are used) and RESOURCE_LOAD (per core): a "
        "shortage begins beyond `alert` and ends at `good`.",
        examples=[{"RESOURCE_DISK": {"good": 0.7, "alert": 0.85}}],
    )
    evaluation: float = Field(10.0, gt=0, description="Seconds of a window in which hosts are compared.")
    pool: Annotated[Pools, Strict(False)] = Field(
        Pools.EVALUATIONS,
        description="What chance is estimated from: one value of each host an `evaluation`, or, with `steps`, one in each "
        "of its heartbeats, two a second. So the 128 values that it takes are there sooner: for jobs of minutes.",
    )
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
    steps_per_second: float | None = Field(
        None,
        gt=0,
        description="Committed steps per second that the job is meant to do; with less than 95 % of them over six "
        "evaluations it says so (THROUGHPUT_UNDERRUN).",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        _check_limits("signals", self.signals, {code: SIGNALS[code].limits for code in NOISY})
        _check_limits("resources", self.resources, RESOURCE_LIMITS)
        return self

    def resource(self, code: Code) -> Limits:
        """Of one of `RELIEVED`, as it is configured."""
        if code in SIGNALS:
            return self.signal(code).limits
        own = self.resources.get(code)
        return RESOURCE_LIMITS[code] if own is None else own.limits(RESOURCE_LIMITS[code])

    def signal(self, code: Code) -> Signal:
        """A noisy one, as it is configured."""
        usual, own = SIGNALS[code], self.signals.get(code)
        if own is None:
            return usual
        return Signal(own.limits(usual.limits), usual.peers, usual.both)

    def mode(self, code: Code) -> Mode:
        if code is Code.OPERATOR_EVICT:  # who asks for it has been asked
            return Mode.ENFORCE
        if code in RESOURCES:
            return self.relief
        own = self.signals.get(code)
        if own is not None and own.mode is not None:
            return own.mode
        return self.noisy if code in NOISY else self.certain


def _replaced(usual: Limits, good: float | None, alert: float | None, bad: float | None) -> Limits:
    return Limits(*(before if own is None else own for before, own in zip(usual, (good, alert, bad), strict=True)))


def _check_limits(
    key: str, own: Mapping[Code, ResourceConfig] | Mapping[Code, SignalConfig], usual: Mapping[Code, Limits]
) -> None:
    """Raises ValueError where one of them cannot be meant."""
    for code, config in own.items():
        if code not in usual:
            raise ValueError(f"governor.{key} has {code}, which has no limits; write one of {', '.join(usual)}")
        limits = config.limits(usual[code])
        if not (limits.good < limits.alert < limits.bad or limits.good > limits.alert > limits.bad):
            raise ValueError(
                f"governor.{key}.{code} has good {limits.good:g}, alert {limits.alert:g} and bad {limits.bad:g}, but "
                "alert has to be between the others"
            )
        rises = usual[code].bad > usual[code].good
        if (limits.bad > limits.good) != rises:
            low, high = ("good", "bad") if rises else ("bad", "good")
            raise ValueError(f"governor.{key}.{code} is the wrong way round: {low} has to be less than {high}")
