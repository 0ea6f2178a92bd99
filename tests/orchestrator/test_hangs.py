"""GM-19: who holds the others up when nothing gets on, and what counts against a host."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.actions import AskStacks, Record
from orchestrator.hangs import FRESH_SECONDS, MOST_IN_A_ROW, SHOW_SECONDS, STALLED_SECONDS, Hang, Hangs, Stand, culprits
from orchestrator.roster import HostView, Role, Roster, Rules, WorkerView
from workers.identity import Generation

LOADER, DECODER = ("task.py:12 load", "task.py:90 main"), ("task.py:40 decode", "task.py:90 main")


def stand(rank: int, collectives: int = 7, *, waits: bool, frames: tuple[str, ...] = ()) -> Stand:
    """Two ranks to a host."""
    return Stand(f"w{rank}", f"h{rank // 2}", rank, collectives, waits, frames)


def ranks(blamed: tuple[Stand, ...]) -> list[int]:
    return [each.rank for each in blamed]


def test_gm19_who_waits_is_innocent_and_who_stands_still_is_waited_for() -> None:
    stands = [stand(0, waits=True), stand(1, waits=False, frames=LOADER), stand(2, waits=True), stand(3, waits=True)]
    assert ranks(culprits(stands)) == [1]


def test_gm19_a_rank_that_waits_and_is_behind_waits_for_the_one_that_stands_still() -> None:
    """The stopped one has finished a collective whose result it has not passed on to rank 1."""
    stands = [stand(0, 8, waits=True), stand(1, 7, waits=True), stand(2, 8, waits=True), stand(3, 8, waits=False)]
    assert ranks(culprits(stands)) == [3]


def test_gm19_half_that_stands_still_is_to_blame_as_the_other_half_waits_for_it() -> None:
    assert ranks(culprits([stand(0, waits=True), stand(1, waits=True), stand(2, waits=False), stand(3, waits=False)])) == [
        2,
        3,
    ]


def test_gm19_where_most_stand_still_they_have_a_cause_in_common() -> None:
    stands = [stand(0, waits=True), *(stand(rank, waits=False, frames=LOADER) for rank in (1, 2, 3))]
    assert culprits(stands) == ()


def test_gm19_where_all_wait_a_minority_with_another_collective_is_to_blame() -> None:
    stands = [stand(0, 8, waits=True), stand(1, 8, waits=True), stand(2, 7, waits=True), stand(3, 8, waits=True)]
    assert ranks(culprits(stands)) == [2]
    frames = [("workers/engine.py:1 a",), ("workers/engine.py:2 b",)] * 2
    assert culprits([stand(rank, waits=True, frames=frames[rank]) for rank in range(4)]) == ()  # slices of a wait


def test_gm19_where_all_stand_still_stacks_tell_who_is_outside_of_the_largest_set() -> None:
    stands = [*(stand(rank, waits=False, frames=LOADER) for rank in (0, 1, 2)), stand(3, waits=False, frames=DECODER)]
    assert ranks(culprits(stands)) == [3]
    stopped = [*stands[:3], stand(3, waits=False)]
    assert ranks(culprits(stopped)) == [3]  # it shows no stack
    assert culprits([*stands[:2], stand(2, waits=False, frames=DECODER), stand(3, waits=False)]) == ()  # no majority


def test_gm19_where_all_agree_nobody_is_to_blame() -> None:
    for waits in (True, False):
        assert culprits([stand(rank, waits=waits, frames=LOADER) for rank in range(4)]) == ()
    assert culprits([]) == ()


@given(st.lists(st.tuples(st.integers(0, 2), st.booleans(), st.sampled_from([(), LOADER, DECODER])), max_size=9))
def test_gm19_the_largest_agreeing_set_is_never_outvoted(what: list[tuple[int, bool, tuple[str, ...]]]) -> None:
    stands = [stand(rank, number, waits=waits, frames=frames) for rank, (number, waits, frames) in enumerate(what)]
    blamed = culprits(stands)
    assert 2 * len(blamed) <= len(stands)
    if any(not each.waits for each in stands) and blamed:
        still = {each.rank for each in stands if not each.waits}
        assert set(ranks(blamed)) <= still


class Job:
    """Members of `hosts` hosts with `ranks` each, and what is heard of them. Times are seconds."""

    def __init__(self, hosts: int = 2, ranks: int = 2) -> None:
        self.roster = Roster(Rules(1, hosts, ranks, 1))
        for number in range(hosts * ranks):
            host = f"h{number // ranks}"
            self.roster.hosts[host] = HostView(host, host)
            self.roster.workers[f"w{number}"] = WorkerView(f"w{number}", host, 1, "", role=Role.MEMBER, rank=number)
        self.hangs = Hangs(self.roster)
        self.polls = 0
        self.begin(0.0)

    def begin(self, now: float, finished: int = 0) -> None:
        """A generation, in which `finished` collectives are finished at once."""
        self.hangs.begin(now)
        self.beat(now, finished)

    def beat(self, now: float, collectives: int, still: tuple[int, ...] = ()) -> None:
        self.polls += 1
        for number, worker in enumerate(self.roster.workers):
            self.hangs.heard(worker, collectives, 1 if number in still else 1 + self.polls, now)

    def hang(self, at: float, *still: int) -> Hang:
        """These ranks stand still, and the others wait for them; what is found out about it ten seconds later."""
        for half in range(21):
            self.beat(at + 0.5 * half, 0, still)
        self.hangs.ask(at + 10.0)
        for number, worker in enumerate(self.roster.workers):
            self.hangs.shown(worker, LOADER if number in still else ())
        assert self.hangs.is_known(at + 10.0)
        return self.hangs.judge(at + 10.0)


def test_gm19_a_hang_is_put_on_record_with_the_numbers_and_the_stacks() -> None:
    job = Job()
    job.begin(100.0, 5)
    job.hangs.begin(101.0)
    found = job.hang(101.0, 1)
    (record,) = found.records(Generation(1, 2), 20, 10.0)
    assert record == Record(
        "hang",
        {
            "generation": [1, 2],
            "step": 20,
            "seconds": 10.0,
            "limit": 10.0,
            "culprits": [{"host": "h0", "rank": 1}],
            "numbers": {"0": 0, "1": 0, "2": 0, "3": 0},
            "waiting": [0, 2, 3],
            "stacks": {"0": [], "1": list(LOADER), "2": [], "3": []},
            "unheard": [],
            "in_a_row": 1,
        },
    )
    assert found.reason == "rank 1 on h0 hangs" and found.hopeless(20) is None


def test_gm19_gm36a_the_first_hang_of_a_rank_is_no_evidence_and_the_second_one_is() -> None:
    job = Job()
    assert job.hang(0.0, 1).guilty == {}
    job.begin(20.0, 5)
    job.hangs.begin(21.0)
    again = job.hang(21.0, 0)
    assert again.guilty == {"h0": 2}
    assert again.records(Generation(1, 3), 20, 10.0)[1:] == [
        Record("evidence", {"host": "h0", "code": "HANG_CULPRIT", "hangs": 2})
    ]


def test_gm19_what_was_long_ago_is_forgotten() -> None:
    job = Job()
    job.hang(0.0, 1)
    window = job.roster.rules.exits_window
    job.begin(window + 1.0, 5)
    job.hangs.begin(window + 2.0)
    assert job.hang(window + 2.0, 1).guilty == {}


def test_gm19_a_host_all_of_whose_ranks_hang_is_guilty_at_once_if_it_has_several() -> None:
    assert Job().hang(0.0, 2, 3).guilty == {"h1": 1}
    assert Job(hosts=4, ranks=1).hang(0.0, 2).guilty == {}


def test_gm19_a_collective_that_makes_one_host_hang_after_the_other_is_nobodys_fault() -> None:
    job = Job(hosts=4, ranks=2)
    assert job.hang(0.0, 1).guilty == {}
    job.begin(20.0)
    assert job.hang(20.0, 2, 3).guilty == {}  # all the ranks of h1, but in the same collective
    job.begin(40.0)
    third = job.hang(40.0, 2, 3)
    assert third.in_a_row == MOST_IN_A_ROW
    sentence = third.hopeless(19)
    assert sentence is not None and sentence.startswith("no collective has finished after step 19 in 3 generations")
    assert "most of them in task.py load" in sentence


def test_gm19_hangs_are_in_a_row_only_where_nothing_is_finished_between_them() -> None:
    job = Job()
    for turn in range(5):
        found = job.hang(100.0 * turn, 0, 1, 2, 3)
        assert (found.culprits, found.in_a_row, found.reason) == ((), 1, "no progress")
        job.begin(100.0 * turn + 20.0)
        job.beat(100.0 * turn + 30.0, 1)
        job.hangs.begin(100.0 * turn + 40.0)
    job.begin(600.0)
    assert [job.hang(600.0 + 20.0 * turn, 0, 1, 2, 3).in_a_row for turn in range(3)] == [1, 2, 3]


def test_gm19_where_all_stood_still_together_the_limit_is_twice_as_long() -> None:
    """A step may take longer than any before it: it is learned only when it is finished."""
    job = Job()
    assert job.hangs.patience(10.0) == 10.0
    job.hang(0.0, 0, 1, 2, 3)
    assert job.hangs.patience(10.0) == 20.0
    job.begin(20.0)
    job.hang(20.0, 1)  # one that hangs says nothing of the others' steps
    assert job.hangs.patience(10.0) == 20.0
    job.begin(40.0, 1)
    assert job.hangs.patience(10.0) == 10.0


def test_gm19_of_whom_nothing_is_heard_nothing_is_said_and_nobody_is_blamed() -> None:
    job = Job()
    for half in range(21):
        job.polls += 1
        for worker in ("w0", "w1"):
            job.hangs.heard(worker, 0, job.polls, 0.5 * half)
    assert job.hangs.ask(10.0) == [AskStacks("h0", ("w0", "w1")), AskStacks("h1", ("w2", "w3"))]
    found = job.hangs.judge(10.0 + SHOW_SECONDS)
    assert (found.unheard, found.culprits, found.in_a_row) == (("h1",), (), 0)
    assert {each.rank for each in found.stands} == {0, 1}


def test_gm19_hosts_whose_agents_are_away_are_not_asked() -> None:
    job = Job()
    job.roster.hosts["h1"].attached = False
    assert job.hangs.ask(10.0) == [AskStacks("h0", ("w0", "w1"))]
    job.hangs.forget()
    job.roster.hosts["h0"].attached = False
    assert job.hangs.ask(20.0) == [] and not job.hangs.is_known(30.0)


def test_gm19_nobody_waits_long_for_those_that_show_nothing() -> None:
    job = Job()
    job.hangs.ask(10.0)
    for worker in ("w0", "w1", "w2", "stranger"):
        job.hangs.shown(worker, LOADER)
    assert not job.hangs.is_known(10.0 + SHOW_SECONDS - 0.01)
    assert job.hangs.is_known(10.0 + SHOW_SECONDS)
    job.hangs.forget()
    assert not job.hangs.is_known(20.0) and job.hangs.ask(20.0) != []


def test_gm19_who_has_looked_for_directives_a_moment_ago_waits() -> None:
    job = Job()
    for worker in job.roster.workers:
        job.hangs.heard(worker, 0, 100, 5.0)
    job.hangs.heard("w1", 0, 101, 6.0)
    for worker in job.roster.workers:
        job.hangs.heard(worker, 0, 101 if worker == "w1" else 100, 5.0 + FRESH_SECONDS)
    found = job.hangs.judge(5.1 + FRESH_SECONDS)
    assert [each.rank for each in found.stands if each.waits] == [1]


def test_gm19_a_coordinator_that_has_stood_still_knows_it() -> None:
    hangs = Job().hangs
    assert not hangs.stood_still(100.0)
    assert not hangs.stood_still(100.0 + STALLED_SECONDS)
    assert hangs.stood_still(100.0 + 2 * STALLED_SECONDS + 0.1)
    assert not hangs.stood_still(100.0 + 2 * STALLED_SECONDS + 0.2)


def test_gm19_what_an_earlier_coordinator_has_found_counts() -> None:
    job = Job()
    job.hangs.remember([(-100.0, "h0"), (-1000.0, "h1")])
    assert job.hang(0.0, 1).guilty == {"h0": 2}


@pytest.mark.parametrize(("frames", "place"), [((), ""), (("a/b.py:12 fit", "c.py:1 main"), "a/b.py fit")])
def test_gm19_a_place_is_a_function_and_no_line(frames: tuple[str, ...], place: str) -> None:
    assert stand(0, waits=False, frames=frames).place == place
