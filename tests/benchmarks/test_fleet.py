"""The simulated fleet: what it is made of, what its page says, and a small one with the real coordinator over real gRPC."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from quantarion.v1 import control_pb2 as pb

from benchmarks.fleet.__main__ import parse
from benchmarks.fleet.exchange import Exchange
from benchmarks.fleet.fleet import Fleet
from benchmarks.fleet.measures import Measures
from benchmarks.fleet.page import page
from benchmarks.fleet.ranks import Line, Seats, SimulatedRank
from benchmarks.fleet.records import read, replaced
from benchmarks.fleet.scenario import Death, Quiet, Result
from benchmarks.fleet.settings import Settings
from orchestrator.governor.log import replay
from orchestrator.governor.verdicts import Act
from orchestrator.records import Record
from workers import wire
from workers.identity import GENESIS, Generation, StateId
from workers.protocol import PrepareOrder, RankState

FIRST, SECOND = Generation(1, 1), Generation(1, 2)


# ---------------------------------------------------------------------- what it is made of


@given(st.integers(1, 700), st.integers(1, 64), st.integers(1, 4), st.booleans())
def test_gm1_every_host_hangs_on_one_stream_of_one_generator(hosts: int, most: int, generators: int, leaders: bool) -> None:
    settings = Settings(hosts, "", leaders=leaders, most=most, generators=generators)
    found = [nodes for number in range(generators) for nodes in settings.streams(settings.simulated_by(number))]
    assert sorted(node.number for nodes in found for node in nodes) == list(range(hosts))
    assert len(found) == settings.num_streams
    assert all(len({node.group for node in nodes}) == 1 and len(nodes) <= most for nodes in found)
    assert max(map(len, found)) == 1 or leaders
    for names in ({node.host for node in settings.nodes}, {node.address for node in settings.nodes}):
        assert len(names) == hosts


def test_gm1_the_fleets_of_the_reference() -> None:
    alone, led = Settings(888, ""), Settings(10_000, "", leaders=True)
    assert (alone.num_streams, len({node.group for node in alone.nodes})) == (888, 14)
    assert (led.num_streams, len({node.group for node in led.nodes})) == (157, 157)


def test_settings_are_read_as_they_were_written(tmp_path: Path) -> None:
    settings = Settings(48, "/tmp/x", leaders=True, most=16, seed=7)
    settings.write(tmp_path)
    assert Settings.read(tmp_path) == settings


def test_a_step_needs_all_ranks_of_a_generation_whatever_process_they_are_in(tmp_path: Path) -> None:
    one, other = (Exchange(tmp_path / "exchange", 2) for _ in range(2))
    one.train(0, FIRST, 3)
    other.train(1, FIRST, 2)
    assert one.training(FIRST) == other.training(FIRST) == 5
    assert other.step(FIRST) is None
    one.commit(FIRST, 7)
    assert other.step(FIRST) == 7 and other.step(SECOND) is None
    other.train(1, SECOND, 2)
    assert (one.training(FIRST), one.training(SECOND)) == (3, 2)
    for each in (one, other):
        each.close()


def test_measures_follow_from_the_seed_and_differ_between_generators() -> None:
    drawn = [Measures(seed, generator).draw(3, 47) for seed, generator in ((1, 0), (1, 0), (1, 1), (2, 0))]
    assert drawn[0] == drawn[1] and drawn[0] != drawn[2] and drawn[0] != drawn[3]
    assert {measured.signals.compared for measured in drawn[0]} == {40.0}


def configure(generation: Generation, authority: StateId, *workers: str, first: bool = False, stop: bool = False) -> bytes:
    members = [pb.Member(worker=worker, rank=10 + place, on_line=True) for place, worker in enumerate(workers)]
    message = pb.Configure(generation=wire.generation_to_wire(generation), members=members, first=first, stop=stop)
    message.authority.CopyFrom(wire.state_to_wire(authority))
    return message.SerializeToString()


def configured(*workers: str) -> tuple[Seats, list[SimulatedRank]]:
    """The first generation."""
    seats = Seats.read(configure(FIRST, GENESIS, *workers, first=True))
    ranks = [SimulatedRank(worker, "host-1", 1) for worker in workers]
    for rank in ranks:
        rank.prepare(PrepareOrder(FIRST))
        assert rank.close() is not None and rank.configure(seats) is not None
    return seats, ranks


def test_ep9_simulated_ranks_of_different_processes_hold_the_same_after_the_same_steps() -> None:
    first, second = Line(FIRST, GENESIS), Line(FIRST, GENESIS)
    assert second.state(9) == first.state(9) and second.state(5) == first.state(5) != first.state(6)
    again, other = Line(SECOND, first.state(9)), Line(FIRST, first.state(8))
    assert again.state(9) == first.state(9) and again.state(3) == first.state(9)
    assert again.state(10) != other.state(10)


def test_ep8_a_simulated_rank_closes_at_the_step_that_prepare_names() -> None:
    _, (rank, _) = configured("a", "b")
    rank.prepare(PrepareOrder(SECOND, 5))
    rank.reach(4)
    assert rank.close() is None and rank.is_training(FIRST)
    rank.reach(5)
    report = rank.close()
    assert report is not None and report.prepared.state.step == 5 and not rank.is_training(FIRST)
    rank.reach(6)
    assert rank.machine.state.step == 5


def test_ep9_a_simulated_rank_stands_where_the_authority_does_and_says_its_rank() -> None:
    seats, (rank, other) = configured("a", "b")
    assert (rank.number, other.number, seats.neighbours("a")) == (10, 11, {"b"})
    rank.prepare(PrepareOrder(SECOND))
    rank.close()
    assert rank.configure(seats) is None  # it has promised more by now
    again = Seats.read(configure(SECOND, seats.line.state(3), "a", "c"))
    assert again.neighbours("nobody") == set()
    report = rank.configure(again)
    assert report is not None and (report.running.rank, report.running.how) == (10, "caught_up")
    assert wire.state_from_wire(report.running.state) == seats.line.state(3) == rank.machine.state
    assert rank.up("10.0.0.1").phase == RankState.TRAINING.value


def test_ep15_a_simulated_joiner_is_ready_at_once_and_follows() -> None:
    seats, _ = configured("a", "b")
    joiner = SimulatedRank("c", "host-2", 1)
    report = joiner.join(seats.line, 20)
    assert report is not None and report.ready.state.step == 20 and joiner.join(seats.line, 21) is None
    joiner.reach(30)
    joiner.prepare(PrepareOrder(SECOND, 30))
    promised = joiner.close()
    assert promised is not None and not promised.prepared.healed
    running = joiner.configure(Seats.read(configure(SECOND, seats.line.state(30), "a", "b", "c")))
    assert running is not None and joiner.machine.healed and joiner.number == 12


def test_gm17_simulated_ranks_tell_the_same_digest_of_every_hundredth_step_once() -> None:
    _, ranks = configured("a", "b")
    told = []
    for rank in ranks:
        reports = []
        for step in (99, 150, 180, 230):
            rank.reach(step)
            reports.append(rank.digest())
        told.append([(r.digest.state.step, r.digest.digest) if r is not None else None for r in reports])
    assert told[0] == told[1]
    assert [each and each[0] for each in told[0]] == [None, 100, None, 200]


# ---------------------------------------------------------------------- what its page says


def result(**changes: Any) -> Result:
    cores = {"coordinator": 0.4, "generator 0": 0.3}
    quiet = Quiet(60.0, cores, {"coordinator": 310.0}, 1776.0, 1776.0, (0.0, 0.01, 0.1), 0.02, [0.03])
    deaths = [Death(False, 0.01, 0.3, 0.4), Death(True, 0.26, 0.5, 2.5)]
    plain = Result(888, 14, 888, False, 1, 4.0, quiet, deaths, 28.0, 29.0, [], 0, [0.02], {"coordinator": 320.0})
    return dataclasses.replace(plain, **changes)


def test_the_page_has_a_column_for_each_fleet_and_says_which_limits_are_not_met() -> None:
    led = result(hosts=10_000, leaders=True, streams=157, others=["host-3: suspect"], deaths=[], status=[])
    text = page([result(), led], "Made by hand")
    assert "|  | 888 hosts, a stream each | 10,000 hosts, 157 streams of leaders |" in text
    assert "| coordinator, cores | 0.40 (limit 1) | 0.40 (limit 1) |" in text
    assert "| death: all running, s | 0.40 / 0.40 of 1 (limit 2) | none |" in text
    assert "| silent death: all running, s | **2.50 / 2.50 of 1 (limit 2): not met** | none |" in text
    assert "| an evaluation, ms: median / longest | 30 / 30 of 1 (limit 50) | 30 / 30 of 1 (limit 500) |" in text
    assert "| verdicts on hosts that were well | 0 | 1 (host-3: suspect) |" in text
    assert text.endswith("Made by hand\n")


def test_a_run_replaces_its_own_part_of_the_results(tmp_path: Path) -> None:
    path = tmp_path / "fleet.json"
    assert read(path) == []
    first, led = result(), result(hosts=10_000, leaders=True)
    both = replaced(replaced([], led), first)
    assert both == [first, led]
    path.write_text(json.dumps([dataclasses.asdict(each) for each in both]))
    again = result(start=5.0)
    assert replaced(read(path), again) == [again, led]


def test_a_fleet_that_its_losses_would_halve_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(["--hosts", "14"])
    assert "--hosts is 14, of which 7 are lost; write more than twice as many" in capsys.readouterr().err
    assert parse(["--hosts", "15"]).hosts == 15


# ---------------------------------------------------------------------- a small one that runs

StartFleet = Callable[..., Fleet]
WINDOW_SECONDS = 1.0


@pytest.fixture
def start(tmp_path: Path) -> Iterator[StartFleet]:
    with ExitStack() as running:

        def begin(**settings: Any) -> Fleet:
            quick = {"evaluation": WINDOW_SECONDS, "apart": 1.5 * WINDOW_SECONDS, **settings}
            return running.enter_context(Fleet(Settings(48, "", **quick), tmp_path))

        yield begin


def verdicts(fleet: Fleet, host: str) -> list[Act]:
    return [Act(each["act"]) for each in fleet.events("verdict") if each["target"] == host]


def last_generation(fleet: Fleet) -> Record:
    return fleet.events("generation")[-1]


def check(fleet: Fleet, first: str, second: str, slow: str) -> None:
    """All are configured; the others go on without a host that dies, without one that falls silent, and without one that
    the governor finds too slow."""
    fleet.wait_for("the first generation", fleet.is_training)
    every = {node.host for node in fleet.settings.nodes}
    assert (set(fleet.members()), len(fleet.events("generation"))) == (every, 1)
    fleet.wait_for("all to be configured", fleet.configured_at)

    fleet.kill(first)
    fleet.wait_for(f"a generation without {first}", lambda: fleet.trains_without(first))
    assert set(fleet.members()) == every - {first} and last_generation(fleet)["discarded"] == 1
    fleet.kill(second, silently=True)
    fleet.wait_for(f"a generation without {second}", lambda: fleet.trains_without(second))
    assert set(fleet.members()) == every - {first, second}
    assert [event["host"] for event in fleet.events("agent_lost")] == [first, second]
    assert second in {event["host"] for event in fleet.events("host_lost")}

    fleet.slow(slow, 3.0)
    fleet.wait_for(f"a generation without {slow}", lambda: fleet.trains_without(slow))
    assert set(fleet.members()) == every - {first, second, slow}
    assert verdicts(fleet, slow)[-2:] == [Act.QUARANTINE, Act.EVICT]
    assert last_generation(fleet)["discarded"] == 2  # who is slow leaves at a step

    assert len({tuple(event["generation"]) for event in fleet.events("generation")}) == 4
    assert fleet.befell("refused") == fleet.befell("kill_order") == []
    assert fleet.events("digests_differ") == fleet.events("governor_failed") == []
    assert {each["target"] for each in fleet.events("verdict") if each["act"] == Act.EVICT.value} <= {first, second, slow}
    with (fleet.folder / "governor.jsonl").open() as log:
        assert replay(log).difference is None


def test_gm1_gm18_a_coordinator_leads_48_simulated_hosts_through_deaths_and_evicts_the_slow_one(start: StartFleet) -> None:
    check(start(generators=2, most=24), "host-7", "host-30", "host-12")


def test_gm4_a_coordinator_leads_three_groups_of_16_through_the_streams_of_their_leaders(start: StartFleet) -> None:
    fleet = start(leaders=True, most=16, generators=2)
    check(fleet, "host-7", "host-30", "host-12")
    assert fleet.settings.num_streams == 3
