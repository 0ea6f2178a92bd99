"""Which policy decides, and when. Pure: no clock, no randomness, nothing of this rank alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from workers.compression.controller.adaptive import adaptive
from workers.compression.controller.config import ControllerConfig
from workers.compression.controller.ladder import latency_ladder
from workers.compression.controller.layout import Measured
from workers.compression.controller.records import Record
from workers.compression.controller.state import ControllerState
from workers.compression.controller.wire import BucketFacts

POLICIES = {"adaptive": adaptive, "latency_ladder": latency_ladder}

DEFAULT = ControllerConfig()


def is_decision_step(state: ControllerState, step: int, config: ControllerConfig = DEFAULT) -> bool:
    """Whether measures are reduced in `step`, counted from 1, and `decide` is called with its commit.

    At the end of a window, and where the state is alarmed.
    """
    return step % config.every == 0 or state.alarmed


def decide(
    state: ControllerState,
    reduced: Measured,
    step: int,
    buckets: Sequence[BucketFacts],
    config: ControllerConfig = DEFAULT,
) -> tuple[ControllerState, list[Record]]:
    """The state after the commit of `step`, whose plan is in force from the next step on, and the decisions, as events.

    Args:
        reduced: the measures of all ranks.
        buckets: facts of this generation, in the order of the bucket plan.

    Raises:
        ValueError: the state or the measures are of another number of buckets, or this is no decision's step.
    """
    if not len(state.buckets) == len(reduced.errors) == len(buckets) > 0:
        raise ValueError(
            f"the controller's state is of {len(state.buckets)} buckets and the measures of {len(reduced.errors)}, but "
            f"the plan has {len(buckets)}"
        )
    if not is_decision_step(state, step, config):
        raise ValueError(f"nothing is decided in step {step}; a window has {config.every} steps")
    state = replace(state, alarmed=False, probing=0, probed=state.probing or state.probed)
    return POLICIES[config.policy](state, reduced, step, buckets, config)
