"""A recipe on the gang: neither a kill in any phase nor other numbers of ranks change a bit (EP-4, QS-36, QS-39, QS-41)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.audit import audit
from orchestrator.records import read_phases, read_steps
from tests.e2e.gang import Gang
from workers.checkpoint import list_checkpoints, load
from workers.state import tensor_bytes

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

JOB = Path(__file__).with_name("recipe.yaml")
MODEL = "model/int8.safetensors"
LAST = 126
"""Steps of the job: 6 epochs of 21."""

KILLS = {
    "in_round@step=1,round=1=kill": "the data check",
    "step_begin@step=10=kill": "the warm-up",
    "in_round@step=22,round=1=kill": "an evaluation, from which it follows what is kept",
    "before_apply@step=60=kill": "quantized weights",
    "in_apply@step=100=kill": "quantized currents and membranes, ranges observed",
    f"in_round@step={LAST + 1},round=3=kill": "the best weights are put back",
    f"in_round@step={LAST + 1},round=12=kill": "the calibration",
    "step_begin@step=115=kill": "ranges that stand still",
    f"in_round@step={LAST + 1},round=37=kill": "the conversion",
    f"in_round@step={LAST + 1},round=40=kill": "the verification",
}


@pytest.fixture(scope="module")
def undisturbed(start: Callable[..., Gang]) -> Path:
    """The folder of a job of one rank that nothing happens to."""
    return finished(start(JOB, *sets("hosts.max=1", "ranks_per_host=1", "spares_per_host=0"), name="one"))


def sets(*settings: str) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]


def finished(gang: Gang) -> Path:
    assert gang.end() == 0, gang.describe()
    assert audit(gang.folder).problems == []
    return gang.folder


def result(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return found


def assert_the_same_bits(folder: Path, other: Path) -> None:
    """Of weights, moments, observed ranges, the integer model, and every loss on the way; and so the same verdicts."""
    mine, theirs = last_state(folder), last_state(other)
    assert mine.keys() == theirs.keys()
    assert [name for name, tensor in mine.items() if tensor != theirs[name]] == []
    assert (folder / MODEL).read_bytes() == (other / MODEL).read_bytes()
    assert losses(folder) == losses(other)
    assert all(gate["passed"] for gate in result(folder)["gates"])
    assert result(folder) == result(other)  # with the digest of everything replicated, results of rounds among it


def last_state(folder: Path) -> dict[str, bytes]:
    """All replicated tensors of the last checkpoint."""
    captured = load(list_checkpoints(folder / "checkpoints")[0].path)
    return {name: bytes(tensor_bytes(tensor)) for name, tensor in captured.tensors.items()}


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in read_steps(folder)]


def test_qs36_a_kill_in_each_phase_changes_no_bit(start: Callable[..., Gang], undisturbed: Path) -> None:
    gang = start(JOB, *sets(f"faults={json.dumps(list(KILLS))}"), name="killed")
    folder = finished(gang)
    assert len(list((gang.folder / "faults").iterdir())) == len(KILLS)
    assert len([event for event in gang.events("worker_exit") if event["signal"] == 9]) == len(KILLS)
    assert_the_same_bits(folder, undisturbed)
    phases = [event["phase"] for event in read_phases(gang.events())]
    assert phases == ["data", "fp32_warmup", "qat", "observer_freeze", "calibration", "convert", "verify"]


def test_qs39_two_ranks_come_to_the_bits_of_one(start: Callable[..., Gang], undisturbed: Path) -> None:
    gang = start(JOB, *sets("hosts.max=1", "spares_per_host=0"), name="two")
    assert_the_same_bits(finished(gang), undisturbed)


@pytest.mark.long
def test_qs39_eight_ranks_come_to_the_bits_of_one(start: Callable[..., Gang], undisturbed: Path) -> None:
    gang = start(JOB, *sets("ranks_per_host=4", "spares_per_host=0"), name="eight")
    assert_the_same_bits(finished(gang), undisturbed)
