"""CC-23: decisions for a person."""

from __future__ import annotations

from dataclasses import replace

from tests.workers.compression.controller.conftest import FAST, SLOW, measured, mlp
from workers.compression.controller.config import ControllerConfig
from workers.compression.controller.explain import explain
from workers.compression.controller.policy import DEFAULT, decide
from workers.compression.controller.records import CHANGE, Record
from workers.compression.controller.state import initial_state


def story() -> list[Record]:
    """A fast link collapses; then what was predicted is measured."""
    state, events = initial_state(DEFAULT, 2, 100), []
    took = replace(measured(SLOW), took=(0.0042, 0.1234))
    for number, reduced in enumerate([measured(FAST), measured(SLOW), took], start=1):
        state, records = decide(state, reduced, 20 * number, mlp())
        events += records
    return events


def test_cc23_a_line_for_each_change_and_the_plan_with_predicted_and_measured_times() -> None:
    events = story()
    text = explain([{"kind": "phase", "t": 1.0, "phase": "train"}, *events, {"kind": "finished"}])
    lines = text.splitlines()
    for event in events:
        if event["kind"] == CHANGE:
            assert any(line.startswith(str(event["step"])) and event["to"] in line for line in lines)
    assert any("the link has collapsed" in line and "10 Mbit/s" in line for line in lines)
    present = lines[next(i for i, line in enumerate(lines) if line.startswith("The plan after step 60")) :]
    assert any("123.4" in line and "powersgd-int8 8" in line for line in present)
    predicted = events[-1]["predicted"][1] * 1e3
    assert any(f"{predicted:.1f}" in line and "123.4" in line for line in present)
    assert not any(line != line.rstrip() for line in lines)


def test_cc23_it_has_words_for_nothing_decided_and_nothing_changed() -> None:
    assert "No codec was chosen yet" in explain([{"kind": "phase"}])
    state = initial_state(DEFAULT, 2, 100)
    quiet = explain(decide(state, measured(FAST), 20, mlp())[1])
    assert "no bucket changed" in quiet and "The plan after step 20" in quiet


def test_cc23_the_other_policies_are_explained_too() -> None:
    config = ControllerConfig(policy="latency_ladder")
    state = initial_state(config, 2, 100)
    text = explain(decide(state, measured(FAST, round_trip=0.03), 20, mlp(), config)[1])
    assert "by the round-trip time" in text and "30.0 ms round trip" in text
