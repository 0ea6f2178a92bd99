"""Reading `steps.jsonl` and `events.jsonl` as killed writers leave them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from orchestrator import records
from orchestrator.records import (
    EVENT_KEYS,
    STEP_KEYS,
    Incident,
    Record,
    Tail,
    calibrated,
    generation_of,
    measured_accuracy,
    parse_line,
    phase_words,
    read_events,
    read_incidents,
    read_object,
    read_phases,
    read_steps,
    recipe_of,
    signal_name,
    surviving,
    surviving_decisions,
)
from workers.qat.phases import Phase


def step(number: int, generation: tuple[int, int], **more: Any) -> Record:
    return {"step": number, "generation": list(generation), "attempt": 0, **more}


def event(t: float, kind: str, **fields: Any) -> Record:
    return {"t": t, "kind": kind, **fields}


def write(path: Path, *records: Record, tail: str = "") -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + tail)


def test_ep10_the_highest_generation_of_a_step_counts(tmp_path: Path) -> None:
    old, new = step(2, (1, 1), loss=1.0), step(2, (1, 2), loss=2.0)
    write(tmp_path / "steps.jsonl", step(1, (1, 1)), new, old, step(3, (1, 2)))
    assert [(s["step"], s.get("loss")) for s in read_steps(tmp_path)] == [(1, None), (2, 2.0), (3, None)]


def test_ep10_an_incarnation_outranks_any_counter() -> None:
    assert surviving([step(1, (1, 9)), step(1, (2, 0)), step(1, (1, 3))]) == [step(1, (2, 0))]


def test_ep10_steps_beyond_a_resume_are_off_the_line() -> None:
    """Resumed from step 2 with incarnation 2: what incarnation 1 had committed after that is gone."""
    first = [step(n, (1, 1)) for n in range(1, 6)]
    assert surviving([*first, step(3, (2, 1))]) == [step(1, (1, 1)), step(2, (1, 1)), step(3, (2, 1))]


@given(st.lists(st.tuples(st.integers(1, 8), st.integers(1, 3), st.integers(0, 3)), max_size=30))
def test_ep10_a_surviving_line_has_each_step_once_and_never_falling_generations(
    lines: list[tuple[int, int, int]],
) -> None:
    records = [step(number, (incarnation, counter)) for number, incarnation, counter in lines]
    line = surviving(records)
    steps = [s["step"] for s in line]
    generations = [generation_of(s) for s in line]
    assert steps == sorted(set(steps))
    assert generations == sorted(generations)
    for kept in line:
        assert generation_of(kept) == max(generation_of(r) for r in records if r["step"] == kept["step"])
    if records:
        assert max(generation_of(r) for r in records) == generations[-1]


def test_a_torn_last_line_costs_only_itself(tmp_path: Path) -> None:
    write(tmp_path / "steps.jsonl", step(1, (1, 1)), tail='{"step": 2, "generation": [1,')
    assert read_steps(tmp_path) == [step(1, (1, 1))]


def test_a_line_glued_to_a_torn_one_is_read(tmp_path: Path) -> None:
    fragment = '{"step": 2, "generation": [1, 1], "lo'
    path = tmp_path / "steps.jsonl"
    path.write_text(json.dumps(step(1, (1, 1))) + "\n" + fragment + json.dumps(step(2, (1, 2))) + "\n")
    assert read_steps(tmp_path) == [step(1, (1, 1)), step(2, (1, 2))]


def test_an_object_inside_a_torn_line_is_not_taken_for_a_record() -> None:
    whole = json.dumps(event(1.0, "generation", members=[{"rank": 0, "host": "host-0"}]))
    torn = whole[: whole.index("}") + 1]
    assert parse_line(whole.encode(), EVENT_KEYS) is not None
    assert parse_line(torn.encode(), EVENT_KEYS) is None


@given(st.integers(min_value=0, max_value=200))
def test_a_file_cut_anywhere_yields_a_prefix_of_its_records(cut: int) -> None:
    records = [step(n, (1, 1), loss=n / 3) for n in range(1, 5)]
    data = "".join(json.dumps(record) + "\n" for record in records).encode()[:cut]
    found = [r for r in (parse_line(line, STEP_KEYS) for line in data.split(b"\n")) if r is not None]
    assert found == records[: len(found)]
    assert len(found) >= data.count(b"\n")


def test_missing_files_are_empty(tmp_path: Path) -> None:
    assert read_steps(tmp_path) == []
    assert read_events(tmp_path) == []
    assert read_object(tmp_path / "job.json") == {}


def test_an_object_that_is_no_object_is_empty(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text('["demo"]')
    (tmp_path / "result.json").write_text('{"accuracy": ')
    assert read_object(tmp_path / "job.json") == {}
    assert read_object(tmp_path / "result.json") == {}


def test_tail_reads_each_line_once_as_it_becomes_whole(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    tail = Tail(path, STEP_KEYS)
    assert tail.read() == []  # the file is not there yet
    whole = json.dumps(step(2, (1, 1)))
    write(path, step(1, (1, 1)), tail=whole[:10])
    assert tail.read() == [step(1, (1, 1))]
    assert tail.read() == []
    with path.open("a") as file:
        file.write(whole[10:] + "\n")
    assert tail.read() == [step(2, (1, 1))]
    assert tail.read() == []


def test_tail_starts_again_when_the_file_shrinks_or_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    tail = Tail(path, STEP_KEYS)
    write(path, step(1, (1, 1)), step(2, (1, 1)))
    assert len(tail.read()) == 2
    write(path, step(1, (2, 1)))
    assert tail.read() == [step(1, (2, 1))]
    other = tmp_path / "other"
    write(other, step(7, (3, 1)), step(8, (3, 1)))
    other.replace(path)
    assert tail.read() == [step(7, (3, 1)), step(8, (3, 1))]


def killed(t: float, host: str, rank: int | None, **more: Any) -> Record:
    return event(t, "worker_exit", host=host, rank=rank, pid=1, worker="w", signal=9, status=-9, **more)


def test_an_incident_gets_the_recovery_that_began_with_it() -> None:
    events = [
        killed(10.0, "host-1", 2),
        event(10.14, "recovered", incident="worker_killed", host="host-1", rank=2, seconds=0.14, world=3),
        event(11.9, "rank_back", incident="worker_killed", host="host-1", rank=2, seconds=1.9, world=4),
    ]
    assert read_incidents(events) == [Incident(10.0, "worker_killed", "host-1", 2, "SIGKILL", 0.14, 1.9)]


def test_a_recovery_is_not_given_to_an_earlier_incident_of_the_same_rank() -> None:
    """The coordinator died with the first one open, so only the second one was ever closed."""
    later = event(60.2, "recovered", incident="worker_killed", host="host-1", rank=2, seconds=0.2, world=3)
    first, second = read_incidents([killed(10.0, "host-1", 2), killed(60.0, "host-1", 2), later])
    assert (first.recovery_seconds, second.recovery_seconds) == (None, 0.2)


def test_a_lost_host_is_one_incident_and_its_slowest_rank_counts() -> None:
    events = [event(5.0, "host_lost", host="host-3", reason="silent for 3 s")]
    for rank, seconds in ((6, 0.3), (7, 0.4)):
        events.append(event(5.0 + seconds, "recovered", incident="host_lost", host="host-3", rank=rank, seconds=seconds))
    assert read_incidents(events) == [Incident(5.0, "host_lost", "host-3", None, "silent for 3 s", 0.4)]


def test_a_recovery_without_an_exit_on_record_is_an_incident_of_its_own() -> None:
    found = read_incidents([event(9.0, "recovered", incident="worker_killed", host="host-0", rank=1, seconds=0.5)])
    assert found == [Incident(8.5, "worker_killed", "host-0", 1, "", 0.5)]


def test_orderly_exits_and_exits_after_the_end_are_no_incidents() -> None:
    events = [
        event(1.0, "coordinator_started", incarnation=1, recovered=False),
        event(2.0, "worker_exit", host="host-0", rank=None, pid=1, worker="w", signal=None, status=0),
        event(3.0, "finished", step=9, message="", exit_code=0),
        killed(4.0, "host-0", 0),
    ]
    assert read_incidents(events) == []


def test_a_resume_after_the_end_can_have_incidents_again() -> None:
    events = [
        event(3.0, "finished", step=9, message="", exit_code=130),
        event(100.0, "coordinator_started", incarnation=2, recovered=False),
        killed(104.0, "host-0", 0),
    ]
    assert [incident.t for incident in read_incidents(events)] == [104.0]


def test_agents_coordinators_and_exit_codes_are_told_apart() -> None:
    events = [
        event(1.0, "agent_lost", host="host-1"),
        event(3.5, "agent_back", host="host-1", seconds=2.5),
        event(4.0, "coordinator_started", incarnation=2, recovered=True),
        event(5.0, "worker_exit", host="host-1", rank=3, pid=1, worker="w", signal=None, status=3),
    ]
    found = [(i.kind, i.cause, i.recovery_seconds) for i in read_incidents(events)]
    assert found == [
        ("agent_lost", "", 2.5),
        ("coordinator_lost", "", None),
        ("worker_exited", "exit status 3", None),
    ]


def test_signals_have_names() -> None:
    assert (signal_name(9), signal_name("15"), signal_name(200)) == ("SIGKILL", "SIGTERM", "200")


def phases(*marks: tuple[str, int]) -> list[Record]:
    """Events of phases and resumes, (name, step), one a second."""
    kinds = (("resumed", {}) if name == "resumed" else ("phase", {"phase": name}) for name, _ in marks)
    return [event(t, kind, step=step, **more) for t, ((kind, more), (_, step)) in enumerate(zip(kinds, marks, strict=True))]


def named(events: list[Record]) -> list[tuple[str, int]]:
    return [(found["phase"], found["step"]) for found in read_phases(events)]


START = (("data", 0), ("fp32_warmup", 1), ("qat", 101))


def test_qs22_each_phase_is_read_once_in_its_order() -> None:
    every = (*START, ("observer_freeze", 181), ("calibration", 240), ("convert", 240), ("verify", 240))
    assert named(phases(*every)) == list(every)
    assert named(phases(*START, ("qat", 130))) == list(START)  # told again by the rank that took over
    assert named([event(0, "host_up", host="host-0")]) == []


def test_qs41_phases_that_a_resume_has_left_behind_are_not_read() -> None:
    assert named(phases(*START, ("resumed", 100))) == list(START[:2])
    assert named(phases(*START, ("resumed", 101), ("qat", 102))) == list(START)
    again = phases(*START, ("calibration", 240), ("verify", 240), ("resumed", 240), ("calibration", 240))
    assert named(again) == [*START, ("calibration", 240)]


def test_cc23_decisions_of_steps_that_were_computed_again_are_not_read() -> None:
    """A resume's generation begins at step 0, before it is known which checkpoint the gang goes on from."""

    def decision(step: int, to: str) -> list[Record]:
        return [event(step, "compression", step=step, to=to), event(step, "compression_plan", step=step)]

    def generation(step: int) -> Record:
        return event(step, "generation", generation=[1, 1], members=[], authority_step=step)

    events = [generation(0), *decision(20, "int8"), *decision(40, "lost"), generation(39), *decision(40, "int4")]
    events += [*decision(60, "lost"), generation(0), event(61, "resumed", step=50)]
    kept = surviving_decisions(events)
    assert [(each["kind"], each["step"]) for each in kept] == [
        (kind, step) for step in (20, 40) for kind in ("compression", "compression_plan")
    ]
    assert [each["to"] for each in kept if "to" in each] == ["int8", "int4"]
    again = surviving_decisions([*events, *decision(60, "none")])
    assert [each["to"] for each in again if "to" in each] == ["int8", "int4", "none"]
    assert surviving_decisions([*events, generation(0), *decision(20, "fp16")])[0]["to"] == "fp16"


