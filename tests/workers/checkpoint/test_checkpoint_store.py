"""CK-5, CK-7 in an object store: a real S3 API server, and a way to it that loses, delays and refuses."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

import fsspec
import pytest
import torch

from tests.object_store import BUCKET, ObjectStore
from workers.checkpoint import (
    BackgroundWriter,
    CheckpointError,
    Published,
    StaleWriter,
    StorageError,
    list_checkpoints,
    load,
    load_newest,
    places,
    prune,
    put_first,
    save,
    set_aside,
    verify,
)
from workers.checkpoint.background import Outcome
from workers.checkpoint.chain import Chain
from workers.checkpoint.contents import contents
from workers.checkpoint.interchange import to_safetensors
from workers.checkpoint.places import MANIFEST, Where, place
from workers.checkpoint.remote import Remote
from workers.state import Captured, digest

Publish = Callable[..., Published[Remote]]

NUMBERS = count()


@pytest.fixture
def root(store: ObjectStore) -> Remote:
    """An empty place."""
    return Remote(f"s3://{BUCKET}/runs/job-{next(NUMBERS)}", store.options)


@pytest.fixture
def publish_there(publish: Publish, root: Remote) -> Publish:
    def run(step: int = 10, **rest: object) -> Published[Remote]:
        return publish(step=step, root=root, **rest)

    return run


def test_ck5_a_state_goes_to_a_store_and_back(publish_there: Publish, state: Captured, root: Remote) -> None:
    """CK-5, CK-8: bytes, order, plain values; in several shards."""
    published = publish_there(shard_bytes=5000)
    assert str(published.path) == f"{root}/step-10-gen-1.2"
    objects = published.path.objects()
    assert len(objects) > 3 and MANIFEST in objects
    [entry] = list_checkpoints(root)
    assert entry.path == published.path and entry.valid is None
    back = load(published.path)
    assert digest(back) == digest(state) and list(back.tensors) == list(state.tensors) and back.meta == state.meta
    assert verify(published.path).step == 10
    assert published.bytes == sum(Remote(f"{published.path}/{name}", root.options).size() for name in objects)


def test_ck2_differences_in_a_store(root: Remote) -> None:
    chain, values = Chain(), torch.randn(5000)

    def kept(step: int) -> Published:
        captured = Captured({"parameter.weight": values + 1e-3 * step}, {})
        arguments = {"job": "chain", "generation": (1, 1), "lineage": step, "world": 1, "fence": lambda: True}
        return save(captured, root, step=step, tier="qins", chain=chain, whole_every=8, **arguments)  # type: ignore[arg-type]

    first, second = kept(1), kept(2)
    assert second.base == first.path.name
    assert torch.allclose(load(second.path).tensors["parameter.weight"], values + 2e-3, atol=0.05)
    manifest, found = contents(second.path)
    assert manifest.base is not None and [each.name for each in found] == ["parameter.weight"]
    prune(root, 1, lambda: True)
    assert [entry.step for entry in list_checkpoints(root)] == [2, 1]


def test_ck5_nobody_sees_what_is_being_written(publish_there: Publish, root: Remote) -> None:
    seen: list[tuple[int, int]] = []

    def fence() -> bool:
        seen.append((len(list_checkpoints(root)), len(root.objects())))
        return True

    publish_there(fence=fence, shard_bytes=5000)
    (visible, objects), after = seen  # asked once more after it was shown
    assert visible == 0 and objects > 2 and after == (1, objects + 1)


def test_ck5_a_stale_generation_cannot_publish_and_leaves_nothing(publish_there: Publish, root: Remote) -> None:
    with pytest.raises(StaleWriter, match="generation is over"):
        publish_there(fence=lambda: False)
    assert root.objects() == {}


def test_ck5_two_writers_of_one_step_leave_one(publish_there: Publish, state: Captured, root: Remote) -> None:
    """The other one published between our look and our manifest; the loser takes its objects away."""
    winners: list[Published[Remote]] = []

    def fence() -> bool:
        winners.append(publish_there())
        return True

    loser = publish_there(state=Captured({"noise": torch.rand(1000)}), fence=fence)
    assert winners[0].new and not loser.new and loser.path == winners[0].path
    assert digest(load(loser.path)) == digest(state)
    assert len(root.objects()) == 2


def test_ck5_a_generation_that_ends_while_its_manifest_is_on_the_way(publish_there: Publish, root: Remote) -> None:
    answers = iter([True, False])
    with pytest.raises(StaleWriter, match="was taken back"):
        publish_there(fence=lambda: next(answers))
    assert list_checkpoints(root) == []


def test_ck5_what_is_published_already_stays(publish_there: Publish, state: Captured) -> None:
    first, again = publish_there(), publish_there(state=Captured({"other": torch.zeros(3)}))
    assert (first.new, again.new) == (True, False) and again.bytes == first.bytes
    assert digest(load(first.path)) == digest(state)


def test_ck5_an_answer_to_the_manifest_that_is_lost(publish_there: Publish, store: ObjectStore, state: Captured) -> None:
    """It is put again, and found to be there: it is ours."""
    store.weather.faults.extend([("PUT", ""), ("PUT", "mute")])  # the shard, the manifest
    published = publish_there()
    assert store.weather.met[-1] == ("PUT", "mute")
    assert published.new and digest(load(published.path)) == digest(state)


FAULTS = ["refuse:500", "refuse:503", "cut", "mute", "slow"]


@pytest.mark.parametrize("fault", FAULTS)
def test_ck7_a_store_that_stumbles_while_it_is_written(
    fault: str, publish_there: Publish, store: ObjectStore, state: Captured
) -> None:
    """CK-7: asked again, it has all of it."""
    store.weather.faults.append(("PUT", fault))
    published = publish_there(shard_bytes=5000)
    assert store.weather.met == [("PUT", fault)]
    assert digest(load(published.path)) == digest(state)


@pytest.mark.parametrize("fault", [*FAULTS, "half"])
def test_ck7_a_store_that_stumbles_while_it_is_read(
    fault: str, publish_there: Publish, store: ObjectStore, state: Captured
) -> None:
    published = publish_there(shard_bytes=5000)
    store.weather.faults.extend([("GET", ""), ("GET", fault)])  # the manifest, a shard
    assert digest(load(published.path)) == digest(state)
    assert store.weather.met == [("GET", ""), ("GET", fault)]


def test_ck7_a_store_that_refuses_is_a_sentence(publish_there: Publish, store: ObjectStore, root: Remote) -> None:
    store.weather.faults.extend([("PUT", "refuse:403")] * 20)
    with pytest.raises(StorageError, match=r"^cannot write s3://.*step-10.*: the store answers: .*credentials") as refusal:
        publish_there()
    assert "\n" not in str(refusal.value)
    store.weather.faults.clear()
    assert root.objects() == {}


def test_ck7_a_bucket_that_is_not_there(publish: Publish, store: ObjectStore) -> None:
    with pytest.raises(StorageError, match=r"cannot write s3://nowhere/"):
        publish(root=Remote("s3://nowhere/job", store.options))


def test_ck7_a_store_that_nobody_reaches(publish_there: Publish, store: ObjectStore) -> None:
    store.weather.is_out = True
    with pytest.raises(StorageError, match="the store answers: ") as refusal:
        publish_there()
    assert "\n" not in str(refusal.value)


def test_ck7_training_goes_on_and_the_writer_tries_again(root: Remote, state: Captured, store: ObjectStore) -> None:
    """CK-7: outcomes are told one by one; the last one is published once the store is back."""
    failed, done = threading.Event(), threading.Event()
    outcomes: list[Outcome] = []

    def on_done(outcome: Outcome) -> None:
        outcomes.append(outcome)
        (done if isinstance(outcome, Published) else failed).set()

    writer = BackgroundWriter(root, job="job", on_done=on_done, keep=2, first_retry_seconds=0.1)
    store.weather.is_out = True
    writer.submit(state, step=1, generation=(1, 1), lineage=1, world=1, fence=lambda: True)
    assert failed.wait(60)
    assert isinstance(outcomes[0], StorageError)
    store.weather.is_out = False
    assert done.wait(60) and writer.close(60)
    assert [entry.step for entry in list_checkpoints(root)] == [1]
    assert digest(load(list_checkpoints(root)[0].path)) == digest(state)


def test_ck9_an_answer_that_is_missing_is_no_damage(publish_there: Publish, root: Remote, store: ObjectStore) -> None:
    """An older one is not taken for it."""
    publish_there(step=1)
    publish_there(step=2)
    for fault in ("refuse:403", "cut"):
        store.weather.faults.extend([("GET", "")] * 4 + [("GET", fault)] * 40)
        with pytest.raises(StorageError, match="the store answers"):
            load_newest(root)
        store.weather.faults.clear()
    found = load_newest(root)
    assert found is not None and found[0].step == 2


def test_ck6_a_checkpoint_is_fetched_once_to_be_verified(root: Remote, state: Captured, store: ObjectStore) -> None:
    outcomes: list[object] = []
    writer = BackgroundWriter(root, job="job", on_done=outcomes.append, keep=2)
    for step in (1, 2, 3, 4):
        writer.submit(state, step=step, generation=(1, 1), lineage=1, world=1, fence=lambda: True)
        assert writer.wait(60)
    assert writer.close(60) and all(isinstance(each, Published) for each in outcomes)
    fetched = [path for method, path in store.weather.requests if method == "GET" and "shard" in path]
    assert len(fetched) == len(set(fetched)) == 4 and [entry.step for entry in list_checkpoints(root)] == [4, 3]


@pytest.mark.long
def test_ck5_shards_of_several_parts(root: Remote) -> None:
    """Uploaded and fetched in parts, with one that breaks."""
    noise = Captured({"noise": torch.randint(0, 256, (240 << 20,), dtype=torch.uint8)})
    path = save(noise, root, job="job", step=1, generation=(1, 1), lineage=1, world=1, fence=lambda: True).path
    assert digest(load(path)) == digest(noise)


def test_ck6_old_ones_are_deleted_and_bad_ones_put_aside(publish_there: Publish, root: Remote) -> None:
    for step in (1, 2, 3, 4):
        publish_there(step=step)
    assert [path.name for path in prune(root, 3, lambda: True)] == ["step-1-gen-1.2"]
    assert {name.split("/")[0] for name in root.objects()} == {f"step-{step}-gen-1.2" for step in (2, 3, 4)}
    [away] = set_aside(root, after=3)
    assert away.name.startswith("rolled-back-") and [entry.step for entry in list_checkpoints(root)] == [3, 2]
    [away] = put_first(root / "step-2-gen-1.2")
    assert [entry.step for entry in list_checkpoints(root)] == [2]
    assert len([name for name in root.objects() if "shard" in name]) == 3  # what was put aside is still there


def test_ck9_a_damaged_object_is_named_and_passed_over(publish_there: Publish, root: Remote, state: Captured) -> None:
    publish_there(step=1)
    newest = publish_there(step=2).path
    [shard] = [newest / name for name in newest.objects() if "shard" in name]
    content = bytearray(shard.read())
    content[len(content) // 2] ^= 1
    fs, path = fsspec.url_to_fs(str(shard), **root.options)
    fs.pipe_file(path, bytes(content))
    with pytest.raises(CheckpointError, match=rf"^{shard} is damaged: its bytes do not match"):
        load(newest)
    found = load_newest(root)
    assert found is not None and found[0].step == 1 and digest(found[1]) == digest(state)


def test_ck5_unfinished_ones_are_swept_by_the_clock_of_the_store(publish: Publish) -> None:
    """A store in memory, whose times can be set."""
    root = Remote(f"memory://job-{next(NUMBERS)}")
    fs, path = fsspec.url_to_fs(str(root))
    for folder in ("step-1-gen-1.1", "step-2-gen-1.1", "step-3-gen-1.1"):
        fs.pipe_file(f"{path}/{folder}/shard-00000-00000000.qins", b"half")
    fs.pipe_file(f"{path}/step-2-gen-1.1/rolled-back-00000000.json", b"{}")
    long_ago = datetime.now(UTC) - timedelta(hours=2)
    for folder in ("step-1-gen-1.1", "step-2-gen-1.1"):
        for each in fs.find(f"{path}/{folder}"):
            fs.store[each].created = long_ago
    publish(root=root)
    assert {name.split("/")[0] for name in root.objects()} == {"step-2-gen-1.1", "step-3-gen-1.1", "step-10-gen-1.2"}


def test_ck11_a_checkpoint_in_a_store_becomes_safetensors(publish_there: Publish, tmp_path: Path) -> None:
    published = publish_there()
    assert to_safetensors(published.path, tmp_path / "weights.safetensors") > 0


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("nosuch://bucket/x", "nosuch"),
        ("gs://bucket/x", "driver that is not installed; .*gcsfs"),
        ("s3://", "cannot|store"),
    ],
)
def test_a_place_that_cannot_be_reached_is_a_sentence(url: str, words: str, publish: Publish) -> None:
    with pytest.raises(CheckpointError, match=words) as refusal:
        publish(root=place(url))
    assert "\n" not in str(refusal.value)


def test_a_driver_that_is_missing_is_named(project: Path) -> None:
    code = (
        "import sys; sys.modules['s3fs'] = None\n"
        "from workers.checkpoint.remote import Remote\n"
        "try: Remote('s3://bucket/x').size()\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=project, capture_output=True, text=True, check=True)
    assert run.stdout.startswith("CheckpointError s3://bucket/x needs a driver") and "quantarion[s3]" in run.stdout


def test_a_url_is_a_place_in_a_store_and_a_path_is_none() -> None:
    there: Where = place("s3://bucket/a/b/")
    assert isinstance(there, Remote) and (there.name, str(there.parent), str(there)) == (
        "b",
        "s3://bucket/a",
        "s3://bucket/a/b",
    )
    assert there.with_name("c") == there.parent / "c"
    assert place("runs/job") == Path("runs/job")
    assert Remote("s3://bucket/a/") == Remote("s3://bucket/a")


def test_a_full_disk_of_this_machine_is_not_blamed_on_the_store(
    publish_there: Publish, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = publish_there().path
    (tmp_path / "file").touch()
    monkeypatch.setattr(places, "gettempdir", lambda: str(tmp_path / "file"))
    with pytest.raises(StorageError, match=rf"^cannot write {tmp_path / 'file'}: part of that path is a file"):
        load(path)
