"""A job whose gradients travel compressed, over two embedded hosts that each share memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.gang import Gang
from workers.memory_file import memory_folder
from workers.paths import runtime_dir

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]


def test_cc2_cc22_cc23_int8_between_two_hosts(start: Callable[..., Gang], paced_job: Path) -> None:
    settings = ("hosts.min=2", "phases.fp32_epochs=5", "compression.policy=fixed", "compression.codec=int8")
    gang = start(paced_job, *(part for setting in settings for part in ("--set", setting)), name="compressed")
    memory = memory_folder(runtime_dir("compressed", gang.folder))
    gang.until_step(3)
    members = gang.events("generation")[0]["members"]
    assert sorted(Counter(member["host"] for member in members).values()) == [2, 2]
    shown = {path.stem for path in memory.iterdir()}
    assert {member["worker"] for member in members} <= shown
    assert gang.end() == 0, gang.describe()
    assert gang.last_step() == 100
    losses = [step["loss"] for step in gang.steps()]
    assert sum(losses[-20:]) < sum(losses[:20])
    assert not gang.events("shared_memory") and not gang.events("non_finite")
    explained = gang.command("explain", "compression", "compressed", "--storage", gang.storage)
    assert explained.returncode == 0, explained.stdout
    sentence = "The gradients of compressed travel between hosts as int8, from the first step on (policy fixed)."
    assert explained.stdout == f"{sentence}\n"
    assert gang.left_over() == []
    assert not memory.exists()
