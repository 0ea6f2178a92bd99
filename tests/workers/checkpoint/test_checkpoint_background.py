"""CK-3, CK-7: saving goes on beside training, one at a time, and is tried again."""

from __future__ import annotations

import os
import queue
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from workers.checkpoint import BackgroundWriter, CheckpointError, Published, StorageError, list_checkpoints, load
from workers.checkpoint import background as background_module
from workers.state import Captured, digest

TIMEOUT = 60.0
Outcome = Published | CheckpointError
Save = Callable[[int], Published]


class Desk:
    """A writer, what it reported, and a way to submit by step alone."""

    def __init__(self, root: Path, state: Captured) -> None:
        self.root, self.state = root, state
        self.outcomes: queue.Queue[Outcome] = queue.Queue()
        self.writers: list[BackgroundWriter] = []

    def open(self, **rest: Any) -> BackgroundWriter:
        writer = BackgroundWriter(self.root, **{"job": "mnist", "on_done": self.outcomes.put, **rest})
        self.writers.append(writer)
        return writer

    def submit(
        self, writer: BackgroundWriter, step: int, fence: Callable[[], bool] = lambda: True, tier: str = "exact"
    ) -> None:
        writer.submit(self.state, step=step, generation=(1, 1), lineage=5, world=2, fence=fence, tier=tier)

    def next(self) -> Outcome:
        return self.outcomes.get(timeout=TIMEOUT)


@pytest.fixture
def desk(tmp_path: Path, state: Captured) -> Iterator[Desk]:
    desk = Desk(tmp_path / "checkpoints", state)
    yield desk
    assert all(writer.close(TIMEOUT) for writer in desk.writers)


@pytest.fixture
def replace_save(monkeypatch: pytest.MonkeyPatch) -> Callable[[Save], None]:
    """Saving becomes a function of the step."""

    def replace(save: Save) -> None:
        monkeypatch.setattr(background_module, "save", lambda state, root, *, step, **rest: save(step))

    return replace


def published(step: int) -> Published:
    return Published(Path(f"step-{step}"), 1, 1, 0.0)


def test_ck3_a_submitted_state_becomes_visible(desk: Desk, state: Captured) -> None:
    writer = desk.open()
    desk.submit(writer, 4)
    assert writer.wait(TIMEOUT)
    outcome = desk.next()
    assert isinstance(outcome, Published) and digest(load(outcome.path)) == digest(state)


def test_ck6_old_ones_are_pruned(desk: Desk) -> None:
    writer = desk.open(keep=2)
    for step in (1, 2, 3):
        desk.submit(writer, step)
        assert writer.wait(TIMEOUT)
    assert [entry.step for entry in list_checkpoints(desk.root)] == [3, 2]


