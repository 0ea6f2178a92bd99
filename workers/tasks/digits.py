"""What the recipes on handwritten digits have in common: the splits, their checks, classification."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset

from workers.data.checks import FAULTS, DataManifest
from workers.data.digits import Digits, load_digits, stratified_split
from workers.data.hashes import sample_hashes
from workers.data.measurements import Largest, batches_of_part, measure_batches, measure_samples, measure_splits
from workers.data.sampler import Ids, whole_units
from workers.qat.gates import Condition
from workers.randomness import sample_key_tensor, uniform
from workers.rounds import Sums
from workers.state import tensor_bytes
from workers.tasks.recipe import Split

if TYPE_CHECKING:
    from workers.config import TrainingConfig

ROWS_AT_ONCE = 64
"""In evaluations: the same rows together on any number of ranks, as what a row gives depends on its batch in a last bit."""

EVALUATION_EPOCH = (1 << 40) - 1
"""Stands for the epoch where a sample is evaluated, so that it is encoded in the same way every time."""


class Rows(NamedTuple):
    """Digits `x`, float32 [n, F], their labels `y` and global numbers `ids`, int64 [n]."""

    x: Tensor
    y: Tensor
    ids: Tensor

    def part(self, part: int, parts: int) -> Rows:
        """Piece `part` of `parts`, of whole chunks; the pieces together are all rows, once."""
        rows = whole_units(len(self.y), ROWS_AT_ONCE, parts, part)
        return Rows(self.x[rows], self.y[rows], self.ids[rows])

    def chunks(self) -> Iterator[Rows]:
        """Pieces of at most `ROWS_AT_ONCE`."""
        for start in range(0, len(self.y), ROWS_AT_ONCE):
            yield Rows(*(column[start : start + ROWS_AT_ONCE] for column in self))


class Splits(NamedTuple):
    """Of one data set. Numbers count through `train`, `validation` and `test`."""

    digits: Digits
    train: Rows
    validation: Rows
    test: Rows


def preload(config: TrainingConfig) -> Splits:
    """Load the digits. Raises DataError where they are missing or damaged."""
    return split(load_digits(config.task.data), config.task.data.validation)


def split(digits: Digits, validation: float) -> Splits:
    """Keep the part `validation` of every class out of the training data; with none, the test data chooses too."""
    x, y = digits.train.tensors
    kept, chosen = (torch.from_numpy(rows) for rows in stratified_split(y.numpy(), validation))
    test = Rows(digits.test_x, digits.test_y, torch.arange(len(digits.test_y)) + len(y))
    train = Rows(x[kept], y[kept], torch.arange(len(kept)))
    chooses = Rows(x[chosen], y[chosen], torch.arange(len(chosen)) + len(kept)) if len(chosen) else test
    return Splits(digits, train, chooses, test)


class DigitsRecipe:
    """A classifier of digits: `Recipe` without the network. Subclasses say what `logits` are."""

    def __init__(self, config: TrainingConfig, splits: Splits, model: nn.Module) -> None:
        self.config, self.splits, self.model = config, splits, model
        self.train = TensorDataset(*splits.train)
        digits = splits.digits
        self.manifest = DataManifest(
            f"digits ({digits.source})", (digits.num_features,), num_classes=digits.num_classes, mean=0.0, std=1.0
        )

    def logits(self, model: nn.Module, rows: Rows, epoch: int) -> Tensor:
        """[n, C] of `rows`."""
        logits: Tensor = model(rows.x)
        return logits

    @property
    def digest(self) -> int:
        rows = (column for rows in (self.splits.train, self.splits.validation, self.splits.test) for column in rows)
        hasher = blake2b(digest_size=6)
        for column in rows:
            hasher.update(tensor_bytes(column))
        return int.from_bytes(hasher.digest(), "big")

    def parameter_groups(self) -> Iterable[Any]:
        return self.model.parameters()

    def loss(self, batch: Sequence[Tensor], epoch: int) -> Tensor:
        rows = Rows(*batch)
        return cross_entropy(self.logits(self.model, rows, epoch), rows.y)

    def check(self, part: int, parts: int, largest: Largest) -> Sums:
        """Every sample, classes and moments of the training ones; and that no split shares a sample with the test."""
        named = {"train": self.splits.train, "test": self.splits.test}
        if self.splits.validation is not self.splits.test:
            named["validation"] = self.splits.validation
        measured = {name: self._measure(rows.part(part, parts), largest) for name, rows in named.items()}
        sums = measured.pop("train")
        for held_out in measured.values():
            sums["samples"] += held_out["samples"]
            for kind in FAULTS:
                sums[kind] += held_out[kind]
                sums[f"first_{kind}"] = max(sums[f"first_{kind}"], held_out[f"first_{kind}"])
        train, batch = self.splits.train, self.config.global_batch
        batches = ((i, train.x[i * batch : (i + 1) * batch]) for i in batches_of_part(len(train.x), batch, part, parts))
        sums |= measure_batches(batches, len(train.x), batch, self.manifest)
        return sums | measure_splits({name: sample_hashes(rows.x) for name, rows in named.items()}, part, parts)

    def _measure(self, rows: Rows, largest: Largest) -> Sums:
        first = int(rows.ids[0]) if len(rows.ids) else 0
        return measure_samples(rows.x, rows.y, self.manifest, largest, first)

    def evaluate(self, model: nn.Module, split: Split, part: int, parts: int) -> Sums:
        model.eval()
        sums = dict.fromkeys(("correct", "count", "loss", "not_finite"), 0.0)
        rows = self.splits.validation if split == "validation" else self.splits.test
        for chunk in rows.part(part, parts).chunks():
            logits = self.logits(model, chunk, EVALUATION_EPOCH)
            sums["correct"] += float((logits.argmax(dim=1) == chunk.y).sum())
            sums["count"] += len(chunk.y)
            sums["loss"] += float(cross_entropy(logits, chunk.y, reduction="sum"))
            sums["not_finite"] += float((~logits.isfinite()).sum())
        return sums

    def answer_random(self, model: nn.Module) -> Tensor:
        model.eval()
        ids, (low, high) = torch.arange(ROWS_AT_ONCE), self.splits.digits.bounds
        keys = sample_key_tensor(self.config.seed, EVALUATION_EPOCH, ids)
        x = low + (high - low) * uniform(keys, self.splits.digits.num_features, 0)
        return self.logits(model, Rows(x, torch.zeros_like(ids), ids), EVALUATION_EPOCH)

    def observe(self, ids: Ids) -> None:
        self.model.eval()
        chosen = torch.tensor(ids)
        rows = Rows(*(column[chosen] for column in self.splits.train))
        for chunk in rows.chunks():
            self.logits(self.model, chunk, EVALUATION_EPOCH)

    def compare(self, part: int, parts: int) -> Sums:
        return {}

    def conditions(self) -> Sequence[Condition]:
        return []

    def measured(self, compared: Sums, full: Sums, quantized: Sums) -> Sums:
        return {}
