"""GM-20: whose fault a gradient is that is not finite."""

from __future__ import annotations

from orchestrator.non_finite import SETTLE_SECONDS, NonFinite

LATER = 10.0 + SETTLE_SECONDS


def test_gm20_finite_on_another_host_it_was_the_host() -> None:
    found = NonFinite()
    assert not found.told("host-2", 30, again=False)
    assert found.guilty(99.0) == []  # nobody has said what came of it
    found.finite(30, 10.0)
    assert found.guilty(10.5) == []  # somebody may still have to say something of the first time
    assert found.guilty(LATER) == ["host-2"]
    assert found.guilty(99.0) == []  # said once


def test_gm20_news_from_several_hosts_arrive_in_any_order() -> None:
    found = NonFinite()
    found.finite(30, 10.0)
    found.told("host-2", 30, again=False)
    assert found.guilty(LATER) == ["host-2"]


def test_gm20_not_finite_on_another_host_it_was_the_data() -> None:
    found = NonFinite()
    found.told("host-2", 30, again=False)
    assert found.told("host-1", 30, again=True)
    assert not found.told("host-3", 30, again=True)  # said once
    assert found.guilty(99.0) == []


def test_gm20_several_at_once_have_a_cause_in_common() -> None:
    found = NonFinite()
    for host in ("host-2", "host-3", "host-2"):
        found.told(host, 30, again=False)
    found.finite(30, 10.0)
    assert found.guilty(99.0) == []


def test_gm20_steps_are_judged_one_by_one() -> None:
    found = NonFinite()
    found.told("host-2", 30, again=False)
    found.told("host-3", 31, again=False)
    found.finite(30, 10.0)
    found.finite(31, 20.0)
    assert found.guilty(LATER) == ["host-2"]
    assert found.guilty(30.0) == ["host-3"]


def test_gm20_what_nobody_computes_again_convicts_nobody() -> None:
    """The generation has ended meanwhile, and the step is another one now."""
    found = NonFinite()
    found.told("host-2", 30, again=False)
    found.told("host-3", 29, again=False)
    found.finite(29, 10.0)
    found.forget()
    found.finite(30, 10.0)
    assert found.guilty(LATER) == ["host-3"]
