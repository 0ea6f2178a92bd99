"""GM-40, PF-1 to PF-7: real hosts are put to the test, and a job asks for the pass."""

from __future__ import annotations

import json
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator import reaper
from tests.e2e.gang import Gang, quantarion
from workers.paths import runtime_roots

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

TWO_EPOCHS = ("--set", "phases.fp32_epochs=2", "--set", "ranks_per_host=1", "--set", "spares_per_host=0")


@pytest.fixture
def run(storage: Path, project: Path, child_environment: dict[str, str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`run("preflight", job, …)`: to its end, on the storage of this module."""

    def command(*words: object) -> subprocess.CompletedProcess[str]:
        place = ("--set", f"storage={storage}")
        return quantarion(*words, *place, environment=child_environment, cwd=project)

    return command


def found(output: str) -> dict[str, Any]:
    """What `--json` has printed, after lines for people on stderr."""
    result: dict[str, Any] = json.loads(output[output.index("{\n") :])
    return result


def left_over(result: dict[str, Any]) -> list[object]:
    """Processes and runtime folders of a gate."""
    records = Path(result["records"])
    processes = [each for each in reaper.marked() if Path(each.folder).is_relative_to(records)]
    token = records.name.rpartition(".")[2]
    return [*processes, *(path for root in runtime_roots() for path in root.glob(f"preflight-{token}*"))]


@pytest.mark.long
def test_gm40_one_host_is_tested_and_its_pass_lets_the_job_start(
    run: Callable[..., subprocess.CompletedProcess[str]], start: Callable[..., Gang], paced_job: Path, storage: Path
) -> None:
    one = (*TWO_EPOCHS, "--set", "hosts.max=1")
    refused = run("train", paced_job, *one, "--set", "preflight=require")
    assert refused.returncode == 93, refused.stdout
    sentence = refused.stdout.splitlines()[-1]
    assert sentence.startswith("quantarion: preflight is require, but these hosts have no valid pass: there is none for")
    assert f" preflight {paced_job}" in sentence and "Traceback" not in refused.stdout
    assert not (storage / "paced").exists()

    tested = run("preflight", paced_job, *one, "--json")
    assert tested.returncode == 0, tested.stdout
    result = found(tested.stdout)
    outcomes = {test["test"]: test["outcome"] for test in result["tests"]}
    assert outcomes.pop("host test") == outcomes.pop("PF-1") == "passed"
    assert set(outcomes.values()) == {"skipped"} and len(outcomes) == 6
    assert (result["passed"], result["hosts"]) == (True, 1) and result["seconds"] < 180
    assert Path(result["pass"]).is_file()
    assert stat.S_IMODE((storage / ".control" / "preflight.key").stat().st_mode) == 0o600
    assert left_over(result) == []

    gang = start(paced_job, *one, "--set", "preflight=require", name="admitted")
    assert gang.end() == 0, gang.describe()
    assert "pre-flight" not in gang.output

    other = start(paced_job, *one, "--set", "preflight=require", "--set", "seed=6", name="another")
    assert other.end() == 93
    advised = start(paced_job, *one, "--set", "preflight=advise", "--set", "hosts.max=2", name="advised")
    assert advised.end() == 0, advised.describe()
    assert "these hosts have no valid pre-flight pass for this job: there is none for this JobSpec; to" in advised.output


@pytest.mark.long
def test_pf1_to_pf7_four_hosts_pass_every_test(
    run: Callable[..., subprocess.CompletedProcess[str]], paced_job: Path, storage: Path
) -> None:
    tested = run("preflight", paced_job, *TWO_EPOCHS, "--set", "hosts.max=4", "--json")
    assert tested.returncode == 0, tested.stdout
    result = found(tested.stdout)
    assert {test["outcome"] for test in result["tests"]} == {"passed"}, tested.stdout
    assert [test["test"] for test in result["tests"]] == ["host test", *(f"PF-{number}" for number in range(1, 8))]
    assert result["seconds"] <= 180 and result["hosts"] == 4
    assert left_over(result) == []
