"""Ctrl-C before the first step: there is nothing to save, and nothing may stay."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.gang import Gang
from workers.paths import runtime_dir

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


def starting(gang: Gang) -> None:
    """Ray is coming up."""
    gang.until("the first process of Ray", lambda: "starting Ray" in gang.output and gang.marked())


def placed(gang: Gang) -> None:
    """The coordinator has a host; its ranks are on their way."""
    gang.until_event("host_up", gang.started)


@pytest.mark.parametrize("moment", [starting, placed])
def test_ctrl_c_before_the_first_step(start: Callable[..., Gang], paced_job: Path, moment: Callable[[Gang], None]) -> None:
    name = moment.__name__
    gang = start(paced_job, "--set", "hosts.max=1", name=name)
    moment(gang)
    gang.signal(signal.SIGINT)
    assert gang.end() == 130, gang.describe()
    assert gang.left_over() == []
    assert not runtime_dir(name, gang.folder).exists()
    assert "Traceback" not in gang.output
    assert gang.last_step() == 0
    assert gang.output.splitlines()[-1].startswith("stopped: 0 steps"), gang.output


def test_ctrl_c_before_the_first_step_leaves_an_earlier_run_where_it_was(
    start: Callable[..., Gang], paced_job: Path
) -> None:
    short = ("--set", "hosts.max=1", "--set", "phases.fp32_epochs=1")
    assert start(paced_job, *short, name="kept").end() == 0
    gang = start(paced_job, *short, name="kept")
    report = (gang.folder / "report.json").read_text()
    placed(gang)
    assert gang.folder.with_name("kept.1").exists()
    gang.signal(signal.SIGINT)
    assert gang.end() == 130, gang.describe()
    assert (gang.folder / "report.json").read_text() == report
    assert gang.last_step() == 20
    assert gang.output.splitlines()[-1].endswith(f"report in {gang.folder}.1/report.json"), gang.output


@pytest.mark.long
def test_a_signal_to_ray_and_us_alike_leaves_nothing_and_says_how_to_go_on(
    start: Callable[..., Gang], paced_job: Path
) -> None:
    """As `timeout` and service managers send it: the GCS is gone before the launcher can ask it anything."""
    gang = start(paced_job, "--set", "hosts.max=1", name="all")
    gang.until_step(45)
    os.killpg(gang.process.pid, signal.SIGTERM)
    assert gang.end() in (9, 130), gang.describe()
    assert gang.left_over() == []
    assert "go on with: " in gang.output and "--resume" in gang.output
    assert "Traceback" not in gang.output
