"""Checkpoints that an operator asks for, in a gang of real processes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from orchestrator import checkpoint_command
from orchestrator.errors import UserError
from tests.gang.harness import Gang
from workers.checkpoint import load

StartGang = Callable[..., Gang]


def test_ck1_what_is_asked_for_is_saved_although_the_rank_that_should_dies_of_it(
    gang: StartGang, capsys: pytest.CaptureFixture[str]
) -> None:
    """No other is due before the end. The next first rank of the ring hears of it, too."""
    g = gang(checkpoint_every=0, faults=("in_publish@rank=0=kill",), epochs=40)
    g.wait_until_measured()
    assert checkpoint_command.checkpoint("gang", g.storage, wait=True) == 0
    (asked,), (saved,) = g.events("operator"), g.events("checkpoint")
    assert (asked["command"], asked["accepted"]) == ("checkpoint", True)
    assert saved["tier"] == "exact" and saved["step"] >= asked["step"] > 0
    assert capsys.readouterr().out.split()[-1] == saved["path"]
    assert load(g.folder / saved["path"]).meta["state_id"][0] == saved["step"]
    g.check()


def test_ep12_what_is_asked_for_is_saved_although_the_coordinator_dies_of_it(gang: StartGang) -> None:
    """Who has asked gets no answer."""
    g = gang(checkpoint_every=0, coordinator_deaths=("after:SendSave#1",), epochs=40)
    g.wait_until_measured()
    with pytest.raises(UserError, match="no coordinator answers"):
        checkpoint_command.checkpoint("gang", g.storage, wait=False)
    (saved,) = g.wait_for("the checkpoint", lambda: g.events("checkpoint"))
    step = g.step()
    g.wait_for_step(step + 20)
    assert saved["tier"] == "exact" and len(g.events("checkpoint")) == 1
    g.check()
