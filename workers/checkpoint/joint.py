"""A checkpoint that several ranks write, each its share (CK-4), and one of them, who leads, makes visible.

They meet where it is written: in a hidden folder beside its place, or among the objects there while it has no manifest. Who
leads leaves `plan.json`; each of the others writes its share, when that is there, and then `share-00001.json`, which lists
its files. Once all of those are there it is shown as any other (draft.py). The name of a checkpoint has its generation and
step in it, and ranks of one generation write a step together once: what they meet is of this attempt.
"""

from __future__ import annotations

import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from workers.checkpoint.codec import Checksum
from workers.checkpoint.draft import Draft, FolderDraft, RemoteDraft
from workers.checkpoint.errors import CheckpointError, StaleWriter, damaged
from workers.checkpoint.manifest import Base, ShardEntry
from workers.checkpoint.places import Where, regular_size
from workers.checkpoint.remote import Remote

PLAN = "plan.json"

LONGEST_WAIT = 600.0
"""Seconds that a writer waits for another."""

PAUSE, PAUSE_IN_STORE = 0.05, 0.5
"""Seconds between looks for what others have written."""

Found = TypeVar("Found")


class Plan(BaseModel):
    """What who leads says before anybody writes: what the model is, and what the checkpoint is a difference to."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    signature: Checksum
    writers: int
    base: Base | None = None


class Share(BaseModel):
    """What one of the others has written; or, with a `problem`, that it will not."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    shards: list[ShardEntry] = []
    refused: dict[str, str] = {}
    problem: str = ""


@dataclass(frozen=True)
class HandedIn:
    """A share that lies where it belongs. Whether the checkpoint became visible, who leads knows."""

    path: Where
    bytes: int
    seconds: float


class JointDraft(Draft, Protocol):
    """A draft that others see; methods raise OSError."""

    @property
    def place(self) -> Where:
        """Where the files lie that are kept."""

    def put(self, name: str, content: bytes) -> None:
        """Leave word."""

    def get(self, name: str) -> bytes | None:
        """What somebody has left; None where nobody has yet."""


class Joint:
    """The part of one rank in one checkpoint. All but `give_up` is for its writer's thread."""

    def __init__(self, writer: int, shares: Sequence[Sequence[str]], is_current: Callable[[], bool]) -> None:
        """
        Args:
            writer: which one this rank is; 0 leads.
            shares: names of tensors, by writer.
            is_current: whether the generation still runs in which this was begun.
        """
        self.writer, self._shares, self._is_current = writer, shares, is_current
        self._given_up = threading.Event()

    @property
    def leads(self) -> bool:
        return self.writer == 0

    @property
    def mine(self) -> Sequence[str]:
        """The names of this rank's tensors."""
        return self._shares[self.writer]

    @property
    def names(self) -> list[str]:
        """Those of all tensors, as the manifest has them."""
        return [name for share in self._shares for name in share]

    def give_up(self) -> None:
        """Another rank cannot write its part: do not wait any more."""
        self._given_up.set()

    def open(self, target: Where) -> JointDraft:
        """The draft of this rank's part of the checkpoint at `target`. Raises OSError."""
        return _JointObjects(target, self.leads) if isinstance(target, Remote) else _JointFolder(target, self.leads)

    # ------------------------------------------------------------------ who leads

    def announce(self, draft: JointDraft, signature: str, base: Base | None) -> None:
        """From now on the others write. Raises OSError."""
        plan = Plan(signature=signature, writers=len(self._shares), base=base)
        draft.put(PLAN, plan.model_dump_json().encode())

    def gather(self, draft: JointDraft, target: Where) -> list[Share]:
        """The shares of the others, in their order, once all are there.

        Raises CheckpointError where one does not come, or is not what it has to be; StaleWriter; OSError.
        """
        return [self._gather(draft, target, writer) for writer in range(1, len(self._shares))]

    def _gather(self, draft: JointDraft, target: Where, writer: int) -> Share:
        place = target / _share_name(writer)
        content = self._wait(target, lambda: draft.get(place.name), f"the share of writer {writer}")
        try:
            share = Share.model_validate_json(content)
        except ValidationError as error:
            raise damaged(place, str(error.errors(include_url=False)[0]["msg"])) from None
        if share.problem:
            raise CheckpointError(f"{target} was not published: {share.problem}")
        if [name for entry in share.shards for name in entry.tensors] != list(self._shares[writer]):
            raise damaged(place, "it lists other tensors than its writer's")
        for entry in share.shards:
            size = regular_size(draft.place / entry.name)
            if size != entry.bytes:
                raise damaged(draft.place / entry.name, f"it has {size} bytes instead of {entry.bytes}")
        return share

    # ------------------------------------------------------------------ the others

    def plan(self, draft: JointDraft, target: Where, signature: str) -> Plan:
        """What who leads has announced. Raises CheckpointError where it does not come, or another model is meant;
        StaleWriter; OSError."""
        content = self._wait(target, lambda: draft.get(PLAN), "the plan of the rank that leads")
        try:
            plan = Plan.model_validate_json(content)
        except ValidationError as error:
            raise damaged(target / PLAN, str(error.errors(include_url=False)[0]["msg"])) from None
        if (plan.signature, plan.writers) != (signature, len(self._shares)):
            raise CheckpointError(
                f"{target} is not written: the rank that leads has another model, or another division of it"
            )
        return plan

    def hand_in(self, draft: JointDraft, shards: list[ShardEntry], refused: dict[str, str]) -> None:
        """The files are all kept. Raises StaleWriter where who leads waits for them no more; OSError."""
        if self.is_over(draft):
            raise StaleWriter("the rank that leads has given it up")
        draft.put(_share_name(self.writer), Share(shards=shards, refused=refused).model_dump_json().encode())

    def decline(self, draft: JointDraft, problem: str) -> None:
        """Who leads need not wait any more. Raises nothing."""
        with suppress(OSError):
            if draft.get(PLAN) is not None:
                draft.put(_share_name(self.writer), Share(problem=problem).model_dump_json().encode())

    def is_over(self, draft: JointDraft) -> bool:
        """Whether who leads has cleared away what there was, as far as the storage says, or the generation has ended."""
        if not self._is_current():
            return True
        try:
            return draft.get(PLAN) is None
        except OSError:
            return False

    def _wait(self, target: Where, look: Callable[[], Found | None], what: str) -> Found:
        until = time.monotonic() + LONGEST_WAIT
        while (found := look()) is None:
            if not self._is_current():
                raise StaleWriter(f"{target} was not published: its generation is over")
            if self._given_up.is_set():
                raise CheckpointError(f"{target} was not published: a rank could not write its part")
            if time.monotonic() > until:
                raise CheckpointError(f"{target} was not published: {what} has not come within {LONGEST_WAIT:g} seconds")
            self._given_up.wait(PAUSE_IN_STORE if isinstance(target, Remote) else PAUSE)
        return found


