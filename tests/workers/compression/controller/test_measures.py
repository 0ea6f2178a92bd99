"""CC-17, CC-20: what a rank measures, and the vector in which all ranks come to the same."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Size, Tensor

from tests.workers.compression.controller.conftest import any_measures, mlp
from workers.collectives.buckets import plan_buckets
from workers.compression.choice import NONE, Choice
from workers.compression.controller.candidates import CANDIDATES
from workers.compression.controller.config import ControllerConfig
from workers.compression.controller.controller import Controller
from workers.compression.controller.layout import Layout, Measured
from workers.compression.controller.link import Line
from workers.compression.controller.measures import Measures
from workers.compression.controller.shadows import DUE_STEPS, FIRST_STEPS, IN_USE_STEPS, PATIENCE, Pair
from workers.compression.controller.state import BucketState
from workers.compression.controller.wire import transfers

INT8 = Choice("int8")
SIZES = (10_000, 1_000_000)


def reduce(vectors: list[Tensor]) -> Tensor:
    return torch.stack(vectors).amax(dim=0)


def fill(measures: Measures, line: Line, late: float = 0.0) -> None:
    """Transfers of a rank that begins `late` seconds before the last one does."""
    for i in range(40):
        size = SIZES[i % 2]
        measures.transfer("hosts", size, 10.0 * i, 10.0 * i + line.seconds(size) + late)


@given(any_measures())
def test_cc20_the_vector_says_what_was_measured_to_float32(measures: Measured) -> None:
    layout = Layout(2, ["hosts"])
    vector = layout.write(measures)
    assert vector.dtype == torch.float32 and vector.shape == (layout.length,)
    read = layout.read(vector)
    line, back = measures.lines["hosts"], read.lines["hosts"]
    assert (line is None) == (back is None)
    if line is not None and back is not None:
        assert back.seconds(1e6) == pytest.approx(line.seconds(1e6), rel=1e-4)
    for name in ("round_trip", "probe", "gradient_norm", "coherence", "encode", "decode", "hidden", "took", "energy"):
        assert_same(getattr(measures, name), getattr(read, name))
    for mine, theirs in zip(measures.errors, read.errors, strict=True):
        assert_same(mine, theirs)


def assert_same(mine: object, theirs: object) -> None:
    if isinstance(mine, tuple) and isinstance(theirs, tuple):
        for one, other in zip(mine, theirs, strict=True):
            assert_same(one, other)
    else:
        assert (mine is None) == (theirs is None)
        assert mine is None or mine == pytest.approx(theirs, rel=1e-6)


@given(st.lists(any_measures(), min_size=1, max_size=4), st.randoms())
def test_cc20_ranks_come_to_the_same_in_any_order_and_in_any_number(ranks: list[Measured], order: random.Random) -> None:
    layout = Layout(2, ["hosts"])
    vectors = [layout.write(rank) for rank in ranks]
    first = layout.read(reduce(vectors))
    order.shuffle(vectors)
    assert layout.read(reduce([*vectors, vectors[0]])) == first
    for i in range(2):
        errors = [error for rank in ranks if (error := rank.errors[i][3]) is not None]
        assert first.errors[i][3] == (pytest.approx(max(errors), rel=1e-6) if errors else None)
        spare = [hidden for rank in ranks if (hidden := rank.hidden[i]) is not None]
        assert first.hidden[i] == (pytest.approx(min(spare), rel=1e-6) if spare else None)


def test_cc20_a_vector_of_another_model_is_refused() -> None:
    with pytest.raises(ValueError, match="measures of 2 buckets"):
        Layout(2, ["hosts"]).read(torch.zeros(Layout(3, ["hosts"]).length))


def test_cc17_nothing_measured_reads_as_nothing() -> None:
    measures = Measures(mlp())
    read = measures.read(measures.vector())
    assert read.lines == {"hosts": None} and read.round_trip is None
    assert set(read.encode + read.decode + read.hidden + read.took + read.energy) == {None}
    assert {error for errors in read.errors for error in errors} == {None}


def test_cc17_waiting_for_slower_ranks_is_not_the_links() -> None:
    """All but the last rank to begin wait in the collective; the reduced line is that of the last one."""
    line = Line(1e-3, 1e-7)
    ranks = [Measures(mlp()) for _ in range(3)]
    for rank, late in zip(ranks, (0.0, 0.2, 0.05), strict=True):
        fill(rank, line, late)
    found = ranks[0].read(reduce([rank.vector() for rank in ranks])).lines["hosts"]
    assert found is not None and found.seconds(SIZES[1]) == pytest.approx(line.seconds(SIZES[1]), rel=1e-3)


def test_cc17_rates_gains_and_times_are_what_was_told() -> None:
    measures = Measures(mlp())
    measures.encoded(INT8, 1_000_000, 2e-3)
    measures.encoded(INT8, 1_000, 5e-3)
    measures.decoded(INT8, 500_000, 1e-3)
    measures.encoded(Choice("threshold", 0.01), 1000, 1.0)
    measures.encoded(INT8, 0, 1.0)
    for gain in (1.02, 0.97, 0.99):
        measures.gain(1, INT8, gain, 4.0)
    measures.gain(1, INT8, float("nan"), 0.0)
    measures.hidden(0, 0.5)
    measures.took(1, 0.25)
    for seconds in range(1, 21):
        measures.round_trip(seconds * 1e-3)
    read = measures.read(measures.vector())
    assert list(read.rate(INT8)) == pytest.approx([2e-9, 2e-9]), "few elements say little of the rate"
    assert read.rate(Choice("threshold", 0.01)) == (None, None)
    assert read.error(1, INT8) == pytest.approx(0.02) and read.error(0, INT8) is None
    assert read.energy == (None, 4.0) and read.hidden == (0.5, None) and read.took == (None, 0.25)
    assert read.round_trip == pytest.approx(15.5e-3), "the mean of the last 10"


def test_cc21_a_rank_sounds_the_alarm_when_its_link_is_slower_than_was_said() -> None:
    measures = Measures(mlp())
    assert not measures.alarm(3.0)
    fill(measures, Line(1e-3, 1e-8))
    assert not measures.alarm(3.0), "nothing was said yet"
    measures.vector()
    assert not measures.alarm(3.0)
    for i in range(50, 58):
        measures.transfer("hosts", SIZES[1], 10.0 * i, 10.0 * i + 1.0)
    assert measures.alarm(3.0)
    measures.vector()
    assert not measures.alarm(3.0), "it is said now"


def worth_trying() -> set[Pair]:
    return {
        Pair(i, choice)
        for i, facts in enumerate(mlp())
        for choice in CANDIDATES
        if sum(transfers(facts, choice)) < sum(transfers(facts, NONE))
    }


def try_all(measures: Measures, steps: range, plan: tuple[Choice, ...] = ()) -> list[tuple[int, Pair]]:
    """Ask as the exchange does, and report."""
    found = []
    for step in steps:
        while (pair := measures.next_shadow(step, plan)) is not None:
            found.append((step, pair))
            measures.encoded(pair.choice, 1000, 1e-5)
            measures.decoded(pair.choice, 1000, 1e-5)
            measures.gain(pair.bucket, pair.choice, 0.9)
    return found


def test_cc17_every_candidate_is_tried_before_the_first_decision_and_then_seldom() -> None:
    measures = Measures(mlp())
    first = try_all(measures, range(1, 20))
    assert {pair for _, pair in first} == worth_trying() and len(first) == len(worth_trying())
    assert max(step for step, _ in first) <= FIRST_STEPS
    assert not try_all(measures, range(20, DUE_STEPS))
    again = try_all(measures, range(DUE_STEPS, 2 * DUE_STEPS + FIRST_STEPS))
    assert again and len(again) == len({step for step, _ in again}), "one in a step at the most"


def test_cc17_what_is_in_force_is_tried_in_every_window() -> None:
    measures = Measures(mlp())
    try_all(measures, range(1, 20))
    found = try_all(measures, range(20, 100), (NONE, INT8))
    assert {pair for _, pair in found} == {Pair(1, INT8)} and len(found) >= 80 // IN_USE_STEPS - 1


def test_cc17_what_cannot_save_time_is_left_alone() -> None:
    measures = Measures(mlp())
    try_all(measures, range(1, 20))
    fill(measures, Line(1e-5, 1e-12))
    for choice in CANDIDATES[1:]:
        measures.encoded(choice, 10**8, 1.0)
    assert not try_all(measures, range(200, 400))


def test_cc17_what_nobody_could_try_is_asked_for_again_and_hinders_nothing() -> None:
    measures = Measures(mlp())
    asked = []
    for step in range(1, 60):
        while (pair := measures.next_shadow(step)) is not None:
            asked.append((step, pair))
    assert {pair for _, pair in asked} == worth_trying()
    for pair in worth_trying():
        steps = [step for step, each in asked if each == pair]
        assert all(later - earlier >= PATIENCE for earlier, later in pairwise(steps)) and len(steps) > 1


def test_cc17_a_new_generation_measures_links_anew_and_keeps_gains() -> None:
    measures = Measures(mlp(4))
    fill(measures, Line(1e-3, 1e-7))
    try_all(measures, range(1, 20))
    measures.begin_generation(mlp(3))
    read = measures.read(measures.vector())
    assert read.lines == {"hosts": None} and read.error(1, INT8) == pytest.approx(0.1)
    assert measures.next_shadow(20) is None
    measures.begin_generation(mlp(1))
    assert not try_all(measures, range(1000, 1100)), "one host has no link"


def test_cc17_a_probe_is_told_apart_from_what_the_exchange_sends() -> None:
    measures, line = Measures(mlp()), Line(1e-3, 1e-7)
    fill(measures, line)
    before = measures.read(measures.vector())
    measures.expect_probe(50_000)
    measures.transfer("hosts", 8_000, 500.0, 500.001)  # smaller: it is none
    measures.transfer("hosts", 50_288, 501.0, 501.5)
    measures.transfer("hosts", 1_000_000, 502.0, 502.0 + line.seconds(1_000_000))
    found = measures.read(measures.vector())
    assert found.probe == pytest.approx(0.5 / 50_288)
    assert before.probe is None and measures.read(measures.vector()).probe is None  # it is told once
    line_now = found.lines["hosts"]
    assert line_now is not None
    assert line_now.seconds(1e6) == pytest.approx(line.seconds(1e6), rel=0.05)


def test_cc17_a_controller_sends_as_much_beside_its_measures_as_the_probe_is_long() -> None:
    controller = Controller(plan_buckets([("a", Size([300, 200]))], tail=1), ControllerConfig(), planned_steps=100)
    controller.begin_generation(((0, 1), (2, 3), (4, 5)))
    length = len(controller.vector(20))
    controller.state = replace(controller.state, probing=100_000)
    padded = controller.vector(20)
    assert 4 * (len(padded) - length) * 4 == pytest.approx(100_000, abs=16)  # to four ranks on other hosts
    assert not padded[length:].any()
    controller.decide(20, padded, controller.world, alarmed=False)
    assert controller.state.step == 20 and controller.state.probing == 0


def test_cc17_a_probe_goes_by_itself_in_the_next_step_and_is_told_in_the_next_decision() -> None:
    controller = Controller(plan_buckets([("a", Size([300, 200]))], tail=1), ControllerConfig(), planned_steps=100)
    controller.begin_generation(((0,), (1,)))
    length = len(controller.vector(20))
    assert not controller.is_due(21)
    controller.state = before = replace(controller.state, step=20, probing=100_000)
    assert controller.is_due(21)
    probe = controller.vector(21)
    assert 4 * len(probe) == 100_000 and not probe.any()
    controller.measures.transfer("hosts", 100_000, 1.0, 1.5)
    assert controller.decide(21, probe, controller.world, alarmed=True) == []
    assert controller.state == replace(before, probing=0, probed=100_000, alarmed=True)
    assert controller.is_due(22)
    assert controller.measures.read(controller.vector(22)).probe is None, "an alarm's decision does not go by it"
    told = controller.vector(40)
    assert controller.measures.read(controller.vector(60)).probe is None, "it is told once"
    assert len(told) == length and controller.measures.read(told).probe == pytest.approx(0.5 / 100_000)


@pytest.mark.parametrize(("takes", "alarmed"), [(0.25, False), (7.0, True)])
def test_cc21_after_a_change_of_plan_steps_that_are_far_longer_than_before_are_an_alarm(
    monkeypatch: pytest.MonkeyPatch, takes: float, alarmed: bool
) -> None:
    """Whatever the link was taken for: small transfers had told nothing of it."""
    clock = 0.0
    monkeypatch.setattr("workers.compression.controller.controller.time.perf_counter", lambda: clock)
    controller = Controller(plan_buckets([("a", Size([300, 200]))], tail=1), ControllerConfig(), planned_steps=100)
    controller.begin_generation(((0,), (1,)))
    step = 0

    def train(steps: int, seconds: float) -> None:
        nonlocal clock, step
        for _ in range(steps):
            step += 1
            controller.begin_step(step)
            controller.is_calm = True
            clock += seconds

    train(20, 0.1)
    before, after = controller.state, replace(controller.state, buckets=(BucketState(Choice("int8")),))
    changed = iter([after, after])
    monkeypatch.setattr("workers.compression.controller.controller.decide", lambda *_: (next(changed), []))
    reduced = controller.vector(step)
    assert controller.measures.read(reduced).step_seconds == pytest.approx(0.1)
    assert not controller.alarm and before.plan != after.plan
    controller.decide(step, reduced, controller.world, alarmed=False)
    train(1, takes)
    assert controller.alarm is alarmed
    train(1, takes)
    assert controller.alarm is alarmed
    train(18, takes)
    controller.decide(step, controller.vector(step), controller.world, alarmed=False)
    train(5, 7.0)
    assert not controller.alarm, "the plan is as it was: another reason"


def test_cc18_a_steps_time_is_that_of_the_middle_half() -> None:
    """Neither the shortest steps of ranks that wait for each other, nor those in which something else was in the way."""
    measures = Measures(mlp())
    for seconds in (0.01, 0.02, 0.09, 0.11, 0.10, 0.10, 0.30, 5.0):
        measures.stepped(seconds)
    found = measures.read(measures.vector(0.7))
    assert found.step_seconds == pytest.approx(0.1)
    assert found.latest_seconds == pytest.approx(0.7)
    assert measures.read(measures.vector()).latest_seconds is None
