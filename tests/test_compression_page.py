"""docs/compression.md shows what is true: every codec with its bytes, every policy, a job that is valid."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
from torch import Size

from orchestrator import jobspec
from workers.compression.choice import FACTOR_CODECS, Choice
from workers.compression.config import CompressionConfig
from workers.compression.powersgd import PowerSGD
from workers.compression.registry import CODECS, make_codec

ELEMENTS = 1 << 20


@pytest.fixture
def page(project: Path) -> str:
    return (project / "docs" / "compression.md").read_text()


def rows(page: str, head: str) -> list[list[str]]:
    """The cells of the table whose first line begins with `head`."""
    lines = page.partition(f"\n| {head} |")[2].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_cc16_each_codec_is_there_with_the_bytes_that_it_sends(page: str) -> None:
    table = {name.strip("` "): size for name, size, _ in rows(page, "codec")}
    choices = {Choice.parse(text): size for text, size in table.items()}
    assert {choice.codec for choice in choices} == {*CODECS, *FACTOR_CODECS}
    for choice, size in choices.items():
        if not choice.is_low_rank:
            exact = make_codec(choice.codec, **choice.parameters).nbytes(ELEMENTS) / ELEMENTS
            digits = len(size.partition(".")[2])
            assert float(size) == round(exact, digits)


def test_cc16_the_bytes_of_powersgd_follow_the_formula(page: str) -> None:
    [(text, formula)] = [(row[0], row[1]) for row in rows(page, "codec") if row[0].startswith("`powersgd ")]
    rank = int(Choice.parse(text.strip("`")).value or 0)
    assert formula == f"4 · {rank} (rows + columns) / (rows · columns)"
    sent = PowerSGD({"w": Size([300, 200])}, rank).sizes(["w"])
    assert sum(sent) == rank * (300 + 200)


def test_cc22_each_policy_is_there(page: str) -> None:
    policies = get_args(CompressionConfig.model_fields["policy"].annotation)
    assert {row[0].strip("`") for row in rows(page, "`compression.policy`")} == set(policies)


def test_its_job_is_valid_and_its_links_lead_somewhere(page: str, project: Path, tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(page.split("```yaml\n")[1].split("```")[0])
    assert jobspec.load(job, []).compression.policy == "adaptive"
    targets = re.findall(r"\]\(([^)#]+)", page)
    assert targets and all((project / "docs" / target).exists() for target in targets)
    assert "(docs/compression.md)" in (project / "README.md").read_text()
