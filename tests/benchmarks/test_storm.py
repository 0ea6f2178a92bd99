"""The fault storm: when which fault comes, what counts as noticed, as kept and as a false eviction."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.steplog import Commit
from benchmarks.storm import peers
from benchmarks.storm.__main__ import parse
from benchmarks.storm.disk import left_below
from benchmarks.storm.findings import Outcome, false_evictions, findings
from benchmarks.storm.gang import armed_fault
from benchmarks.storm.kinds import TRAITS, Kind, Target, away, held
from benchmarks.storm.lab import lost_flips
from benchmarks.storm.page import page
from benchmarks.storm.peers import KillRun
from benchmarks.storm.picture import rates
from benchmarks.storm.records import Fault, FaultLog
from benchmarks.storm.schedule import CALM_SECONDS, Planned, schedule
from benchmarks.storm.show import told
from benchmarks.storm.stretch import Stretch
from benchmarks.storm.summary import Digests, Run, compare_digests, kept_its_promises, pace, summarise, together
from benchmarks.storm.watch import Watch, read_limits
from orchestrator.records import Record
from workers.faults import parse as parse_fault


def approx(value: Any, **tolerance: Any) -> Any:
    """As pytest's; mypy takes a comparison with that for one that cannot hold."""
    return pytest.approx(value, **tolerance)


ALL = list(Kind)
PLANS = {
    "seed": st.integers(0, 2**32),
    "minutes": st.floats(0.1, 6.0),
    "rate": st.floats(0.5, 20.0),
    "kinds": st.lists(st.sampled_from(ALL), min_size=1, unique=True),
    "hosts": st.integers(2, 6),
}


# ---------------------------------------------------------------------- the schedule


def test_a_storm_follows_from_its_seed() -> None:
    first, again, other = (schedule(seed, 5, 6, ALL, 4, 2, 2) for seed in (1, 1, 2))
    assert first == again and first != other
    assert all(armed_fault(fault) is None or parse_fault(armed_fault(fault) or "") for fault in first)


