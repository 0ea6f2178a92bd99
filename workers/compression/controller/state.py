"""What the controller remembers: replicated state, plain values, moved on with the commit of a decision's step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from workers.compression.choice import NONE, Choice, Plan
from workers.compression.controller.candidates import RIVAL
from workers.compression.controller.config import ControllerConfig

VERSION = 11


@dataclass(frozen=True)
class BucketState:
    """What is remembered of one bucket.

    Attributes:
        choice: in force.
        changed: the step of its last change, but for first choices; None where there was none, or after one made only
            because gradients changed fast.
        streaks: for how many windows in a row a change to that choice was promised to gain enough, by its text.
        barred: choices that have broken the error budget here, or were no faster than `none` where all buckets had them, by
            text: how often, and the step until which they are out.
    """

    choice: Choice = NONE
    changed: int | None = None
    streaks: Mapping[str, int] = field(default_factory=dict)
    barred: Mapping[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Doubt:
    """Of a plan that may be no faster than `none` or `RIVAL`, until it is compared with them.

    Attributes:
        took: seconds of a step.
        promised: seconds that it was predicted to save over `none`.
        coding: of a step, what goes into encoding and decoding by themselves.
        plan: the choice of each bucket.
        none: seconds of a step with `none`, in the window before one with `RIVAL`; None before that.
    """

    took: float
    promised: float
    coding: float
    plan: Plan
    none: float | None = None

    @property
    def of_rival(self) -> bool:
        """It encoded with nothing but `RIVAL`."""
        return set(self.plan) <= {NONE, RIVAL}

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "plan": [str(choice) for choice in self.plan]}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """Of `as_dict`."""
        return cls(**{**plain, "plan": tuple(map(Choice.parse, plain["plan"]))})


@dataclass(frozen=True)
class ControllerState:
    """The same on all ranks: a function of the states before and the reduced measures only.

    Attributes:
        buckets: in the order of the bucket plan.
        dense_until: the last step before which no codec that needs a dense start is in force (CC-14).
        step: of the last decision.
        chosen: whether the first choice was made, which is not held back as a change is; there is another one after a link
            has collapsed, and after a plan that has disappointed.
        seconds_per_byte: of the link, smoothed over the windows; None before it was measured.
        gradient_norm, coherence: of the last window.
        none_step_seconds: of a step in the last window in which nothing was encoded, and `none_seconds_per_byte` of the
            link then; None where there was none.
        rival_saves: seconds of a step that `RIVAL` for all buckets was measured to save over `none`; 0 where it was not.
        hosts, local_ranks: those that all this was measured with; 0 where nothing was.
        dearer: how many times longer than by themselves encoding and decoding take in a step, as plans have shown that
            saved less than they promised, `lessons` of them; since step `dearer_since`, from which on it is forgotten by
            and by.
        doubt: in the windows in which the plan before them is compared with others.
        compare_after: the step after which a plan that promises little is compared with `none`; 0 where none was chosen.
        comparisons: made one after the other that spoke for the plan.
        collapses: of the link that followed each other soon, and `small_until`: the step until which therefore no more is
            sent than now for the sake of time.
        probing: bytes that each rank sends over the link in the next step, to see what it carries; 0 for none.
        probed: bytes of the last probe that went.
        slow_probes: those in a row that have found the link far slower than it is taken for.
        probes: made one after the other that have found the link as it was, and `probe_after`: the step before which there
            is no other.
        awaited: windows in which what sends far more has waited for a probe of the link, one after the other.
        alarmed: the next measures that are reduced are for a decision, since a rank finds its link collapsed
            (`Measures.alarm`), or to look again; taken back by `decide`.
        looks: how often it was looked at again whether a link that is much slower makes steps longer.
    """

    buckets: tuple[BucketState, ...]
    dense_until: int
    step: int = 0
    chosen: bool = False
    seconds_per_byte: float | None = None
    gradient_norm: float | None = None
    coherence: float | None = None
    none_step_seconds: float | None = None
    none_seconds_per_byte: float | None = None
    rival_saves: float = 0.0
    hosts: int = 0
    local_ranks: int = 0
    dearer: float = 1.0
    dearer_since: int = 0
    lessons: int = 0
    doubt: Doubt | None = None
    compare_after: int = 0
    comparisons: int = 0
    collapses: int = 0
    small_until: int = 0
    probing: int = 0
    probed: int = 0
    slow_probes: int = 0
    probes: int = 0
    probe_after: int = 0
    awaited: int = 0
    alarmed: bool = False
    looks: int = 0

    @property
    def plan(self) -> Plan:
        """In force for the steps after `step`."""
        return tuple(bucket.choice for bucket in self.buckets)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as JSON has them."""
        return {
            "version": VERSION,
            "step": self.step,
            "dense_until": self.dense_until,
            "chosen": self.chosen,
            "seconds_per_byte": self.seconds_per_byte,
            "gradient_norm": self.gradient_norm,
            "coherence": self.coherence,
            "none_step_seconds": self.none_step_seconds,
            "none_seconds_per_byte": self.none_seconds_per_byte,
            "rival_saves": self.rival_saves,
            "hosts": self.hosts,
            "local_ranks": self.local_ranks,
            "dearer": self.dearer,
            "dearer_since": self.dearer_since,
            "lessons": self.lessons,
            "doubt": None if self.doubt is None else self.doubt.as_dict(),
            "compare_after": self.compare_after,
            "comparisons": self.comparisons,
            "collapses": self.collapses,
            "small_until": self.small_until,
            "probing": self.probing,
            "probed": self.probed,
            "slow_probes": self.slow_probes,
            "probes": self.probes,
            "probe_after": self.probe_after,
            "awaited": self.awaited,
            "alarmed": self.alarmed,
            "looks": self.looks,
            "buckets": [
                {
                    "choice": str(bucket.choice),
                    "changed": bucket.changed,
                    "streaks": dict(sorted(bucket.streaks.items())),
                    "barred": {text: list(bar) for text, bar in sorted(bucket.barred.items())},
                }
                for bucket in self.buckets
            ],
        }

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """Of `as_dict`. Raises ValueError where it is of another version, CodecError where it names no codec."""
        if plain["version"] != VERSION:
            raise ValueError(f"the controller's state is of version {plain['version']}, and not {VERSION}")
        buckets = tuple(
            BucketState(
                Choice.parse(each["choice"]),
                each["changed"],
                dict(each["streaks"]),
                {text: (count, until) for text, (count, until) in each["barred"].items()},
            )
            for each in plain["buckets"]
        )
        doubt = None if plain["doubt"] is None else Doubt.from_dict(plain["doubt"])
        rest = {name: value for name, value in plain.items() if name not in ("version", "buckets", "doubt")}
        return cls(buckets, doubt=doubt, **rest)


def dense_until(config: ControllerConfig, planned_steps: int) -> int:
    """max(10 steps, 5 % of those planned)."""
    return max(config.dense_steps, math.ceil(config.dense_share * planned_steps))


def initial_state(config: ControllerConfig, num_buckets: int, planned_steps: int) -> ControllerState:
    """Before the first step: `none`."""
    return ControllerState((BucketState(),) * num_buckets, dense_until(config, planned_steps))
