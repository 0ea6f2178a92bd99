"""CC-9: `quantarion explain topology JOB`, from the events of a job; and what a person sees of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from orchestrator import cli
from orchestrator.records import EVENTS
from orchestrator.sentences import event_sentence
from tests.orchestrator.fake_operator import append, make_job

PROBE: dict[str, Any] = {
    "kind": "topology",
    "hosts": ["host-1", "host-2", "host-3"],
    "addresses": ["10.0.0.1", "10.0.0.2", "10.0.0.3"],
    "bytes_per_second": [[None, 1.25e8, 1.25e6], [2.5e8, None, None], [1.5e6, None, None]],
    "round_trip_seconds": [[None, 0.00025, 0.0309], [0.00025, None, None], [0.0309, None, None]],
    "measured": 2,
    "pairs": 3,
    "seconds": 1.62,
    "failures": ["host-2 to host-3: timed out"],
    "found": {"host-1": "probe-1", "host-2": "probe-1"},
    "groups": {"host-1": "probe-1", "host-2": "probe-1", "host-3": "site"},
}


def started(recovered: bool = False) -> dict[str, Any]:
    return {"kind": "coordinator_started", "incarnation": 1, "recovered": recovered}


def up(number: int, group: str = "") -> dict[str, Any]:
    return {"kind": "host_up", "host": f"host-{number}", "address": f"10.0.0.{number}", "group": group}


def explained(storage: Path, *events: dict[str, Any]) -> list[str]:
    folder = make_job(storage, "demo")
    append(folder / EVENTS, *({"t": float(t), **event} for t, event in enumerate(events)))
    result = CliRunner().invoke(cli.app, ["explain", "topology", "demo", "--storage", str(storage)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return [line.rstrip() for line in result.output.strip().splitlines()]


def test_cc9_a_job_without_hosts_says_so(tmp_path: Path) -> None:
    assert explained(tmp_path, up(1), started()) == ["demo has no hosts yet."]


def test_cc9_the_table_has_the_hosts_that_are_there_and_the_last_start_counts(tmp_path: Path) -> None:
    lost = {"kind": "host_lost", "host": "host-1", "reason": "gone"}
    warning = {"kind": "topology_warning", "message": "topology.groups names x."}
    run = (up(9), started(), up(1, "a"), warning, started(True), up(2), lost, up(3, "site-b"))
    assert explained(tmp_path, *run) == [
        "host    address   group",
        "host-2  10.0.0.2",
        "host-3  10.0.0.3  site-b",
        "",
        "topology.groups names x.",
        "",
        "The links were not measured (topology.probe).",
    ]


def test_cc9_what_was_measured_is_a_table(tmp_path: Path) -> None:
    assert explained(tmp_path, started(), up(1), up(2), up(3, "site"), PROBE) == [
        "host    address   group",
        "host-1  10.0.0.1  probe-1",
        "host-2  10.0.0.2  probe-1",
        "host-3  10.0.0.3  site",
        "",
        "Before the first step 2 of 3 links between hosts measured in 1.6 s: host-1, host-2 in group probe-1.",
        "",
        "Mbit/s from the host of a row to that of a column:",
        "        host-1  host-2  host-3",
        "host-1       -    1000    10.0",
        "host-2    2000       -       -",
        "host-3    12.0       -       -",
        "",
        "Round-trip time, ms:",
        "        host-1  host-2  host-3",
        "host-1       -    0.25    30.9",
        "host-2    0.25       -       -",
        "host-3    30.9       -       -",
        "",
        "host-2 to host-3: timed out",
    ]


def test_cc9_without_a_group_it_says_where_one_would_come_from(tmp_path: Path) -> None:
    (last,) = [line for line in explained(tmp_path, started(), up(1)) if line.startswith("No group")]
    assert last == "No group is known: neither topology.groups nor a label names one."


def test_cc9_a_person_sees_hosts_with_their_groups_and_what_the_probe_found() -> None:
    assert event_sentence(up(1)) == "host-1 is up"
    assert event_sentence(up(1, "site")) == "host-1 is up, in group site"
    assert event_sentence({"kind": "host_up", "host": "host-1", "address": "a"}) == "host-1 is up"  # of an older job
    assert event_sentence(PROBE) == "2 of 3 links between hosts measured in 1.6 s: host-1, host-2 in group probe-1"
    nothing = {**PROBE, "found": {}}
    told = {**nothing, "groups": dict.fromkeys(PROBE["groups"], "site")}
    assert str(event_sentence(told)).endswith(": every host has been told its group")
    unknown = {**nothing, "groups": dict.fromkeys(PROBE["groups"], "")}
    assert str(event_sentence(unknown)).endswith(": no groups stand out")
