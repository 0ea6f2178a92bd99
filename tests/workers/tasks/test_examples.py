"""The two scripts of `examples/`: at most 6 lines apart."""

from __future__ import annotations

import difflib
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[3] / "examples"
MOST_CHANGED_LINES = 6


def changed_lines(before: list[str], after: list[str]) -> int:
    """Lines added, removed or replaced; of a replacement the larger side counts."""
    blocks = difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
    return sum(max(b - a, d - c) for kind, a, b, c, d in blocks if kind != "equal")


def test_six_changed_lines_make_a_script_elastic() -> None:
    plain, elastic = ((EXAMPLES / name).read_text().splitlines() for name in ("plain.py", "elastic.py"))
    assert 1 <= changed_lines(plain, elastic) <= MOST_CHANGED_LINES


def test_changed_lines_counts_the_larger_side() -> None:
    assert changed_lines(["a", "b", "c", "d"], ["a", "x", "d"]) == 2
    assert changed_lines(["a"], ["a", "b", "c"]) == 2
    assert changed_lines(["a"], ["a"]) == 0


def test_the_plain_script_does_not_know_us_and_learns(tmp_path: Path) -> None:
    pytest.importorskip("mlxtend")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    copy = tmp_path / "plain.py"
    copy.write_text((EXAMPLES / "plain.py").read_text())
    ended = subprocess.run(
        [sys.executable, str(copy)], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "workers" not in copy.read_text()
    assert float(ended.stdout.removeprefix("accuracy ")) > 0.9
