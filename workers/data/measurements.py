"""What a rank measures of its part of the data for `checks` (QS-1), so that adding up over ranks gives the same numbers
however the data is cut: counts are whole numbers, and sums are of multiples of 2^-20, which float64 adds without rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from workers.data.checks import FAR, FAULTS, DataManifest
from workers.data.hashes import Hashes

Largest = Callable[[float], float]
"""Marks a value of which the largest over all ranks counts instead of the sum: `workers.elastic.Largest`."""

OUTLIER = 6.0
_UNIT = 2.0**20
_VALUES_AT_ONCE = 1 << 20


def measure_samples(
    samples: Tensor | Sequence[Tensor], labels: Tensor | None, manifest: DataManifest, largest: Largest, first: int = 0
) -> dict[str, float]:
    """Integrity, class counts, moments and outliers of this part of the data, all of its samples.

    Args:
        samples: [n, *F], or one tensor for each sample where shapes and dtypes may differ; n may be 0.
        labels: integers [n]; None where the manifest has no classes.
        first: number of the part's first sample in the whole data, for messages.

    Returns:
        The same keys on every rank. Samples with a fault count once for each kind of it; those of another shape or dtype
        count nowhere else, and a value that is NaN or infinite is no part of the moments.
    """
    faults = {kind: torch.zeros(len(samples), dtype=torch.bool) for kind in FAULTS}
    sums = dict.fromkeys(("values", "z_sum", "z_squares", "outliers"), 0.0)
    lowest, highest = FAR, -FAR
    for rows, chunk in _fitting(samples, manifest, faults):
        values = chunk.flatten(1) if chunk.ndim > 1 else chunk[:, None]
        finite = torch.isfinite(values)
        _mark_values(values, finite, rows, manifest, faults)
        kept = values[finite].double()
        if len(kept):
            lowest, highest = min(lowest, float(kept.min())), max(highest, float(kept.max()))
        _add_moments(kept, manifest, sums)
    sums |= _count_labels(labels, faults["labels"], manifest)
    for kind, marked in faults.items():
        sums[kind] = float(marked.sum())
        sums[f"first_{kind}"] = largest(-float(first + int(marked.nonzero()[0])) if marked.any() else -FAR)
    return {**sums, "samples": float(len(samples)), "highest": largest(highest), "lowest": largest(-lowest)}


def measure_batches(
    batches: Iterable[tuple[int, Tensor]], num_samples: int, batch_size: int, manifest: DataManifest
) -> dict[str, float]:
    """Sizes and shapes of (index, samples [n, *F]) for this part of the batches of one epoch of `num_samples`.

    Batch i must have min(batch_size, num_samples - i * batch_size) samples; `batch_sizes` counts those that are missing or
    too many. See `batches_of_part` for the indices of a part.
    """
    sizes = shapes = 0
    for index, batch in batches:
        sizes += abs(len(batch) - max(0, min(batch_size, num_samples - index * batch_size)))
        shapes += batch.shape[1:] != manifest.shape or batch.dtype != manifest.dtype
    return {"batch_sizes": float(sizes), "batch_shapes": float(shapes)}


def batches_of_part(num_samples: int, batch_size: int, part: int, parts: int) -> range:
    """Indices of the batches of an epoch that part `part` of `parts` looks at; the parts together are all of them, once."""
    total = -(-num_samples // batch_size)
    return range(part * total // parts, (part + 1) * total // parts)


def measure_splits(splits: Mapping[str, Hashes], part: int, parts: int) -> dict[str, float]:
    """How many test samples are in another split too, and how many calibration samples are no training samples.

    Args:
        splits: name to `hashes.sample_hashes` of all its samples; `test` and `calibration` (with `train`) are looked up.
        part, parts: of the samples looked up; each is looked up by one part.
    """
    counts = {}
    if "test" in splits:
        for name in sorted(splits.keys() - {"test"}):
            counts[f"test_in_{name}"] = float(np.isin(_rows(splits["test"], part, parts), splits[name]).sum())
    if "calibration" in splits:
        mine = _rows(splits["calibration"], part, parts)
        counts["calibration_outside_train"] = float((~np.isin(mine, splits["train"])).sum())
    return counts


def measure_agreement(digest: int, largest: Largest) -> dict[str, float]:
    """For data that each host reads from its own disk: `digest`, of at most 53 bits, must be the same everywhere."""
    return {"digest_high": largest(float(digest)), "digest_low": largest(-float(digest))}


def _rows(hashes: Hashes, part: int, parts: int) -> Hashes:
    return hashes[part * len(hashes) // parts : (part + 1) * len(hashes) // parts]


def _fitting(
    samples: Tensor | Sequence[Tensor], manifest: DataManifest, faults: dict[str, Tensor]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Row numbers and samples [n, *F] of the manifest's shape and dtype, about a million values at a time.

    The others are marked in `faults`.
    """
    whole = isinstance(samples, Tensor)
    for row, sample in enumerate(samples[:1] if whole else samples):
        at = slice(None) if whole else slice(row, row + 1)
        faults["misshapen"][at] = sample.shape != manifest.shape
        faults["wrong_dtype"][at] = sample.dtype != manifest.dtype
    fitting = (~(faults["misshapen"] | faults["wrong_dtype"])).nonzero().flatten()
    at_once = max(1, _VALUES_AT_ONCE // max(1, math.prod(manifest.shape)))
    for start in range(0, len(fitting), at_once):
        rows = fitting[start : start + at_once]
        yield rows, samples[rows] if isinstance(samples, Tensor) else torch.stack([samples[row] for row in rows.tolist()])


def _mark_values(values: Tensor, finite: Tensor, rows: Tensor, manifest: DataManifest, faults: dict[str, Tensor]) -> None:
    """Marks those of the samples `rows` [n] whose `values` [n, f] hold NaN, infinity or an unknown token."""
    nan = torch.isnan(values)
    faults["nan"][rows] = nan.any(dim=1)
    faults["infinite"][rows] = (~finite & ~nan).any(dim=1)
    if manifest.vocabulary is not None:
        tokens = values.long()
        faults["vocabulary"][rows] = ((tokens < 0) | (tokens >= manifest.vocabulary)).any(dim=1)


def _add_moments(values: Tensor, manifest: DataManifest, sums: dict[str, float]) -> None:
    """Adds Σz, Σz², and how many |z| > 6, of z = (x - mean) / std for float64 `values` [n].

    z and z² are rounded to multiples of 2^-20: up to 2^33 in all, their float64 sums are exact in any order.
    """
    sums["values"] += len(values)
    if manifest.mean is None or manifest.std is None:
        return
    z = (values - manifest.mean) / manifest.std
    rounded = torch.round(z * _UNIT) / _UNIT
    sums["z_sum"] += float(rounded.sum())
    sums["z_squares"] += float((torch.round(rounded * rounded * _UNIT) / _UNIT).sum())
    sums["outliers"] += float((z.abs() > OUTLIER).sum())


def _count_labels(labels: Tensor | None, bad: Tensor, manifest: DataManifest) -> dict[str, float]:
    """How many samples each class has; marks in `bad`, bool [N], those without an integer label in range."""
    if manifest.num_classes is None:
        return {}
    if labels is None or labels.ndim != 1 or labels.is_floating_point():
        labels = torch.empty(0, dtype=torch.int64)
    known = labels[: len(bad)].long()
    good = (known >= 0) & (known < manifest.num_classes)
    bad[: len(known)], bad[len(known) :] = ~good, True
    counts = torch.bincount(known[good], minlength=manifest.num_classes)
    return {f"class_{label}": float(count) for label, count in enumerate(counts.tolist())}
