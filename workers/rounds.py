"""What a round gathers: every rank's results for its part of some work, added up over all of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor

EVALUATE = "evaluate"
"""Name under which `Job(evaluate=...)` stands in the history."""

Sums = dict[str, float]
Part = Callable[[int, int], Sums]
"""`fn(part, parts)`: results of this part of the work, by key, the same keys on every rank; they are summed over the ranks.

Of a value that is wrapped in `Largest` the largest counts instead.
"""


class Largest(float):
    """A result of which the largest over all ranks is wanted; of the smallest, negate it."""


def accuracy(results: Sums) -> float | None:
    """`correct` of `count`, 0..1; None where it was not measured."""
    return results["correct"] / results["count"] if results.get("count") and "correct" in results else None


def to_rows(results: Sums, observed: Tensor) -> tuple[dict[str, Any], list[Tensor]]:
    """Results as float64 rows to be reduced: the sums; then, if there are any, the largest values and what was `observed`.

    The dict says which `keys` are summed and of which only the `largest` counts.
    """
    keys = sorted(key for key, value in results.items() if not isinstance(value, Largest))
    largest = sorted(key for key, value in results.items() if isinstance(value, Largest))
    sums, maxima = (torch.tensor([float(results[key]) for key in which], dtype=torch.float64) for which in (keys, largest))
    maxima = torch.cat([maxima, observed])
    return {"keys": keys, "largest": largest}, [sums, maxima] if len(maxima) else [sums]


def fingerprint(name: str, meta: dict[str, Any], observed: Tensor) -> Tensor:
    """float64 [2] to be reduced to the largest before the rows are: a hash of what a round gathers, and its negative.

    Rows say nothing of themselves: of two rounds, numbers of different meaning would be added up.
    """
    words = json.dumps([name, meta["keys"], meta["largest"], len(observed)])
    number = float(int.from_bytes(blake2b(words.encode(), digest_size=6).digest(), "big"))  # 48 bits: exact
    return torch.tensor([number, -number], dtype=torch.float64)


def is_common(reduced: Tensor) -> bool:
    """Of a reduced `fingerprint`: do all ranks gather the same. The largest is the smallest only where all are equal."""
    return bool(reduced[0] == -reduced[1])


def from_rows(meta: dict[str, Any], rows: list[Tensor]) -> tuple[Sums, Tensor]:
    """The reduced results, and what was observed."""
    results = dict(zip(meta["keys"], rows[0].tolist(), strict=True))
    if len(rows) == 1:
        return results, torch.empty(0, dtype=torch.float64)
    largest = meta["largest"]
    results |= dict(zip(largest, rows[1][: len(largest)].tolist(), strict=True))
    return results, rows[1][len(largest) :]
