"""CK-5, CK-7: a checkpoint is either wholly there or not at all."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from workers.checkpoint import (
    CheckpointError,
    Published,
    StaleWriter,
    StorageError,
    list_checkpoints,
    load,
    read_manifest,
    verify,
)
from workers.state import Captured, digest

Publish = Callable[..., Published]


def noise(num_bytes: int) -> Captured:
    """A state that does not compress."""
    return Captured({"noise": torch.randint(0, 256, (num_bytes,), dtype=torch.uint8)})


def test_ck5_what_is_saved_is_loaded(publish: Publish, state: Captured) -> None:
    """CK-5, CK-8: bytes, order and plain values, in a process that is no member."""
    published = publish(step=10, generation=(3, 4))
    assert published.path.name == "step-10-gen-3.4"
    assert sorted(path.name for path in published.path.iterdir()) == ["manifest.json", "shard-00000.qins"]
    assert published.bytes == sum(path.stat().st_size for path in published.path.iterdir())
    assert published.raw_bytes == sum(tensor.nbytes for tensor in state.tensors.values())
    back = load(published.path)
    assert digest(back) == digest(state)
    assert list(back.tensors) == list(state.tensors)
    assert back.meta == state.meta
    assert isinstance(back.meta["groups"][0]["betas"], tuple)
    verify(published.path)


def test_ck5_the_manifest_says_what_it_is(publish: Publish) -> None:
    manifest = read_manifest(publish(step=10, generation=(3, 4)).path)
    assert (manifest.job, manifest.step, manifest.generation, manifest.world) == ("mnist", 10, (3, 4), 4)
    assert manifest.lineage == "fffffffffffffffe" and manifest.lineage_number == 2**64 - 2
    assert (manifest.schema_version, manifest.tier) == (1, "exact")


def test_ck4_several_shards_are_merged(publish: Publish, state: Captured) -> None:
    """CK-4: the layout holds any number of shards."""
    path = publish(shard_bytes=5000).path
    assert len(read_manifest(path).shards) > 2
    back = load(path)
    assert digest(back) == digest(state) and list(back.tensors) == list(state.tensors)


def test_ck5_a_state_without_tensors_is_one_too(publish: Publish) -> None:
    assert load(publish(state=Captured({}, {"step": 1})).path) == Captured({}, {"step": 1})


def test_ck5_a_stale_generation_cannot_publish(publish: Publish, tmp_path: Path) -> None:
    """CK-5: the fence is asked when all is written, and its answer is final."""
    seen: list[list[str]] = []

    def fence() -> bool:
        [hidden] = (tmp_path / "checkpoints").iterdir()
        seen.append(sorted(path.name for path in hidden.iterdir()))
        return False

    with pytest.raises(StaleWriter, match="generation is over"):
        publish(fence=fence)
    assert seen == [["manifest.json", "shard-00000.qins"]]
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_ck5_what_is_published_already_stays(publish: Publish, state: Captured) -> None:
    first = publish()
    again = publish(state=noise(10))
    assert first.new and not again.new
    assert (again.path, again.bytes, again.raw_bytes) == (first.path, first.bytes, first.raw_bytes)
    assert digest(load(first.path)) == digest(state)


def test_ck5_two_writers_of_one_step_leave_one(publish: Publish, state: Captured, tmp_path: Path) -> None:
    """CK-5: the other one published between our check and our rename."""

    def fence() -> bool:
        publish()
        return True

    assert not publish(state=noise(10), fence=fence).new
    [entry] = (tmp_path / "checkpoints").iterdir()
    assert digest(load(entry)) == digest(state)


def test_ck5_readers_do_not_see_what_is_being_written(publish: Publish, tmp_path: Path) -> None:
    counts: list[int] = []

    def fence() -> bool:
        counts.append(len(list_checkpoints(tmp_path / "checkpoints")))
        return True

    publish(fence=fence)
    assert counts == [0]


def test_ck5_leftovers_of_dead_writers_are_swept_after_an_hour(publish: Publish, tmp_path: Path) -> None:
    old, fresh = (tmp_path / "checkpoints" / f".tmp-step-1-gen-1.1-{name}" for name in ("old", "fresh"))
    for folder in (old, fresh):
        folder.mkdir(parents=True)
        (folder / "shard-00000.qins").write_bytes(b"half")
    for path in (old / "shard-00000.qins", old):
        os.utime(path, (1e9, 1e9))
    publish()
    assert not old.exists() and fresh.exists()


def test_ck5_files_are_as_readable_as_any_other(publish: Publish) -> None:
    """The container library would make them private."""
    modes = {path.stat().st_mode for path in publish().path.iterdir()}
    assert len(modes) == 1


@pytest.mark.parametrize(
    "bad", [Captured({"c": torch.zeros(1, dtype=torch.complex64)}), Captured({}, {"lambda": object()})]
)
def test_ck7_a_state_that_cannot_be_held_leaves_nothing(publish: Publish, tmp_path: Path, bad: Captured) -> None:
    with pytest.raises(CheckpointError, match=r"cannot be saved: .*(complex64|object)"):
        publish(state=bad)
    assert list((tmp_path / "checkpoints").iterdir()) == []


def assert_refused_whole(publish: Publish, root: Path, words: str) -> None:
    """A big state is refused in a sentence; the small one that was there stays whole, and alone."""
    before = publish(step=1, root=root)
    with pytest.raises(StorageError, match=words) as refusal:
        publish(step=2, root=root, state=noise(4 << 20))
    assert "\n" not in str(refusal.value) and isinstance(refusal.value.__cause__, OSError)
    assert list(root.iterdir()) == [before.path]
    verify(before.path)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.root
def test_ck7_a_full_disk_leaves_no_partial(publish: Publish, small_disk: Path) -> None:
    assert_refused_whole(publish, small_disk / "checkpoints", "cannot write .*step-2.*disk is full")


def test_ck7_a_file_size_limit_leaves_no_partial(publish: Publish, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        assert_refused_whole(publish, tmp_path / "checkpoints", "cannot write .*step-2.*ulimit -f")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_ck7_denied_access_is_a_sentence(publish: Publish, tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        with pytest.raises(StorageError, match="access is denied"):
            publish(root=locked / "checkpoints")
    finally:
        os.seteuid(user)
        locked.chmod(0o700)
    assert list(locked.iterdir()) == []


def test_ck7_a_file_in_the_way_is_a_sentence(publish: Publish, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="part of that path is a file"):
        publish(root=tmp_path / "file" / "checkpoints")


def test_ck7_a_lost_sync_leaves_no_partial(publish: Publish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CK-7: the disk fails when the data is flushed."""

    def fail(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match="input/output error"):
        publish()
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_ck5_an_unknown_tier_is_a_bug_of_the_caller(publish: Publish) -> None:
    with pytest.raises(ValueError, match="write one of exact"):
        publish(tier="zip")
