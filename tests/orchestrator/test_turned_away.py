"""Peers that were refused: each is counted, and few lines tell of many."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.sentences import event_sentence
from orchestrator.turned_away import TELL_SECONDS, Check, Tally, TurnedAway

Fields = dict[str, object]


def tally(clock: list[float]) -> tuple[Tally, list[Fields]]:
    told: list[Fields] = []
    return Tally(told.append, lambda: clock[0]), told


def test_the_first_of_a_check_is_told_at_once_and_the_others_together() -> None:
    clock = [1000.0]
    counted, told = tally(clock)
    for number in range(5):
        counted.add(TurnedAway(Check.EXPIRY, f"10.0.0.{number}", "late"))
    counted.add(TurnedAway(Check.ROLE, "10.0.0.9", "no"))
    assert [(line["check"], line["address"], line["times"]) for line in told] == [
        ("expiry", "10.0.0.0", 1),
        ("role", "10.0.0.9", 1),
    ]
    clock[0] += TELL_SECONDS - 1.0
    counted.catch_up()
    assert len(told) == 2
    clock[0] += 1.0
    counted.catch_up()
    assert told[2:] == [{"check": "expiry", "address": "10.0.0.4", "message": "late", "times": 4}]
    counted.catch_up(all_of_them=True)
    assert len(told) == 3 and counted.counts == {Check.EXPIRY: 5, Check.ROLE: 1}


def test_what_a_stranger_says_of_himself_is_not_written_at_any_length() -> None:
    counted, told = tally([0.0])
    counted.add(TurnedAway(Check.IDENTITY, "10.0.0.1", "x" * 100_000))
    assert len(str(told[0]["message"])) == 300


@given(st.lists(st.tuples(st.sampled_from(Check), st.floats(0.0, 30.0)), max_size=200))
def test_the_lines_add_up_to_the_counts_and_are_few(calls: list[tuple[Check, float]]) -> None:
    clock = [0.0]
    counted, told = tally(clock)
    for check, pause in calls:
        clock[0] += pause
        counted.add(TurnedAway(check, "10.0.0.1", ""))
    counted.catch_up(all_of_them=True)
    sums = {check: sum(int(str(line["times"])) for line in told if line["check"] == check) for check in counted.counts}
    assert sums == counted.counts and sum(sums.values()) == len(calls)
    most = 2 + clock[0] / TELL_SECONDS
    assert all(sum(line["check"] == check for line in told) <= most for check in Check)


def test_it_is_told_in_a_sentence() -> None:
    counted, told = tally([0.0])
    counted.add(TurnedAway(Check.EXPIRY, "10.0.0.1", "its certificate is not accepted: certificate has expired"))
    counted.add(TurnedAway(Check.EXPIRY, "10.0.0.2", "its certificate is not accepted: certificate has expired"))
    counted.add(TurnedAway(Check.EXPIRY, "10.0.0.3", "its certificate is not accepted: certificate has expired"))
    counted.catch_up(all_of_them=True)
    why = "(expiry): its certificate is not accepted: certificate has expired"
    assert [event_sentence({"kind": "peer_refused", **line}) for line in told] == [
        f"refused 10.0.0.1 {why}",
        f"refused 10.0.0.3 and others, 2 times {why}",
    ]