class Disk:
    """Fuller by a tenth for each checkpoint on it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
        self.root = root
        monkeypatch.setattr(background_module, "disk_share", lambda path: 0.1 * len(list_checkpoints(path)))

    @property
    def steps(self) -> list[int]:
        return [entry.step for entry in list_checkpoints(self.root)]


@pytest.fixture
def disk(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch, desk.root)


def fill(desk: Desk, writer: BackgroundWriter, *steps: int, tier: str = "exact") -> None:
    for step in steps:
        desk.submit(writer, step, tier=tier)
        assert writer.wait(TIMEOUT)


def test_gm21_on_a_full_disk_checkpoints_go_until_there_is_room(desk: Desk, disk: Disk) -> None:
    writer = desk.open(keep=5)
    fill(desk, writer, 1, 2, 3, 4, 5)
    writer.make_room(3600.0, 0.35, lambda: True)
    assert writer.wait(TIMEOUT) and disk.steps == [5, 4, 3]
    fill(desk, writer, 6)
    assert disk.steps == [6, 5, 4]


def test_gm17_gm21_two_checkpoints_stay_and_the_newest_exact_one(desk: Desk, disk: Disk) -> None:
    writer = desk.open(keep=4)
    fill(desk, writer, 1)
    fill(desk, writer, 2, 3, 4, tier="qins")
    writer.make_room(3600.0, 0.0, lambda: True)
    assert writer.wait(TIMEOUT) and disk.steps == [4, 3, 1]


@pytest.mark.parametrize("keep", [1, 2])
def test_gm21_never_more_stay_than_the_jobspec_says(desk: Desk, disk: Disk, keep: int) -> None:
    writer = desk.open(keep=keep)
    writer.make_room(3600.0, 0.0, lambda: True)
    fill(desk, writer, 1, 2, 3)
    assert len(disk.steps) == keep


def test_gm21_when_the_time_is_over_as_many_stay_as_before(desk: Desk, disk: Disk) -> None:
    writer = desk.open(keep=3)
    fill(desk, writer, 1, 2, 3)
    writer.make_room(0.0, 0.0, lambda: True)
    assert writer.wait(TIMEOUT)
    fill(desk, writer, 4)
    assert disk.steps == [4, 3, 2]


def test_gm21_who_is_told_again_does_not_read_all_checkpoints_again(
    desk: Desk, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = desk.open(keep=3)
    fill(desk, writer, 1, 2, 3)
    pruned: list[int] = []
    prune = background_module.prune

    def noted(root: Path, keep: int, *rest: Any, **more: Any) -> list[Path]:
        pruned.append(keep)
        return prune(root, keep, *rest, **more)

    monkeypatch.setattr(background_module, "prune", noted)
    for _ in range(3):
        writer.make_room(3600.0, 0.0, lambda: True)
        assert writer.wait(TIMEOUT)
    assert pruned == [3, 2] and disk.steps == [3, 2]


def test_gm6_gm21_a_stale_writer_makes_no_room(desk: Desk, disk: Disk) -> None:
    writer = desk.open(keep=3)
    fill(desk, writer, 1, 2, 3)
    writer.make_room(3600.0, 0.0, lambda: False)
    assert writer.wait(TIMEOUT) and disk.steps == [3, 2, 1]


def test_ck7_gm21_what_a_full_disk_has_refused_is_saved_once_there_is_room(
    desk: Desk, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was full before anybody could say so."""
    save = background_module.save

    def full(state: Captured, root: Path, **rest: Any) -> Published:
        if len(list_checkpoints(root)) >= 3:
            raise StorageError("no space")
        return save(state, root, **rest)

    monkeypatch.setattr(background_module, "save", full)
    writer = desk.open(keep=3, first_retry_seconds=0.001)
    fill(desk, writer, 1, 2, 3)
    desk.submit(writer, 4)
    while not isinstance(desk.next(), StorageError):
        pass
    writer.make_room(3600.0, 0.0, lambda: True)
    assert writer.wait(TIMEOUT) and disk.steps == [4, 3]


@pytest.mark.parametrize(
    ("tiers", "written"),
    [
        (["qins", "exact", "qins", "qins"], 2),
        (["exact", "qins", "exact"], 3),
        (["qins", "qins", "qins"], 3),
        (["qins", "exact"], 2),
    ],
)
def test_ck1_an_exact_one_that_waits_is_not_dropped_for_one_in_qins(
    desk: Desk, replace_save: Callable[[Save], None], tiers: list[str], written: int
) -> None:
    """A slow store would otherwise never see one."""
    started, go_on = threading.Event(), threading.Event()

    def save(step: int) -> Published:
        started.set()
        assert go_on.wait(TIMEOUT)
        return published(step)

    replace_save(save)
    writer = desk.open()
    desk.submit(writer, 0, tier="qins")
    assert started.wait(TIMEOUT)
    for step, tier in enumerate(tiers, start=1):
        desk.submit(writer, step, tier=tier)
    go_on.set()
    assert writer.wait(TIMEOUT)
    assert [desk.next(), desk.next()] == [published(0), published(written)] and desk.outcomes.empty()


def test_ck1_the_tier_and_the_codec_of_the_weights_reach_the_file(desk: Desk) -> None:
    writer, back = desk.open(), {}
    for step, weights in enumerate(("int8", "v1"), start=1):
        writer.submit(
            desk.state,
            step=step,
            generation=(1, 1),
            lineage=5,
            world=2,
            fence=lambda: True,
            rounds=7,
            tier="qins",
            weights=weights,
        )
        outcome = desk.next()
        assert isinstance(outcome, Published) and outcome.tier == "qins"
        assert outcome.path.name == f"step-{step}-gen-1.1-round-7-qins"
        back[weights] = {name: tensor.clone() for name, tensor in load(outcome.path).tensors.items()}
    assert not torch.equal(back["int8"]["parameter.weight"], back["v1"]["parameter.weight"])
    assert torch.equal(back["int8"]["buffer.running"], back["v1"]["buffer.running"])


