"""The picture of a job: what its curves are made of, and that it is drawn."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import UserError
from orchestrator.picture import accuracy_points, draw, label, merged, phase_points, smooth, world_points
from orchestrator.records import Incident, Record

START = 1_790_000_000.0


def steps(number: int = 6) -> list[Record]:
    return [
        {
            "t": START + 1 + n,
            "step": n,
            "generation": [1, 1],
            "loss": 2.0 / n,
            "accuracy": None if n < 3 else 0.9 if n < 5 else 0.95,
            "ranks": 4,
        }
        for n in range(1, number + 1)
    ]


def event(t: float, kind: str, **fields: Any) -> Record:
    return {"t": START + t, "kind": kind, **fields}


def generation(t: float, *workers: str) -> Record:
    return event(t, "generation", generation=[1, 1], members=[{"worker": worker} for worker in workers])


def incident_events() -> list[Record]:
    return [
        generation(1.0, "a", "b", "c"),
        event(3.0, "worker_exit", host="host-1", rank=2, pid=5, worker="c", signal=9, status=-9),
        generation(3.1, "a", "b"),
        event(3.2, "recovered", incident="worker_killed", host="host-1", rank=2, seconds=0.2, world=2),
        generation(5.0, "a", "b", "d"),
        event(7.0, "finished", step=6, message="", exit_code=0),
        event(7.1, "worker_exit", host="host-0", rank=0, pid=1, worker="a", signal=None, status=0),
    ]


def write(folder: Path, name: str, records: list[Record]) -> None:
    (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records))


def test_live_ranks_fall_when_a_worker_exits_and_rise_when_one_joins() -> None:
    points = world_points(steps(), incident_events(), START)
    assert points == [(1.0, 3), (3.0, 2), (5.0, 3), (7.0, 0)]


def test_without_events_the_steps_tell_the_ranks() -> None:
    assert world_points(steps(2), [], START) == [(2.0, 4), (3.0, 4)]


def test_evaluations_are_points_by_name() -> None:
    events = [
        event(2.0, "evaluation", step=3, name="fp32", accuracy=0.9),
        event(4.0, "evaluation", step=6, name="fp32", accuracy=0.95),
        event(5.0, "evaluation", step=6, name="int8", accuracy=0.94),
    ]
    assert accuracy_points(steps(), events, START) == {"fp32": [(2.0, 0.9), (4.0, 0.95)], "int8": [(5.0, 0.94)]}


def test_rounds_that_measured_no_accuracy_are_no_points() -> None:
    events = [
        event(1.0, "evaluation", step=0, name="data", accuracy=None),
        event(2.0, "evaluation", step=3, name="evaluate", accuracy=0.9),
        event(3.0, "evaluation", step=3, name="calibration.0", accuracy=None),
        event(4.0, "evaluation", step=3, name="calibration.1", accuracy=0.9),
    ]
    assert accuracy_points([], events, START) == {"evaluate": [(2.0, 0.9)]}


def phase_events() -> list[Record]:
    begun = [(1.0, "data", 0), (1.25, "fp32_warmup", 1), (3.0, "qat", 3), (6.5, "calibration", 6)]
    return [event(t, "phase", phase=phase, step=step) for t, phase, step in begun]


def test_qs22_phases_are_points_in_words() -> None:
    points = [(1.0, "data check"), (1.25, "FP32 warm-up"), (3.0, "QAT"), (6.5, "calibration")]
    assert phase_points(phase_events(), START) == points
    assert merged(points, 0.5) == [(1.25, "data check, FP32 warm-up"), *points[2:]]
    assert merged(points, 0.0) == points


@pytest.mark.parametrize(("task", "marked"), [({"recipe": "mlp"}, True), ({"recipe": None, "script": "a.py"}, False)])
def test_phases_are_marked_in_the_picture_of_a_recipe(tmp_path: Path, task: dict[str, Any], marked: bool) -> None:
    """A script's phases are those of the default JobSpec; they mean nothing."""
    import matplotlib.image

    write(tmp_path, "steps.jsonl", steps())
    write(tmp_path, "events.jsonl", [])
    (tmp_path / "job.json").write_text(json.dumps({"name": "demo", "task": task}))
    without = matplotlib.image.imread(draw(tmp_path))
    write(tmp_path, "events.jsonl", phase_events())
    bare = matplotlib.image.imread(draw(tmp_path))
    assert without.shape == bare.shape
    dark = [(pixels[..., :3].max(axis=2) < 0.75).mean(axis=0) for pixels in (without, bare)]  # by column
    lines = int(((dark[1] - dark[0]) > 0.2).sum())
    assert (lines >= 3) is marked


