"""Where a codec first changes a greedily written text: over a pool of prompts, and how much of each text is new."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from workers.models.transformer import ByteTransformer
from workers.qins.metrics import GREEDY_STEPS, first_difference
from workers.qins.recoding import CODECS, recode

FILE = Path(__file__).with_name("prompts.json")
NUM_FIXED = 4

CUT, CUT_BYTES = 48, 64
"""Prompts that are cut from the held-out text, each the beginning of a line, evenly over it."""

WRITTEN = (
    "import os\nimport sys\n\ndef main(argv=None):\n    ",
    "class Queue:\n    def __init__(self, maxsize=0):\n        ",
    'def parse(text):\n    """Return the ',
    "for name in sorted(",
    "import argparse\n",
    "if __name__ == '__main__':\n    ",
    "class Parser:\n",
    "    def read(self, size=-1):\n        ",
    "try:\n    import ",
    "def test_",
    "from collections import ",
    "# This module ",
    "        raise ValueError(",
    "    return ",
    "with open(",
    '"""',
)


@dataclass(frozen=True)
class Pool:
    """Greedy texts of a model, and for each codec how many tokens of each it repeats before it takes another one."""

    prompts: Sequence[bytes]
    texts: Sequence[bytes]
    agreed: Mapping[str, Sequence[int]]

    def number_whole(self, codec: str) -> int:
        """How many texts the codec reproduces from first to last token."""
        return sum(agreed == len(text) for agreed, text in zip(self.agreed[codec], self.texts, strict=True))


def prompts_of(held_out: bytes) -> list[bytes]:
    """Prompts to choose from: `CUT` cut from `held_out`, then those of `WRITTEN`.

    Raises:
        ValueError: the text has no lines to begin with.
    """
    last = max(1, len(held_out) - 16 * CUT_BYTES)
    starts = [held_out.index(b"\n", i * last // CUT) + 1 for i in range(CUT)]
    cut = (held_out[start : start + CUT_BYTES].decode(errors="ignore") for start in starts)
    return [text.encode() for text in (*cut, *WRITTEN)]


def survey(model: ByteTransformer, prompts: Sequence[bytes], codecs: Sequence[str], steps: int = GREEDY_STEPS) -> Pool:
    """The texts of `model` after each prompt, and where each codec leaves them."""
    texts = [write(model, prompt, steps) for prompt in prompts]
    agreed = {}
    for codec in codecs:
        other = recode(model, CODECS[codec]).model
        agreed[codec] = [
            first_difference(list(text), other, _tokens(prompt)) for prompt, text in zip(prompts, texts, strict=True)
        ]
    return Pool(prompts, texts, agreed)


@dataclass(frozen=True)
class Fixed:
    """The prompts of QN-15's regression, and the day on which they were chosen."""

    chosen: str
    prompts: Sequence[str]

    @classmethod
    def read(cls, file: Path = FILE) -> Self:
        return cls(**json.loads(file.read_text()))

    def write(self, file: Path = FILE) -> None:
        file.write_text(json.dumps(asdict(self), indent=2) + "\n")

    def as_bytes(self) -> list[bytes]:
        return [prompt.encode() for prompt in self.prompts]


def choose(pool: Pool, codecs: Sequence[str], day: str, number: int = NUM_FIXED) -> Fixed:
    """Those of the pool's prompts after which all `codecs` write the whole text, the most new bytes first.

    Raises:
        ValueError: there are not so many.
    """
    whole = [i for i, text in enumerate(pool.texts) if all(pool.agreed[codec][i] == len(text) for codec in codecs)]
    if len(whole) < number:
        raise ValueError(
            f"{' and '.join(codecs)} write only {len(whole)} of the {len(pool.texts)} texts whole, not {number}"
        )
    whole.sort(key=lambda i: -num_new(pool.texts[i]))
    return Fixed(day, [pool.prompts[i].decode() for i in whole[:number]])


def write(model: ByteTransformer, prompt: bytes, steps: int = GREEDY_STEPS) -> bytes:
    """The likeliest bytes after `prompt`."""
    return bytes(model.generate(_tokens(prompt), steps))


def num_new(text: Sequence[int]) -> int:
    """How many tokens come before the text only repeats its last ones, in a period of at most half of it."""
    length = len(text)

    def repeated(period: int) -> int:
        """How many of the last tokens equal those a period before."""
        differs = (k for k in range(length - period) if text[-1 - k] != text[-1 - k - period])
        return next(differs, length - period)

    counts = ((period, repeated(period)) for period in range(1, length // 2 + 1))
    return length - max((count for period, count in counts if count >= period), default=0)


def _tokens(prompt: bytes) -> Tensor:
    return torch.tensor(list(prompt))
