"""The recipe `bytes`: a small transformer that predicts the next byte of the source text of Python's standard library."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from workers.data import windows
from workers.data.checks import DataManifest
from workers.data.hashes import sample_hashes
from workers.data.library import LibraryText, read_library
from workers.data.measurements import (
    Largest,
    batches_of_part,
    measure_batches,
    measure_samples,
    measure_splits,
)
from workers.data.sampler import Ids, whole_units
from workers.errors import DataError
from workers.models.transformer import ByteTransformer, next_token_loss
from workers.qat.gates import Condition
from workers.randomness import sample_key_tensor, uniform
from workers.rounds import Sums
from workers.tasks.pipeline import Pipeline
from workers.tasks.quantized import quant_activation, quant_linear
from workers.tasks.recipe import Split

if TYPE_CHECKING:
    from workers.config import TrainingConfig
    from workers.elastic import Job

VOCABULARY = 256
WINDOWS_AT_ONCE = 32
TEST_WINDOWS, VALIDATION_WINDOWS = 512, 256
"""At most so many are looked at after an epoch; spread over the held-out text."""

LARGEST_PERPLEXITY_INCREASE = {8: 0.01, 6: 0.02, 4: 0.10, 2: 1.0}
"""By bits of a weight, relative."""


class Text(NamedTuple):
    """Windows uint8 [N, context + 1] of three splits of a text."""

    text: LibraryText
    train: Tensor
    validation: Tensor
    test: Tensor


def preload(config: TrainingConfig) -> Text:
    """Read and cut the text. Raises DataError where there is none."""
    text, context = read_library(config.task.text.limit), config.task.text.context
    train = windows.cut(text.train, context)
    held_out = windows.without(windows.cut(text.held_out, context), train)
    validation = _spread(held_out[0::2], VALIDATION_WINDOWS)
    test = _spread(windows.without(held_out[1::2], validation), TEST_WINDOWS)
    if not len(test):
        raise DataError(
            f"the held-out text of {len(text.held_out)} bytes has too few windows of {context + 1} that are not in the"
            " training text; write a larger task.text.limit or a smaller task.text.context"
        )
    return Text(text, train, validation, test)


def _spread(rows: Tensor, number: int) -> Tensor:
    """At most `number` of the rows, from first to last."""
    return rows[:: max(1, -(-len(rows) // number))]


def build(config: TrainingConfig) -> ByteTransformer:
    """The network; its first weights are decided by the seed alone."""
    shape = config.task.text
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return ByteTransformer(
            VOCABULARY,
            shape.context,
            shape.width,
            shape.depth,
            shape.heads,
            make_linear=partial(quant_linear, config),
            wrap_activation=partial(quant_activation, config),
        )


class BytesRecipe:
    """`Recipe` for the byte transformer. What is counted are predicted bytes."""

    def __init__(self, config: TrainingConfig, text: Text) -> None:
        self.config, self.text = config, text
        self.model = build(config)
        self.train = windows.dataset(text.train)
        self.manifest = DataManifest(
            "source text of the standard library", (config.task.text.context + 1,), torch.uint8, vocabulary=VOCABULARY
        )

    @property
    def digest(self) -> int:
        return self.text.text.digest

    def parameter_groups(self) -> Iterable[nn.Parameter]:
        return self.model.parameters()

    def loss(self, batch: Sequence[Tensor], epoch: int) -> Tensor:
        inputs, targets = batch
        return next_token_loss(self.model(inputs.long()), targets.long())

    def check(self, part: int, parts: int, largest: Largest) -> Sums:
        """All windows and batches; that no test window is in another split."""
        train, batch = self.text.train, self.config.global_batch
        mine = slice(part * len(train) // parts, (part + 1) * len(train) // parts)
        batches = ((i, train[i * batch : (i + 1) * batch]) for i in batches_of_part(len(train), batch, part, parts))
        named = {"train": train, "validation": self.text.validation, "test": self.text.test}
        hashes = {name: sample_hashes(rows) for name, rows in named.items()}
        return {
            **measure_samples(train[mine], None, self.manifest, largest, mine.start),
            **measure_batches(batches, len(train), batch, self.manifest),
            **measure_splits(hashes, part, parts),
        }

    def evaluate(self, model: nn.Module, split: Split, part: int, parts: int) -> Sums:
        model.eval()
        sums = dict.fromkeys(("correct", "count", "loss", "not_finite"), 0.0)
        rows = self.text.validation if split == "validation" else self.text.test
        for chunk in rows[whole_units(len(rows), WINDOWS_AT_ONCE, parts, part)].split(WINDOWS_AT_ONCE):
            if len(chunk):
                logits, targets = model(chunk[:, :-1].long()), chunk[:, 1:].long()
                sums["correct"] += float((logits.argmax(dim=-1) == targets).sum())
                sums["count"] += targets.numel()
                sums["loss"] += float(next_token_loss(logits, targets, "sum"))
                sums["not_finite"] += float((~logits.isfinite()).sum())
        return sums

    def answer_random(self, model: nn.Module) -> Tensor:
        model.eval()
        keys = sample_key_tensor(self.config.seed, 0, torch.arange(WINDOWS_AT_ONCE))
        logits: Tensor = model((VOCABULARY * uniform(keys, self.config.task.text.context, 0)).long())
        return logits

    def observe(self, ids: Ids) -> None:
        self.model.eval()
        for chunk in self.text.train[torch.tensor(ids)].split(WINDOWS_AT_ONCE):
            if len(chunk):
                self.model(chunk[:, :-1].long())

    def compare(self, part: int, parts: int) -> Sums:
        return {}

    def conditions(self) -> Sequence[Condition]:
        return [Condition("perplexity_increase", "<=", LARGEST_PERPLEXITY_INCREASE[self.config.qat.weight_bits])]

    def measured(self, compared: Sums, full: Sums, quantized: Sums) -> Sums:
        """exp of the difference of the mean losses, less 1."""
        return {
            "perplexity_increase": math.expm1(quantized["loss"] / quantized["count"] - full["loss"] / full["count"]),
            "perplexity": math.exp(quantized["loss"] / quantized["count"]),
        }


def run(config: TrainingConfig, make_job: Callable[..., Job], prepared: Text | None = None) -> dict[str, Any]:
    """Train, quantize, verify; see `Pipeline.run`."""
    return Pipeline(config, BytesRecipe(config, prepared or preload(config)), make_job).run()
