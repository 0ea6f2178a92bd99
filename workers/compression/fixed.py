"""One codec for all buckets, from the dense start on (CC-14, CC-22)."""

from __future__ import annotations

from workers.collectives.buckets import BucketPlan
from workers.compression.bucketed import SPARSE
from workers.compression.choice import Choice, Plan
from workers.compression.controller.candidates import INT8, is_late
from workers.compression.controller.config import ControllerConfig
from workers.compression.controller.state import dense_until
from workers.compression.momentum import ramped_density


class Fixed:
    """A policy that never changes its mind: `config.codec`, or int8 until the dense start is over where that needs one.

    Args:
        config: its codec, and the length of the start.
        planned_steps: of the job.
        ramp: steps of an epoch, where the density of a codec that has one comes down in the first ones (CC-13).
    """

    def __init__(self, config: ControllerConfig, planned_steps: int, ramp: int | None = None) -> None:
        self._choice, self._ramp = Choice.parse(config.codec), ramp
        self._start = dense_until(config, planned_steps) if is_late(self._choice) else 0

    def __call__(self, plan: BucketPlan, step: int) -> Plan:
        return (self._at(step),) * len(plan.sizes)

    def _at(self, step: int) -> Choice:
        codec, value = self._choice.codec, self._choice.value
        if step <= self._start:
            return INT8
        if self._ramp is None or codec not in SPARSE or value is None:
            return self._choice
        return Choice(codec, ramped_density((step - 1) // self._ramp, value))