def _share_name(writer: int) -> str:
    return f"share-{writer:05d}.json"


def _is_word(name: str) -> bool:
    return name == PLAN or name.startswith("share-")


class _JointFolder(FolderDraft):
    """A hidden folder whose name all writers know; the one of who leads is renamed at last."""

    def __init__(self, target: Path, leads: bool) -> None:
        self._target, self._token, self._leads = target, secrets.token_hex(4), leads
        self.folder = self.place = target.with_name(f".tmp-{target.name}.joint")
        if leads:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir()

    def shard(self, index: int) -> str:
        return f"shard-{index:05d}-{self._token}.qins"

    def put(self, name: str, content: bytes) -> None:
        hidden = self.folder / f".{name}"
        with hidden.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        hidden.rename(self.folder / name)

    def get(self, name: str) -> bytes | None:
        try:
            return (self.folder / name).read_bytes()
        except FileNotFoundError:
            return None

    def finish(self, manifest: bytes) -> None:
        for word in filter(_is_word, os.listdir(self.folder)):
            (self.folder / word).unlink()
        super().finish(manifest)

    def close(self) -> None:
        if self._leads and self.folder.exists():
            with suppress(OSError):  # what others write from now on finds no folder
                self.folder = self.folder.rename(self.folder.with_name(f"{self.folder.name}-{self._token}"))
            super().close()


class _JointObjects(RemoteDraft):
    """Objects at their place."""

    def __init__(self, target: Remote, leads: bool) -> None:
        super().__init__(target)
        self._leads, self.place = leads, target

    def put(self, name: str, content: bytes) -> None:
        self._may_be_seen |= not self._leads  # by who leads
        if not (self._target / name).create(content):
            raise FileExistsError(f"{name} of another attempt is there")

    def get(self, name: str) -> bytes | None:
        try:
            return (self._target / name).read()
        except FileNotFoundError:
            return None

    def close(self) -> None:
        super().close()
        if self._leads:
            with suppress(OSError):
                words = [name for name in self._target.objects() if _is_word(name)]
                self._target.remove([*words, *(self._listed(words) if not self._may_be_seen else ())])

    def _listed(self, words: list[str]) -> list[str]:
        """The shards of the others, by their own names: somebody else may be publishing a checkpoint here."""
        found = []
        for word in words:
            with suppress(ValidationError):
                found += [entry.name for entry in Share.model_validate_json((self._target / word).read()).shards]
        return found