def test_ck3_never_two_at_once_and_the_newest_queued_wins(desk: Desk, replace_save: Callable[[Save], None]) -> None:
    started, go_on, running = threading.Event(), threading.Event(), threading.Lock()

    def save(step: int) -> Published:
        assert running.acquire(blocking=False)
        started.set()
        assert go_on.wait(TIMEOUT)
        running.release()
        return published(step)

    replace_save(save)
    writer = desk.open()
    desk.submit(writer, 1)
    assert started.wait(TIMEOUT)
    for step in (2, 3, 4):
        desk.submit(writer, step)
    assert not writer.wait(0)
    go_on.set()
    assert writer.wait(TIMEOUT)
    assert [desk.next(), desk.next()] == [published(1), published(4)] and desk.outcomes.empty()


def test_ck7_a_refusing_disk_is_tried_again(desk: Desk, replace_save: Callable[[Save], None]) -> None:
    """CK-7: each failed attempt is reported, training is not involved."""
    failures = [StorageError("first"), StorageError("second")]

    def save(step: int) -> Published:
        if failures:
            raise failures.pop(0)
        return published(step)

    replace_save(save)
    desk.submit(desk.open(first_retry_seconds=0.001), 1)
    outcomes = [desk.next() for _ in range(3)]
    assert [str(outcome) for outcome in outcomes[:2]] == ["first", "second"] and outcomes[2] == published(1)


def test_ck7_backoff_doubles_up_to_a_minute(
    desk: Desk, replace_save: Callable[[Save], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []

    def record(self: BackgroundWriter, seconds: float) -> bool:
        pauses.append(seconds)
        return len(pauses) == 9

    def save(step: int) -> Published:
        raise StorageError("full")

    monkeypatch.setattr(BackgroundWriter, "_is_superseded_within", record)
    replace_save(save)
    writer = desk.open()
    desk.submit(writer, 1)
    assert writer.wait(TIMEOUT)
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_ck7_a_newer_state_supersedes_one_that_is_tried_again(desk: Desk, replace_save: Callable[[Save], None]) -> None:
    def save(step: int) -> Published:
        if step == 1:
            raise StorageError("full")
        return published(step)

    replace_save(save)
    writer = desk.open(first_retry_seconds=3600.0)
    desk.submit(writer, 1)
    assert isinstance(desk.next(), StorageError)
    desk.submit(writer, 2)
    assert desk.next() == published(2)
    assert writer.wait(TIMEOUT) and desk.outcomes.empty()


def test_ck7_closing_ends_the_retries(desk: Desk, replace_save: Callable[[Save], None]) -> None:
    def save(step: int) -> Published:
        raise StorageError("full")

    replace_save(save)
    writer = desk.open(first_retry_seconds=3600.0)
    desk.submit(writer, 1)
    assert isinstance(desk.next(), StorageError)
    assert writer.close(TIMEOUT)
    with pytest.raises(RuntimeError, match="closed"):
        desk.submit(writer, 2)


def test_ck3_closing_finishes_what_is_queued(desk: Desk) -> None:
    writer = desk.open()
    desk.submit(writer, 1)
    assert writer.close(TIMEOUT)
    assert isinstance(desk.next(), Published)


def test_ck5_a_stale_writer_does_not_try_again(desk: Desk) -> None:
    writer = desk.open(first_retry_seconds=3600.0)
    desk.submit(writer, 1, fence=lambda: False)
    assert writer.wait(TIMEOUT)
    assert "generation is over" in str(desk.next()) and list_checkpoints(desk.root) == []


def test_ck7_a_bug_or_a_raising_callback_does_not_end_the_writer(desk: Desk, replace_save: Callable[[Save], None]) -> None:
    def save(step: int) -> Published:
        if step == 1:
            raise KeyError("bug")
        return published(step)

    def on_done(outcome: Outcome) -> None:
        desk.outcomes.put(outcome)
        raise RuntimeError("callback")

    replace_save(save)
    writer = desk.open(on_done=on_done)
    desk.submit(writer, 1)
    assert "because of a bug" in str(desk.next())
    desk.submit(writer, 2)
    assert desk.next() == published(2)


@pytest.mark.skipif(sys.platform != "linux", reason="niceness per thread is Linux's")
def test_ck3_only_the_writer_runs_at_low_priority(desk: Desk, replace_save: Callable[[Save], None]) -> None:
    seen: list[int] = []

    def save(step: int) -> Published:
        seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        return published(step)

    replace_save(save)
    ours = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    writer = desk.open()
    desk.submit(writer, 1)
    assert writer.wait(TIMEOUT)
    assert seen == [max(ours, background_module.NICENESS)]
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == ours
