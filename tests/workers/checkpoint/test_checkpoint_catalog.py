"""CK-6, CK-9: the newest sound checkpoint is found, and the newest few are kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

from workers.checkpoint import (
    Entry,
    Published,
    StaleWriter,
    StorageError,
    list_checkpoints,
    load_newest,
    newest_valid,
    prune,
    set_aside,
)
from workers.checkpoint import places as places_module
from workers.checkpoint.catalog import check
from workers.checkpoint.manifest import TIERS, Label, parse_folder
from workers.identity import Generation
from workers.state import Captured, digest

Publish = Callable[..., Published]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "checkpoints"


def flip_a_bit(published: Published) -> None:
    """Damage the content, not the size."""
    path = published.path / "shard-00000.qins"
    content = bytearray(path.read_bytes())
    content[len(content) * 2 // 3] ^= 4
    path.write_bytes(content)


def names(root: Path) -> list[str]:
    return [entry.path.name for entry in list_checkpoints(root)]


def test_ck9_newest_first_by_step_then_generation(publish: Publish, root: Path) -> None:
    for step, generation in [(9, (1, 9)), (10, (2, 1)), (10, (1, 11)), (10, (1, 9)), (100, (1, 1))]:
        publish(step=step, generation=generation)
    (root / "step-7").mkdir()
    (root / "step-007-gen-1.1").mkdir()
    (root / ".tmp-step-200-gen-1.1-ab").mkdir()
    (root / "step-300-gen-1.1").symlink_to(root / "step-9-gen-1.9")
    assert names(root) == [
        f"step-{name}" for name in ("100-gen-1.1", "10-gen-2.1", "10-gen-1.11", "10-gen-1.9", "9-gen-1.9")
    ]
    assert all(entry.valid is None and entry.tier == "exact" for entry in list_checkpoints(root))


def test_ck9_of_one_step_the_later_rounds_are_newer_and_the_exact_one_comes_first(publish: Publish, root: Path) -> None:
    """CK-5: what a job saves at its end lies beside what it saved after its last step, and is found."""
    for rounds, tier in [(0, "exact"), (36, "exact"), (0, "qins"), (4, "qins")]:
        assert publish(step=9, rounds=rounds, tier=tier).new
    publish(step=9, generation=(2, 1))
    assert names(root) == [
        "step-9-gen-2.1",
        "step-9-gen-1.2-round-36",
        "step-9-gen-1.2-round-4-qins",
        "step-9-gen-1.2",
        "step-9-gen-1.2-qins",
    ]
    assert [entry.tier for entry in list_checkpoints(root)] == ["exact", "exact", "qins", "exact", "qins"]
    assert all(check(entry).valid for entry in list_checkpoints(root))


@pytest.mark.parametrize(
    "name",
    ["step-9-gen-1.2-round-0", "step-9-gen-1.2-exact", "step-9-gen-1.2-round-04", "step-9-gen-1.2-QINS", "step-9-gen-1"],
)
def test_ck10_a_checkpoint_has_one_name(name: str) -> None:
    assert parse_folder(name) is None


@given(
    st.integers(0, 10**17), st.tuples(st.integers(0, 99), st.integers(0, 99)), st.integers(0, 99), st.sampled_from(TIERS)
)
def test_ck5_a_name_says_what_it_was_made_of(step: int, generation: tuple[int, int], rounds: int, tier: str) -> None:
    label = Label(step, Generation(*generation), rounds, tier)
    assert parse_folder(label.folder) == label


def test_ck9_a_missing_folder_holds_none(root: Path) -> None:
    assert list_checkpoints(root) == [] and newest_valid(root) is None and load_newest(root) is None


def test_ck7_a_folder_that_cannot_be_listed_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot list"):
        list_checkpoints(tmp_path / "file")


def test_ck9_damaged_ones_are_skipped_loudly(
    publish: Publish, root: Path, state: Captured, caplog: pytest.LogCaptureFixture
) -> None:
    """CK-9: bit rot, a lost shard and a lost manifest; the one before them is taken."""
    publish(step=1)
    good = publish(step=2)
    flip_a_bit(publish(step=3))
    (publish(step=4).path / "shard-00000.qins").unlink()
    (publish(step=5).path / "manifest.json").unlink()
    skipped: list[Entry] = []
    entry = newest_valid(root, on_skip=skipped.append)
    assert entry is not None and (entry.path, entry.valid) == (good.path, True)
    assert [(skip.step, skip.valid) for skip in skipped] == [(5, False), (4, False), (3, False)]
    reasons = [skip.reason for skip in skipped]
    assert all(word in reason for word, reason in zip(("missing", "missing", "checksum"), reasons, strict=True))
    assert [record.message.removeprefix("checkpoint skipped: ") for record in caplog.records] == reasons
    skipped.clear()
    found = load_newest(root, on_skip=skipped.append)
    assert found is not None and found[0].path == good.path and digest(found[1]) == digest(state)
    assert [skip.reason for skip in skipped] == reasons


def test_ck9_another_tier_is_not_taken(publish: Publish, root: Path) -> None:
    publish(step=1)
    assert newest_valid(root, tier="exact") is not None
    assert newest_valid(root, tier="qins") is None


def test_ck6_the_newest_are_kept(publish: Publish, root: Path) -> None:
    for step in range(1, 6):
        publish(step=step)
    deleted = prune(root, 2, lambda: True)
    assert [path.name for path in deleted] == [f"step-{step}-gen-1.2" for step in (3, 2, 1)]
    assert sorted(path.name for path in root.iterdir()) == ["step-4-gen-1.2", "step-5-gen-1.2"]


def test_ck6_nothing_goes_before_its_successor_is_verified(publish: Publish, root: Path) -> None:
    """CK-6: damaged ones do not count, and are not touched while they are newer than what is kept."""
    for step in (1, 2):
        publish(step=step)
    flip_a_bit(publish(step=3))
    assert prune(root, 2, lambda: True) == []
    assert names(root) == [f"step-{step}-gen-1.2" for step in (3, 2, 1)]
    publish(step=4)
    assert [path.name for path in prune(root, 2, lambda: True)] == ["step-1-gen-1.2"]
    assert names(root) == [f"step-{step}-gen-1.2" for step in (4, 3, 2)]


def test_ck6_the_only_exact_one_stays(publish: Publish, root: Path) -> None:
    """CK-6: whatever its age, until a newer exact one is verified."""
    for step in range(1, 7):
        publish(step=step, tier="exact" if step == 2 else "qins")
    assert [path.name for path in prune(root, 2, lambda: True)] == [f"step-{n}-gen-1.2-qins" for n in (4, 3, 1)]
    flip_a_bit(publish(step=7))
    publish(step=8, tier="qins")
    publish(step=9, tier="qins")
    prune(root, 2, lambda: True)
    assert names(root) == ["step-9-gen-1.2-qins", "step-8-gen-1.2-qins", "step-7-gen-1.2", "step-2-gen-1.2"]
    publish(step=10)
    prune(root, 2, lambda: True)
    assert names(root) == ["step-10-gen-1.2", "step-9-gen-1.2-qins"]


def test_ck9_of_a_lost_manifest_the_name_tells_the_tier(publish: Publish, root: Path) -> None:
    """A damaged one of the other tier is not what `--exact` asks for, and is not complained of."""
    publish(step=1)
    (publish(step=2, tier="qins").path / "manifest.json").unlink()
    skipped: list[Entry] = []
    entry = newest_valid(root, "exact", skipped.append)
    assert entry is not None and entry.step == 1 and skipped == []
    assert newest_valid(root, None, skipped.append) == entry and [each.tier for each in skipped] == ["qins"]


def test_ck6_a_stale_writer_deletes_nothing(publish: Publish, root: Path) -> None:
    for step in (1, 2, 3):
        publish(step=step)
    answers = iter([True, False])
    with pytest.raises(StaleWriter):
        prune(root, 1, lambda: next(answers))
    assert names(root) == ["step-3-gen-1.2", "step-1-gen-1.2"]


def test_ck6_a_deletion_cut_short_shows_no_partial(publish: Publish, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CK-6: it goes out of sight before its files go."""
    for step in (1, 2):
        publish(step=step)

    def fail(path: Path) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(places_module.shutil, "rmtree", fail)
    with pytest.raises(StorageError, match="cannot delete"):
        prune(root, 1, lambda: True)
    assert names(root) == ["step-2-gen-1.2"]


