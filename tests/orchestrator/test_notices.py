"""GM-38: when hosts that will be taken away leave, and how."""

from __future__ import annotations

import json
from collections.abc import Collection

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.governing import Way
from orchestrator.notices import GATHER_SECONDS, Notice, Notices, Source


def notice(host: str, heard: float = 0.0, deadline: float = 30.0, source: Source = Source.RAY) -> Notice:
    return Notice(host, source, "Ray drains its node", heard, deadline)


def ways(notices: Notices, now: float, ends: float | None = None, present: Collection[str] = "abc") -> dict[str, Way]:
    return {removal.host: removal.way for removal in notices.due(present, ends, now)}


def test_gm38_notices_of_one_second_are_obeyed_together_and_once() -> None:
    notices = Notices()
    assert notices.hear(notice("a", 0.0)) and notices.hear(notice("b", 1.0))
    assert ways(notices, 1.4) == {}
    assert notices.hear(notice("c", 1.45))
    assert ways(notices, GATHER_SECONDS) == dict.fromkeys("abc", Way.AFTER_THE_STEP)
    assert ways(notices, 2.0) == {}


def test_gm38_where_there_is_little_time_nobody_waits_for_other_notices() -> None:
    notices = Notices()
    notices.hear(notice("a", 0.0, 2.0))
    notices.hear(notice("b", 0.1, 30.0))
    assert ways(notices, 0.4) == {}
    assert ways(notices, 0.5) == dict.fromkeys("ab", Way.AFTER_THE_STEP)


@pytest.mark.parametrize(("ends", "way"), [(15.0, Way.AFTER_THE_STEP), (15.1, Way.AT_ONCE), (None, Way.AFTER_THE_STEP)])
def test_gm38_the_step_is_finished_if_half_of_the_deadline_allows(ends: float | None, way: Way) -> None:
    notices = Notices()
    notices.hear(notice("a"))
    assert ways(notices, 2.0, ends) == {"a": way}


def test_gm38_a_step_that_is_too_long_for_one_is_finished_by_none() -> None:
    notices = Notices()
    notices.hear(notice("a", 0.0, 120.0))
    notices.hear(notice("b", 0.0, 10.0))
    assert ways(notices, 2.0, 6.0) == dict.fromkeys("ab", Way.AT_ONCE)
    assert ways(notices, 9.0) == {}


def test_gm38_who_has_not_left_by_half_time_waits_for_no_step_and_after_the_deadline_it_is_lost() -> None:
    notices = Notices()
    notices.hear(notice("a"))
    assert ways(notices, 2.0, 3.0) == {"a": Way.AFTER_THE_STEP}
    assert ways(notices, 14.9) == {}
    assert ways(notices, 15.0) == {"a": Way.AT_ONCE}
    assert ways(notices, 29.9) == {}
    (removal,) = notices.due("a", None, 30.0)
    assert (removal.way, removal.is_trusted) == (Way.LOST, True) and removal.reason.endswith("before its deadline")
    assert ways(notices, 31.0) == {}


def test_gm38_of_two_notices_for_a_host_the_first_deadline_counts() -> None:
    notices = Notices()
    notices.hear(notice("a", 0.0, 30.0))
    assert notices.hear(notice("a", 0.5, 29.5)) is None and notices.hear(notice("a", 0.5, 90.0)) is None
    sooner = notices.hear(notice("a", 1.0, 11.0, Source.AGENT))
    assert sooner is not None and (sooner.heard, sooner.half, sooner.source) == (0.0, 5.5, Source.AGENT)


def test_gm38_a_node_is_not_taken_again_until_its_deadline_and_then_it_is_as_any_other() -> None:
    notices = Notices()
    notices.hear(notice("a"))
    assert ways(notices, 2.0) == {"a": Way.AFTER_THE_STEP}
    assert ways(notices, 29.0, present="b") == {} and notices.keeps_away("a", 29.0)
    assert not notices.keeps_away("a", 30.0) and not notices.keeps_away("b", 29.0)
    assert ways(notices, 31.0, present="b") == {}
    assert notices.hear(notice("a", 40.0, 70.0)) and ways(notices, 42.0) == {"a": Way.AFTER_THE_STEP}


def test_gm38_a_host_whose_node_is_drained_no_more_stays_unless_it_was_told_already() -> None:
    notices = Notices()
    notices.hear(notice("a"))
    assert ways(notices, 2.0) == {"a": Way.AFTER_THE_STEP}
    notices.hear(notice("b", 10.0, 40.0))
    notices.hear(notice("c", 10.0, 40.0, Source.AGENT))
    assert notices.withdraw({"a"}) == ["b"] and notices.withdraw({"a"}) == []
    assert ways(notices, 12.0) == {"c": Way.AFTER_THE_STEP}
    assert notices.withdraw(()) == ["a"] and not notices.keeps_away("a", 12.0)


def test_ep12_a_restarted_coordinator_goes_on_with_what_was_heard() -> None:
    before = [notice("a"), notice("b", 1.0, 31.0, Source.AGENT)]
    known = [Notice.read(json.loads(json.dumps(each.record()))) for each in before]
    assert known == before
    notices = Notices(known, told=("a", "x"))
    assert ways(notices, 8.0) == {"b": Way.AFTER_THE_STEP}
    assert ways(notices, 15.0) == {"a": Way.AT_ONCE}


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 100), st.floats(0, 60)), max_size=6),
    st.one_of(st.none(), st.floats(0, 60)),
)
def test_gm38_every_host_is_told_before_half_time_and_each_thing_once(
    heard: list[tuple[str, int, float]], step: float | None
) -> None:
    """The present host is asked for every 0.2 s."""
    notices, said = Notices(), list[tuple[str, Way]]()
    known: dict[str, Notice] = {}
    for tick in range(500):
        now = tick * 0.2
        for host, at, seconds in heard:
            if tick == at and (new := notices.hear(notice(host, now, now + seconds))) is not None:
                known[host] = new
        said += [(removal.host, removal.way) for removal in notices.due("abc", step and now + step, now)]
        late = {host for host, each in known.items() if now >= each.half}
        assert late <= {host for host, way in said if way is not Way.LOST}
    assert len(set(said)) == len(said)
    assert {host for host, way in said if way is Way.LOST} == known.keys()
