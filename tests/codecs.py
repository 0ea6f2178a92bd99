"""Every codec, as a user writes it."""

from __future__ import annotations

CODECS = (
    "none",
    "bf16",
    "bf16-ring",
    "fp16",
    "int8",
    "int4",
    "sign",
    "topk 0.05",
    "threshold 0.05",
    "powersgd 2",
    "powersgd-int8 2",
)