@given(**PLANS)
def test_faults_come_in_the_storm_and_to_what_there_is(
    seed: int, minutes: float, rate: float, kinds: list[Kind], hosts: int
) -> None:
    plan = schedule(seed, minutes, rate, kinds, hosts, 2, hosts - hosts // 2)
    assert len(plan) <= round(minutes * rate)
    assert [fault.number for fault in plan] == list(range(len(plan)))
    assert all(a.at <= b.at for a, b in itertools.pairwise(plan))
    for fault in plan:
        target = TRAITS[fault.kind].target
        assert fault.kind in kinds and 0 <= fault.at <= max(0.0, 60 * minutes - CALM_SECONDS)
        assert (fault.host is None) == (target is Target.JOB) and (fault.slot is not None) == (target is Target.RANK)
        assert fault.host is None or 0 <= fault.host < hosts
        assert fault.slot is None or 0 <= fault.slot < 2
        assert (fault.rate is not None) == (fault.kind is Kind.SHAPE)
        assert any(low <= fault.seconds <= high for low, high in TRAITS[fault.kind].lasts)


@given(**PLANS)
def test_enough_hosts_are_left_and_no_host_has_two_faults_at_once(
    seed: int, minutes: float, rate: float, kinds: list[Kind], hosts: int
) -> None:
    least = hosts - hosts // 2
    plan = schedule(seed, minutes, rate, kinds, hosts, 2, least)
    for number, fault in enumerate(plan):
        before = plan[: number + 1]
        gone = {
            each.host for each in before if each.host is not None and each.at + away(each.kind, each.seconds) > fault.at
        }
        assert hosts - len(gone) >= least
        for each in before[:-1]:
            if each.host is not None and each.host == fault.host:
                assert each.at + held(each.kind, each.seconds) <= fault.at
            assert each.at + TRAITS[each.kind].alone <= fault.at


@given(**PLANS)
def test_every_kind_comes_once_before_any_comes_again(
    seed: int, minutes: float, rate: float, kinds: list[Kind], hosts: int
) -> None:
    seen = Counter(dict.fromkeys(kinds, 0))
    for fault in schedule(seed, minutes, rate, kinds, hosts, 2, 1):
        seen[fault.kind] += 1
        assert max(seen.values()) - min(seen.values()) <= 1


@given(seed=st.integers(0, 1000), minutes=st.floats(0.5, 10.0), rate=st.floats(0.5, 60.0), world=st.integers(1, 16))
def test_the_peers_get_a_kill_at_every_moment(seed: int, minutes: float, rate: float, world: int) -> None:
    plan = peers.kills(seed, minutes, rate, world)
    assert len(plan) == round(minutes * rate)
    assert {(fault.kind, fault.host, fault.seconds) for fault in plan} <= {(Kind.KILL, 0, 0.0)}
    assert all(fault.slot is not None and 0 <= fault.slot < world for fault in plan)


def test_where_no_host_can_be_spared_none_is_taken() -> None:
    plan = schedule(1, 10, 6, ALL, 3, 2, 3)
    assert plan[-1].at > 300 and not any(away(fault.kind, fault.seconds) for fault in plan)
    with pytest.raises(ValueError, match="no storm"):
        schedule(1, 10, 6, [Kind.FLIP, Kind.DRAIN], 3, 2, 3)


@pytest.mark.parametrize(
    "change", [{"minutes": 0}, {"rate": -1}, {"kinds": []}, {"hosts_min": 5}, {"hosts_min": 0}, {"ranks_per_host": 0}]
)
def test_what_makes_no_sense_is_no_storm(change: dict[str, Any]) -> None:
    usual: dict[str, Any] = {
        "seed": 1,
        "minutes": 1,
        "rate": 6,
        "kinds": ALL,
        "hosts": 4,
        "ranks_per_host": 2,
        "hosts_min": 2,
    }
    with pytest.raises(ValueError, match="no storm"):
        schedule(**{**usual, **change})


# ---------------------------------------------------------------------- made-up records


def fault(kind: Kind, t: float | None = 100.0, **fields: Any) -> Fault:
    """On host-2, with rank 3, whose process is 33; at second 10 of a storm."""
    traits = TRAITS[kind].target
    host = "" if traits is Target.JOB else "host-2"
    rank, pid = (3, 33) if traits is Target.RANK else (None, None)
    usual: dict[str, Any] = {
        "number": 0,
        "kind": kind,
        "at": 10.0,
        "t": t,
        "host": host,
        "rank": rank,
        "pid": pid,
        "ranks": 8,
    }
    return Fault(**{**usual, **fields})


def generation(t: float, number: int, ranks: dict[str, int], step: int = 20) -> Record:
    members = [{"host": host, "rank": 0, "pid": 0, "worker": ""} for host, count in ranks.items() for _ in range(count)]
    return {"t": t, "kind": "generation", "generation": [1, number], "members": members, "authority_step": step}


def step(t: float, number: int, generation: int = 1, seconds: float | None = 0.1, ranks: int = 8) -> Record:
    return {
        "t": t,
        "step": number,
        "generation": [1, generation],
        "step_seconds": seconds,
        "samples": 256,
        "ranks": ranks,
        "attempt": 0,
        "epoch": 0,
    }


def verdict(t: float, target: str, act: str = "evict", reason: str = "HEARTBEAT_DEAD", **fields: Any) -> Record:
    usual = {"scope": "node", "reasons": [reason], "mode": "enforce", "guard": "", "rolls_back": False}
    return {"t": t, "kind": "verdict", "target": target, "act": act, **usual, **fields}


WHOLE = {"host-1": 2, "host-2": 2}
BEGUN = generation(50.0, 1, WHOLE)


# ---------------------------------------------------------------------- what is noticed


def test_a_killed_rank_is_missed_in_time_and_another_process_is_not_it() -> None:
    events = [
        BEGUN,
        {"t": 100.1, "kind": "worker_exit", "pid": 44},
        {"t": 100.3, "kind": "worker_exit", "pid": 33},
        generation(100.4, 2, {"host-1": 2, "host-2": 1}),
        generation(102.0, 3, WHOLE),
    ]
    steps = [step(100.2, 20), step(100.9, 21, 2), step(102.5, 22, 3)]
    (found,) = findings([fault(Kind.KILL)], events, steps, [], 50)
    assert (found.outcome, found.by, found.in_time) == (Outcome.NOTICED, "worker_exit", True)
    assert (found.noticed, found.limit) == (approx(0.3), 0.5)
    assert (found.trained, found.full) == (approx(0.9), approx(2.5))


@pytest.mark.parametrize(("news", "in_time"), [(100.51, True), (100.6, False), (None, False)])
def test_a_killed_rank_is_missed_too_late_or_never(news: float | None, in_time: bool) -> None:
    events = [BEGUN, *([{"t": news, "kind": "worker_exit", "pid": 33}] if news else [])]
    (found,) = findings([fault(Kind.KILL)], events, [], [], 50)
    assert found.in_time is in_time and (found.outcome is Outcome.MISSED) == (news is None)
    assert (found.trained, found.full) == (None, None)


@pytest.mark.parametrize(
    ("other", "applies"),
    [
        (fault(Kind.COORDINATOR, 97.0, number=1), False),
        (fault(Kind.COORDINATOR, 100.4, number=1), False),
        (fault(Kind.COORDINATOR, 90.0, number=1), True),
        (fault(Kind.COORDINATOR, 101.0, number=1), True),
        (fault(Kind.AGENT, 99.0, number=1), False),
        (fault(Kind.AGENT, 99.0, number=1, host="host-1"), True),
        (fault(Kind.KILL, 99.0, number=1), True),
        (fault(Kind.COORDINATOR, None, number=1, skipped="there is none"), True),
    ],
)
def test_no_limit_applies_while_who_is_to_notice_is_away(other: Fault, applies: bool) -> None:
    events = [BEGUN, {"t": 103.0, "kind": "worker_exit", "pid": 33}]
    found = next(each for each in findings([fault(Kind.KILL), other], events, [], [], 50) if each.fault.number == 0)
    assert found.in_time is (False if applies else None)


def test_a_host_whose_processes_are_killed_is_lost_in_time() -> None:
    lost = {"t": 100.46, "kind": "host_lost", "host": "host-2", "reason": ""}
    other = {"t": 100.1, "kind": "host_lost", "host": "host-1", "reason": ""}
    (found,) = findings([fault(Kind.KILL_HOST, seconds=5.0, ended=105.0)], [BEGUN, other, lost], [], [], 50)
    assert (found.noticed, found.in_time, found.by) == (approx(0.46), True, "host_lost")


@pytest.mark.parametrize(
    ("kind", "dead", "noticed", "limit", "in_time"),
    [
        (Kind.STOP_HOST, 3.0, 3.9, 4.0, True),
        (Kind.STOP_HOST, 3.0, 4.2, 4.0, False),
        (Kind.STOP_HOST, 6.0, 6.4, 6.5, True),
        (Kind.CUT, 6.0, 6.7, 6.5, False),
        (Kind.CUT, 6.0, None, 6.5, False),
    ],
)
def test_a_silent_host_is_given_up_within_the_learned_limit(
    kind: Kind, dead: float, noticed: float | None, limit: float, in_time: bool
) -> None:
    """What is learned after the fault does not count."""
    limits = [{"t": 10.0, "dead": 3.0, "hang": 10.0}, {"t": 20.0, "dead": dead, "hang": 10.0}]
    later = {"t": 200.0, "dead": 99.0, "hang": 99.0}
    events = [BEGUN, *([verdict(100.0 + noticed, "host-2")] if noticed else [])]
    (found,) = findings([fault(kind, seconds=12.0, ended=112.0)], events, [], [*limits, later], 50)
    assert (found.limit, found.in_time) == (limit, in_time)
    assert found.outcome is (Outcome.NOTICED if noticed else Outcome.MISSED)


@pytest.mark.parametrize("kind", [Kind.STOP, Kind.STOP_HOST, Kind.CUT])
def test_what_is_over_before_the_limit_is_ridden_out(kind: Kind) -> None:
    """And what befalls the same host or process long afterwards is no news of it."""
    later = [verdict(150.0, "host-2"), {"t": 150.0, "kind": "worker_exit", "pid": 33}]
    (found,) = findings([fault(kind, seconds=1.0, ended=101.0)], [BEGUN, *later], [], [], 50)
    assert (found.outcome, found.in_time, found.noticed) == (Outcome.RODE_OUT, None, None)


@pytest.mark.parametrize(("hang", "in_time"), [(10.0, False), (12.0, True)])
def test_a_rank_that_hangs_is_noticed_when_nothing_moves(hang: float, in_time: bool) -> None:
    events = [
        BEGUN,
        {"t": 101.0, "kind": "prepare", "reason": "join"},
        {"t": 113.0, "kind": "prepare", "reason": "no progress"},
        {"t": 118.0, "kind": "worker_exit", "pid": 33},
        generation(118.1, 2, {"host-1": 2, "host-2": 1}),
    ]
    limits = [{"t": 1.0, "dead": 3.0, "hang": hang}]
    (found,) = findings([fault(Kind.STOP, seconds=30.0)], events, [step(118.9, 21, 2)], limits, 50)
    assert (found.by, found.noticed, found.in_time) == ("prepare", approx(13.0), in_time)
    assert (found.trained, found.full) == (approx(18.9), None)


def flip(**fields: Any) -> Fault:
    return fault(Kind.FLIP, seconds=25.0, step=120, **fields)


def differ(t: float, at: int) -> Record:
    return {"t": t, "kind": "digests_differ", "step": at, "hosts": ["host-2"], "split": False, "sound": 100}


@pytest.mark.parametrize(("at", "in_time"), [(120, True), (150, True), (200, False)])
def test_a_flipped_bit_is_found_by_the_digest_of_the_next_checkpoint(at: int, in_time: bool) -> None:
    rolled = {"t": 106.0, "kind": "rolled_back", "generation": [1, 2]}
    events = [BEGUN, differ(105.0, at), generation(105.5, 2, {"host-1": 2}), rolled]
    (found,) = findings([flip()], events, [step(106.5, 101, 2)], [], 50)
    assert (found.noticed_step, found.limit_step, found.in_time) == (at, 150, in_time)
    assert (found.outcome, found.trained) == (Outcome.NOTICED, approx(6.5))


@pytest.mark.parametrize(
    ("at", "made_at", "limit", "in_time"),
    [(131, 130, 131, True), (150, 130, 131, False), (153, 152, 153, True), (200, 152, 153, False)],
)
def test_the_first_digest_of_a_generation_finds_it_too(at: int, made_at: int, limit: int, in_time: bool) -> None:
    """One that begins after the next checkpoint takes the place of that: its comparison had not all members."""
    events = [BEGUN, generation(102.0, 2, WHOLE, made_at), differ(105.0, at)]
    (found,) = findings([flip()], events, [], [], 50)
    assert (found.limit_step, found.in_time) == (limit, in_time)


def test_a_rank_with_a_flipped_bit_may_be_gone_before_anybody_looks() -> None:
    events = [BEGUN, {"t": 101.0, "kind": "worker_exit", "pid": 33}, differ(190.0, 400)]
    found = findings([flip(generation=(1, 7))], events, [], [], 50)
    assert (found[0].outcome, found[0].in_time) == (Outcome.LOST, None)
    assert lost_flips(found) == {33: (120, (1, 7))}


def test_a_flipped_bit_that_nobody_finds_is_late() -> None:
    found = findings([flip()], [BEGUN], [], [], 50)
    assert (found[0].outcome, found[0].in_time) == (Outcome.MISSED, False)
    assert lost_flips(found) == {}


def test_a_nan_a_full_disk_an_agent_a_drain_and_a_coordinator() -> None:
    faults = [
        fault(Kind.NAN, 100.0, number=0, step=20),
        fault(Kind.DISK, 110.0, number=1, seconds=10.0, ended=120.0),
        fault(Kind.AGENT, 130.0, number=2),
        fault(Kind.DRAIN, 140.0, number=3, seconds=5.0, ended=145.0),
        fault(Kind.COORDINATOR, 160.0, number=4),
    ]
    events = [
        BEGUN,
        {"t": 100.1, "kind": "non_finite", "rank": 3, "step": 20, "again": False},
        {"t": 112.0, "kind": "checkpoint_failed"},
        {"t": 121.5, "kind": "checkpoint", "step": 50},
        {"t": 130.1, "kind": "agent_lost", "host": "host-2"},
        {"t": 130.6, "kind": "agent_back", "host": "host-2", "seconds": 0.5},
        {"t": 139.99, "kind": "host_leaves", "host": "host-2"},
        generation(141.0, 2, {"host-1": 2}),
        generation(147.0, 3, WHOLE),
        {"t": 160.8, "kind": "coordinator_started", "recovered": True},
    ]
    found = findings(faults, events, [step(100.4, 20)], [], 50)
    assert [each.outcome for each in found] == [Outcome.NOTICED] * 5
    assert [each.noticed for each in found] == approx([0.1, 2.0, 0.1, 0.0, 0.8])
    assert [each.trained for each in found] == approx([0.4, 1.5, 0.6, 2.0, 0.8])
    assert [each.in_time for each in found] == [None, None, True, None, None]


def test_what_the_next_fault_does_to_a_host_is_no_news_of_the_one_before() -> None:
    slow = fault(Kind.SHAPE, 100.0, seconds=10.0, ended=110.0)
    stopped = fault(Kind.STOP_HOST, 112.0, number=1, seconds=30.0)
    found = findings([slow, stopped], [BEGUN, verdict(113.6, "host-2", act="suspect")], [], [], 50)
    assert found[0].outcome is Outcome.RODE_OUT
    (alone,) = findings([slow], [BEGUN, verdict(113.6, "host-2", act="suspect")], [], [], 50)
    assert (alone.outcome, alone.noticed) == (Outcome.NOTICED, approx(13.6))


# ---------------------------------------------------------------------- false evictions


@pytest.mark.parametrize(
    ("made", "false"),
    [
        (verdict(103.0, "host-2"), False),
        (verdict(169.0, "host-2"), False),
        (verdict(171.0, "host-2"), True),
        (verdict(99.0, "host-2"), True),
        (verdict(103.0, "host-1"), True),
        (verdict(103.0, "host-1", mode="shadow"), False),
        (verdict(103.0, "host-1", guard="gain"), False),
        (verdict(103.0, "host-1", act="quarantine"), False),
    ],
)
def test_an_eviction_is_false_where_nothing_was_done_to_the_host(made: Record, false: bool) -> None:
    done = fault(Kind.CUT, seconds=10.0, ended=110.0)
    assert false_evictions([done], [BEGUN, made]) == ([made] if false else [])


def test_what_was_passed_over_or_befell_the_job_answers_for_nothing() -> None:
    made = verdict(103.0, "host-2")
    others = [fault(Kind.CUT, None, skipped="host-2 is not in the job"), fault(Kind.COORDINATOR, 102.0)]
    assert false_evictions(others, [made]) == [made]


# ---------------------------------------------------------------------- arithmetic


def run(**fields: Any) -> Run:
    """Ten seconds of quiet with ten steps a second, a storm of twenty, quiet again."""
    usual: dict[str, Any] = {
        "seed": 1,
        "ranks": 8,
        "steps": [],
        "events": [],
        "quiet": [Stretch(0.0, 10.0), Stretch(30.0, 40.0)],
        "storm": Stretch(10.0, 30.0),
        "faults": [],
        "findings": [],
        "evictions": [],
        "discarded": 0,
        "each_once": True,
        "digests": Digests(5, ()),
    }
    return Run(**{**usual, **fields})


def steady(begin: float, end: float, first: int, generation: int = 1, per_second: int = 10) -> list[Record]:
    """Steps at an even pace, the last at `end`."""
    count = round((end - begin) * per_second)
    seconds = (end - begin) / count
    return [step(begin + (n + 1) * seconds, first + n, generation, seconds) for n in range(count)]


def test_without_faults_all_is_kept() -> None:
    summary = summarise(run(steps=steady(0.0, 40.0, 1)))
    assert summary["throughput_kept"] == approx(1.0, abs=0.02)
    assert (summary["goodput"], summary["goodput_quiet"]) == approx((1.0, 1.0))
    assert summary["step_efficiency"] == 1.0
    assert summary["samples_per_second_quiet"] == approx([2560, 2560], rel=0.02)
    assert summary["faults"] == {"planned": 0, "done": 0, "skipped": {}, "by_kind": {}}
    assert kept_its_promises(summary)


def test_where_all_faults_are_passed_over_none_counts_and_their_reasons_stand_there() -> None:
    faults = [fault(Kind.KILL, None, number=n, skipped="host-2 has 0 ranks") for n in range(3)]
    summary = summarise(run(steps=steady(0.0, 40.0, 1), faults=faults, findings=findings(faults, [], [], [], 50)))
    assert summary["faults"]["planned"] == 3 and summary["faults"]["done"] == 0
    assert summary["faults"]["skipped"] == {"host-2 has 0 ranks": 3}
    mine = summary["faults"]["by_kind"]["kill"]
    assert (mine["planned"], mine["done"], mine["noticed_seconds"]) == (3, 0, None)
    assert summary["late"] == 0 and kept_its_promises(summary)


def test_a_job_that_never_trained_has_no_figures() -> None:
    summary = summarise(run(quiet=[], storm=Stretch(10.0, 10.0), each_once=False, digests=Digests(0, ()), failure="gone"))
    for name in ("throughput_kept", "step_efficiency", "goodput", "goodput_quiet"):
        assert summary[name] is None, name
    assert not kept_its_promises(summary)


def test_a_pause_costs_throughput_and_goodput_and_slow_steps_only_throughput() -> None:
    pause = [*steady(0.0, 20.0, 1), step(25.0, 201, 2, 0.1), *steady(25.0, 40.0, 202, 2)]
    summary = summarise(run(steps=pause))
    assert summary["throughput_kept"] == approx(0.755, abs=0.02)
    assert summary["goodput"] == approx(0.755, abs=0.02)
    slow = [*steady(0.0, 10.0, 1), *steady(10.0, 30.0, 101, per_second=5), *steady(30.0, 40.0, 201)]
    summary = summarise(run(steps=slow))
    assert summary["throughput_kept"] == approx(0.5, abs=0.02) and summary["goodput"] == approx(1.0)


def test_steps_that_were_gone_back_over_count_once() -> None:
    """Steps 151 to 200 were committed, and again in the next generation; only the second time counts."""
    steps = [*steady(0.0, 20.0, 1), *steady(22.0, 40.0, 151, 2)]
    summary = summarise(run(steps=steps, discarded=50))
    assert summary["steps"] == 50 + 80
    assert summary["step_efficiency"] == approx(130 / 180)
    assert summary["goodput"] == approx((5.0 + 8.0) / 20.0, abs=0.01)


def test_a_step_that_was_computed_once_more_counts_from_then() -> None:
    again = {"t": 12.3, "kind": "non_finite", "step": 121, "rank": 3, "again": False}
    earlier = {"t": 5.0, "kind": "non_finite", "step": 130, "rank": 3, "again": False}
    steps = [step(12.0, 120, seconds=0.1), step(12.5, 121, seconds=0.5), step(12.6, 122, seconds=None)]
    (found,) = [pace(Stretch(12.0, 13.0), steps, [again, earlier])]
    assert (found.steps, found.goodput) == (2, approx(0.2))


def test_a_step_counts_in_a_stretch_by_its_seconds_there() -> None:
    found = pace(Stretch(10.0, 20.0), [step(10.5, 1, seconds=1.0), step(20.4, 2, seconds=1.0)], [])
    assert (found.steps, found.goodput) == (1, approx((0.5 + 0.6) / 10.0))


def test_stretches_together_weigh_by_their_length() -> None:
    short, long = pace(Stretch(0.0, 1.0), steady(0.0, 1.0, 1), []), pace(Stretch(0.0, 3.0), [], [])
    both = together([short, long])
    assert (both.seconds, both.steps, both.samples_per_second) == (4.0, 10, approx(640.0))
    assert together([]).samples_per_second == 0.0


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        ({}, True),
        ({"each_once": False}, False),
        ({"digests": Digests(5, (20,))}, False),
        ({"digests": Digests(0, ())}, False),
        ({"evictions": [verdict(15.0, "host-1")]}, False),
        ({"failure": "fewer than hosts.min=2 hosts"}, False),
    ],
)
def test_a_storm_fails_where_a_promise_is_broken(change: dict[str, Any], kept: bool) -> None:
    assert kept_its_promises(summarise(run(steps=steady(0.0, 40.0, 1), **change))) is kept


