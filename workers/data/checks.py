"""What data must be like before a training starts on it (QS-1), judged from measurements over all ranks."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from workers.errors import DataError

Severity = Literal["reject", "stop", "warn"]
"""What follows where a check fails: the data cannot be used, the training must not start, or someone should look."""

FAR = sys.float_info.max
"""Stands for infinity, which JSON does not have."""

FAULTS = {
    "misshapen": "samples have another shape than {shape}; cut or pad them, or correct the manifest",
    "wrong_dtype": "samples are not of {dtype}; convert them, or correct the manifest",
    "nan": "samples hold NaN; repair or remove them",
    "infinite": "samples hold an infinite value; repair or remove them",
    "vocabulary": "samples hold a token outside 0 to {last_token}; correct them, or the manifest's vocabulary",
    "labels": "samples have no label from 0 to {last_label}; correct or remove them",
}
"""What can be wrong with a single sample: how many are so is counted, and the number of the first of them kept."""

LARGEST_SHARE_OF_OUTLIERS = 0.001
LARGEST_SHIFT = 0.1
STD_RATIOS = (0.9, 1.1)


@dataclass(frozen=True)
class DataManifest:
    """What the author of a data set says about it.

    Args:
        name: of the data, for messages.
        shape: of one sample, without the batch.
        dtype: of its values.
        num_classes: labels go from 0 to `num_classes` - 1; None: there are no labels.
        vocabulary: integer values go from 0 to `vocabulary` - 1; None: any value may occur.
        mean, std: of all values; None: they are not checked, and no value is an outlier.
        num_samples: how many there are; None: at least one.
        largest_imbalance: largest count of a class over the smallest.

    Raises:
        ValueError: only one of `mean` and `std` is given, or `std` is not positive.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    num_classes: int | None = None
    vocabulary: int | None = None
    mean: float | None = None
    std: float | None = None
    num_samples: int | None = None
    largest_imbalance: float = 1.5

    def __post_init__(self) -> None:
        if (self.mean is None) != (self.std is None):
            raise ValueError(f"the manifest of {self.name} gives only one of mean and std; give both, or neither")
        if self.std is not None and not self.std > 0:
            raise ValueError(f"the manifest of {self.name} gives the std {self.std}; it must be above 0")


@dataclass(frozen=True)
class Finding:
    """The outcome of one check: `value` is allowed from `low` to `high`, both included.

    `sentence` says what was found, and where the check failed, what to do.
    """

    check: str
    value: float
    low: float
    high: float
    severity: Severity
    sentence: str

    @property
    def passed(self) -> bool:
        """False for NaN too."""
        return self.low <= self.value <= self.high


def judge(totals: Mapping[str, float], manifest: DataManifest) -> list[Finding]:
    """Every check for which `totals` holds the measurements (see `measurements`), passed or not; the same for any cut."""
    findings = [*_integrity(totals, manifest), *_agreement(totals)]
    if manifest.num_classes is not None and "class_0" in totals:
        findings += _class_balance(totals, manifest)
    if manifest.mean is not None and "values" in totals:
        findings += _distribution(totals)
    findings += _exact(totals, _BATCHES)
    findings += _exact(totals, _splits(totals))
    return findings


def refuse(findings: Sequence[Finding], manifest: DataManifest) -> None:
    """Raises DataError with the sentence of the first check that failed and is more than a warning, if there is one."""
    failed = [finding for finding in findings if not finding.passed and finding.severity != "warn"]
    if failed:
        others = f" (failed checks: {len(failed)})" if len(failed) > 1 else ""
        raise DataError(f"the data {manifest.name} cannot be trained on: {failed[0].sentence}{others}")


_BATCHES = {
    "batch_sizes": "samples are too many or too few in their batches; only the last batch of an epoch may be short",
    "batch_shapes": "batches hold samples of another shape or dtype than the manifest says; look at collate_fn",
}


