"""GM-14 and section 4: what the governor is told of a host."""

from __future__ import annotations

import itertools
import math

import pytest
from quantarion.v1 import control_pb2 as pb

from orchestrator.governor.readings import Observation
from orchestrator.observing import BEATS, FOLLOW, Observing
from workers.page import Signals

STEPS = itertools.count(1)
A = {"a": "10.0.0.1"}


def beat(*ranks: dict[str, float], temperature: float = math.nan) -> pb.Beat:
    found = pb.Beat(temperature=temperature)
    for rank in ranks:
        progress = found.progress.add(worker=f"w{len(found.progress)}", step=int(rank.get("step", next(STEPS))))
        for signal in Signals._fields:
            setattr(progress, signal, rank.get(signal, math.nan))
    return found


def test_gm14_a_host_has_the_median_of_its_ranks_and_what_none_has_measured_is_not_known() -> None:
    observing = Observing()
    observing.heard("a", beat({"work": 1.0, "loss": 0.5}, {"work": 3.0}, {}, temperature=71.0))
    observing.heard("b", beat({}))
    found = observing.window({host: host for host in "abc"})
    assert found == {"a": Observation(busy=2.0, loss=0.5, temperature=71.0), "b": Observation()}


def test_gm14_what_is_usual_for_a_host_follows_it_slowly() -> None:
    observing = Observing()
    usual = []
    for work in (1.0, 1.0, 2.0, 2.0):
        observing.heard("a", beat({"work": work}))
        usual.append(observing.window(A)["a"].baseline)
    assert usual == [None, 1.0, 1.0, pytest.approx(1.0 + FOLLOW)]


def test_gm27_what_was_measured_once_counts_in_one_window() -> None:
    observing = Observing()
    windows = []
    for step, compared, cosine in ((10, 10.0, 0.1), (10, 10.0, 0.1), (11, 10.0, 0.1), (20, 20.0, 0.9)):
        observing.heard("a", beat({"step": step, "work": 1.0, "loss": 2.0, "cosine": cosine, "compared": compared}))
        windows.append(observing.window(A)["a"])
    assert [each.loss for each in windows] == [2.0, None, 2.0, 2.0]
    assert [each.busy for each in windows] == [1.0, None, 1.0, 1.0]
    assert [each.cosine for each in windows] == [0.1, None, None, 0.9]


def test_gm21_what_sensors_say_is_told_and_what_they_do_not_is_not_known() -> None:
    observing = Observing()
    observing.heard("a", pb.Beat(temperature=math.nan, memory=0.123456, load=0.0, cpu=0.5))
    assert observing.window(A) == {"a": Observation(memory=0.1235, load=0.0)}
    assert observing.last("a").cpu == 0.5 and not observing.last("b").HasField("cpu")


def test_a_beat_is_told_once() -> None:
    observing = Observing()
    observing.heard("a", beat({"work": 1.0}))
    observing.window(A)
    assert observing.window(A) == {}


def test_who_is_no_member_is_not_told_of() -> None:
    observing = Observing()
    observing.heard("spare", beat({"work": 1.0}))
    assert observing.window(A) == {}


def test_gm40_single_steps_are_what_each_beat_of_the_window_has_said_anew() -> None:
    observing = Observing()
    observing.heard("a", beat({"step": 10, "work": 1.0, "loss": 5.0}))
    observing.window({host: host for host in "ab"})
    for step, work in ((10, 1.0), (11, 2.0), (12, 3.0)):
        observing.heard("a", beat({"step": step, "work": work, "loss": 4.0}))
    observing.heard("b", beat({"step": 7, "work": 9.0}))
    observing.heard("spare", beat({"step": 7, "work": 8.0}))
    singles = observing.singles(["a", "b"])
    assert [{host: each.busy for host, each in step.items()} for step in singles] == [
        {"a": None, "b": 9.0},
        {"a": 2.0},
        {"a": 3.0},
    ]
    assert singles[1]["a"].baseline == 1.0
    assert observing.window({host: host for host in "ab"})["a"].busy == 3.0
    assert observing.singles(["a", "b"]) == ()


def test_gm40_of_a_long_window_the_last_beats_are_remembered() -> None:
    observing = Observing()
    for step in range(1, BEATS + 11):
        observing.heard("a", beat({"step": step, "work": float(step)}))
    singles = observing.singles(["a"])
    assert len(singles) == BEATS and singles[-1]["a"].busy == BEATS + 10
