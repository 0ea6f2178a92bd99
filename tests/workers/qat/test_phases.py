"""Which phase an epoch is in, and what is on in it (QS-22)."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.qat.config import PhasesConfig, QatConfig
from workers.qat.phases import FIRST_LAYER_FP32, FP32, MORE_QAT_EPOCHS, QUANTIZED, Phase, Schedule, Switches


def schedule(fp32: int = 5, qat: int = 12, added: dict[str, int] | None = None, **values: Any) -> Schedule:
    return Schedule(
        PhasesConfig(fp32_epochs=fp32, qat_epochs=qat), QatConfig.model_validate({"lr_min": 1e-6, **values}), added or {}
    )


def boundaries(plan: Schedule) -> tuple[int, int, int]:
    return plan.activations_from, plan.state_from, plan.freeze_from


def test_qs22_the_defaults_are_those_of_the_table() -> None:
    plan = Schedule(PhasesConfig(), QatConfig(), {})
    assert (plan.warmup_epochs, plan.epochs) == (5, 17)
    weights = Switches(weights=True)
    table = [FP32] * 5 + [weights] * 3 + [weights._replace(activations=True, observing=True)] * 4
    table += [QUANTIZED._replace(observing=True)] + [QUANTIZED] * 4
    assert [plan.switches(epoch) for epoch in range(17)] == table
    assert [plan.phase(epoch) for epoch in range(17)] == [
        *[Phase.FP32_WARMUP] * 5,
        *[Phase.QAT] * 8,
        *[Phase.OBSERVER_FREEZE] * 4,
    ]
    assert [epoch for epoch in range(17) if plan.is_complete(epoch)] == [12, 13, 14, 15, 16]


def test_qs22_the_phases_are_in_their_order() -> None:
    assert list(Phase) == ["data", "fp32_warmup", "qat", "observer_freeze", "calibration", "convert", "verify"]


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [(1, (0, 0, 1)), (2, (0, 1, 1)), (3, (1, 2, 2)), (6, (2, 4, 4)), (12, (3, 7, 8)), (24, (6, 14, 16))],
)
def test_qs22_other_numbers_of_epochs_are_cut_in_proportion(epochs: int, expected: tuple[int, int, int]) -> None:
    assert boundaries(schedule(qat=epochs)) == expected


def test_qs22_what_the_jobspec_says_of_the_stages_counts() -> None:
    assert boundaries(schedule(activations_from=1, state_from=2, freeze_from=5)) == (1, 2, 5)
    assert boundaries(schedule(activations_from=9)) == (9, 9, 10)
    assert boundaries(schedule(activations_from=4, freeze_from=0)) == (4, 7, 5)


@given(
    fp32=st.integers(0, 12),
    qat=st.integers(0, 40),
    given_=st.fixed_dictionaries(
        {},
        optional={
            "activations_from": st.integers(0, 45),
            "state_from": st.integers(0, 45),
            "freeze_from": st.integers(0, 45),
        },
    ),
    added=st.fixed_dictionaries({}, optional={"fp32_warmup": st.integers(0, 5), "qat": st.integers(0, 3)}),
    before=st.sampled_from([[], [4], [8, 4]]),
)
def test_qs22_stages_only_add_up_and_observers_stand_still_once(
    fp32: int, qat: int, given_: dict[str, int], added: dict[str, int], before: list[int]
) -> None:
    if not fp32 + qat or given_.get("activations_from", 0) > given_.get("state_from", 45):
        return
    plan = schedule(fp32, qat, added, **given_, bits_before=before, weight_bits=2)
    switches = [plan.switches(epoch) for epoch in range(plan.epochs + 1)]
    phases = [list(Phase).index(plan.phase(epoch)) for epoch in range(plan.epochs + 1)]
    assert all(a <= b for a, b in pairwise(phases))
    assert all(all(x <= y for x, y in zip(a[:3], b[:3], strict=True)) for a, b in pairwise(switches))
    assert switches[: plan.warmup_epochs] == [FP32] * plan.warmup_epochs
    watching = [each.observing for each in switches[plan.warmup_epochs :]]
    assert watching == sorted(watching[: plan.freeze_from]) + [False] * len(watching[plan.freeze_from :])
    for epoch in range(plan.epochs):
        on = plan.switches(epoch)
        assert not on.observing or on.activations
        assert (plan.phase(epoch) == Phase.OBSERVER_FREEZE) == (on.activations and not on.observing) or not on.activations
        assert plan.is_complete(epoch) == (on[:3] == (True, True, True) and plan.weight_bits(epoch) == 2)
        anew = any(plan.observes_anew(each) for each in range(plan.epochs))
        assert anew == any(plan.weight_bits(plan.warmup_epochs + each) > 2 for each in range(qat))


@pytest.mark.parametrize("qat", range(1, 30))
def test_qs22_the_last_epoch_quantizes_everything_unless_told_otherwise(qat: int) -> None:
    plan = schedule(qat=qat)
    assert plan.is_complete(plan.epochs - 1) and not any(plan.is_complete(epoch) for epoch in range(5))
    watched = [epoch for epoch in range(plan.epochs) if plan.switches(epoch).observing]
    assert watched and watched[0] == 5 + plan.activations_from


def test_qs22_the_rate_is_a_cosine_epoch_by_epoch() -> None:
    plan = schedule()
    rates = [plan.qat_rate(epoch, 1e-4) for epoch in range(13)]
    assert rates[0] == 1e-4
    assert [rates[4], rates[8], rates[12]] == pytest.approx([7.525e-5, 2.575e-5, 1e-6], rel=1e-12)
    assert all(late < early for early, late in pairwise(rates))
    assert plan.qat_rate(13, 1e-4) == pytest.approx(1e-6)


def test_qs28_epochs_that_a_gate_has_added_have_half_the_first_rate() -> None:
    plan = schedule(added={"qat": MORE_QAT_EPOCHS})
    assert plan.epochs == 5 + 12 + 3
    assert [plan.qat_rate(epoch, 1e-4) for epoch in (12, 13, 14)] == [5e-5] * 3
    assert plan.qat_rate(11, 1e-4) == schedule().qat_rate(11, 1e-4)


def test_qs22_a_rate_below_the_smallest_stays_as_it_is() -> None:
    plan = schedule(lr_min=1e-3)
    assert [plan.qat_rate(epoch, 1e-4) for epoch in range(12)] == [1e-4] * 12


def test_qs24_without_qat_epochs_there_is_nothing_to_divide_by() -> None:
    plan = schedule(qat=0)
    assert plan.epochs == 5 and math.isfinite(plan.qat_rate(0, 1e-4))
    assert [plan.switches(epoch) for epoch in range(5)] == [FP32] * 5


@pytest.mark.parametrize("added", range(4))
def test_ta19_a_longer_warm_up_moves_everything_after_it(added: int) -> None:
    plain, moved = schedule(), schedule(added={"fp32_warmup": added})
    assert moved.epochs == plain.epochs + added
    for epoch in range(5, 17):
        assert moved.switches(epoch + added) == plain.switches(epoch)
        assert moved.phase(epoch + added) == plain.phase(epoch)


def test_ta19_the_epochs_without_the_first_layer_come_last_and_the_best_is_one_of_them() -> None:
    longer = schedule(added={"fp32_warmup": 1, "qat": 3})
    plan = schedule(added={"fp32_warmup": 1, "qat": 3, FIRST_LAYER_FP32: 3})
    assert (longer.epochs, plan.epochs) == (6 + 15, 6 + 18)
    left = [plan.leaves_first_layer(epoch) for epoch in range(plan.epochs + 2)]
    assert left == [False] * 21 + [True] * 5 and not any(map(longer.leaves_first_layer, range(30)))
    assert [epoch for epoch in range(plan.epochs) if plan.is_complete(epoch)] == [21, 22, 23]
    assert longer.is_complete(20) and longer.is_complete(13)
    for epoch in range(21):
        assert (plan.switches(epoch), plan.phase(epoch)) == (longer.switches(epoch), longer.phase(epoch))
    assert [plan.qat_rate(epoch - 6, 1e-4) for epoch in range(18, 24)] == [5e-5] * 6
    assert plan.switches(23) == QUANTIZED and plan.phase(23) == Phase.OBSERVER_FREEZE


def descent(qat: int = 22, before: tuple[int, ...] = (8, 4), added: dict[str, int] | None = None) -> Schedule:
    return schedule(5, qat, added, weight_bits=2, bits_before=list(before))


def test_qs23_bits_become_fewer_as_the_rule_says() -> None:
    plan = descent()
    assert plan.stages == [(8, 0, 5), (4, 5, 12), (2, 12, 22)] and plan.epochs == 27
    epochs = range(5, 27)
    assert [plan.weight_bits(epoch) for epoch in epochs] == [8] * 5 + [4] * 7 + [2] * 10
    assert [plan.qat_rate(epoch - 5, 2e-4) for epoch in epochs] == [2e-4] * 5 + [1e-4] * 7 + [5e-5] * 10
    assert [epoch for epoch in range(30) if plan.observes_anew(epoch)] == [5 + 5, 5 + 12]
    assert boundaries(plan) == (1, 3, 12 + 7)  # cut in proportion: the first stage, and the last
    assert [epoch for epoch in range(27) if plan.is_complete(epoch)] == list(range(17, 27))
    assert [plan.phase(epoch) for epoch in (16, 17, 23, 24, 26)] == [*[Phase.QAT] * 3, *[Phase.OBSERVER_FREEZE] * 2]


def test_qs23_epochs_that_are_added_have_the_last_bits_at_half_their_rate() -> None:
    plan = descent(added={"fp32_warmup": 2, "qat": 3, FIRST_LAYER_FP32: 3})
    assert [plan.weight_bits(epoch) for epoch in range(28, 35)] == [2] * 7 and plan.epochs == 35
    assert [plan.qat_rate(epoch - 7, 2e-4) for epoch in (28, 29, 34)] == [5e-5, 2.5e-5, 2.5e-5]
    assert [epoch for epoch in range(35) if plan.observes_anew(epoch)] == [12, 19]
    assert [epoch for epoch in range(35) if plan.is_complete(epoch)] == [32, 33, 34]


def test_qs23_of_two_stages_the_shares_are_those_of_the_first_two() -> None:
    assert descent(before=(4,), qat=12).stages == [(4, 0, 5), (2, 5, 12)]
    assert descent(before=(), qat=12).stages == [(2, 0, 12)]


@pytest.mark.parametrize("before", [(), (4,), (8, 4)])
@pytest.mark.parametrize("qat", range(30))
def test_qs23_the_stages_are_all_epochs_and_the_last_has_one_in_which_ranges_are_observed(
    before: tuple[int, ...], qat: int
) -> None:
    plan = descent(qat, before)
    assert [stage.bits for stage in plan.stages] == [*before, 2]
    assert [stage.start for stage in plan.stages] == [0, *(stage.end for stage in plan.stages[:-1])]
    assert plan.stages[-1].end == qat and all(stage.start <= stage.end for stage in plan.stages)
    if qat > len(before):
        assert all(stage.start < stage.end for stage in plan.stages)
    if qat:
        last = range(5 + plan.stages[-1].start, 5 + qat)
        assert any(plan.switches(epoch).observing for epoch in last) and plan.is_complete(4 + qat)


@pytest.mark.parametrize(
    ("values", "fitting"),
    [
        ({"bits_before": [8]}, []),
        ({"bits_before": [4, 8], "weight_bits": 2}, [8, 4]),
        ({"bits_before": [8, 4], "weight_bits": 4}, [8]),
        ({"bits_before": [8, 8], "weight_bits": 4}, [8]),
    ],
)
def test_qs23_bits_that_do_not_become_fewer_are_refused(values: dict[str, Any], fitting: list[int]) -> None:
    with pytest.raises(ValueError, match="bits must become fewer") as caught:
        QatConfig.model_validate(values)
    assert f"write qat.bits_before: {fitting}" in str(caught.value)
    QatConfig.model_validate({**values, "bits_before": fitting})
