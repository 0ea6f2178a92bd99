"""One codec for all buckets, from the dense start on (CC-14, CC-22)."""

from __future__ import annotations

import math

from workers.collectives.buckets import BucketPlan
from workers.compression.choice import Choice, Plan
from workers.compression.controller.candidates import INT8, is_late


class Fixed:
    """A policy that never changes its mind.

    Args:
        choice: after the start.
        dense_steps, dense_share: codecs that send little at first begin after so many steps, or so large a share of
            `planned_steps`, whichever is more; until then it is int8.
    """

    def __init__(self, choice: Choice, dense_steps: int, dense_share: float, planned_steps: int) -> None:
        self._choice = choice
        self._start = max(dense_steps, math.ceil(dense_share * planned_steps)) if is_late(choice) else 0

    def __call__(self, plan: BucketPlan, step: int) -> Plan:
        return (self._choice if step > self._start else INT8,) * len(plan.sizes)
