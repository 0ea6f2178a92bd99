"""Codes as they are stored: INT4 two to a byte, INT2 four to a byte, INT6 four to three bytes (QS-20).

The codes of a group stand in its bytes from the lowest bits up, in two's complement. A row starts with a byte of its own.
Below INT8 no kernel computes with them here: they are unpacked first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from workers.qat.scales import code_limits

_GROUP = {8: (1, 1), 6: (4, 3), 4: (2, 1), 2: (4, 1)}
"""Codes and bytes of a group."""


def packed_columns(columns: int, bits: int) -> int:
    """Bytes of a row of `columns` codes."""
    in_group, group_bytes = _GROUP[bits]
    return -(-columns // in_group) * group_bytes


def pack(codes: Tensor, bits: int) -> Tensor:
    """int8 [rows, columns] to uint8 [rows, packed_columns]; INT8 codes stay as they are, int8.

    Raises:
        ValueError: a code is not one of `bits` bits.
    """
    smallest, largest = code_limits(bits)
    if codes.numel() and not (smallest <= int(codes.min()) and int(codes.max()) <= largest):
        raise ValueError(f"codes of {bits} bits lie in {smallest}..{largest}, not {int(codes.min())}..{int(codes.max())}")
    if bits == 8:
        return codes
    in_group, group_bytes = _GROUP[bits]
    rows, columns = codes.shape
    padded = torch.nn.functional.pad(codes, (0, -columns % in_group))
    fields = (padded.to(torch.int32) & (2**bits - 1)).reshape(rows, -1, in_group)
    words = (fields << (torch.arange(in_group, dtype=torch.int32) * bits)).sum(dim=2, dtype=torch.int32)
    spread = (words[:, :, None] >> (torch.arange(group_bytes, dtype=torch.int32) * 8)) & 0xFF
    return spread.to(torch.uint8).reshape(rows, -1)


def unpack(packed: Tensor, bits: int, columns: int) -> Tensor:
    """int8 [rows, columns]: what `pack` was given."""
    if bits == 8:
        return packed
    in_group, group_bytes = _GROUP[bits]
    rows = len(packed)
    spread = packed.to(torch.int32).reshape(rows, packed.shape[1] // group_bytes, group_bytes)
    words = (spread << (torch.arange(group_bytes, dtype=torch.int32) * 8)).sum(dim=2, dtype=torch.int32)
    fields = (words[:, :, None] >> (torch.arange(in_group, dtype=torch.int32) * bits)) & (2**bits - 1)
    signed = fields - ((fields >> (bits - 1)) << bits)
    return signed.to(torch.int8).reshape(rows, fields.shape[1] * in_group)[:, :columns]
