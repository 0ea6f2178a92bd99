"""A ratio of paired measurements, with its confidence interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy.stats import t as student


@dataclass(frozen=True)
class Ratio:
    """A ratio with the bounds of its confidence interval."""

    value: float
    low: float
    high: float


def ratio_with_interval(ours: Sequence[float], theirs: Sequence[float], confidence: float = 0.95) -> Ratio:
    """Geometric mean of `ours[i] / theirs[i]` over paired blocks, with Student's t interval on the log ratios.

    With d_i = ln(ours_i / theirs_i), mean m and standard deviation s over n pairs: exp(m ± t(n-1) · s / √n).

    Raises ValueError with fewer than two pairs, or lists of different lengths.
    """
    if len(ours) != len(theirs) or len(ours) < 2:
        raise ValueError(f"need two or more pairs of blocks, got {len(ours)} and {len(theirs)}")
    logs = [math.log(a / b) for a, b in zip(ours, theirs, strict=True)]
    mean = fmean(logs)
    half = float(student.ppf((1 + confidence) / 2, len(logs) - 1)) * stdev(logs) / math.sqrt(len(logs))
    return Ratio(math.exp(mean), math.exp(mean - half), math.exp(mean + half))
