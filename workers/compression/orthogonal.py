"""Orthonormal rows, the same bits on all ranks.

Every rank orthogonalises the reduced P by itself, and CC-4 wants equal bits of all of them. Where machines are known to be
alike, LAPACK may do it. Elsewhere nothing may depend on what a BLAS makes of a processor: Gram–Schmidt in numpy, which
multiplies element by element, adds along a contiguous axis by a pairwise sum whose order is fixed in its source, and along
the other axis row after row.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

EPSILON = 1e-8
EXHAUSTED = 1e-6
"""Of a row's norm: less than this left after projection is rounding, and no direction."""

CLEAR = 1e-4
"""Of a row's norm: with less than this left, QR does not tell whether a row depends on those before it."""

PLAIN = 1e15
"""Magnitudes up to this, and down to its inverse, square without loss in float32."""

Rows = NDArray[np.float32]


def orthonormalise(rows: Tensor, *, alike: bool = False) -> None:
    """Make the r rows of `rows`, contiguous float32 [r, m], orthonormal, in place. They span what they spanned.

    A row of zeros, or one that depends on those before it, becomes zeros.

    Args:
        alike: all ranks have the same `product.fingerprint`. If they have one thread too, whose sums have one order, it is
            Householder's QR by LAPACK, in a tenth of the time; a row may then point the other way. Rows that are dependent,
            or of extreme magnitude, go by `gram_schmidt` even so.
    """
    if not (alike and torch.get_num_threads() == 1 and _by_lapack(rows)):
        gram_schmidt(rows.numpy())


def _by_lapack(rows: Tensor) -> bool:
    """False where it cannot, which leaves `rows` as they were. LAPACK works on a copy, which torch aligns: so where in
    memory `rows` begin makes no difference to the bits."""
    if rows.shape[0] > rows.shape[1]:
        return False
    q, r = torch.linalg.qr(rows.T)
    norms, left = torch.linalg.vector_norm(r, dim=0).tolist(), r.diagonal().abs().tolist()
    if not all(here > CLEAR * norm and 1 / PLAIN < norm < PLAIN for here, norm in zip(left, norms, strict=True)):
        return False
    rows.copy_(q.T)
    return True


def gram_schmidt(rows: Rows) -> None:
    """As `orthonormalise`, on any machines and any number of threads.

    v_i ← v_i − Σ_{j<i} (v_j · v_i) v_j, twice, as once is not enough in float32 (Giraud et al. 2005); then
    v_i ← v_i / (‖v_i‖ + ε). A row is divided by its largest magnitude before either, so ε = 1e-8 is relative to it, and
    gradients of 1e-30 have a direction too, and so has the little that a projection may leave.
    """
    for i, row in enumerate(rows):
        largest = np.abs(row).max(initial=0.0)
        if largest == 0.0:
            continue
        row /= largest
        before, whole = rows[:i], _norm(row)
        for _ in range(2 if i else 0):
            shares = (before * row).sum(axis=1)
            row -= (shares[:, np.newaxis] * before).sum(axis=0)
        if _norm(row) <= EXHAUSTED * whole:
            row[:] = 0.0
        else:
            row /= np.abs(row).max()
            row /= np.float32(_norm(row) + EPSILON)


def _norm(row: Rows) -> float:
    return float(np.sqrt((row * row).sum()))
