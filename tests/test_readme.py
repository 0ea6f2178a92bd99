"""The README shows what is true: the lines that change between the two examples, the recipes and their phases."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from orchestrator import jobspec
from workers.qat.phases import Phase
from workers.tasks import RECIPES


def test_the_readme_shows_the_difference_between_the_examples(project: Path) -> None:
    plain, elastic = ((project / "examples" / name).read_text().splitlines() for name in ("plain.py", "elastic.py"))
    changes = [
        line for line in difflib.unified_diff(plain, elastic, lineterm="", n=0) if not line.startswith(("---", "+++", "@@"))
    ]
    shown = (project / "README.md").read_text().split("```diff\n")[1].split("\n```")[0].splitlines()
    assert shown == changes


def test_qs22_the_readme_names_every_recipe_and_the_phases_in_their_order(project: Path) -> None:
    section = (project / "README.md").read_text().partition("## From data to an INT8 model")[2].partition("\n## ")[0]
    recipes, phases = (table.split("\n\n")[0] for table in re.split(r"(?:\|---)+\|\n", section)[1:])
    assert {name for row in _first_cells(recipes) for name in re.findall(r"`(\w+)`", row)} == set(RECIPES)
    assert [cell.strip("` ") for cell in _first_cells(phases)] == list(Phase)


def _first_cells(table: str) -> list[str]:
    return [row.split("|")[1] for row in table.splitlines() if row.startswith("| ")]


def test_the_job_in_the_readme_is_a_valid_one(project: Path, tmp_path: Path) -> None:
    path = tmp_path / "text.yaml"
    path.write_text((project / "README.md").read_text().split("```yaml\n")[1].split("```")[0])
    spec = jobspec.load(path, [])
    assert (spec.name, spec.task.recipe) == ("text", "bytes")
