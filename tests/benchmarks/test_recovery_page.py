"""The command line and the page of benchmarks/recovery.py."""

from __future__ import annotations

import dataclasses
import random

import pytest

from benchmarks.measure import Recovery
from benchmarks.recovery import Row, all_systems, measure, page, select, table

SYSTEMS = all_systems(None)


def test_the_rows_of_the_issue_are_all_there() -> None:
    assert [system.key for system in SYSTEMS] == [
        "ours",
        "torchrun-50",
        "torchrun-10",
        "torchrun-tuned",
        "ray-50",
        "ray-10",
        "ray-tuned",
        "torchft-default",
        "torchft-tuned",
        "horovod",
    ]


def test_a_family_name_selects_its_rows() -> None:
    assert [system.key for system in select(SYSTEMS, "horovod,torchft,ray-50")] == [
        "ray-50",
        "torchft-default",
        "torchft-tuned",
        "horovod",
    ]
    assert select(SYSTEMS, "all") == SYSTEMS


def test_an_unknown_name_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(SystemExit, match=r"no system is called 'torch'; choose from ours, torchrun-50"):
        select(SYSTEMS, "ours,torch")


def test_a_peer_that_is_not_installed_is_listed_and_skipped() -> None:
    absent = dataclasses.replace(SYSTEMS[1], module="no_such_package_at_all", install="pip install it")
    row = measure(absent, kills=3, limit=1.0, chance=random.Random(0), keep=None)
    assert row.kills == []
    assert "not installed: pip install it" in table([row], limit=1.0)


def test_the_table_gives_medians_and_what_was_not_reached() -> None:
    kills = [
        Recovery(rank=1, first=0.1, survivors=0.2, full=3.0, steps_lost=0, kept=3),
        Recovery(rank=0, first=0.3, survivors=0.4, full=None, steps_lost=2, kept=2),
        Recovery(rank=2, first=0.2, survivors=0.3, full=5.0, steps_lost=0, kept=3),
    ]
    line = table([Row(SYSTEMS[1], kills, [0.031, 0.033])], limit=60.0).splitlines()[-1]
    assert line == (
        "| torchrun elastic | default, checkpoint every 50 | 32 | 3 | 0.20 (0.10 to 0.30) | 0.30 (0.20 to 0.40) "
        "| 5.00 (3.00 to > 60) | 0 (0 to 2) | 3 (2 to 3) of 3 |"
    )


def test_the_page_says_why_kills_are_missing() -> None:
    kill = Recovery(rank=1, first=0.1, survivors=0.2, full=3.0, steps_lost=0, kept=3)
    text = page([Row(SYSTEMS[1], [kill], [0.03], problem="ended by itself")], 60.0, "python -m benchmarks.recovery")
    assert "Not all kills were done" in text
    assert "ended by itself" in text
    assert "python -m benchmarks.recovery" in text
