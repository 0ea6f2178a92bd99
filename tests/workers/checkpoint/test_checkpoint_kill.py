"""CK-5, section 4: kill -9 at any moment of a write leaves the previous checkpoint or the new one, always whole; and one of
a reader leaves all as it was."""

from __future__ import annotations

import importlib.util
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import workers.checkpoint
from tests.object_store import BUCKET, CREDENTIALS, object_store
from workers.checkpoint import list_checkpoints, load, newest_valid, prune, save
from workers.checkpoint.catalog import check
from workers.checkpoint.places import MANIFEST, Where
from workers.checkpoint.remote import Remote
from workers.state import digest

SCRIPT = Path(__file__).with_name("writer_process.py")


def script_module() -> object:
    spec = importlib.util.spec_from_file_location("writer_process", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("kills", [20, pytest.param(200, marks=pytest.mark.long)])
def test_ck5_kill_9_at_random_moments_of_a_write(kills: int, tmp_path: Path) -> None:
    """CK-5: what was reported as published stays; nothing half-written is ever visible."""
    kill_writers(tmp_path / "checkpoints", kills, {}, 0.08)


@pytest.fixture
def stored(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Remote, dict[str, str]]]:
    """A place in a store, and the environment in which it is found."""
    with object_store() as store:
        store.weather.lag = MANIFEST, 0.4  # so that many a kill comes between the shards and it
        environment = {**CREDENTIALS, "AWS_ENDPOINT_URL_S3": store.endpoint}
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        yield Remote(f"s3://{BUCKET}/kill"), environment


@pytest.mark.parametrize("kills", [8, pytest.param(200, marks=[pytest.mark.long, pytest.mark.timeout(1800)])])
def test_ck5_kill_9_at_random_moments_of_a_write_to_a_store(kills: int, stored: tuple[Remote, dict[str, str]]) -> None:
    """CK-5: the same where nothing can be renamed."""
    root, environment = stored
    kill_writers(root, kills, environment, 1.0)


@pytest.mark.parametrize("kills", [10, pytest.param(50, marks=pytest.mark.long)])
def test_ck5_kill_9_at_random_moments_of_a_restore(kills: int, tmp_path: Path) -> None:
    """Section 4: nothing there is touched by who reads it."""
    root, chance, writing = tmp_path / "checkpoints", random.Random(kills), script_module()
    state = writing.state_of(1)  # type: ignore[attr-defined]
    path = save(state, root, job="kill", step=1, generation=(1, 1), lineage=1, world=1, fence=lambda: True).path
    before = {file: file.read_bytes() for file in path.iterdir()}
    with script(root, {}, "read") as process:
        assert process.stdin is not None and process.stdout is not None
        for _ in range(kills):
            print(chance.uniform(0.001, 0.05), file=process.stdin, flush=True)
            assert process.stdout.readline().split() == ["ended"]
            assert {file: file.read_bytes() for file in path.iterdir()} == before and list(root.iterdir()) == [path]
        process.stdin.close()
    assert digest(load(path)) == digest(state)


def script(root: Where, environment: dict[str, str], *words: str) -> subprocess.Popen[str]:
    """writer_process.py, at work on what is in `root`."""
    repository = Path(workers.checkpoint.__file__).parents[2]
    path = os.pathsep.join([str(repository), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), str(root), *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment, "PYTHONPATH": path},
    )


def kill_writers(root: Where, kills: int, environment: dict[str, str], longest: float) -> None:
    """A writer after the other publishes one step after the other, and is killed within `longest` seconds."""
    chance, writing = random.Random(kills), script_module()
    save(writing.state_of(1), root, job="kill", step=1, generation=(1, 1), lineage=1, world=1, fence=lambda: True)  # type: ignore[attr-defined]
    published, cut_short = 1, 0
    with script(root, environment) as process:
        assert process.stdin is not None and process.stdout is not None
        for _ in range(kills):
            print(chance.uniform(0.001, longest), file=process.stdin, flush=True)
            while (line := process.stdout.readline().split()) != ["ended"]:
                published = int(line[1])
            cut_short += len(unfinished(root))
            entries = [check(entry) for entry in list_checkpoints(root)]
            assert [entry.reason for entry in entries if not entry.valid] == []
            newest = newest_valid(root)
            assert newest is not None and newest.step in (published, published + 1)
            assert digest(load(newest.path)) == digest(writing.state_of(newest.step))  # type: ignore[attr-defined]
            published = newest.step
            prune(root, 1, lambda: True)
            make_stale(root)
        process.stdin.close()
    assert cut_short > 0, "no kill hit a write"


def unfinished(root: Where) -> set[str]:
    """The folders that killed writers have left."""
    if isinstance(root, Path):
        return {entry.name for entry in root.iterdir() if entry.name.startswith(".tmp-")}
    found = root.objects()
    return {name.split("/")[0] for name in found} - {name.split("/")[0] for name in found if name.endswith(MANIFEST)}


def make_stale(root: Where) -> None:
    """Age what killed writers left, so that the next writer sweeps it; in a store, whose clock is its own, remove it."""
    if isinstance(root, Remote):
        left = unfinished(root)
        root.remove([name for name in root.objects() if name.split("/")[0] in left])
        return
    for hidden in root.glob(".tmp-*"):
        for path in (*hidden.iterdir(), hidden):
            os.utime(path, (1e9, 1e9))
