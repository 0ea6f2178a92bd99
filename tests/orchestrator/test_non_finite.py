"""GM-20: whose fault a gradient is that is not finite."""

from __future__ import annotations

from orchestrator.non_finite import SETTLE_SECONDS, NonFinite


def test_gm20_finite_on_another_host_it_was_the_host() -> None:
    found = NonFinite()
    assert not found.told("host-2", 30, again=False)
    assert found.guilty(29, 10.0) == []  # not committed yet
    assert found.guilty(30, 11.0) == []  # somebody may still say that it was not finite there either
    assert found.guilty(31, 11.0 + SETTLE_SECONDS) == ["host-2"]
    assert found.guilty(32, 99.0) == []  # said once


def test_gm20_not_finite_on_another_host_it_was_the_data() -> None:
    found = NonFinite()
    found.told("host-2", 30, again=False)
    found.guilty(30, 10.0)
    assert found.told("host-1", 30, again=True)
    assert not found.told("host-3", 30, again=True)  # said once
    assert found.guilty(30, 99.0) == []


def test_gm20_several_at_once_have_a_cause_in_common() -> None:
    found = NonFinite()
    found.told("host-2", 30, again=False)
    found.told("host-3", 30, again=False)
    found.told("host-2", 30, again=False)
    found.guilty(30, 10.0)
    assert found.guilty(30, 99.0) == []


def test_gm20_steps_are_judged_one_by_one() -> None:
    found = NonFinite()
    found.told("host-2", 30, again=False)
    found.told("host-3", 31, again=False)
    found.guilty(30, 10.0)
    assert found.guilty(30, 20.0) == ["host-2"]
    found.guilty(31, 20.0)
    assert found.guilty(31, 30.0) == ["host-3"]
