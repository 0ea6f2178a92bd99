"""Checkpoints that an operator asks for, in a gang of real processes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from orchestrator import save_command
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
    assert save_command.checkpoint("gang", g.storage, wait=True) == 0
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
        save_command.checkpoint("gang", g.storage, wait=False)
    (saved,) = g.wait_for("the checkpoint", lambda: g.events("checkpoint"))
    step = g.step()
    g.wait_for_step(step + 20)
    assert saved["tier"] == "exact" and len(g.events("checkpoint")) == 1
    g.check()


def test_gm33_a_job_that_is_held_for_hosts_saves_what_it_has_and_goes_on_when_one_appears(gang: StartGang) -> None:
    g = gang(hosts_min=2, checkpoint_every=0, epochs=40)
    g.wait_for_step(30)
    g.lose_host("host-2", replace=False)
    (saved,) = g.wait_for("a checkpoint", lambda: g.events("checkpoint"))
    assert saved["tier"] == "exact" and saved["step"] - g.step() in (0, 1)  # one rank may have been a step ahead
    g.set_nodes([g.addresses[0], g.addresses[-1]])
    g.wait_until_whole()
    g.check()


def test_gm33_without_hosts_it_ends_with_the_exit_code_that_says_to_start_it_again(gang: StartGang) -> None:
    """And goes on from where it was."""
    g = gang(hosts_min=2, replace_wait=1.0, checkpoint_every=0, epochs=20)
    g.wait_for_step(30)
    g.lose_host("host-2", replace=False)
    assert g.finish() == 75
    step = g.step()
    assert g.events("stopping")[-1]["requeue"] and {event["step"] for event in g.events("checkpoint")} == {step}
    assert g.events("failed")[-1]["message"] == "fewer than hosts.min=2 hosts for 1 s"
    g.start(resume=True)
    g.check()
    assert g.events("resumed")[-1]["step"] == step
