"""P Q^T, the same bits on all ranks (CC-4)."""

from __future__ import annotations

import os
import platform
from functools import cache
from hashlib import blake2b
from pathlib import Path

import torch
from torch import Tensor

SCRATCH = 1 << 18
"""Elements of a product that are held twice."""

WIDE = 64
"""Rows and columns from which on kernels do not depend on the shape; for fewer, MKL has others for each processor."""

TRIALS = ((1, 64, 64), (2, 257, 129), (4, 100, 784), (8, 127, 300), (16, 65, 500))
"""r, rows and columns of what is multiplied to see whether machines are alike."""


def product(p: Tensor, q: Tensor, out: Tensor, *, alike: bool) -> None:
    """P Q^T into `out`, [rows, columns], of P^T [r, rows] and Q^T [r, columns], float32.

    Args:
        alike: all ranks have the same `fingerprint`: a BLAS gives them equal bits of what is not narrow, and takes a tenth
            of the time. Elsewhere one column of each after another is multiplied and added, element by element.
    """
    if alike and min(out.shape) >= WIDE:
        torch.matmul(p.T, q, out=out)
        return
    rows = max(1, SCRATCH // out.shape[1])
    scratch = torch.empty(rows, out.shape[1])
    for part, factors in zip(out.split(rows), p.split(rows, dim=1), strict=True):
        torch.mul(factors[0].unsqueeze(1), q[0], out=part)
        for factor, row in zip(factors[1:], q[1:], strict=True):
            part.add_(torch.mul(factor.unsqueeze(1), row, out=scratch[: len(part)]))


@cache
def fingerprint() -> int:
    """63 bits of what this process's BLAS and LAPACK make of some matrices, and of what decides which kernels those take:
    equal where sums are made in the same way."""
    kernels = (torch.__version__, torch.get_num_threads(), torch.backends.cpu.get_cpu_capability(), platform.machine())
    settings = sorted((name, value) for name, value in os.environ.items() if name.startswith("MKL_"))
    hasher = blake2b(f"{kernels} {settings} {_processor()}".encode(), digest_size=8)
    for rank, rows, columns in TRIALS:
        p, q = (
            torch.sin(torch.arange(rank * size, dtype=torch.float64)).float().view(rank, size) for size in (rows, columns)
        )
        out = torch.empty(rows, columns)
        product(p, q, out, alike=True)
        hasher.update(out.numpy().tobytes())
        for part in torch.linalg.qr(q.T):
            hasher.update(part.contiguous().numpy().tobytes())
    return int.from_bytes(hasher.digest(), "big") >> 1


def _processor() -> str:
    """The model of the first one, where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith("model name")), platform.processor())