# ---------------------------------------------------------------------- digests


def told_digest(pid: int, at: int, digest: str = "a", counter: int = 1, lineage: int = 7) -> Record:
    return {"pid": pid, "state": [at, 0, 1, counter, lineage], "digest": digest}


def test_digests_are_compared_between_equal_states() -> None:
    lines = [told_digest(1, 10), told_digest(2, 10), told_digest(1, 20, "b"), told_digest(2, 20, "c", lineage=8)]
    found = compare_digests(lines, [], {})
    assert (found.shared, found.different, found.equal) == (1, (), True)
    found = compare_digests([*lines, told_digest(3, 10, "x")], [], {})
    assert (found.shared, found.different, found.equal) == (1, (10,), False)
    assert not compare_digests([told_digest(1, 10)], [], {}).equal


def test_what_the_job_went_back_from_is_no_state() -> None:
    events = [{"kind": "rolls_back", "t": 1.0, "at_most": 50}, {"kind": "rolled_back", "t": 2.0, "generation": [1, 3]}]
    before = [told_digest(1, 60), told_digest(2, 60, "x")]
    after = [told_digest(pid, 60, counter=3) for pid in (1, 2)]
    assert compare_digests([*before, *after], events, {}).equal
    assert not compare_digests([*after, told_digest(3, 60, "x", counter=3)], events, {}).equal
    assert not compare_digests([told_digest(1, 50), told_digest(2, 50, "x")], events, {}).equal


