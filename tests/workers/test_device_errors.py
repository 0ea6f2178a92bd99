"""Which errors say that a device is gone (DEVICE_LOST)."""

from __future__ import annotations

import pytest
import torch

from workers.device_errors import LOST, is_device_lost


def cuda_error(code: int) -> torch.AcceleratorError:
    error = torch.AcceleratorError(f"CUDA error {code}")
    vars(error)["error_code"] = code
    return error


@pytest.mark.parametrize("code", sorted(LOST))
def test_an_error_of_the_device_is_seen_behind_another(code: int) -> None:
    assert is_device_lost(cuda_error(code))
    try:
        try:
            raise cuda_error(code)
        except RuntimeError as error:
            raise ValueError("a batch could not be computed") from error
    except ValueError as error:
        assert is_device_lost(error)


@pytest.mark.parametrize(
    "error", [cuda_error(710), cuda_error(700), cuda_error(2), RuntimeError("CUDA error"), ValueError()]
)
def test_what_a_script_can_cause_is_no_lost_device(error: Exception) -> None:
    """710: a failed assertion on the device, 700: an illegal address, 2: out of memory."""
    assert not is_device_lost(error)


def test_an_error_that_is_its_own_cause_is_looked_at_once() -> None:
    error = ValueError("round and round")
    error.__cause__ = error
    assert not is_device_lost(error)
