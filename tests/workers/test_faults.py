"""EP-19 and GM-40: what faults are called, when they happen, and how long those last that last."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from workers import faults
from workers.faults import Fault, Faults, parse


class Process:
    """One whose moment is what the test says, and that notes what is done to it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, *texts: str, rank: int = 0) -> None:
        self.now = {"rank": rank, "step": 1}
        self.slept, self.noise, self.flips, self.killed = list[float](), list[float](), 0, list[tuple[int, int]]()
        self.faults = Faults(texts, folder, lambda: dict(self.now))
        self.faults.disturb = self.noise.append
        self.faults.flip = self._flip
        monkeypatch.setattr(faults.time, "sleep", self.slept.append)
        monkeypatch.setattr(faults.os, "kill", lambda pid, number: self.killed.append((pid, number)))

    def _flip(self) -> None:
        self.flips += 1

    def steps(self, first: int, last: int, point: str = "in_exchange", **values: int) -> None:
        for step in range(first, last + 1):
            self.now["step"] = step
            self.faults.hit(point, **values)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("in_apply@rank=1,step=5=kill", Fault("", "in_apply", (("rank", 1), ("step", 5)), "kill")),
        ("at_finish=hang", Fault("", "at_finish", (), "hang")),
        ("in_exchange@rank=1=delay:0.05", Fault("", "in_exchange", (("rank", 1),), "delay", 0.05)),
        ("in_exchange=delay:0.05+-0.01", Fault("", "in_exchange", (), "delay", 0.05, 0.01)),
        ("in_backward@steps=7=noise:10", Fault("", "in_backward", (), "noise", 10.0, 0.0, 7)),
        ("in_exchange@second=3=delay:0", Fault("", "in_exchange", (("second", 3),), "delay")),
    ],
)
def test_what_a_fault_is_called(text: str, expected: Fault) -> None:
    found = parse(text)
    assert found == Fault(text, *list(vars(expected).values())[1:])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("in_appyl=kill", "is not of the form point["),
        ("in_apply=explode", "actions: kill, lose, stop, hang, raise, flip, nan, miscount, delay, noise"),
        ("in_exchange=delay", "delay needs a value; write delay:0.05"),
        ("in_exchange=delay:fast", "is not of the form"),
        ("in_exchange=delay:-1", "is not of the form"),
        ("in_exchange=delay:1e3", "is not of the form"),
        ("in_apply=kill:9", "kill has no value; write kill"),
        ("in_exchange=delay:60.5", "at most 60 of them"),
        ("in_exchange=delay:59.5+-1", "at most 60 of them"),
        ("in_apply@steps=3=kill", "steps says how long delay or noise lasts"),
    ],
)
def test_a_fault_that_is_none_is_refused_with_what_to_write(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=r"^fault ") as refused:
        parse(text)
    assert words in str(refused.value)


def test_a_fault_happens_once_in_the_life_of_a_job_and_leaves_a_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "in_apply@step=3=flip"
    process = Process(tmp_path, monkeypatch, text)
    process.steps(1, 5, "in_apply")
    process.steps(1, 5, "in_apply")
    assert process.flips == 1
    mark = json.loads(parse(text).mark(tmp_path).read_text())
    assert (mark.pop("pid"), mark) == (os.getpid(), {"rank": 0, "step": 3, "t": pytest.approx(time.time(), abs=60)})
    replacement = Process(tmp_path, monkeypatch, text)
    replacement.steps(1, 5, "in_apply")
    assert replacement.flips == 0


def test_gm40_a_delay_goes_on_at_its_point_from_the_step_that_it_begins_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = Process(tmp_path, monkeypatch, "in_exchange@rank=0,step=3,bucket=1=delay:0.05")
    for bucket in (0, 1):
        process.steps(2, 2, bucket=bucket)
    assert process.slept == []
    process.steps(3, 3, bucket=0)
    process.steps(3, 6, bucket=1)
    process.steps(4, 6, bucket=0)
    process.steps(4, 6, "in_backward", bucket=1)
    assert process.slept == [0.05] * 4


def test_gm40_what_lasts_ends_after_its_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = Process(tmp_path, monkeypatch, "in_exchange@step=3,steps=2=delay:0.05", "in_backward@step=3,steps=4=noise:2")
    process.steps(1, 10)
    process.steps(1, 10, "in_backward")
    assert (process.slept, process.noise) == ([0.05] * 2, [2.0] * 4)


def test_gm40_a_later_one_of_the_same_action_takes_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ("in_backward@step=2=noise:0.1", "in_backward@step=4=noise:10", "in_backward@step=5=noise:0")
    process = Process(tmp_path, monkeypatch, *texts)
    process.steps(1, 6, "in_backward")
    assert process.noise == [0.1, 0.1, 10.0, 0.0, 0.0]


def test_gm40_what_lasts_is_in_the_memory_of_the_process_in_which_it_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "in_exchange@rank=1=delay:0.05"
    other, first = Process(tmp_path, monkeypatch, text), Process(tmp_path, monkeypatch, text, rank=1)
    other.steps(1, 3)
    assert first.slept == []
    first.steps(1, 3)
    assert first.slept == [0.05] * 3
    replacement = Process(tmp_path, monkeypatch, text, rank=1)
    replacement.steps(4, 6)
    assert replacement.slept == []


def test_gm40_a_delay_with_a_spread_stays_within_it_and_varies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = Process(tmp_path, monkeypatch, "in_exchange=delay:0.05+-0.01")
    process.steps(1, 200)
    assert all(0.04 <= seconds <= 0.06 for seconds in process.slept)
    assert min(process.slept) < 0.042 and max(process.slept) > 0.058


def test_gm40_a_host_is_lost_with_its_agent_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = Process(tmp_path, monkeypatch, "step_begin=lose")
    process.faults.agent = lambda: 4242
    process.steps(1, 1, "step_begin")
    assert process.killed == [(4242, signal.SIGKILL), (faults.os.getpid(), signal.SIGKILL)]
    alone = Process(tmp_path / "alone", monkeypatch, "step_begin=lose")
    alone.steps(1, 1, "step_begin")
    assert alone.killed == [(faults.os.getpid(), signal.SIGKILL)]


def test_without_faults_nothing_is_asked(tmp_path: Path) -> None:
    def where() -> dict[str, int]:
        raise AssertionError("asked")

    Faults([], tmp_path, where).hit("in_apply")
