"""What outlives the processes: checkpoints while training, and the task's result."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from quantarion.v1 import control_pb2 as pb

from workers.checkpoint import BackgroundWriter, CheckpointError
from workers.checkpoint.background import Outcome
from workers.checkpoint.errors import StaleWriter, StorageError
from workers.checkpoint.joint import HandedIn, Joint
from workers.checkpoint.manifest import EXACT
from workers.checkpoint.places import checkpoints_of
from workers.checkpoint.shares import divide, num_writers, writer_at
from workers.config import TrainingConfig
from workers.engine import Engine
from workers.identity import Generation, StateId
from workers.joint_saves import JointSaves
from workers.rank import Rank
from workers.solo import SoloRank
from workers.staging import Staging
from workers.training_plan import plan_of
from workers.transfer import Snapshot
from workers.votes import NO_VOTES, Votes

logger = logging.getLogger("quantarion.keeper")

SAVE_SECONDS = 600.0

TELL_AGAIN_SECONDS = 3.0
"""Who still asks then for a checkpoint that lies on disk has not heard of it."""


class Keeper:
    """The duties towards storage of the first of the ring. Others write their share of a large state that is saved while
    training (CK-4); beyond that they wait to become the first."""

    def __init__(self, rank: Rank | SoloRank, engine: Engine, config: TrainingConfig) -> None:
        self._rank, self._engine, self._config = rank, engine, config
        self._root = checkpoints_of(rank.folder)
        self._writer: BackgroundWriter | None = None
        self._staging = Staging()
        self._joint = JointSaves(config.checkpoint, self._is_busy)
        engine.vote = self._vote
        self._phase = ""
        self._begun: StateId | None = None  # the state with which the present phase began
        self._exact: tuple[StateId, int] | None = None  # the last one saved exactly, and how often this rank was healed
        self._served: tuple[int, int] | None = None  # the last one that was asked for, likewise
        self._told: tuple[pb.RankReport, float] | None = None
        """The last exact one on disk, and when that was said, seconds of the monotonic clock."""

    def after_step(self, step: int) -> None:
        """Save every `checkpoint.every` steps, and where somebody has asked for it, beside training (CK-3)."""
        if not isinstance(self._rank, Rank):
            return
        if self._joint.writers > 1:
            if self._engine.votes.exact:
                self._asked_for_is_served(step)
            tier = self._joint.decide(step, self._engine.votes)
            if self._engine.votes.alone:
                self._joint.writers = 1
        else:
            tier = EXACT if self._is_asked_for(step) else self._config.checkpoint.due(step)
        if tier is not None and self._joint.writers > 1:
            self._submit_share(tier)
        elif tier is not None and self._rank.index == 0:
            self._submit(tier)
        if step == self._rank.first_step:
            self._joint.writers = self._num_writers()

    def begin_generation(self) -> None:
        """Who writes may have changed."""
        if self._joint.begin_generation(self._rank.index == 0):
            self._served = None  # what was asked for was not begun

    def saves_together(self, step: int) -> bool:
        """Whether the ranks save the state after `step`, which is committed, together."""
        return self._joint.writers > 1 and self._joint.decide(step, self._engine.votes) is not None

    def _is_busy(self) -> bool:
        return self._writer is not None and self._writer.is_busy

    def _num_writers(self) -> int:
        """By the bytes of a state; the same on all ranks, as they have the same one. Moments that are each rank's own are
        not mixed; and a reproducible job says nothing in its steps that another run would not."""
        if self._engine.replica.own_moments or self._config.reproducible:
            return 1
        tensors = self._engine.capture(_as_it_is).captured.tensors
        raw_bytes = sum(tensor.nbytes for tensor in tensors.values())
        return num_writers(raw_bytes, self._rank.world, self._config.checkpoint.share_bytes)

    def _vote(self) -> Votes:
        rank = self._rank
        if self._joint.writers == 1 or not isinstance(rank, Rank):
            return NO_VOTES
        is_asked = rank.index == 0 and 0 < rank.save_after <= rank.machine.state.step + 1
        if is_asked and self._served == (rank.save_after, self._engine.restores):
            self._tell_again(rank.save_after)
            is_asked, rank.save_after = False, 0
        return self._joint.vote(is_asked)

    def _asked_for_is_served(self, step: int) -> None:
        """Or will be, after a step that follows."""
        rank = self._rank
        if isinstance(rank, Rank) and 0 < rank.save_after <= step:
            if rank.index == 0:
                self._served = rank.save_after, self._engine.restores
            rank.save_after = 0

    def enter(self, phase: str) -> None:
        """Before each step and round of a phase: the state with which another begins is saved, exact (CK section 1).

        Beside training, and once for a step: what has no steps of its own is soon repeated. Not with `checkpoint.every` 0.
        """
        state = self._rank.machine.state
        if phase != self._phase:
            known, self._phase = bool(self._phase), phase
            if known and state.step != (self._begun.step if self._begun else 0):
                self._begun = state
        if state == self._begun and self._config.checkpoint.every and self._rank.index == 0:
            if isinstance(self._rank, Rank) and self._exact != (state, self._engine.restores):
                self._submit(EXACT)
        if self._is_asked_for(state.step) and self._rank.index == 0:  # while there are rounds and no steps
            self._submit(EXACT)

    def _is_asked_for(self, step: int) -> bool:
        """Once: that it is asked for again and again tells only that it does not lie on disk yet."""
        rank = self._rank
        if not isinstance(rank, Rank) or not 0 < rank.save_after <= step:
            return False
        asked, rank.save_after = (rank.save_after, self._engine.restores), 0
        if asked == self._served:
            self._tell_again(asked[0])
            return False
        if rank.index == 0:
            self._served = asked
        return True

    def _tell_again(self, step: int) -> None:
        """That it lies on disk, as nobody was there to hear it."""
        if self._told is None:
            return
        report, told_at = self._told
        if report.published.step >= step and time.monotonic() - told_at > TELL_AGAIN_SECONDS:
            self._told = report, time.monotonic()
            self._rank.post(report)

    def save_held(self) -> None:
        """Save the present state, exact, while the gang waits for hosts."""
        if isinstance(self._rank, Rank):
            self._submit(EXACT)

    def save_now(self) -> None:
        """Save the present state, exact, and wait until it lies on disk; a failure is reported, not raised (CK-7)."""
        if isinstance(self._rank, Rank):
            begun = time.monotonic()
            writer = self._submit("exact")
            while not writer.wait(0.05) and (waited := time.monotonic() - begun) < SAVE_SECONDS:
                if waited > SAVE_SECONDS / 10:  # what several write comes first, but not at any price
                    self._joint.give_up()
                self._rank.page.count_exchange()  # it gets on, at the pace of the storage
                if self._rank.must_stop():
                    return  # the next generation saves again

    def relieve(self, seconds: float, above: float) -> None:
        """While more than the share `above` of the storage is used, and for so long, keep no more checkpoints than there
        have to be (GM-21); on the first of the ring."""
        if self._rank.index == 0 and isinstance(self._rank, Rank):
            self._open().make_room(seconds, above, self._fence())

    def _open(self) -> BackgroundWriter:
        if self._writer is None:
            kept = self._config.checkpoint
            self._writer = BackgroundWriter(
                self._root,
                job=self._config.name,
                on_done=self._report,
                keep=kept.keep,
                every=kept.keep_every,
                best=kept.keep_best,
            )
        return self._writer

    def _submit(self, tier: str) -> BackgroundWriter:
        """All of the state, by this rank."""
        return self._queue(self._engine.capture(self._staging.copy), tier)

    def _submit_share(self, tier: str) -> None:
        """Of the state, by each of the ranks that write."""
        rank, machine = self._rank, self._rank.machine
        generation, snapshot = machine.generation, self._engine.capture(_as_it_is)
        tensors = snapshot.captured.tensors
        writer = writer_at(rank.index, rank.world, self._joint.writers)
        if writer is None:
            return
        shares = divide({name: tensor.nbytes for name, tensor in tensors.items()}, self._joint.writers)
        joint = Joint(writer, shares, lambda: machine.generation == generation and machine.promised <= generation)
        mine = set(joint.mine)
        snapshot.captured.tensors = {
            name: self._staging.copy(name, tensor) if name in mine else torch.empty_like(tensor, device="meta")
            for name, tensor in tensors.items()
        }
        heard = self._joint.begun(joint)
        self._queue(snapshot, tier, joint, partial(self._heard, heard, tier, joint.leads))

    def _queue(
        self, snapshot: Snapshot, tier: str, joint: Joint | None = None, on_done: Callable[[Outcome], None] | None = None
    ) -> BackgroundWriter:
        writer, state = self._open(), snapshot.state
        ids = {"state_id": state.values, "previous_id": snapshot.previous.values}
        snapshot.captured.meta.update({**ids, "plan": plan_of(self._config)})
        self._rank.faults.hit("in_publish")
        if tier == EXACT and (joint is None or joint.leads):  # until it turns out otherwise
            self._exact = state, self._engine.restores
        writer.submit(
            snapshot.captured,
            joint=joint,
            on_done=on_done,
            step=state.step,
            generation=self._rank.machine.generation,
            lineage=state.lineage,
            world=self._rank.world,
            fence=self._fence(),
            rounds=state.round,
            tier=tier,
            weights=self._config.checkpoint.weights,
            whole_every=self._config.checkpoint.whole_every,
            release=self._staging.take_back,
        )
        return writer

    def _fence(self) -> Callable[[], bool]:
        """True as long as the generation that is running now is the job's newest: a stale one cannot publish (GM-6)."""
        machine, path = self._rank.machine, self._rank.folder / "control" / "fence.json"
        restores = self._engine.restores

        def is_current() -> bool:
            try:
                fence = json.loads(path.read_text())
            except (OSError, ValueError):
                return False
            # A state of an earlier generation is on the line as long as this rank has gone on from it without healing.
            current = Generation(fence["incarnation"], fence["counter"]) <= machine.generation
            return current and machine.healed and self._engine.restores == restores

        return is_current

    def _heard(self, heard: Callable[[str, Outcome], bool], tier: str, leads: bool, outcome: Outcome) -> None:
        """What became of this rank's part of what several write; in the writer's thread."""
        if not heard(tier, outcome):
            self._served = None  # nobody tries it again
        if leads or not isinstance(outcome, StaleWriter):  # that, who leads tells
            self._report(outcome)

    def _report(self, outcome: Outcome) -> None:
        """In the writer's thread."""
        if isinstance(outcome, HandedIn):
            return
        if isinstance(outcome, CheckpointError):
            self._exact = None
            if not isinstance(outcome, StorageError):  # which is tried again
                self._served = None
            fields = {"error": str(outcome), "stale": isinstance(outcome, StaleWriter)}
            note = pb.Note(kind="checkpoint_failed", json=json.dumps(fields))
            self._rank.post(pb.RankReport(worker=self._rank.worker, note=note))
            return
        published = pb.Published(
            path=str(outcome.path.relative_to(self._rank.folder) if isinstance(outcome.path, Path) else outcome.path),
            tier=outcome.tier,
            step=int(outcome.path.name.split("-")[1]),
            bytes=outcome.bytes,
            raw_bytes=outcome.raw_bytes,
            seconds=outcome.seconds,
        )
        report = pb.RankReport(worker=self._rank.worker, published=published)
        if outcome.tier == EXACT:
            self._told = report, time.monotonic()
        self._rank.post(report)

    def write_file(self, name: str, write: Callable[[Path], None]) -> None:
        """A file of the job's folder; a failure is reported, not raised (CK-7)."""
        path = self._rank.folder / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path)
        except OSError as error:
            self._result_failed(error)

    def write_result(self, result: dict[str, Any]) -> None:
        """`result.json`, and the digest of the state it was made from."""
        path = self._rank.folder / "result.json"
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            temporary.write_text(json.dumps({**result, "digest": self._engine.replica.digest()}))
            Path(temporary).replace(path)
        except OSError as error:
            self._result_failed(error)

    def _result_failed(self, error: OSError) -> None:
        note = pb.Note(kind="result_failed", json=json.dumps({"error": str(error)}))
        self._rank.post(pb.RankReport(worker=self._rank.worker, note=note))


def _as_it_is(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """No copy: for those that are needed."""
    return tensor.detach()
