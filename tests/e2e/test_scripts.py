"""A user's own script as a job: the example of the README, and a model with everything that is awkward to replicate."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.gang import Gang, kill

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

ACCURACY = re.compile(r"^accuracy (0\.\d+)$", re.MULTILINE)


def test_the_elastic_example_learns_what_the_plain_one_does(
    start: Callable[..., Gang], project: Path, child_environment: dict[str, str]
) -> None:
    """`python examples/elastic.py` alone, and as a job of two ranks."""
    pytest.importorskip("mlxtend")
    examples = project / "examples"
    gang = start(
        examples / "elastic.py", "--set", "hosts.max=1", "--set", "phases.fp32_epochs=5", "--set", "phases.qat_epochs=0",
        "--set", "global_batch=64", name="elastic",
    )  # fmt: skip
    alone = {name: _accuracy(_python(examples / name, child_environment)) for name in ("plain.py", "elastic.py")}
    assert gang.end() == 0, gang.describe()
    assert gang.left_over() == []
    printed = [found for each in (gang.folder / "logs").glob("*.out") for found in ACCURACY.findall(each.read_text())]
    assert len(printed) == 2 and len(set(printed)) == 1
    assert {step["ranks"] for step in gang.steps()} == {2}
    for accuracy in (*alone.values(), float(printed[0])):
        assert accuracy == pytest.approx(alone["plain.py"], abs=0.03)
    report = json.loads((gang.folder / "report.json").read_text())
    assert report["samples"] == {"per_epoch": 4000, "each_once": True}
    assert f"rank 0: accuracy {printed[0]}" in gang.output and f"| printed    | {report['output']}" in _ascii(gang.output)
    assert not any(word in gang.output for word in ("fp32_warmup", "FP32", "INT8"))


def test_an_awkward_model_is_the_same_everywhere(start: Callable[..., Gang], paced_job: Path) -> None:
    """DataLoader workers, accumulation, autocast, a loss scaler, BatchNorm, dropout, tied and unused parameters."""
    script = Path(__file__).with_name("zoo.py")
    sets = {
        "hosts.max": 1,
        "task.script": script,
        "global_batch": 64,
        "micro_batch": 8,
        "phases.fp32_epochs": 60,  # of 8 steps
    }
    gang = start(paced_job, *(part for key, value in sets.items() for part in ("--set", f"{key}={value}")), name="zoo")
    members = gang.until_full(ranks=2)
    gang.until_more(10)
    killed = kill([members[1]])
    gang.until_event("rank_back", killed, rank=1)
    gang.until_more(10)
    assert gang.end() == 0, gang.describe()
    assert gang.left_over() == []
    digests = {int(path.name): path.read_text() for path in (gang.folder / "digests").iterdir()}
    result = json.loads((gang.folder / "result.json").read_text())
    assert set(digests) == {0, 1}
    assert set(digests.values()) == {result["digest"]}
    assert result["unused_moved"] is False
    steps = gang.steps()
    assert (len(steps), steps[-1]["ranks"]) == (480, 2)
    assert steps[-1]["loss"] < steps[0]["loss"] / 2
    assert json.loads((gang.folder / "report.json").read_text())["samples"] == {"per_epoch": 512, "each_once": True}


def _ascii(table: str) -> str:
    return table.replace("│", "|")


def _python(script: Path, environment: dict[str, str]) -> str:
    ended = subprocess.run([sys.executable, str(script)], env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return ended.stdout


def _accuracy(printed: str) -> float:
    found = ACCURACY.search(printed)
    assert found is not None, printed
    return float(found[1])