def test_ck6_keeping_none_is_refused(root: Path) -> None:
    with pytest.raises(ValueError, match="write 1 or more"):
        prune(root, 0, lambda: True)


def test_gm17_checkpoints_of_later_steps_are_put_aside_and_not_seen_again(publish: Publish, root: Path) -> None:
    for step in (10, 20, 30, 40):
        publish(step=step, generation=(1, 1))
    found = load_newest(root, at_most=25)
    assert found is not None and found[0].step == 20
    moved = set_aside(root, 25)
    assert len(moved) == 2 and all(path.is_dir() and path.parent == root for path in moved)  # nothing is deleted
    assert [entry.step for entry in list_checkpoints(root)] == [20, 10]
    assert set_aside(root, 25) == []
    publish(step=30, generation=(1, 2))  # computed again
    assert [entry.step for entry in list_checkpoints(root)] == [30, 20, 10]
    set_aside(root, 0)
    assert load_newest(root) is None and len(list(root.iterdir())) >= 5


def test_gm17_a_folder_that_refuses_is_said(publish: Publish, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(step=10, generation=(1, 1))

    def refuse(self: Path, target: Path) -> Path:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(StorageError, match="cannot"):
        set_aside(root, 5)
    assert load_newest(root, at_most=5) is None  # even so it is not taken