def test_a_flip_excuses_its_own_process_from_then_on_and_nobody_else() -> None:
    sound = [told_digest(pid, at) for pid in (1, 2) for at in (10, 20)]
    wrong = told_digest(3, 20, "x")
    assert compare_digests([*sound, wrong], [], {3: (15, (1, 1))}).equal
    assert not compare_digests([*sound, wrong], [], {3: (25, (1, 1))}).equal
    assert not compare_digests([*sound, wrong], [], {4: (15, (1, 1))}).equal
    earlier = [{"kind": "rolls_back", "t": 1.0, "at_most": 5}, {"kind": "rolled_back", "t": 2.0, "generation": [1, 1]}]
    assert compare_digests([*sound, wrong], earlier, {3: (15, (1, 1))}).equal


# ---------------------------------------------------------------------- peers


def commit(t: float, at: int, rank: int, pid: int, world: int = 2) -> Commit:
    return Commit(t, t - 0.1, pid, rank, world, at)


def test_of_steps_that_a_peer_goes_back_over_the_last_time_counts() -> None:
    """Steps 1 to 4, a restart from step 2, then 3 to 5."""
    lines = [commit(float(n), n, rank, 10 + rank) for n in range(1, 5) for rank in range(2)]
    lines += [commit(5.0 + n, n, rank, 20 + rank) for n in range(3, 6) for rank in range(2)]
    assert peers.kept(lines) == {1: 1.0, 2: 2.0, 3: 8.0, 4: 9.0, 5: 10.0}
    whole = Stretch(0.0, 10.0)
    assert peers.rate(lines, whole) == approx(5 * 256 / 10)
    assert peers.efficiency(lines, whole) == approx(5 / 7)
    assert peers.rate(lines, Stretch(0.0, 4.0)) == approx(2 * 256 / 4)
    assert peers.efficiency(lines, Stretch(20.0, 30.0)) is None


