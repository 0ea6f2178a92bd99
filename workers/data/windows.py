"""Text as samples: windows of bytes in which each byte is to be predicted from those before it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from workers.data.hashes import sample_hashes
from workers.errors import DataError


def cut(text: bytes, context: int, stride: int | None = None) -> Tensor:
    """Windows uint8 [N, context + 1] of `text`, one every `stride` bytes; what is left at the end is dropped.

    With the stride `context`, the default, a window begins with the last byte of the one before, so every byte but the
    first is predicted exactly once.

    Raises:
        DataError: the text is shorter than one window.
    """
    if len(text) <= context:
        raise DataError(
            f"the text has {len(text)} bytes, but a window has {context + 1}; give more text or a shorter context"
        )
    flat = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    return flat.unfold(0, context + 1, stride or context).contiguous()


def without(windows: Tensor, others: Tensor) -> Tensor:
    """Those of `windows` [N, W] that are not among `others` [M, W]: texts repeat each other, such as licences."""
    known = np.isin(sample_hashes(windows), sample_hashes(others))
    return windows[torch.from_numpy(~known)]


def dataset(windows: Tensor) -> TensorDataset:
    """Samples (inputs uint8 [W - 1], targets uint8 [W - 1]) of `windows` [N, W], without a copy.

    A plain TensorDataset, for that is read a micro-batch at a time; bytes stay bytes until a model widens them.
    """
    return TensorDataset(windows[:, :-1], windows[:, 1:])