def test_every_phase_has_words() -> None:
    assert [phase_words(phase) for phase in Phase if phase_words(phase) == phase] == ["calibration"]
    assert phase_words("another") == "another"


def test_qs40_rounds_of_the_calibration_count_and_measure_no_accuracy() -> None:
    rounds = [
        event(0, "evaluation", step=9, name=name, accuracy=0.5) for name in ("calibration.4", "evaluate", "calibration")
    ]
    assert [calibrated(each) for each in rounds] == [5, None, None]
    assert [measured_accuracy(each) for each in rounds] == [None, 0.5, 0.5]
    assert measured_accuracy(event(0, "evaluation", step=0, name="data", accuracy=None)) is None
    assert measured_accuracy(event(0, "finished", step=9)) is None


def test_a_job_names_its_recipe() -> None:
    assert recipe_of({"task": {"recipe": "cnn", "script": None}}) == "cnn"
    assert [recipe_of(job) for job in ({}, {"task": None}, {"task": {"recipe": None, "script": "a.py"}})] == [None] * 3


def test_qs22_every_phase_has_words() -> None:
    """The names stand there twice, for what reads records loads nothing that trains."""
    assert set(records._PHASE_WORDS) == {phase.value for phase in Phase}
    assert set(records.TRAINING_PHASES) <= set(records._PHASE_WORDS)