def test_a_peer_is_steady_when_all_its_ranks_have_trained_for_a_while() -> None:
    lines = [commit(n / 5, n, rank, 10 + rank) for n in range(1, 31) for rank in range(2)]
    assert peers.is_steady(lines, 2, since=0.0, now=6.1)
    assert not peers.is_steady(lines, 3, since=0.0, now=6.1)
    assert not peers.is_steady(lines, 2, since=0.0, now=8.0)
    assert not peers.is_steady(lines, 2, since=4.0, now=6.1)
    assert not peers.is_steady([*lines, commit(6.05, 31, 0, 10, world=1)], 2, since=0.0, now=6.1)


def test_peers_have_their_usual_names() -> None:
    assert [system.key for system in peers.ours_and(["torchrun", "ray-train", "ray-tuned"], 8)] == [
        "ours",
        "torchrun-10",
        "ray-10",
        "ray-tuned",
    ]
    with pytest.raises(ValueError, match="there is no peer 'deepspeed'; choose from torchrun, ray-train"):
        peers.ours_and(["deepspeed"], 8)


# ---------------------------------------------------------------------- what a job tells


def lines(path: Path, *records: Record) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


def test_a_watch_knows_who_is_in_the_job(tmp_path: Path) -> None:
    watch = Watch(tmp_path)
    assert watch.look() == [] and (watch.step, watch.ranks, watch.rate) == (0, 0, None)
    members = [{"rank": rank, "host": f"host-{1 + rank // 2}", "pid": 10 + rank, "worker": ""} for rank in range(4)]
    made = {"t": 1.0, "kind": "generation", "generation": [1, 2], "members": members}
    up = {"t": 0.5, "kind": "host_up", "host": "host-2", "address": "10.77.0.2"}
    lines(tmp_path / "events.jsonl", up, made)
    lines(tmp_path / "steps.jsonl", *steady(0.0, 1.0, 1))
    assert [event["kind"] for event in watch.look()] == ["host_up", "generation"]
    assert watch.hosts == {"host-1", "host-2"} and watch.ranks_on("host-2") == [2, 3]
    assert (watch.generation, watch.step, watch.ranks) == ((1, 2), 10, 8)
    assert watch.rate == approx(10.0)
    assert (watch.host_at("10.77.0.2"), watch.host_at("10.77.0.9")) == ("host-2", None)
    assert watch.ended is None
    lines(tmp_path / "events.jsonl", {"t": 2.0, "kind": "finished", "message": "stopped"})
    watch.look()
    assert watch.ended is not None


