"""Checkpoints that an operator asks for, in a gang of real processes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from orchestrator import save_command
from orchestrator.errors import UserError
from tests.gang.harness import WORLD, Gang
from workers.checkpoint import list_checkpoints, load, read_manifest
from workers.state import digest

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


SHARED = {"share_bytes": 1, "keep": 100}
"""Every rank writes a share."""


def shards(g: Gang) -> dict[int, int]:
    """How many files hold the state, by the step of the checkpoint."""
    entries = list_checkpoints(g.folder / "checkpoints")
    return {entry.step: len(read_manifest(entry.path).shards) for entry in entries}


def test_ck4_what_the_ranks_save_together_is_what_one_saves(gang: StartGang, quiet: Gang, undisturbed: str) -> None:
    """The same bits at the same step, in as many files as there are ranks."""
    g = gang(checkpoint=SHARED, checkpoint_every=25)
    g.check(same_as=undisturbed)
    found = shards(g)
    together = [step for step, number in found.items() if number == WORLD]
    assert len(together) >= len(found) - 1 >= 3  # the last state of all is saved by one rank
    alone = {entry.step: entry.path for entry in list_checkpoints(quiet.folder / "checkpoints")}
    both = alone.keys() & set(together)
    assert both
    for entry in list_checkpoints(g.folder / "checkpoints"):
        if entry.step in both:
            theirs, ours = load(alone[entry.step]), load(entry.path)
            theirs.meta = ours.meta  # which ends in times
            assert digest(ours) == digest(theirs)
    assert not list((g.folder / "checkpoints").glob(".tmp-*"))


@pytest.mark.parametrize("rank", [0, 2])
def test_ck4_a_rank_that_dies_while_all_write_costs_that_checkpoint(gang: StartGang, rank: int) -> None:
    """Whoever it is: the next ones are saved by those who are there."""
    g = gang(checkpoint=SHARED, checkpoint_every=20, faults=(f"in_publish@rank={rank}=kill",), epochs=20)
    g.check()
    found = shards(g)
    assert len([step for step, number in found.items() if number == WORLD]) > 3
    events = g.events("checkpoint")
    assert {event["step"] for event in events} == set(found)


def test_ck4_what_is_asked_for_is_saved_by_all(gang: StartGang, capsys: pytest.CaptureFixture[str]) -> None:
    g = gang(checkpoint=SHARED, checkpoint_every=0, epochs=40)
    g.wait_until_measured()
    for _ in range(2):
        assert save_command.checkpoint("gang", g.storage, wait=True) == 0
    asked, saved = g.events("operator"), g.events("checkpoint")
    assert len(asked) == len(saved) == 2 and all(each["tier"] == "exact" for each in saved)
    assert all(after["step"] >= before["step"] > 0 for before, after in zip(asked, saved, strict=True))
    assert {shards(g)[each["step"]] for each in saved} == {WORLD}
    g.check()


@pytest.mark.parametrize("hosts", [1, 3, 4])
def test_ck8_what_four_ranks_have_saved_is_taken_up_by_another_number(gang: StartGang, hosts: int) -> None:
    """Everything dies; two, six or eight ranks go on from what the four have saved together."""
    g = gang(checkpoint=SHARED | {"tier": "qins", "exact_every": 2}, checkpoint_every=10, epochs=20)
    g.wait_for("checkpoints", lambda: len([n for n in shards(g).values() if n == WORLD]) > 2)
    g.clear()
    g.hosts = hosts
    g.start(resume=True)
    (resumed,) = g.wait_for("the resume", lambda: g.events("resumed"))
    assert shards(g)[resumed["step"]] == WORLD
    assert g.finish() == 0
    g.check_line()
