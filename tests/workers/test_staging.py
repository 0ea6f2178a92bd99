"""CK-3: memory that copies of a state are made in again and again."""

from __future__ import annotations

import torch

from workers.staging import Staging
from workers.state import ReplicatedState


def test_ck3_memory_that_was_given_back_is_used_again() -> None:
    staging, tensor = Staging(), torch.randn(5, 3)
    first = staging.copy("a", tensor)
    place = first.data_ptr()
    assert torch.equal(first, tensor) and place != tensor.data_ptr()
    second = staging.copy("a", tensor + 1)  # while the first is still in use
    assert second.data_ptr() != place and torch.equal(first, tensor)
    staging.take_back({"a": second})
    third = staging.copy("a", tensor.t().contiguous().t())  # however it lies in memory
    assert third.data_ptr() == second.data_ptr() and third.is_contiguous() and torch.equal(third, tensor)


def test_ck3_what_was_not_lent_is_not_taken() -> None:
    """Another's tensor of that name, or one that an earlier copy had."""
    staging, tensor = Staging(), torch.randn(4)
    stranger = torch.randn(4)
    staging.take_back({"a": stranger})
    first = staging.copy("a", tensor)
    assert first.data_ptr() != stranger.data_ptr()
    second = staging.copy("a", tensor)
    staging.take_back({"a": first})
    assert staging.copy("a", tensor).data_ptr() not in (first.data_ptr(), second.data_ptr())


def test_ck3_another_shape_or_dtype_gets_memory_of_its_own() -> None:
    staging = Staging()
    for tensor in (torch.randn(4), torch.randn(2, 2), torch.arange(4), torch.tensor(1.5), torch.empty(0, 3)):
        copy = staging.copy("a", tensor)
        assert (copy.shape, copy.dtype) == (tensor.shape, tensor.dtype) and torch.equal(copy, tensor)
        staging.take_back({"a": copy})


def test_ck3_a_capture_is_the_same_in_memory_that_was_used_before() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    state = ReplicatedState(model, torch.optim.AdamW(model.parameters()))
    staging = Staging()
    places = set()
    for _ in range(3):
        model(torch.randn(8, 3)).square().mean().backward()
        state.optimizer.step()
        captured, expected = state.capture(copy=staging.copy), state.capture()
        assert list(captured.tensors) == list(expected.tensors) and captured.meta == expected.meta
        assert all(torch.equal(captured.tensors[name], tensor) for name, tensor in expected.tensors.items())
        places.add(captured.tensors["parameter.0.weight"].data_ptr())
        staging.take_back(captured.tensors)
    assert len(places) == 1
