"""CK-4, CK-5: a checkpoint that several ranks write, each its share; the ranks are threads here."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.object_store import BUCKET, ObjectStore
from workers.checkpoint import CheckpointError, Published, Remote, StaleWriter, joint, list_checkpoints, load, read_manifest
from workers.checkpoint.chain import Chain
from workers.checkpoint.joint import HandedIn, Joint, Share
from workers.checkpoint.places import Where, names
from workers.checkpoint.shares import divide
from workers.checkpoint.writer import hand_in, save
from workers.state import Captured, digest

NUMBERS = count()
Outcome = Published[Any] | HandedIn | CheckpointError


@pytest.fixture(params=["folder", "store"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Where:
    if request.param == "folder":
        return tmp_path / "checkpoints"
    store: ObjectStore = request.getfixturevalue("store")
    return Remote(f"s3://{BUCKET}/joint/job-{next(NUMBERS)}", store.options)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(joint, "PAUSE", 0.005)
    monkeypatch.setattr(joint, "PAUSE_IN_STORE", 0.02)
    yield


def parts(state: Captured, writers: int, is_current: Callable[[], bool] = lambda: True) -> list[tuple[Captured, Joint]]:
    """What each rank has: its own tensors, and of the others only what they are."""
    shares = divide({name: tensor.nbytes for name, tensor in state.tensors.items()}, writers)
    return [
        (
            Captured(
                {name: t if name in mine else torch.empty_like(t, device="meta") for name, t in state.tensors.items()},
                state.meta,
            ),
            Joint(writer, shares, is_current),
        )
        for writer, mine in enumerate(shares)
    ]


def write(root: Where, mine: Captured, part: Joint, chain: Chain | None = None, step: int = 10, **rest: Any) -> Outcome:
    """One rank's part; an error is returned."""
    common = {"step": step, "generation": (1, 2), "chain": chain, "whole_every": 8, **rest}
    try:
        if part.leads:
            leader = {"job": "mnist", "lineage": 5, "world": 4, "fence": lambda: True}
            return save(mine, root, joint=part, **{**leader, **common})
        common.pop("fence", None)
        return hand_in(mine, root, part, **common)
    except CheckpointError as error:
        return error


def write_all(
    root: Where, given: Sequence[tuple[Captured, Joint]], chains: Sequence[Chain | None] = (), **rest: Any
) -> list[Outcome]:
    """All parts at the same time."""
    with ThreadPoolExecutor(len(given)) as pool:
        every = [*chains, *[None] * len(given)]
        started = [pool.submit(partial(write, root, *part, chain, **rest)) for part, chain in zip(given, every)]  # noqa: B905
        return [each.result(60) for each in started]


def left(root: Where) -> list[str]:
    """Files that belong to no checkpoint that is there."""
    if isinstance(root, Remote):
        visible = {entry.path.name for entry in list_checkpoints(root)}
        return [name for name in root.objects() if name.split("/")[0] not in visible or "share-" in name or "plan" in name]
    hidden = [path.name for path in root.iterdir() if path.name.startswith(".tmp-")] if root.exists() else []
    return hidden + [path.name for path in root.glob("*/*.json") if path.name != "manifest.json"]


@pytest.mark.parametrize("tier", ["exact", "qins"])
@pytest.mark.parametrize("writers", [2, 5, 12])
def test_ck4_what_several_write_is_what_one_writes(
    publish: Callable[..., Published], state: Captured, root: Where, tmp_path: Path, writers: int, tier: str
) -> None:
    """Also with more writers than tensors. CK-5: nothing else is left there."""
    published, *others = write_all(root, parts(state, writers), tier=tier)
    assert isinstance(published, Published) and published.new and len(others) == writers - 1
    assert all(isinstance(other, HandedIn) and other.path == published.path for other in others)
    alone = publish(tier=tier, root=tmp_path / "alone")
    assert alone.new
    together = load(published.path)
    assert digest(together) == digest(load(alone.path)) and together.meta == state.meta
    manifest = read_manifest(published.path)
    assert len(manifest.shards) == writers and manifest.raw_bytes == alone.raw_bytes
    assert manifest.refused == read_manifest(alone.path).refused
    assert published.bytes > sum(each.bytes for each in others if isinstance(each, HandedIn)) and left(root) == []