def test_no_bit_flips_before_the_ranks_agree_again_and_can_go_back(tmp_path: Path) -> None:
    watch = Watch(tmp_path)
    journal, events = tmp_path / "control" / "journal.jsonl", tmp_path / "events.jsonl"

    def now(path: Path, record: Record) -> str | None:
        lines(path, record)
        watch.look()
        return watch.cannot_go_back()

    assert "no checkpoint" in (now(journal, {"entry": "sound", "step": 40}) or "")
    assert "no checkpoint" in (now(events, {"t": 1.0, "kind": "checkpoint", "step": 50}) or "")
    assert now(journal, {"entry": "sound", "step": 50}) is None
    watch.flipped()
    assert "not agreed again" in (watch.cannot_go_back() or "")
    assert "not agreed again" in (now(events, {"t": 2.0, "kind": "digests_differ", "step": 100}) or "")
    assert "not agreed again" in (now(journal, {"entry": "sound", "step": 50}) or "")
    assert now(journal, {"entry": "sound", "step": 100}) is None


def test_a_flip_that_was_lost_stands_in_the_way_until_the_next_agreement(tmp_path: Path) -> None:
    watch = Watch(tmp_path)
    lines(tmp_path / "events.jsonl", {"t": 1.0, "kind": "checkpoint", "step": 50})
    lines(tmp_path / "control" / "journal.jsonl", {"entry": "sound", "step": 50})
    watch.look()
    watch.flipped()
    lines(tmp_path / "control" / "journal.jsonl", {"entry": "sound", "step": 61})
    watch.look()
    assert watch.cannot_go_back() is None


