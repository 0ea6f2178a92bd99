"""Ctrl-C before the first step: there is nothing to save, and nothing may stay."""

from __future__ import annotations

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
