"""Accelerators that do not work any more, as errors tell (DEVICE_LOST)."""

from __future__ import annotations

LOST = frozenset({46, 100, 101, 214, 220, 721, 802, 999})
"""Errors of CUDA that a device which is gone or broken causes, and no script: cudaErrorDevicesUnavailable, NoDevice,
InvalidDevice, ECCUncorrectable, NvlinkUncorrectable, Contained, SystemNotReady, Unknown (CUDA Runtime API, cudaError_t)."""


def is_device_lost(error: BaseException) -> bool:
    """Whether `error`, or what has caused it, says that an accelerator does not work any more."""
    import torch

    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, torch.AcceleratorError) and getattr(seen, "error_code", None) in LOST:
            return True
        seen = seen.__cause__ or seen.__context__
    return False