def test_limits_are_read_where_there_are_any(tmp_path: Path) -> None:
    assert read_limits(tmp_path / "limits.jsonl") == []
    lines(tmp_path / "limits.jsonl", {"t": 1.0, "dead": 3.0, "hang": 10.0})
    assert read_limits(tmp_path / "limits.jsonl")[0]["hang"] == 10.0


def test_every_fault_is_on_record(tmp_path: Path) -> None:
    log = FaultLog(tmp_path / "faults.jsonl")
    log.add("injected", fault(Kind.KILL))
    log.add("skipped", fault(Kind.FLIP, None, number=1, skipped="no checkpoint"))
    found = [json.loads(line) for line in (tmp_path / "faults.jsonl").read_text().splitlines()]
    assert [(each["what"], each["kind"], each["t"]) for each in found] == [
        ("injected", "kill", 100.0),
        ("skipped", "flip", None),
    ]


def test_only_our_own_mounts_below_the_folder_are_left_overs(tmp_path: Path) -> None:
    mounts = "\n".join(
        [
            f"quantarion-storm {tmp_path}/job/a\\040b tmpfs rw 0 0",
            "quantarion-storm /elsewhere/job tmpfs rw 0 0",
            f"tmpfs {tmp_path}/other tmpfs rw 0 0",
        ]
    )
    assert left_below(tmp_path, mounts) == [f"{tmp_path}/job/a b"]


# ---------------------------------------------------------------------- what people see


