"""CK-6: beside the newest stay those of every m-th step, the best one, and what is pinned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from workers.checkpoint import Entry, Published, StorageError, list_checkpoints, manifest, places, prune, retention
from workers.checkpoint.chain import Chain
from workers.checkpoint.places import is_pinned, pin
from workers.checkpoint.remote import Remote
from workers.checkpoint.retention import Metric, best_first
from workers.state import Captured

Publish = Callable[..., Published]

EVALUATED = {0: (10, 9.0), 2: (30, 5.0), 4: (80, 4.0), 6: (70, 2.0), 7: (60, float("nan"))}
"""Step to how many of 100 were correct, and the sum of their losses."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


def steps(root: Path | Remote) -> list[int]:
    return [entry.step for entry in list_checkpoints(root)]


@pytest.fixture
def evaluated(publish: Publish, root: Path) -> list[Published]:
    """Steps 1 to 8, each with the history up to the step before it, as a job writes them."""

    def history(step: int) -> list[list[object]]:
        sums = ({"correct": c, "loss": loss, "count": 100} for c, loss in EVALUATED.values())
        rows = [[s, "evaluate", each] for s, each in zip(EVALUATED, sums, strict=True) if s < step]
        return [*rows, [step - 1, "train", {"correct": 100, "loss": 0.0, "count": 100}]]

    state = {"values": torch.zeros(3)}
    return [publish(step=step, state=Captured(state, {"history": history(step)})) for step in range(1, 9)]


def test_ck6_every_mth_stays(publish: Publish, root: Path) -> None:
    for step in range(1, 9):
        publish(step=step)
    assert [path.name for path in prune(root, 2, lambda: True, every=3)] == [f"step-{n}-gen-1.2" for n in (5, 4, 2, 1)]
    assert steps(root) == [8, 7, 6, 3]


@pytest.mark.parametrize(("metric", "best"), [("accuracy", 4), ("loss", 6)])
def test_ck6_the_best_one_stays(metric: Metric, best: int, evaluated: list[Published], root: Path) -> None:
    """An evaluation is known to later checkpoints only; one that came to no number makes nobody the best, and what else was
    measured is none."""
    prune(root, 1, lambda: True, best=metric)
    assert steps(root) == [8, best]
    prune(root, 1, lambda: True)
    assert steps(root) == [8]


def test_ck6_of_those_that_are_best_a_sound_one_stays(evaluated: list[Published], root: Path) -> None:
    """The best one is damaged: it does not cost the next best."""
    shard = evaluated[3].path / "shard-00000.qins"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    prune(root, 1, lambda: True, best="accuracy")
    assert steps(root) == [8, 5]


def test_ck6_what_cannot_be_read_just_now_costs_nothing(
    publish: Publish, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pinned difference whose manifest the storage refuses: what that needs is not known, so nothing is deleted."""
    chain = Chain()
    for step in (1, 2):
        state = Captured({"parameter.weight": torch.linspace(-1, 1, 3000) + step * 1e-4}, {})
        pinned = publish(step=step, state=state, tier="qins", chain=chain, whole_every=8)
    pin(pinned.path)
    publish(step=3)
    reading = places.read_bytes

    def refuse(where: Path) -> bytes:
        if where.parent == pinned.path:
            raise StorageError(f"cannot read {where}: the mount was lost")
        return reading(where)

    monkeypatch.setattr(manifest, "read_bytes", refuse)
    with pytest.raises(StorageError, match="nothing is deleted: cannot read"):
        prune(root, 1, lambda: True)
    monkeypatch.undo()
    assert steps(root) == [3, 2, 1]


def test_ck6_the_best_one_cannot_be_read_just_now(
    evaluated: list[Published], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not given up for the next best."""
    checking = retention.check

    def refuse(entry: Entry) -> Entry:
        refused = replace(entry, valid=False, reason="cannot read it: the mount was lost", is_reached=False)
        return refused if entry.step == 4 else checking(entry)

    monkeypatch.setattr(retention, "check", refuse)
    with pytest.raises(StorageError, match="nothing is deleted: cannot read it"):
        prune(root, 1, lambda: True, best="accuracy")
    assert steps(root) == [8, 7, 6, 5, 4, 3, 2, 1]


def test_ck6_an_evaluation_counts_for_the_first_checkpoint_after_it(evaluated: list[Published], root: Path) -> None:
    entries = [entry for entry in list_checkpoints(root) if entry.step != 4]
    assert [entry.step for entry in best_first(entries, "accuracy")][:2] == [5, 6]


def test_ck6_without_evaluations_nobody_is_the_best(publish: Publish, root: Path) -> None:
    for step in (1, 2, 3):
        publish(step=step, state=Captured({"values": torch.zeros(3)}, {"history": []}))
    prune(root, 1, lambda: True, best="loss")
    assert steps(root) == [3]


@pytest.mark.parametrize("where", ["folder", "store"])
def test_ck6_what_is_pinned_stays(where: str, publish: Publish, tmp_path: Path) -> None:
    root = tmp_path / "checkpoints" if where == "folder" else Remote(f"memory://{tmp_path.name}")
    first, second = publish(step=1, root=root), publish(step=2, root=root)
    publish(step=3, root=root)
    pin(first.path)
    pin(first.path)
    assert is_pinned(first.path) and not is_pinned(second.path)
    assert prune(root, 1, lambda: True) == [second.path]
    pin(first.path, False)
    pin(first.path, False)
    assert prune(root, 1, lambda: True) == [first.path] and steps(root) == [3]


def test_ck6_what_a_pinned_one_is_a_difference_to_stays(publish: Publish, root: Path) -> None:
    chain = Chain()
    for step in range(1, 6):
        values = Captured({"parameter.weight": torch.linspace(-1, 1, 3000) + step * 1e-4}, {})
        published = publish(step=step, state=values, tier="qins", chain=chain, whole_every=3)
        if step == 2:
            pin(published.path)
    publish(step=6)
    prune(root, 1, lambda: True)
    assert steps(root) == [6, 2, 1]
