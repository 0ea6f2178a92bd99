"""From the JobSpec's group `compression` to what a rank keeps."""

from __future__ import annotations

from functools import partial

from workers.collectives.buckets import BucketPlan
from workers.compression.choice import NONE
from workers.compression.config import CompressionConfig
from workers.compression.controller.controller import Controller
from workers.compression.fixed import Fixed
from workers.compression.gradients import GradientCompression


def compression_of(
    plan: BucketPlan, config: CompressionConfig, planned_steps: int, seed: int = 0, steps_per_epoch: int = 1
) -> GradientCompression:
    """For a job of `planned_steps` whose gradients lie as in `plan`."""
    controller = None if config.policy == "fixed" else Controller(plan, config, planned_steps, seed)
    policy = (
        partial(Fixed(config, planned_steps, steps_per_epoch if config.ramp else None), plan)
        if controller is None
        else controller.choices
    )
    return GradientCompression(
        plan,
        policy,
        seed=seed,
        follow_learning_rate=config.follow_learning_rate,
        momentum=config.momentum,
        max_rank=config.max_rank,
        controller=controller,
    )


def uncompressed(plan: BucketPlan) -> GradientCompression:
    return GradientCompression(plan, lambda step: (NONE,) * len(plan.sizes), max_rank=0)
