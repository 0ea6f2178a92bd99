"""GM-30: which hosts agree to a new generation, and whether they are enough."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.actions import Record
from orchestrator.quorum import Quorum
from orchestrator.roster import HostView, Role, Roster, Rules, WorkerView
from workers.identity import NOWHERE, Generation
from workers.protocol import Answer

BEFORE, NEXT = Generation(1, 1), Generation(1, 2)


class Job:
    """One rank, `w<n>`, on each host, `h<n>`; all have the state of the generation before."""

    def __init__(self, *groups: str) -> None:
        self.roster = Roster(Rules(1, len(groups), 1, 0, replace_wait=60.0))
        self.quorum = Quorum(self.roster)
        for number, group in enumerate(groups):
            host, worker = f"h{number}", f"w{number}"
            self.roster.hosts[host] = HostView(host, host, group)
            self.roster.workers[worker] = WorkerView(worker, host, 1, "", role=Role.MEMBER, rank=number)
        self.quorum.begin(
            {f"w{number}": f"h{number}" for number in range(len(groups))},
            {f"h{number}": group for number, group in enumerate(groups)},
        )

    def promise(self, *numbers: int, healed: bool = True) -> None:
        for number in numbers:
            self.roster.workers[f"w{number}"].answer = Answer(NEXT, NOWHERE, NOWHERE, healed, BEFORE)

    def detach(self, *numbers: int) -> None:
        for number in numbers:
            self.roster.hosts[f"h{number}"].attached = False

    def drop(self, number: int) -> None:
        """It was given up."""
        del self.roster.hosts[f"h{number}"], self.roster.workers[f"w{number}"]

    def allows(self, forming: Generation | None = NEXT, waiting: set[str] | None = None) -> bool:
        return self.quorum.allows(self.quorum.votes(forming, waiting or set()))


def test_gm30_more_than_half_of_the_hosts_have_to_promise() -> None:
    job = Job(*6 * [""])
    job.detach(0, 1, 2, 3)
    job.promise(4, 5)
    votes = job.quorum.votes(NEXT, set())
    assert votes.agreeing == {"h4", "h5"} and votes.unreachable == {"h0", "h1", "h2", "h3"}
    assert not job.allows()
    job.roster.hosts["h3"].attached = True
    assert not job.allows()  # it has not promised, and nobody waits for it: it has no vote
    assert job.allows(waiting={"w3"})  # it will
    job.promise(3)
    assert job.allows()


def test_gm30_with_exactly_half_the_coordinator_breaks_the_tie() -> None:
    job = Job("", "")
    job.detach(0)
    job.promise(1)
    assert job.allows()
    job.detach(1)
    assert not job.allows()


def test_gm30_who_is_dead_for_certain_does_not_count() -> None:
    job = Job(*5 * [""])
    job.promise(3, 4)
    job.quorum.ended("w0")  # an exit that its agent saw
    job.drop(1)
    job.quorum.found("h1", ())  # Ray's word
    job.drop(2)
    assert job.quorum.hosts == {"h2", "h3", "h4"}
    assert job.allows()
    job.quorum.ended("w3")
    job.quorum.ended("w4")
    assert not job.allows()  # h2 may have gone on
    job.quorum.found("h2", ())
    assert job.allows()  # nobody is left who could


def test_gm30_an_agent_that_is_back_says_who_of_its_host_lives() -> None:
    job = Job("", "", "")
    job.detach(0, 1)
    job.promise(2)
    assert not job.allows()
    job.roster.hosts["h0"].attached = True
    job.quorum.found("h0", {"w0"})
    assert "h0" in job.quorum.hosts
    job.quorum.found("h0", {"another"})
    assert job.quorum.hosts == {"h1", "h2"} and job.allows()


def test_gm30_who_does_not_hold_the_state_has_no_vote() -> None:
    job = Job(*4 * [""])
    job.detach(0, 1)
    job.promise(2)
    job.promise(3, healed=False)
    assert job.quorum.votes(NEXT, set()).agreeing == {"h2"}
    assert not job.allows()


def test_gm30_a_joiner_has_a_vote_once_it_has_the_state() -> None:
    job = Job("", "")
    job.roster.hosts["h2"] = HostView("h2", "h2", attached=False)
    job.roster.workers["w2"] = WorkerView("w2", "h2", 1, "", role=Role.MEMBER, rank=2)
    job.promise(0)
    job.detach(1)
    assert job.allows()
    job.quorum.healed("w2", "h2", "")
    assert not job.allows()


def test_gm30_where_nobody_has_the_state_nobody_is_asked() -> None:
    job = Job("", "", "")
    job.detach(0, 1, 2)
    assert not job.allows()
    job.quorum.begin({}, {})
    assert job.allows()


def test_gm30_before_anybody_is_asked_all_that_are_there_may_agree() -> None:
    job = Job(*3 * [""])
    assert job.allows(None)
    job.detach(0)
    assert job.allows(None)
    job.quorum.doubt("h1")  # its agent is attached, and says nothing
    assert not job.allows(None)
    job.promise(1)
    assert job.allows(NEXT, {"w2"})  # so it is there


def test_gm30_a_doubt_ends_with_the_next_generation_or_a_word_of_the_agent() -> None:
    for clear in ("begin", "found"):
        job = Job("", "", "")
        job.detach(0)
        job.quorum.doubt("h1")
        assert not job.allows(None)
        if clear == "begin":
            job.quorum.begin({f"w{n}": f"h{n}" for n in range(3)}, {})
        else:
            job.quorum.found("h1", {"w1"})
        assert job.allows(None)


def test_gm30_a_host_with_several_ranks_agrees_through_any_that_has_the_state() -> None:
    job = Job("", "", "")
    job.roster.workers["w9"] = WorkerView("w9", "h0", 1, "", role=Role.MEMBER, rank=9)
    job.quorum.healed("w9", "h0", "")
    job.detach(1)
    job.promise(0, healed=False)
    job.roster.workers["w9"].answer = Answer(NEXT, NOWHERE, NOWHERE, True, BEFORE)
    assert job.quorum.votes(NEXT, set()).agreeing == {"h0"}


def test_gm30_the_agreement_is_spread_over_groups() -> None:
    job = Job(*"aaaaabbb")
    job.detach(6, 7)
    job.promise(*range(6))
    assert not job.allows()  # six of eight, but one of three in group b
    job.roster.hosts["h6"].attached = True
    job.promise(6)
    assert job.allows()


def test_gm30_in_a_group_of_two_one_host_does_not_hold_up_the_others() -> None:
    job = Job(*"aabb")
    job.detach(3)
    job.promise(0, 1, 2)
    assert job.allows()
    single = Job(*"aaab")
    single.detach(3)
    single.promise(0, 1, 2)
    assert single.allows()


def test_gm30_a_hold_is_said_once_and_does_not_last_for_ever() -> None:
    job = Job("", "", "")
    job.detach(0, 1)
    votes = job.quorum.votes(None, set())
    assert job.quorum.is_back(99.0) == []
    assert job.quorum.wait(votes, 100.0) == [
        Record("quorum_lost", {"code": "QUORUM_LOST", "agreeing": ["h2"], "unreachable": ["h0", "h1"]})
    ]
    assert job.quorum.wait(votes, 101.0) == []
    assert job.quorum.given_up(votes, 0.0, 160.0) is None
    assert job.quorum.given_up(votes, 120.0, 170.0) is None  # training goes on
    assert job.quorum.given_up(votes, 0.0, 160.1) == (
        "2 of 3 hosts cannot be reached, too many to go on without them; waited 60 s for them (hosts.replace_wait)"
    )
    assert job.quorum.is_back(130.0) == [Record("quorum_back", {"seconds": 30.0})]
    assert job.quorum.lost_at is None and job.quorum.given_up(votes, 0.0, 1000.0) is None


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["promised", "away", "dead", "unhealed"])), max_size=9))
def test_gm30_no_generation_without_half_of_those_that_may_train_on(hosts: list[tuple[str, str]]) -> None:
    job = Job(*(group for group, _ in hosts))
    for number, (_, state) in enumerate(hosts):
        if state == "dead":
            job.quorum.ended(f"w{number}")
        elif state == "away":
            job.detach(number)
        else:
            job.promise(number, healed=state == "promised")
    promised, away = (sum(state == wanted for _, state in hosts) for wanted in ("promised", "away"))
    if job.allows():
        assert 2 * promised >= promised + away
    elif len({group for group, _ in hosts}) <= 1:
        assert promised < away


@pytest.mark.parametrize("host", ["h0", "stranger"])
def test_gm30_who_is_no_voter_changes_nothing(host: str) -> None:
    job = Job("", "", "")
    job.quorum.begin({"w1": "h1", "w2": "h2"}, {})
    job.quorum.doubt(host)
    job.quorum.found(host, ())
    job.quorum.ended("nobody")
    assert job.quorum.hosts == {"h1", "h2"} and job.allows(None)