def _integrity(totals: Mapping[str, float], manifest: DataManifest) -> Iterator[Finding]:
    if "samples" not in totals:
        return
    wanted = manifest.num_samples
    sentence = f"there are {totals['samples']:.0f} samples, and {wanted or 'at least one'} should be there"
    yield Finding("samples", totals["samples"], wanted or 1, wanted or FAR, "reject", sentence)
    words = {
        "shape": list(manifest.shape),
        "dtype": str(manifest.dtype).removeprefix("torch."),
        "last_token": (manifest.vocabulary or 0) - 1,
        "last_label": (manifest.num_classes or 0) - 1,
    }
    unasked = {"vocabulary": manifest.vocabulary is None, "labels": manifest.num_classes is None}
    for check, text in FAULTS.items():
        if not unasked.get(check):
            first = totals[f"first_{check}"]
            where = f"; the first of them is number {-first:.0f}" if first > -FAR else ""
            sentence = f"{totals[check]:.0f} of {totals['samples']:.0f} {text.format(**words)}{where}"
            yield Finding(check, totals[check], 0.0, 0.0, "reject", sentence)


def _exact(totals: Mapping[str, float], sentences: Mapping[str, str]) -> Iterator[Finding]:
    """Of those `sentences` that were measured: none may be counted."""
    for check, sentence in sentences.items():
        if check in totals:
            yield Finding(check, totals[check], 0.0, 0.0, "stop", f"{totals[check]:.0f} {sentence}")


def _agreement(totals: Mapping[str, float]) -> Iterator[Finding]:
    if "digest_high" in totals:
        apart = totals["digest_high"] + totals["digest_low"]
        sentence = "the hosts read different data; give all of them the same files and the same release of Python"
        yield Finding("agreement", apart, 0.0, 0.0, "stop", sentence if apart else "all hosts read the same data")


def _class_balance(totals: Mapping[str, float], manifest: DataManifest) -> Iterator[Finding]:
    counts = [totals[f"class_{label}"] for label in range(manifest.num_classes or 0)]
    missing = [label for label, count in enumerate(counts) if not count]
    listed = f", namely {', '.join(map(str, missing))}; add some, or lower num_classes" if missing else ""
    sentence = f"{len(missing)} of {len(counts)} classes have no sample{listed}"
    yield Finding("missing_classes", float(len(missing)), 0.0, 0.0, "stop", sentence)
    present = [count for count in counts if count] or [1.0]
    ratio = max(present) / min(present)
    sentence = (
        f"the most frequent class has {ratio:.3g} times the samples of the rarest, and {manifest.largest_imbalance:g} times"
        " are allowed; even the classes out, or raise largest_imbalance"
    )
    yield Finding("class_balance", ratio, 1.0, manifest.largest_imbalance, "stop", sentence)


def _distribution(totals: Mapping[str, float]) -> Iterator[Finding]:
    """Mean and std from the sums of z and z², z = (x - mean) / std of the manifest."""
    count = totals["values"]
    mean = totals["z_sum"] / count if count else FAR
    square = totals["z_squares"] / count if count else FAR
    shift, ratio = min(abs(mean), FAR), min(math.sqrt(max(0.0, square - mean * mean)) if abs(mean) < 1e150 else FAR, FAR)
    advice = "standardize the data as for the manifest, or correct the manifest"
    sentence = f"the mean is {shift:.3g} standard deviations from the manifest's, and {LARGEST_SHIFT} are allowed; {advice}"
    yield Finding("mean_shift", shift, 0.0, LARGEST_SHIFT, "stop", sentence)
    low, high = STD_RATIOS
    sentence = f"the standard deviation is {ratio:.3g} times the manifest's, and {low} to {high} are allowed; {advice}"
    yield Finding("std_ratio", ratio, low, high, "stop", sentence)
    share = totals["outliers"] / count if count else 0.0
    sentence = (
        f"{share:.3%} of the values are more than 6 standard deviations from the mean, and"
        f" {LARGEST_SHARE_OF_OUTLIERS:.1%} are expected at most; look at them"
    )
    yield Finding("outliers", share, 0.0, LARGEST_SHARE_OF_OUTLIERS, "warn", sentence)


def _splits(totals: Mapping[str, float]) -> dict[str, str]:
    """Check and sentence of every pair of splits that was measured."""
    sentences = {"calibration_outside_train": "calibration samples are no training samples; calibrate on training data"}
    for check in sorted(totals):
        if check.startswith("test_in_"):
            sentences[check] = f"test samples are in the split {check.removeprefix('test_in_')} too; remove them from one"
    return sentences
