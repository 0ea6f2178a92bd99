"""A real storm: a minute of every kind of fault in a lab, and one that is ended in the middle."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from benchmarks.lab import can_run, namespaces
from benchmarks.storm.disk import left_below
from benchmarks.storm.findings import Outcome
from benchmarks.storm.kinds import Kind
from benchmarks.storm.lab import DETECTED, FAULTS, Setting, blow
from benchmarks.storm.schedule import schedule
from benchmarks.storm.show import Screen
from benchmarks.storm.summary import kept_its_promises, summarise
from benchmarks.system import ROOT, environment

pytestmark = [pytest.mark.long, pytest.mark.root, pytest.mark.timeout(900)]

HOSTS, RANKS, LEAST = 4, 2, 2


@pytest.fixture(autouse=True)
def machine() -> None:
    """Skips where no lab can be made, and says why."""
    if reason := can_run():
        pytest.skip(reason)


def left_of(pid: int, folder: Path) -> list[str]:
    """Mounts and namespaces of a storm."""
    mounts = left_below(folder, Path("/proc/mounts").read_text())
    return [*mounts, *(name for name in namespaces.existing() if name.startswith(f"quantarion-lab-{pid}-"))]


def test_gm10_gm17_gm18_gm20_a_minute_of_every_kind_of_fault(tmp_path: Path) -> None:
    """Every sample counts once, equal states have equal bytes, nobody is evicted to whom nothing was done, and what had to
    be noticed was."""
    plan = schedule(1, 1.0, 13.0, list(Kind), HOSTS, RANKS, LEAST)
    screen = io.StringIO()
    setting = Setting(
        seed=1, hosts=HOSTS, ranks_per_host=RANKS, hosts_min=LEAST, minutes=1.0, quiet=5.0, out=tmp_path / "storm"
    )
    run = blow(setting, plan, Screen(Console(file=screen)))
    summary = summarise(run)
    print(screen.getvalue(), json.dumps(summary, indent=1))
    assert kept_its_promises(summary)
    assert summary["faults"]["planned"] == len(plan) and summary["faults"]["done"] > len(plan) / 2
    assert [each for each in run.findings if each.outcome is Outcome.MISSED and not each.disturbed] == []
    assert 0 < summary["step_efficiency"] <= 1 and 0 < summary["goodput"] <= 1 and summary["throughput_kept"] > 0
    written = [json.loads(line) for line in (setting.out / FAULTS).read_text().splitlines()]
    assert {each["number"] for each in written} == {fault.number for fault in plan}
    detected = [json.loads(line) for line in (setting.out / DETECTED).read_text().splitlines()]
    assert len(detected) == summary["faults"]["done"]
    assert left_of(psutil.Process().pid, setting.out) == []


def test_a_storm_that_is_ended_in_the_middle_leaves_nothing(tmp_path: Path) -> None:
    words = ["--minutes", "5", "--rate", "30", "--faults", "starve,disk", "--quiet", "1"]
    places = ["--out", str(tmp_path / "storm"), "--page", str(tmp_path / "storm.md")]
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.storm", *words, *places],
        env=environment(),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert any("starve host" in line for line in process.stdout)
        started = psutil.Process(process.pid).children(recursive=True)
        assert len(started) > HOSTS * RANKS and left_of(process.pid, tmp_path)
        process.send_signal(signal.SIGTERM)
        process.stdout.read()
        assert process.wait(120) == 128 + signal.SIGTERM
    assert psutil.wait_procs(started, timeout=30)[1] == []
    assert left_of(process.pid, tmp_path) == []
    assert not (tmp_path / "storm.md").exists()
