"""EP-2 and CC-6: what is exchanged is what the device has computed, however late that is."""

from __future__ import annotations

import pytest
import torch

from workers.collectives.buckets import Staging, plan_buckets
from workers.collectives.copies import Copies

SHAPES = [(f"p{index}", torch.Size([500, 40 + index])) for index in range(6)]


def test_ep2_a_gradient_on_the_cpu_is_there_at_once() -> None:
    staging, copies = Staging(plan_buckets(SHAPES, 3)), Copies()
    gradients = [torch.randn(shape) for _, shape in SHAPES]
    for slot, view, gradient in zip(staging.plan.slots, staging.views, gradients, strict=True):
        copies.start(slot.bucket, view, gradient)
        assert copies.landed(slot.bucket)
        assert torch.equal(view, gradient)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_ep2_cc6_a_late_gradient_of_a_device_is_waited_for_and_the_cpu_is_not_held_up() -> None:
    plan = plan_buckets(SHAPES, 3, first_bytes=100_000, bucket_bytes=200_000)
    staging, copies = Staging(plan, pinned=True), Copies()
    gradients = [torch.randn(shape, device="cuda") for _, shape in SHAPES]
    torch.cuda.synchronize()
    torch.cuda._sleep(500_000_000)
    doubled = [gradient * 2 for gradient in gradients]
    for slot, view, gradient in zip(plan.slots, staging.views, doubled, strict=True):
        copies.start(slot.bucket, view, gradient)
    assert not any(copies.landed(bucket) for bucket in range(len(plan.sizes)))
    for bucket in range(len(plan.sizes)):
        copies.wait(bucket)
        assert copies.landed(bucket)
        for slot, view, gradient in zip(plan.slots, staging.views, gradients, strict=True):
            assert slot.bucket != bucket or torch.equal(view, gradient.cpu() * 2)