def test_without_events_an_evaluation_is_where_the_accuracy_changes() -> None:
    assert accuracy_points(steps(), [], START) == {"evaluation": [(4.0, 0.9), (6.0, 0.95)]}
    assert accuracy_points(steps(2), [], START) == {}


def test_smoothing_keeps_a_constant_and_starts_at_the_first_value() -> None:
    assert smooth([3.0, 3.0, 3.0]) == pytest.approx([3.0, 3.0, 3.0])
    assert smooth([1.0, 2.0])[0] == pytest.approx(1.0)
    assert 1.0 < smooth([1.0, 2.0])[1] < 2.0


@pytest.mark.parametrize(
    ("incident", "text"),
    [
        (Incident(0, "worker_killed", "host-1", 2, "SIGKILL", 0.14), "rank 2 killed, 0.14 s"),
        (Incident(0, "worker_killed", "host-1", None, "SIGKILL"), "host-1 killed"),
        (Incident(0, "host_lost", "host-1", None, "", 0.4), "host-1 lost, 0.40 s"),
        (Incident(0, "agent_lost", "host-1", None, "", 2.0), "agent of host-1 lost, 2.00 s"),
        (Incident(0, "coordinator_lost", None, None, ""), "coordinator lost"),
    ],
)
def test_labels_say_what_and_how_long(incident: Incident, text: str) -> None:
    assert label(incident) == text


def test_a_job_with_an_incident_is_drawn(tmp_path: Path) -> None:
    import matplotlib.image

    write(tmp_path, "steps.jsonl", steps())
    write(tmp_path, "events.jsonl", incident_events())
    path = draw(tmp_path)
    assert path == tmp_path / "picture.png"
    pixels = matplotlib.image.imread(path)[..., :3]  # [height, width, 3], 0 to 1
    assert pixels.shape == (715, 1210, 3)
    red = (pixels[..., 0] > 0.6) & (pixels[..., 1] < 0.5) & (pixels[..., 2] < 0.5)
    assert red.any(axis=1).mean() > 0.3  # the dashed line of the incident crosses all three plots
    blue = (pixels[..., 2] > 0.6) & (pixels[..., 0] < 0.4)
    assert blue.any(axis=0).mean() > 0.4  # the loss runs over most of the width


@pytest.mark.parametrize("loss", [0.0, -1.0, float("nan"), None])
def test_losses_that_have_no_logarithm_are_drawn_too(tmp_path: Path, loss: float | None) -> None:
    write(tmp_path, "steps.jsonl", [{**step, "loss": loss} for step in steps(2)])
    assert draw(tmp_path).stat().st_size > 0


def test_a_job_that_never_trained_is_drawn(tmp_path: Path) -> None:
    assert draw(tmp_path).stat().st_size > 0


def test_matplotlib_is_loaded_only_to_draw(child_environment: dict[str, str]) -> None:
    program = "import sys, orchestrator.picture; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], env=child_environment).returncode == 0


def test_without_matplotlib_one_sentence_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"needs matplotlib; install it with: pip install 'quantarion\[picture\]'"):
        draw(tmp_path)
