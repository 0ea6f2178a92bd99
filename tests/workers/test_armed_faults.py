"""EP-19: faults that wait until somebody arms them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from workers.faults import Faults, InjectedFault, arm, armed, disarm, parse

TEXT = "in_backward@armed=3=raise"


def faults(folder: Path, rank: int, *texts: str) -> Faults:
    """Of the process that has this rank."""
    return Faults(texts or (TEXT,), folder, lambda: {"rank": rank, "step": 7})


def test_ep19_a_fault_that_waits_to_be_armed_happens_once_and_to_the_rank_it_is_meant_for(tmp_path: Path) -> None:
    first, second = faults(tmp_path, 0), faults(tmp_path, 1)
    second.hit("in_backward")
    arm(tmp_path, 3, rank=1)
    assert armed(tmp_path, 3) == 1
    first.hit("in_backward")
    second.hit("step_begin")
    assert not parse(TEXT).mark(tmp_path).exists()
    with pytest.raises(InjectedFault):
        second.hit("in_backward", attempt=2)
    told = json.loads(parse(TEXT).mark(tmp_path).read_text())
    assert (told["pid"], told["rank"], told["step"], told["attempt"]) == (os.getpid(), 1, 7, 2)
    second.hit("in_backward")


def test_ep19_what_is_disarmed_in_time_does_not_happen(tmp_path: Path) -> None:
    arm(tmp_path, 3, rank=1)
    disarm(tmp_path, 3)
    disarm(tmp_path, 3)
    faults(tmp_path, 1).hit("in_backward")
    assert armed(tmp_path, 3) is None and list(tmp_path.iterdir()) == []


def test_ep19_arming_one_fault_leaves_the_others_alone(tmp_path: Path) -> None:
    arm(tmp_path, 4, rank=1)
    faults(tmp_path, 1).hit("in_backward")
    with pytest.raises(InjectedFault):
        faults(tmp_path, 1, "in_backward@armed=4=raise").hit("in_backward")


def test_ep19_who_has_no_rank_is_not_meant(tmp_path: Path) -> None:
    """Not even by a fault that nobody has armed."""
    Faults((TEXT,), tmp_path, dict).hit("in_backward")
    arm(tmp_path, 3, rank=0)
    Faults((TEXT,), tmp_path, lambda: {"rank": -1}).hit("in_backward")
    assert not parse(TEXT).mark(tmp_path).exists()