def test_ck4_nobody_sees_it_before_all_shares_are_there(state: Captured, root: Where) -> None:
    given = parts(state, 3)
    given_up = given[0][1]._given_up
    looked, pause = threading.Semaphore(0), given_up.wait
    given_up.wait = lambda timeout=None: looked.release() or pause(timeout)  # type: ignore[func-returns-value,method-assign]
    with ThreadPoolExecutor(3) as pool:
        first = [pool.submit(write, root, *part) for part in given[:2]]
        first[1].result(60)
        while looked.acquire(blocking=False):  # those of before
            pass
        assert all(looked.acquire(timeout=60) for _ in range(5))
        assert not first[0].done() and list_checkpoints(root) == [] and names(root) in ([], [".tmp-step-10-gen-1.2.joint"])
        pool.submit(write, root, *given[2]).result(60)
        assert isinstance(first[0].result(60), Published)
    assert [entry.step for entry in list_checkpoints(root)] == [10]


def test_ck2_differences_that_several_write(root: Where, tmp_path: Path) -> None:
    """Each keeps the codes of its share; one that has none writes its share whole, and it is a difference all the same."""
    torch.manual_seed(1)
    values = {f"parameter.{index}": torch.randn(700 + index) for index in range(9)}

    def state(step: int) -> Captured:
        return Captured({name: value + 1e-3 * step for name, value in values.items()}, {})

    chains, alone = [Chain() for _ in range(3)], Chain()
    for step in range(1, 6):
        if step == 4:
            chains[2] = Chain()
        published, *others = write_all(root, parts(state(step), 3), chains, step=step, tier="qins")
        assert isinstance(published, Published) and all(isinstance(other, HandedIn) for other in others), others
        assert (published.base is None) == (step == 1)
        one = write(tmp_path / "alone", state(step), Joint(0, [list(values)], lambda: True), alone, step=step, tier="qins")
        assert isinstance(one, Published)
        decoded, wanted = load(published.path).tensors, state(step).tensors
        assert all(torch.allclose(decoded[name], wanted[name], atol=0.02) for name in values)
        if step != 4 and step != 5:
            assert digest(load(published.path)) == digest(load(one.path))
    assert isinstance(published, Published)
    codecs = [_codecs(published.path, writer) for writer in range(3)]
    assert codecs == [{"int8.128.delta/1"}] * 3


def _codecs(path: Where, writer: int) -> set[str]:
    from workers.checkpoint.contents import contents

    manifest, found = contents(path)
    mine = manifest.shards[writer].tensors
    return {each.codec for each in found if each.name in mine}


def test_ck2_who_followed_begins_anew_when_it_leads(root: Where, state: Captured) -> None:
    """It has the codes of another share."""
    chains = [Chain() for _ in range(2)]
    for step, order in ((1, (0, 1)), (2, (0, 1)), (3, (1, 0)), (4, (1, 0)), (5, (0, 1))):
        given = [chains[index] for index in order]
        published, other = write_all(root, parts(state, 2), given, step=step, tier="qins")
        assert isinstance(published, Published) and isinstance(other, HandedIn)
        assert (published.base is None) == (step in (1, 3, 5)) and load(published.path).meta == state.meta


def test_ck7_a_share_that_cannot_be_written_is_told(state: Captured, root: Where) -> None:
    """Nothing becomes visible, nothing is left."""
    given = parts(state, 3)
    broken = given[2][1].mine[0]
    given[2][0].tensors[broken] = torch.empty_like(state.tensors[broken], device="meta")
    outcomes = write_all(root, given)
    assert isinstance(outcomes[1], HandedIn | StaleWriter)
    assert "without storage" in str(outcomes[2]) and not isinstance(outcomes[2], StaleWriter)
    assert "without storage" in str(outcomes[0]) and "was not published" in str(outcomes[0])
    assert list_checkpoints(root) == [] and left(root) == []


