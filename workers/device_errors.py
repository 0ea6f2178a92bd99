"""Accelerators that do not work any more, as errors tell (DEVICE_LOST)."""

from __future__ import annotations

LOST = frozenset({46, 100, 101, 214, 220, 721, 802, 999})
"""Errors of CUDA that a device which is gone or broken causes, and no script: cudaErrorDevicesUnavailable, NoDevice,
InvalidDevice, ECCUncorrectable, NvlinkUncorrectable, Contained, SystemNotReady, Unknown (CUDA Runtime API, cudaError_t)."""


def is_device_lost(error: BaseException) -> bool:
    """Whether `error`, or what has caused it, says that an accelerator does not work any more."""
    import torch

    behind: BaseException | None = error
    seen = set[int]()
    while behind is not None and id(behind) not in seen:  # an error may be its own cause
        seen.add(id(behind))
        if isinstance(behind, torch.AcceleratorError) and getattr(behind, "error_code", None) in LOST:
            return True
        behind = behind.__cause__ or behind.__context__
    return False
