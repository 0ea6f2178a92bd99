"""CK-8: a checkpoint of another model is refused, naming the first tensor that differs."""

from __future__ import annotations

import pytest
import torch

from workers.checkpoint import WrongModel, check_fits
from workers.state import Captured

SAVED = Captured({"a": torch.zeros(2, 3), "b": torch.zeros(4, dtype=torch.int64), "optimizer.a|m": torch.zeros(2, 3)})


def test_ck8_the_same_model_fits() -> None:
    check_fits(SAVED, {"a": ((2, 3), torch.float32), "b": ([4], "int64")}, optional=("optimizer.",))


@pytest.mark.parametrize(
    ("expected", "words"),
    [
        ({"a": ((2, 3), "float32"), "c": ((), "float32"), "b": ((4,), "int64")}, "no tensor 'c'"),
        ({"a": ((2, 3), "float32")}, "model has no tensor 'b'"),
        ({"a": ((3, 2), "float32"), "b": ((4,), "int64")}, r"'a' is float32 \[2, 3\], the model's is float32 \[3, 2\]"),
        ({"a": ((2, 3), "float32"), "b": ((4,), torch.int32)}, r"'b' is int64 \[4\], the model's is int32 \[4\]"),
    ],
    ids=["missing", "extra", "shape", "dtype"],
)
def test_ck8_another_model_does_not(expected: dict[str, tuple[tuple[int, ...], str]], words: str) -> None:
    with pytest.raises(WrongModel, match=words):
        check_fits(SAVED, expected, optional=("optimizer.",))


def test_ck8_optimizer_state_is_extra_unless_said_otherwise() -> None:
    with pytest.raises(WrongModel, match=r"no tensor 'optimizer\.a\|m'"):
        check_fits(SAVED, {"a": ((2, 3), "float32"), "b": ((4,), "int64")})
