"""One changed input before all readers, and what they may do with it."""

from __future__ import annotations

import shutil
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from benchmarks.fuzz.changes import BLIND, CANNOT_CHANGE, CHECKPOINT_CHANGES, CONTAINER_CHANGES, MODEL_CHANGES, Random
from benchmarks.fuzz.corpus import checkpoints_in, shards
from workers.checkpoint import CheckpointError, list_checkpoints, load, verify
from workers.checkpoint.contents import contents
from workers.qins.container import inspect, read_container
from workers.qins.files import QINSModelLoader
from workers.state import Captured, digest

LIMIT = 256 << 20
"""Bytes of a state that readers are told to take at most."""


class TooSlow(BaseException):
    """Raised in the reader by a timer; nothing there may catch it."""


@dataclass
class Tally:
    """What the readers have said."""

    kinds: Counter[str] = field(default_factory=Counter)
    read: int = 0
    refused: int = 0
    sentences: set[str] = field(default_factory=set)
    findings: list[str] = field(default_factory=list)
    slowest: float = 0.0

    @property
    def inputs(self) -> int:
        """How many there were."""
        return sum(self.kinds.values())


def read(folder: Path) -> str | None:
    """All that reads such a folder: the digest of what is there, or None where it is refused. Raises what a reader raises,
    and AssertionError where readers do not agree."""
    files, found = shards(folder), checkpoints_in(folder)
    if not found and not files:
        model, _ = QINSModelLoader("none").load(folder)
        return digest(Captured(dict(model.state_dict())))
    if not found:
        inspect(files[0])
        return digest(Captured(read_container(files[0], limit=LIMIT)))
    newest = found[-1]
    list_checkpoints(folder)
    readers: tuple[Callable[[Path], object], ...] = (
        lambda path: load(path, limit=LIMIT),
        lambda path: verify(path, limit=LIMIT),
        lambda path: list(contents(path)[1]),
    )
    states: list[object] = []
    for reader in readers:
        try:
            states.append(reader(newest))
        except CheckpointError as error:
            _one_sentence(error)
            states.append(error)
    loaded, verified, _ = states
    if isinstance(loaded, CheckpointError) != isinstance(verified, CheckpointError):
        raise AssertionError("load and verify do not agree")
    if isinstance(loaded, CheckpointError):
        raise loaded
    assert isinstance(loaded, Captured)
    return digest(loaded)


def _one_sentence(error: CheckpointError) -> None:
    text = str(error)
    if "\n" in text or not 10 < len(text) < 2000:
        raise AssertionError(f"not one sentence: {text[:300]!r}")
    if "cannot be allocated" in text:  # though it was to take less than there is
        raise AssertionError(f"more memory than it may: {text[:300]!r}")


@contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Raises TooSlow in what takes longer."""

    def ring(number: int, frame: FrameType | None) -> None:
        raise TooSlow(f"took more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def one(sound: Path, scratch: Path, chance: Random, tally: Tally, seconds: float, wanted: str | None = None) -> str | None:
    """Change a copy of `sound`, whose digest is `wanted`, and have it read; what is wrong with the reader, or None."""
    folder = scratch / sound.name
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(sound, folder)
    by_kind = {"container": CONTAINER_CHANGES, "model": MODEL_CHANGES}
    changes = by_kind.get(sound.name.partition("-")[0], CHECKPOINT_CHANGES)
    done: list[Callable[[Path, Random], None]] = []
    for change in [chance.choice(changes) for _ in range(chance.choice((1, 1, 1, 2, 3)))]:
        try:
            change(folder, chance)
        except CANNOT_CHANGE:
            if not done:
                raise  # what is sound can be changed
            continue  # the change before it has left nothing to change like this
        done.append(change)
    tally.kinds[f"{sound.name}: {'+'.join(change.__name__.removeprefix('in_') for change in done)}"] += 1
    begun = time.monotonic()
    try:
        with patience(seconds):
            found = read(folder)
        tally.read += 1
        if wanted is not None and found != wanted and all(change in BLIND for change in done):
            return "it was changed, nothing was sealed again, and another state was read"
    except CheckpointError as error:
        tally.refused += 1
        try:
            _one_sentence(error)
        except AssertionError as finding:
            return str(finding)
        tally.sentences.add(_shape(str(error)))
    except (Exception, TooSlow):
        return traceback.format_exc()
    finally:
        tally.slowest = max(tally.slowest, time.monotonic() - begun)
    return None


def _shape(sentence: str) -> str:
    """Without what differs from input to input."""
    return "".join("#" if letter.isdigit() else letter for letter in sentence.partition(" is damaged: ")[2] or sentence)[
        :60
    ]
