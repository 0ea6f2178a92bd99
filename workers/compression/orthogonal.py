"""Gram–Schmidt whose bits are the same on every machine and any number of threads.

Every rank orthogonalises the reduced P by itself, and CC-4 wants equal bits of all of them, so nothing here may depend on
what a BLAS makes of a processor. numpy multiplies element by element, adds along a contiguous axis by a pairwise sum
whose order is fixed in its source, and along the other axis row after row.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

EPSILON = 1e-8
EXHAUSTED = 1e-6
"""Of a row's norm: less than this left after projection is rounding, and no direction."""

Rows = NDArray[np.float32]


def orthonormalise(rows: Rows) -> None:
    """Make the r rows of `rows`, float32 [r, m], orthonormal, in place.

    v_i ← v_i − Σ_{j<i} (v_j · v_i) v_j, twice, as once is not enough in float32 (Giraud et al. 2005); then
    v_i ← v_i / (‖v_i‖ + ε). A row is divided by its largest magnitude before either, so ε = 1e-8 is relative to it, and
    gradients of 1e-30 have a direction too, and so has the little that a projection may leave. A row of zeros, or one
    that depends on those before it, becomes zeros.
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