def test_ck5_a_generation_that_ends_meanwhile_ends_it(state: Captured, root: Where) -> None:
    is_over = threading.Event()
    given = parts(state, 3, lambda: not is_over.is_set())
    with ThreadPoolExecutor(2) as pool:
        leader, other = (pool.submit(write, root, *part) for part in given[:2])
        assert isinstance(other.result(60), HandedIn)
        is_over.set()
        outcome = leader.result(60)
    assert isinstance(outcome, StaleWriter) and "its generation is over" in str(outcome)
    assert isinstance(write(root, *given[2]), StaleWriter)
    assert list_checkpoints(root) == [] and left(root) == []


def test_ck7_who_waits_is_told_that_it_is_in_vain(state: Captured, root: Where) -> None:
    """By the steps of the ranks; then nobody comes any more."""
    given = parts(state, 2)
    threading.Timer(0.2, given[0][1].give_up).start()
    outcome = write(root, *given[0])
    assert not isinstance(outcome, StaleWriter) and "a rank could not write its part" in str(outcome)
    given[1][1].give_up()
    assert isinstance(write(root, *given[1]), StaleWriter)
    assert list_checkpoints(root) == [] and left(root) == []


def test_ck7_nobody_waits_for_ever(state: Captured, root: Where, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joint, "LONGEST_WAIT", 0.2)
    leader, other = parts(state, 2)
    assert "the share of writer 1 has not come within 0.2 seconds" in str(write(root, *leader))
    assert isinstance(write(root, *other), StaleWriter)
    assert left(root) == []


def test_ck4_a_rank_with_another_model_is_refused(state: Captured, root: Where) -> None:
    other = Captured({**state.tensors, "parameter.more": torch.zeros(3)}, state.meta)
    outcomes = write_all(root, [parts(state, 2)[0], parts(other, 2)[1]])
    assert "another model, or another division" in str(outcomes[1]) and "another model" in str(outcomes[0])
    assert list_checkpoints(root) == [] and left(root) == []


@pytest.mark.parametrize(
    ("share", "words"),
    [
        (b"{", "is damaged"),
        (b'{"shards": [], "more": 1}', "is damaged"),
        (Share(shards=[]).model_dump_json().encode(), "it lists other tensors than its writer's"),
    ],
)
def test_ck10_a_share_that_is_not_what_it_has_to_be_is_damage(
    state: Captured, root: Where, share: bytes, words: str
) -> None:
    leader, other = parts(state, 2)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(write, root, *leader)
        draft = other[1].open(root / "step-10-gen-1.2")
        other[1].plan(draft, root / "step-10-gen-1.2", joint_signature(state))
        draft.put("share-00001.json", share)
        draft.close()
        assert words in str(waiting.result(60)) and "share-00001.json" in str(waiting.result(60))
    assert list_checkpoints(root) == [] and left(root) == []


def joint_signature(state: Captured) -> str:
    from workers.checkpoint.manifest import signature

    return signature(state.tensors)


def test_ck10_a_file_that_is_shorter_than_its_share_says_is_damage(tmp_path: Path, state: Captured) -> None:
    root = tmp_path / "checkpoints"
    leader, other = parts(state, 2)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(write, root, *leader)
        hidden = root / ".tmp-step-10-gen-1.2.joint"
        target = root / "step-10-gen-1.2"
        draft = other[1].open(target)
        other[1].plan(draft, target, joint_signature(state))
        (hidden / "shard-00000-00000000.qins").write_bytes(b"short")
        entry = {
            "name": "shard-00000-00000000.qins",
            "bytes": 6,
            "checksum": 32 * "0",
            "tensors": list(other[1].mine),
        }
        draft.put("share-00001.json", Share.model_validate({"shards": [entry]}).model_dump_json().encode())
        assert "it has 5 bytes instead of 6" in str(waiting.result(60))
