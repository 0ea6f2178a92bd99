"""A recipe on the gang: neither a kill in any phase nor another number of ranks changes a verdict (QS-36, QS-39, QS-41)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from orchestrator.audit import audit
from orchestrator.records import read_phases
from tests.e2e.gang import Gang

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

JOB = Path(__file__).with_name("recipe.yaml")
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
    f"in_round@step={LAST + 1},round=37=kill": "the verification",
}
SEED_SPREAD = 0.04
"""Of the accuracy: more than twice the standard error of 360 held-out digits."""


@pytest.fixture(scope="module")
def undisturbed(start: Callable[..., Gang]) -> dict[str, Any]:
    """The result of one rank that nothing happens to."""
    return finished(start(JOB, *sets("hosts.max=1", "ranks_per_host=1", "spares_per_host=0"), name="one"))


def sets(*settings: str) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]


def finished(gang: Gang) -> dict[str, Any]:
    assert gang.end() == 0, gang.describe()
    assert audit(gang.folder).problems == []
    result: dict[str, Any] = json.loads((gang.folder / "result.json").read_text())
    return result


def assert_alike(result: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    """Equal verdicts; ranges and accuracies as far as sums in another order let them be equal."""
    assert [(gate["gate"], gate["passed"]) for gate in result["gates"]] == [
        (gate["gate"], gate["passed"]) for gate in other["gates"]
    ]
    assert result["verified"] is other["verified"] is True
    assert result["bytes"] == other["bytes"]
    assert result["ranges"].keys() == other["ranges"].keys()
    for name, ends in result["ranges"].items():
        assert ends == pytest.approx(other["ranges"][name], rel=0.1)
    for kind in ("fp32", "int8"):
        assert result["accuracy"][kind] == pytest.approx(other["accuracy"][kind], abs=SEED_SPREAD)


def test_qs36_a_kill_in_each_phase_changes_no_verdict(start: Callable[..., Gang], undisturbed: dict[str, Any]) -> None:
    gang = start(JOB, *sets(f"faults={json.dumps(list(KILLS))}"), name="killed")
    result = finished(gang)
    assert len(list((gang.folder / "faults").iterdir())) == len(KILLS)
    assert len([event for event in gang.events("worker_exit") if event["signal"] == 9]) == len(KILLS)
    assert_alike(result, undisturbed)
    phases = [event["phase"] for event in read_phases(gang.events())]
    assert phases == ["data", "fp32_warmup", "qat", "observer_freeze", "calibration", "convert", "verify"]


def test_qs39_two_ranks_come_to_the_verdict_of_one(start: Callable[..., Gang], undisturbed: dict[str, Any]) -> None:
    gang = start(JOB, *sets("hosts.max=1", "spares_per_host=0"), name="two")
    assert_alike(finished(gang), undisturbed)


@pytest.mark.long
def test_qs39_eight_ranks_come_to_the_verdict_of_one(start: Callable[..., Gang], undisturbed: dict[str, Any]) -> None:
    gang = start(JOB, *sets("ranks_per_host=4", "spares_per_host=0"), name="eight")
    assert_alike(finished(gang), undisturbed)
