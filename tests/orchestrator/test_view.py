"""What a person sees while a job trains, in a terminal and without one."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from orchestrator.records import Incident, Record
from orchestrator.sentences import CHANGE_REASONS, event_sentence, incident_sentence
from orchestrator.view import Seen, View, panel, sparkline
from workers.compression.controller.explain import REASONS

START = 1_790_000_000.0
TRAINING: dict[str, Any] = {
    "phase": "training",
    "step": 40,
    "total_steps": 160,
    "generation": [1, 2],
    "ranks": [{"rank": rank, "host": f"host-{rank}", "pid": 70 + rank, "state": "training"} for rank in range(3)]
    + [{"rank": -1, "host": "host-0", "pid": 80, "state": "idle"}],
    "hosts": [{"host": f"host-{n}", "state": "healthy" if n else "lost"} for n in range(3)],
    "message": "",
}


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Screen:
    """A view of `folder` on a console that remembers what was written, with a status to be set by the test."""

    def __init__(self, folder: Path, *, terminal: bool = False, phases: bool = True, total: int | None = 160) -> None:
        self.folder, self.clock, self.out = folder, Clock(), io.StringIO()
        self.status: Mapping[str, Any] | None = None
        self.console = Console(file=self.out, force_terminal=terminal, width=100, color_system=None, _environ={})
        self.view = View(folder, total, lambda: self.status, phases=phases, console=self.console, clock=self.clock)

    def at(self, seconds: float) -> None:
        self.clock.now = seconds
        self.view.update()

    @property
    def text(self) -> str:
        return self.out.getvalue()

    @property
    def said(self) -> list[str]:
        """Plain lines without their time."""
        return [line.split("] ", 1)[1] for line in self.text.splitlines()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "demo"
    path.mkdir()
    return path


def commit(folder: Path, step: int, generation: tuple[int, int] = (1, 1), **fields: Any) -> None:
    measured = {"loss": 2.0 / step, "accuracy": None, "ranks": 4, "training_rate": 18233.4, "phase": "fp32_warmup"}
    _append(folder / "steps.jsonl", {"t": START, "step": step, "generation": generation, **measured, **fields})


def happen(folder: Path, kind: str, t: float = START, **fields: Any) -> None:
    _append(folder / "events.jsonl", {"t": t, "kind": kind, **fields})


def kill(folder: Path, rank: int | None = 2, t: float = START) -> None:
    happen(folder, "worker_exit", t, host="host-2", rank=rank, pid=72, worker="w", signal=9, status=-9)


def recover(folder: Path, seconds: float = 0.14, t: float = START) -> None:
    happen(folder, "recovered", t + seconds, incident="worker_killed", host="host-2", rank=2, seconds=seconds, world=3)


def _append(path: Path, record: Record) -> None:
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")


def test_plain_lines_say_the_start_phases_evaluations_and_the_end(folder: Path) -> None:
    screen = Screen(folder)
    with screen.view:
        commit(folder, 1)
        happen(folder, "host_up", host="host-0", address="127.0.0.2")
        screen.at(1.0)
        happen(folder, "evaluation", step=1, name="fp32", accuracy=0.953)
        commit(folder, 2, phase="qat")
        screen.at(2.0)
        happen(folder, "finished", step=2, message="", exit_code=0)
    assert screen.said == [
        f"job demo: starting, 160 steps, folder {folder}",
        "phase FP32 warm-up from step 1",
        "phase QAT from step 2",
        "step 1: accuracy 95.3 % (fp32)",
        "finished after step 2",
        "step 2/160 (1 %), loss 1, accuracy 95.3 %, 18,233 samples/s, 4 ranks",
    ]


def test_plain_progress_comes_every_five_seconds(folder: Path) -> None:
    screen = Screen(folder)
    with screen.view:
        for quarter in range(1, 45):  # 11 s
            commit(folder, quarter)
            screen.at(quarter / 4)
        progress = [line for line in screen.said if line.startswith("step ")]
    assert [line.split(",")[0] for line in progress] == ["step 20/160 (12 %)", "step 40/160 (25 %)"]


def test_plain_lines_carry_no_control_codes_and_are_not_wrapped(folder: Path) -> None:
    screen = Screen(folder)
    with screen.view:
        screen.view.note("a sentence " * 20)
    assert "\x1b" not in screen.text
    assert len(screen.text.splitlines()) == 2


def test_a_death_and_its_recovery_are_one_line(folder: Path) -> None:
    screen = Screen(folder)
    with screen.view:
        kill(folder)
        screen.at(0.25)
        assert len(screen.said) == 1
        recover(folder)
        screen.at(0.5)
        happen(folder, "rank_back", START + 1.9, incident="worker_killed", host="host-2", rank=2, seconds=1.9, world=4)
        screen.at(2.25)
    assert screen.said[1:] == [
        "rank 2 on host-2 was killed (SIGKILL): survivors went on after 0.14 s",
        "rank 2 is back after 1.9 s",
    ]
    assert screen.view.seen.incidents == 1


def test_a_death_without_a_recovery_is_told_soon_and_again_when_it_comes(folder: Path) -> None:
    screen = Screen(folder)
    with screen.view:
        kill(folder)
        screen.at(0.25)
        screen.at(1.5)
        assert len(screen.said) == 1
        screen.at(1.75)
        assert screen.said[1:] == ["rank 2 on host-2 was killed (SIGKILL)"]
        recover(folder, 6.0)
        screen.at(6.25)
    assert screen.said[2:] == ["rank 2 on host-2 was killed (SIGKILL): survivors went on after 6.00 s"]


@pytest.mark.parametrize("terminal", [False, True])
def test_that_nothing_is_recorded_is_said_once(folder: Path, terminal: bool) -> None:
    """On a full disk every rank tells it at every step."""
    screen = Screen(folder, terminal=terminal)
    with screen.view:
        for step in (1, 2, 3):
            happen(folder, "record_failed", error="[Errno 28] No space left on device", step=step)
            screen.at(step / 4)
    told = "s] what is read cannot be recorded for the audit, training goes on: [Errno 28] No space left on device"
    assert screen.text.count(told) == 1


def test_a_death_just_before_the_end_is_not_kept_back(folder: Path) -> None:
    screen = Screen(folder)
    with screen.view:
        kill(folder)
    assert screen.said[1:] == ["rank 2 on host-2 was killed (SIGKILL)"]


def test_a_lost_host_is_told_once_for_all_its_ranks(folder: Path) -> None:
    screen = Screen(folder)
    with screen.view:
        happen(folder, "host_lost", host="host-2", reason="silent for 3 s")
        screen.at(0.25)
        for rank in (4, 5):
            happen(folder, "recovered", START + 0.4, incident="host_lost", host="host-2", rank=rank, seconds=0.4)
        screen.at(0.5)
    assert screen.said[1:] == ["host-2 was lost (silent for 3 s): survivors went on after 0.40 s"]


def test_waiting_says_what_is_missing_once(folder: Path) -> None:
    screen = Screen(folder)
    with screen.view:
        screen.status = {"phase": "waiting", "message": "2 of 4 hosts are up"}
        screen.at(0.25)
        screen.at(0.5)
        screen.status = {"phase": "waiting", "message": "3 of 4 hosts are up"}
        screen.at(0.75)
    assert screen.said[1:] == ["waiting: 2 of 4 hosts are up", "waiting: 3 of 4 hosts are up"]


def test_a_resume_begins_with_what_is_new(folder: Path) -> None:
    """The old run had come to step 9; its newest checkpoint is of step 6."""
    for number in range(1, 10):
        commit(folder, number, accuracy=0.5)
    kill(folder, t=START - 100)
    happen(folder, "evaluation", START - 95, step=8, name="evaluate", accuracy=0.5)
    happen(folder, "finished", START - 90, step=9, message="", exit_code=130)
    screen = Screen(folder)
    with screen.view:
        happen(folder, "coordinator_started", START + 1, incarnation=2, recovered=False)
        happen(folder, "checkpoint_skipped", START + 2, reason="step-8-gen-1.1/shard-00000.qins is damaged")
        happen(folder, "resumed", START + 2, path="step-6-gen-1.1", step=6)
        screen.at(0.25)
        commit(folder, 7, (2, 1), t=START + 3)
        commit(folder, 8, (2, 1), t=START + 4, phase="qat")
        kill(folder, t=START + 5)
        screen.at(0.5)
    assert screen.said[1:-1] == [
        "checkpoint skipped: step-8-gen-1.1/shard-00000.qins is damaged",
        "resuming from step 6 (step-6-gen-1.1)",
        "phase FP32 warm-up",
        "phase QAT from step 8",
        "rank 2 on host-2 was killed (SIGKILL)",
    ]
    assert screen.said[-1].startswith("step 8/160")
    assert screen.view.seen.incidents == 1


def test_a_resume_that_has_come_to_no_step_shows_none_of_the_old_ones(folder: Path) -> None:
    commit(folder, 9)
    screen = Screen(folder)
    with screen.view:
        screen.at(6.0)
    assert screen.said[1:] == []


def test_a_folder_that_is_replaced_is_told_from_its_start(folder: Path) -> None:
    """A fresh start moves the old folder aside after the view has begun."""
    commit(folder, 9)
    screen = Screen(folder)
    with screen.view:
        folder.rename(folder.with_name("demo.1"))
        folder.mkdir()
        commit(folder, 1)
        screen.at(0.25)
    assert screen.view.seen.step == 1


def test_steps_and_events_are_told_in_the_order_of_their_time(folder: Path) -> None:
    screen = Screen(folder)
    with screen.view:
        commit(folder, 1, t=START)
        commit(folder, 2, t=START + 2, phase="qat")
        happen(folder, "evaluation", START + 1, step=1, name="evaluate", accuracy=0.9)
        screen.at(0.25)
    assert screen.said[1:4] == [
        "phase FP32 warm-up from step 1",
        "step 1: accuracy 90.0 % (evaluate)",
        "phase QAT from step 2",
    ]


@pytest.mark.parametrize("terminal", [False, True])
def test_a_job_without_phases_names_none(folder: Path, terminal: bool) -> None:
    screen = Screen(folder, phases=False, terminal=terminal)
    with screen.view:
        happen(folder, "phase", phase="fp32_warmup", step=1)
        commit(folder, 1)
        screen.at(0.25)
    assert not any(word in screen.text for word in ("fp32_warmup", "FP32"))


def calibrate(folder: Path, batches: range, step: int = 2) -> None:
    for number in batches:
        happen(folder, "evaluation", step=step, name=f"calibration.{number}", accuracy=None)


def test_qs22_the_phases_of_a_recipe_are_told_once_each_in_their_order(folder: Path) -> None:
    """Training phases stand in the steps too; the line of a step may be read after the event of a later phase."""
    screen = Screen(folder)
    with screen.view:
        happen(folder, "phase", START - 1, phase="data", step=0)
        happen(folder, "phase", phase="fp32_warmup", step=1)
        commit(folder, 1)
        screen.at(0.25)
        happen(folder, "phase", phase="qat", step=2)
        happen(folder, "phase", phase="calibration", step=2)
        screen.at(0.5)
        commit(folder, 2, phase="qat")
        happen(folder, "phase", phase="calibration", step=2)  # from a rank that takes over
        screen.at(0.75)
        happen(folder, "phase", phase="convert", step=2)
        happen(folder, "phase", phase="verify", step=2)
    assert screen.said[1:-1] == [
        "phase data check",
        "phase FP32 warm-up from step 1",
        "phase QAT from step 2",
        "phase calibration",
        "phase conversion",
        "phase verification",
    ]


def test_qs37_a_resume_inside_a_run_comes_back_to_an_earlier_phase(folder: Path) -> None:
    screen = Screen(folder)
    with screen.view:
        commit(folder, 5)
        commit(folder, 6, phase="qat")
        screen.at(0.25)
        happen(folder, "resumed", START + 1, path="step-4-gen-1.1", step=4)
        commit(folder, 5, (2, 1), t=START + 2)
        commit(folder, 6, (2, 1), t=START + 3, phase="qat")
        screen.at(0.5)
    phases = [line for line in screen.said if line.startswith("phase")]
    assert phases == ["phase FP32 warm-up", "phase QAT from step 6", "phase FP32 warm-up", "phase QAT from step 6"]


@pytest.mark.parametrize("terminal", [False, True])
def test_qs40_a_calibration_is_counted_not_told_batch_by_batch(folder: Path, terminal: bool) -> None:
    screen = Screen(folder, terminal=terminal)
    with screen.view:
        commit(folder, 2, phase="qat", accuracy=0.9)
        happen(folder, "phase", phase="calibration", step=2)
        calibrate(folder, range(12))
        screen.at(6.0)
        assert "12 batches calibrated" in screen.text
        assert "90.0 %" in screen.text  # still that of the last evaluation
        assert screen.view.seen.calibrated == 12
        happen(folder, "phase", phase="convert", step=2)
        happen(folder, "evaluation", step=2, name="int8", accuracy=0.89)
    assert "accuracy -" not in screen.text and "calibration.1" not in screen.text
    assert (screen.view.seen.calibrated, screen.view.seen.accuracy) == (0, 0.89)
    if terminal:
        assert "calibration, 12 batches calibrated" in screen.text
    else:
        assert screen.said[1:] == [
            "phase QAT",
            "phase calibration",
            "step 2/160 (1 %), 12 batches calibrated, loss 1, accuracy 90.0 %, 4 ranks",
            "phase conversion",
            "step 2: accuracy 89.0 % (int8)",
            "step 2/160 (1 %), loss 1, accuracy 89.0 %, 4 ranks",
        ]


@pytest.mark.parametrize("terminal", [False, True])
def test_ta19_gates_that_fail_and_doubtful_data_are_told_once(folder: Path, terminal: bool) -> None:
    """A rank that takes over tells them again."""
    screen = Screen(folder, terminal=terminal)
    warning = "0.3 % of the values lie far from the mean"
    with screen.view:
        for _ in range(2):
            happen(folder, "data_warning", check="outliers", value=0.003, warning=warning)
            happen(folder, "gate", gate="fp32_warmup", passed=True, values={"epochs": 5.0})
            happen(folder, "gate", gate="verified", passed=False, values={"accuracy_drop": 0.034, "rate_change.0": None})
            screen.at(0.25)
    failed = "gate verified failed: accuracy_drop 0.034, rate_change.0 not measured"
    assert screen.text.count(f"s] the data should be looked at: {warning}") == 1
    assert screen.text.count(f"s] {failed}") == 1
    assert screen.text.count("s] gate fp32_warmup passed") == (0 if terminal else 1)
    assert screen.view.seen.last == failed


def change(folder: Path, step: int, old: str, new: str, reason: str, bucket: int = 0) -> None:
    fields: Record = {"step": step, "bucket": bucket, "from": old, "to": new, "reason": reason}
    happen(folder, "compression", **fields)


def decide(folder: Path, step: int, *changes: tuple[str, str, str]) -> None:
    """The events of one decision: (from, to, reason) of the buckets that change."""
    for bucket, (old, new, reason) in enumerate(changes):
        change(folder, step, old, new, reason, bucket)
    happen(folder, "compression_plan", step=step, plan=[new for _, new, _ in changes])


def test_cc23_a_decision_is_one_line_however_many_buckets_it_changes(folder: Path) -> None:
    screen = Screen(folder)
    with screen.view:
        saves = ("none", "int8", "saves")
        decide(folder, 20, saves, ("none", "topk 0.01", "dense_start_over"), saves)
        decide(folder, 40)
        screen.at(0.25)
        change(folder, 60, "int8", "fp16", "budget")
        screen.at(0.5)
        happen(folder, "compression_plan", step=60, plan=["fp16"])
        decide(folder, 60, ("int8", "fp16", "budget"))  # computed again, and told by another rank
        screen.at(0.75)
        change(folder, 80, "fp16", "lost", "saves")
        decide(folder, 100, ("fp16", "none", "no_gain"))
        screen.at(1.0)
    assert screen.said[1:] == [
        "from step 21: 2 buckets int8 instead of none (saves time), 1 bucket topk 0.01 instead of none (dense start over)",
        "from step 61: 1 bucket fp16 instead of int8 (error budget exceeded)",
        "from step 101: 1 bucket none instead of fp16 (no faster than none)",
    ]


def test_cc23_every_reason_of_a_decision_has_words() -> None:
    assert set(CHANGE_REASONS) == set(REASONS)


@pytest.mark.parametrize("terminal", [False, True])
def test_cc2_cc15_missing_memory_is_told_once_for_a_host_and_what_is_not_finite_once_for_a_parameter(
    folder: Path, terminal: bool
) -> None:
    screen = Screen(folder, terminal=terminal)
    with screen.view:
        for rank in range(4):
            message = f"/dev/shm has {64 - rank}.0 MiB free; until then its ranks go through sockets"
            happen(folder, "shared_memory", host=f"host-{rank // 2}", message=message)
        for step in range(7, 10):
            for rank, parameter in enumerate(("head.weight", "head.weight", "head.bias")):
                happen(folder, "non_finite", rank=rank, step=step, parameter=parameter)
        happen(folder, "non_finite", rank=1, step=11, parameter="loss", again=False)
        happen(folder, "non_finite", rank=2, step=11, parameter="loss", again=True)
        happen(folder, "residual_lost", worker="w", residual_lost_norm=0.5)
        happen(folder, "rolls_back", at_most=5, reason="host-2 is evicted: SDC_DIGEST")
        screen.at(0.25)
    told = [line.partition("s] ")[2].strip() for line in screen.text.splitlines() if "s] " in line]
    assert told[0 if terminal else 1 :] == [
        "host-0: /dev/shm has 64.0 MiB free; until then its ranks go through sockets",
        "host-1: /dev/shm has 62.0 MiB free; until then its ranks go through sockets",
        "step 7 is skipped: on rank 0 the gradient of head.weight is not finite (said once for each)",
        "step 7 is skipped: on rank 2 the gradient of head.bias is not finite (said once for each)",
        "step 11 is computed once more: on rank 1 the loss is not finite (said once for each)",
        "step 11 is skipped: on rank 2 the loss is not finite (said once for each)",
        "back to the checkpoint of step 5, or one before it: host-2 is evicted: SDC_DIGEST",
    ]


@pytest.mark.parametrize("terminal", [False, True])
def test_what_the_lowest_rank_prints_is_told(folder: Path, terminal: bool) -> None:
    screen = Screen(folder, terminal=terminal)
    (folder / "logs").mkdir()
    (folder / "logs" / "w0.out").write_text("epoch 1\nacc")
    with screen.view:
        happen(folder, "generation", generation=[1, 1], members=[{"rank": 0, "worker": "w0"}, {"rank": 1, "worker": "w1"}])
        screen.at(0.25)
        screen.at(0.5)
        assert "s] rank 0: epoch 1" in screen.text and "rank 0: acc" not in screen.text
        with (folder / "logs" / "w0.out").open("a") as file:
            file.write("uracy 0.9")
        happen(folder, "finished", step=1, exit_code=0, message="")
    assert screen.text.count("s] rank 0: epoch 1") == 1
    assert screen.text.count("s] rank 0: accuracy 0.9") == 1
    assert terminal or screen.said[-2:] == ["rank 0: accuracy 0.9", "finished after step 1"]


def test_the_newest_commit_is_shown_not_the_last_written(folder: Path) -> None:
    """A successor backfills older lines, and a discarded step comes again under a higher generation."""
    screen = Screen(folder)
    with screen.view:
        for step, generation, loss in ((7, (1, 1), 0.7), (8, (1, 1), 0.8), (7, (1, 1), 9.9), (8, (1, 2), 0.6)):
            commit(folder, step, generation, loss=loss)
        screen.at(0.25)
    assert (screen.view.seen.step, screen.view.seen.loss, screen.view.seen.generation) == (8, 0.6, "1.2")
    assert list(screen.view.seen.losses) == [0.7, 0.8, 0.6]


def test_a_message_that_says_that_it_waits_is_not_doubled(folder: Path) -> None:
    message = "waiting for 1 more host with 2 free CPUs"
    screen = Screen(folder)
    with screen.view:
        screen.status = {"phase": "waiting", "message": message}
        screen.at(0.25)
        happen(folder, "waiting", message=message)
        screen.at(0.5)
        screen.status = {"phase": "starting", "message": "starting 2 hosts"}
        screen.at(0.75)
        screen.at(1.0)
    assert screen.said[1:] == [message, "starting 2 hosts"]
    assert screen.view.seen.last == message
    console = Console(file=io.StringIO(), width=80, color_system=None, legacy_windows=False, record=True)
    console.print(panel(Seen("demo", phase="waiting", message=message)))
    text = console.export_text()
    assert "for 1 more host" in text and text.count("waiting") == 2  # the phase, and the name of the row


def test_a_failure_is_left_to_who_ends_the_process(folder: Path) -> None:
    screen = Screen(folder)
    with screen.view:
        happen(folder, "failed", step=0, message="the disk is full", exit_code=4)
        screen.at(0.25)
    assert screen.said[1:] == []
    assert screen.view.seen.phase == "failed"


def test_a_silent_coordinator_is_said_while_training_only(folder: Path) -> None:
    screen = Screen(folder)
    with screen.view:
        screen.at(0.25)
        assert screen.view.seen.message == ""  # it has not started
        screen.status = TRAINING
        screen.at(0.5)
        screen.status = None
        screen.at(0.75)
        assert screen.view.seen.message == "the coordinator does not answer; training goes on without it"
        happen(folder, "finished", step=160, message="", exit_code=0)
        screen.at(1.0)
        screen.at(1.25)
        assert screen.view.seen.message == ""


def test_numbers_may_come_as_text_as_protobuf_writes_them(folder: Path) -> None:
    screen = Screen(folder, total=None)
    with screen.view:
        screen.status = {**TRAINING, "step": "40", "total_steps": "160"}
        screen.at(0.25)
    assert (screen.view.seen.step, screen.view.seen.total) == (40, 160)


def test_the_live_panel_shows_the_whole_job(folder: Path) -> None:
    screen = Screen(folder, terminal=True)
    with screen.view:
        screen.status = TRAINING
        commit(folder, 40, (1, 2), loss=0.2133, accuracy=0.951, ranks=3)
        kill(folder)
        recover(folder)
        screen.at(65.0)
    shown = screen.text
    for part in (
        "quantarion demo",
        "training, FP32 warm-up   generation 1.2",
        "40/160 (25 %)",
        "loss 0.2133",
        "accuracy 95.1 %",
        "18,233 samples/s",
        "2 healthy, 1 lost",
        "3 training, 1 idle spare",
        "survivors went on after 0.14 s",
        "1:05",
    ):
        assert part in shown, part


def test_the_live_panel_keeps_notes_above_it(folder: Path) -> None:
    screen = Screen(folder, terminal=True)
    with screen.view:
        screen.at(0.25)
        screen.view.note("finishing the step")
    assert "s] finishing the step" in screen.text
    assert screen.view.seen.last == "finishing the step"


def test_a_panel_of_a_waiting_job_fits_an_ascii_terminal() -> None:
    console = Console(file=io.StringIO(), width=80, color_system=None, legacy_windows=False, record=True)
    seen = Seen("demo", phase="waiting", message="1 of 2 hosts is up; start another", hosts=[("host-0", "healthy")])
    seen.losses.extend([2.0, 1.0])
    console.print(panel(seen, unicode=False))
    text = console.export_text()
    assert "1 of 2 hosts is up; start another" in text
    assert "* 1 healthy" in text
    assert not set(text) & set("●▁▂▃▄▅▆▇█")


def test_an_unreadable_folder_does_not_end_the_view(folder: Path) -> None:
    (folder / "steps.jsonl").mkdir()
    screen = Screen(folder)
    with screen.view:
        screen.at(0.25)
    assert "steps.jsonl cannot be read" in screen.view.seen.last


@pytest.mark.parametrize(
    ("incident", "sentence"),
    [
        (Incident(0, "worker_killed", "host-2", None, "SIGKILL"), "a spare process on host-2 was killed (SIGKILL)"),
        (Incident(0, "worker_exited", "host-2", 1, "exit status 3"), "rank 1 on host-2 ended by itself (exit status 3)"),
        (Incident(0, "agent_lost", "host-2", None, ""), "the agent of host-2 is gone, its ranks train on"),
        (
            Incident(0, "agent_lost", "host-2", None, "", 2.5),
            "the agent of host-2 is back after 2.50 s and has its ranks again",
        ),
        (
            Incident(0, "coordinator_lost", None, None, ""),
            "the coordinator was lost and is back from its journal",
        ),
        (
            Incident(0, "unknown", "host-2", 1, "", 0.5),
            "rank 1 on host-2 left the job: survivors went on after 0.50 s",
        ),
    ],
)
def test_incidents_are_sentences(incident: Incident, sentence: str) -> None:
    assert incident_sentence(incident) == sentence


@pytest.mark.parametrize(
    ("event", "sentence"),
    [
        ({"kind": "checkpoint", "step": 9, "bytes": 1_230_000, "seconds": 0.05}, "checkpoint of step 9: 1.2 MB in 0.05 s"),
        ({"kind": "checkpoint_failed", "error": "disk full"}, "checkpoint failed, training goes on: disk full"),
        (
            {"kind": "drain_notice", "host": "host-2", "reason": "Ray drains its node", "heard": 10.0, "deadline": 40.0},
            "host-2 will be taken away within 30 s: Ray drains its node",
        ),
        ({"kind": "finished", "step": 9, "exit_code": 130}, "stopped after step 9"),
        ({"kind": "failed", "message": "no hosts"}, "failed: no hosts"),
        ({"kind": "waiting", "message": "1 of 2 hosts"}, "waiting: 1 of 2 hosts"),
        ({"kind": "waiting", "message": "waiting for 1 more host"}, "waiting for 1 more host"),
        (
            {"kind": "task_error", "host": "host-1", "rank": 2, "step": 5, "error": "MemoryError: none left"},
            "rank 2 on host-1 failed: MemoryError: none left",
        ),
        (
            {
                "kind": "hang",
                "seconds": 10.24,
                "culprits": [{"host": "host-1", "rank": 2}, {"host": "host-2", "rank": 5}],
                "stacks": {"2": ["task.py:12 load", "task.py:90 main"], "5": []},
                "unheard": [],
            },
            "nothing has been finished for 10.2 s: rank 2 on host-1 hangs in task.py:12 load, rank 5 on host-2 hangs",
        ),
        (
            {"kind": "hang", "seconds": 20.0, "culprits": [], "stacks": {}, "unheard": []},
            "nothing has been finished for 20.0 s: nobody stands apart from the others, so all begin again",
        ),
        (
            {"kind": "hang", "seconds": 20.0, "culprits": [], "stacks": {}, "unheard": ["host-3"]},
            "nothing has been finished for 20.0 s: nothing is heard of host-3",
        ),
        (
            {"kind": "quorum_lost", "code": "QUORUM_LOST", "agreeing": ["host-1"], "unreachable": ["host-2", "host-3"]},
            "members stay as they are, too many hosts cannot be reached: host-2, host-3",
        ),
        ({"kind": "quorum_back", "seconds": 31.04}, "enough hosts agree again, after 31.0 s"),
        (
            {
                "kind": "resource_pressure",
                "host": "h",
                "code": "RESOURCE_DISK",
                "value": 0.934,
                "limit": 0.9,
                "begins": True,
            },
            "h is short of disk: 93.4 % of it is used",
        ),
        (
            {
                "kind": "resource_pressure",
                "host": "h",
                "code": "RESOURCE_MEMORY",
                "value": 0.7,
                "limit": 0.8,
                "begins": False,
            },
            "h has memory again: 70.0 % of it is used",
        ),
        (
            {"kind": "resource_pressure", "host": "h", "code": "RESOURCE_LOAD", "value": 2.0, "limit": 1.5, "begins": True},
            None,
        ),
        ({"kind": "prepare", "generation": [1, 2]}, None),
        ({"kind": "phase", "phase": "observer_freeze", "step": 9}, "phase observer freeze"),
        ({"kind": "phase", "phase": "a_later_one", "step": 9}, "phase a_later_one"),
        ({"kind": "gate", "gate": "qat_enabled", "passed": True, "values": {}}, "gate qat_enabled passed"),
        ({"kind": "evaluation", "step": 9, "name": "data", "accuracy": None}, None),
        ({"kind": "evaluation", "step": 9, "name": "calibration.3", "accuracy": 0.5}, None),
    ],
)
def test_events_are_sentences(event: Record, sentence: str | None) -> None:
    assert event_sentence(event) == sentence


def test_a_sparkline_falls_as_its_values_do() -> None:
    assert sparkline([8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0], 8) == "█▇▆▅▄▃▂▁"
    assert sparkline([4.0, 4.0, 1.0, 1.0], 2) == "█▁"
    assert sparkline([1.0, float("nan"), 2.0], 3) == "▁?█"
    assert sparkline([float("nan")], 5) == ""
