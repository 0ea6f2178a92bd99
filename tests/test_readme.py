"""The README shows what is true: the lines that change between the two examples."""

from __future__ import annotations

import difflib
from pathlib import Path


def test_the_readme_shows_the_difference_between_the_examples(project: Path) -> None:
    plain, elastic = ((project / "examples" / name).read_text().splitlines() for name in ("plain.py", "elastic.py"))
    changes = [
        line for line in difflib.unified_diff(plain, elastic, lineterm="", n=0) if not line.startswith(("---", "+++", "@@"))
    ]
    shown = (project / "README.md").read_text().split("```diff\n")[1].split("\n```")[0].splitlines()
    assert shown == changes