def test_the_page_shows_every_fault_and_every_figure() -> None:
    faults = [
        fault(Kind.KILL, 12.0),
        fault(Kind.CUT, 14.0, number=1, seconds=8.0),
        fault(Kind.FLIP, None, number=2, skipped="there is no checkpoint yet"),
    ]
    events = [
        {"t": 1.0, "kind": "host_up", "host": "host-1", "address": ""},
        generation(1.5, 1, WHOLE),
        {"t": 13.0, "kind": "worker_exit", "pid": 33},
        verdict(18.0, "host-1", reason="STRAGGLER"),
    ]
    steps = steady(0.0, 40.0, 1)
    found = findings(faults, events, steps, [], 50)
    whole = run(steps=steps, events=events, faults=faults, findings=found, evictions=false_evictions(faults, events))
    peer = KillRun("torchrun elastic", "default", 4, 1, 900.0, (1200.0, 1100.0), 0.78, 0.9)
    absent = KillRun("Ray Train v2", "default", problem="not installed: pip install it")
    text = page(whole, summarise(whole), [peer, absent], "python -m benchmarks.storm", "storm.png")
    assert "| false evictions | 1 |" in text and "**False:** host-1 after 8 s, STRAGGLER" in text
    assert "passed over: there is no checkpoint yet" in text
    assert "| 2 | kill rank 3 on host-2 | 1.00 s, LATE | worker_exit |" in text
    assert "![Steps a second, and faults](storm.png)" in text
    assert "| torchrun elastic | default | 4 | 1 | 78.0 % | 90.0 % | 900; 1200, 1100 |" in text
    assert "| Ray Train v2 | default | – | – | not installed: pip install it | – | – |" in text
    assert "python -m benchmarks.storm" in text


def test_a_page_of_nothing_but_peers_and_one_of_a_job_that_failed() -> None:
    text = page(None, {}, [KillRun("Quantarion", "default", 4, 0, 900.0, (1200.0,), 0.75, 1.0)], "command", None)
    assert "By kind of fault" not in text and "| Quantarion |" in text
    failed = run(failure="fewer than hosts.min=2 hosts for 300 s", quiet=[Stretch(0.0, 10.0)])
    text = page(failed, summarise(failed), [], "command", None)
    assert "**The job did not outlive it:** fewer than hosts.min=2 hosts for 300 s" in text and "Kills only" not in text


def test_steps_are_counted_in_the_second_in_which_they_were_committed() -> None:
    places, counts = rates([step(9.5, 1), step(10.0, 2), step(10.9, 3), step(12.2, 4), step(13.0, 5)], 10.0, 13.0)
    assert (places, counts) == ([0.5, 1.5, 2.5], [2.0, 0.0, 1.0])


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (verdict(1.0, "host-2"), "host-2 is evicted (HEARTBEAT_DEAD)"),
        (verdict(1.0, "host-2", act="suspect"), None),
        (verdict(1.0, "host-2", guard="gain"), None),
        ({"t": 1.0, "kind": "worker_exit", "host": "host-1", "rank": None, "role": "idle"}, None),
        ({"t": 1.0, "kind": "agent_back", "host": "host-1", "seconds": 0.4}, "the agent of host-1 is back"),
        ({"t": 1.0, "kind": "plan"}, None),
    ],
)
def test_what_is_told_of_an_event(event: Record, words: str | None) -> None:
    assert told(event) == words


def test_a_fault_is_named_with_whom_it_befell() -> None:
    assert fault(Kind.STOP, seconds=30.0).words == "stop rank 3 on host-2 for 30.0 s"
    assert fault(Kind.COORDINATOR).words == "coordinator"
    assert fault(Kind.AGENT).words == "agent host-2"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--faults", "kill,earthquake"], "choose from kill,kill_host"),
        (["--peers", "deepspeed"], "there is no 'deepspeed'; choose from torchrun, ray-train"),
        (["--ranks", "7"], "7 is no multiple of --ranks-per-host, which is 2"),
        (["--ranks", "4"], "4 are on fewer than 3 hosts; write 6 or more"),
        (["--minutes", "0"], "numbers above zero"),
        (["--no-lab"], "--no-lab leaves nothing to do; name --peers"),
    ],
)
def test_a_command_line_that_cannot_work_is_refused(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refused:
        parse(arguments)
    assert refused.value.code == 2 and complaint in capsys.readouterr().err


def test_the_command_line_of_the_contract() -> None:
    options = parse(["--minutes", "3", "--rate", "4", "--seed", "9", "--ranks", "12", "--faults", "kill,flip"])
    assert (options.minutes, options.rate, options.seed, options.ranks, options.kinds) == (
        3,
        4,
        9,
        12,
        [Kind.KILL, Kind.FLIP],
    )
    assert options.out == Path("runs/storm").absolute() and options.page.name == "storm.md"
    assert options.command == "python -m benchmarks.storm --minutes 3 --rate 4 --seed 9 --ranks 12 --faults kill,flip"


def test_no_planned_number_is_lost_on_the_way_to_a_fault() -> None:
    planned = Planned(4, 12.5, Kind.SHAPE, 1, None, 11.0, 20.0)
    found = Fault.of(planned)
    assert (found.number, found.at, found.seconds, found.rate, found.t) == (4, 12.5, 11.0, 20.0, None)
    assert math.isclose(fault(Kind.STOP, 100.0, seconds=30.0).until, 130.0)
    assert fault(Kind.STOP, 100.0, seconds=30.0, ended=131.0).until == 131.0
