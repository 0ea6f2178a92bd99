"""GM-17: what ranks tell of the bytes they hold, and what is concluded from it."""

from __future__ import annotations

import pytest

from orchestrator.digests import REMEMBERED, Comparison, Digests, compare
from workers.identity import Generation, StateId

GOOD, BAD, WORSE = b"good", b"bad", b"worse"


def state(step: int) -> StateId:
    return StateId(step, 0, Generation(1, 1), step)


def hosts(*ranks: int) -> dict[str, str]:
    """Workers `a0`, `a1`, … of host `a`, and so on."""
    return {f"{'abcdefgh'[host]}{rank}": "abcdefgh"[host] for host, count in enumerate(ranks) for rank in range(count)}


@pytest.mark.parametrize(
    ("ranks", "wrong", "deviating", "split"),
    [
        ((1, 1, 1), {}, (), False),
        ((1, 1, 1), {"b0": BAD}, ("b",), False),
        ((2, 2, 2), {"b1": BAD}, ("b",), False),
        ((2, 2), {"b1": BAD}, ("b",), False),  # b does not agree with itself, and a does
        ((1, 1), {"b0": BAD}, (), True),
        ((2, 2), {"b0": BAD, "b1": BAD}, (), True),
        ((2, 2), {"a0": BAD, "b1": BAD}, (), True),  # nobody agrees with himself
        ((1, 1, 1), {"a0": BAD, "b0": WORSE}, (), True),
        ((1, 1, 1, 1), {"a0": BAD, "b0": BAD}, (), True),
        ((1, 1, 1, 1, 1), {"a0": BAD, "d0": WORSE}, ("a", "d"), False),
        ((4, 1, 1), {"a0": BAD, "a1": BAD, "a2": BAD, "a3": BAD}, ("a",), False),  # hosts vote, not ranks
        ((1, 1, 1), {"a0": BAD, "b0": BAD}, ("c",), False),  # so it goes with majorities
    ],
)
def test_gm17_the_majority_of_hosts_is_right(
    ranks: tuple[int, ...], wrong: dict[str, bytes], deviating: tuple[str, ...], split: bool
) -> None:
    of = hosts(*ranks)
    found = compare(state(1), {worker: wrong.get(worker, GOOD) for worker in of}, of)
    assert found == Comparison(state(1), deviating, split)
    assert found.unanimous == (not wrong)


def test_gm17_nothing_is_compared_before_all_members_have_told() -> None:
    digests, of = Digests(), hosts(1, 1, 1)
    assert digests.tell("a0", state(5), GOOD, of) is None
    assert digests.tell("a0", state(6), GOOD, of) is None  # the rank with the shortest interval
    assert digests.tell("b0", state(5), BAD, of) is None
    assert digests.tell("x0", state(5), BAD, of) is None  # no member
    assert digests.tell("c0", state(5), GOOD, of) == Comparison(state(5), ("b",))
    assert digests.tell("b0", state(6), GOOD, of) is None
    assert digests.tell("c0", state(6), GOOD, of) == Comparison(state(6))


def test_gm17_states_of_another_line_are_not_compared() -> None:
    digests, of = Digests(), hosts(1, 1)
    digests.tell("a0", state(5), GOOD, of)
    assert digests.tell("b0", state(5)._replace(lineage=9), BAD, of) is None


def test_gm17_who_has_left_is_not_waited_for() -> None:
    digests = Digests()
    digests.tell("a0", state(5), GOOD, hosts(1, 1, 1))
    digests.tell("c0", state(5), BAD, hosts(1, 1, 1))
    assert digests.tell("b0", state(5), GOOD, hosts(1, 1)) == Comparison(state(5))


def test_gm17_only_the_last_states_are_remembered() -> None:
    digests, of = Digests(), hosts(1, 1)
    for step in range(REMEMBERED + 1):
        digests.tell("a0", state(step), GOOD, of)
    assert digests.tell("b0", state(1), GOOD, of) == Comparison(state(1))
    assert digests.tell("b0", state(0), GOOD, of) is None  # the first one was forgotten
    digests.leave(Comparison(state(REMEMBERED), split=True))
    assert digests.tell("b0", state(REMEMBERED), GOOD, of) is None


def test_gm17_a_second_split_is_no_accident_unless_all_agreed_at_that_step_since() -> None:
    digests = Digests(50)
    assert not digests.leave(Comparison(state(100), split=True))
    digests.sound = 51  # the job went back, and is not as far yet
    assert digests.leave(Comparison(state(100), split=True))
    digests.sound = 100
    assert not digests.leave(Comparison(state(200), split=True))
    assert not digests.leave(Comparison(state(200), ("host-2",)))  # a majority
    assert not digests.leave(Comparison(state(200), split=True))
