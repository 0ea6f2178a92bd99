"""The public API: a training loop that goes on while ranks come and go.

    job = Job(model, optimizer, dataset)
    for inputs, targets in job.batches():
        job.step(criterion(model(inputs), targets))

`batches()` yields the micro-batches of this rank's share, and a step's batch again after a discard; `step()` owns backward,
the exchange, optimizer and scheduler. With `sync.every: h` a step is a round of h batches that ranks or hosts train alone,
and the merge at its end. Outside a gang (`python script.py`) the same script trains alone.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Sized
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from quantarion.v1 import control_pb2 as pb
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import Dataset

from workers import wire
from workers.coherence.busy import BusyTime
from workers.coherence.digests import DigestRhythm
from workers.coherence.reduce_check import EVERY
from workers.collectives.buckets import BucketPlan
from workers.collectives.exchange import Abandoned, ExchangeError, Groups, Hosts
from workers.collectives.reducer import Reducer
from workers.compression.gradients import GradientCompression
from workers.compression.setup import compression_of
from workers.config import TrainingConfig
from workers.data import sampler
from workers.data.loader import MicroBatchLoader
from workers.data.plan import BatchPlan, Seat
from workers.data.record import SampleRecorder
from workers.engine import ApplyError, Engine
from workers.errors import TaskError
from workers.identity import StateId
from workers.keeper import Keeper
from workers.page import Signals
from workers.randomness import sample_keys, seed_torch
from workers.rank import Rank
from workers.resuming import Finder
from workers.rounds import EVALUATE, Largest, Part, Sums, accuracy, fingerprint, is_common, to_rows
from workers.solo import SoloRank
from workers.steplog import StepLog
from workers.transfer import Commit, Snapshot

__all__ = ["Binding", "Job", "Largest", "Part", "Sums", "bind", "current_job"]

logger = logging.getLogger("quantarion.job")

SKIPPED_IN_A_ROW = 10
"""Steps whose gradients were not finite, after which a job ends."""


@dataclass(frozen=True)
class Binding:
    """The rank that the process's Job takes, set before the task runs."""

    rank: Rank
    config: TrainingConfig


_binding: Binding | None = None
_job: Job | None = None


def bind(binding: Binding) -> None:
    """Called once by the worker process."""
    global _binding
    _binding = binding


def current_job() -> Job | None:
    """The Job that the task of this process has made."""
    return _job


@dataclass
class _Turn:
    """The step in progress on this rank."""

    step: int
    epoch: int
    index: int
    batch: int
    attempt: int
    inner: int = 0
    inner_steps: int = 1
    weight: float = 0.0  # this rank's share of the step's samples
    micro: int = 0
    inner_batch: int = 0
    samples: int = 0  # this rank's so far
    ends_batch: bool = False
    last: bool = False
    stepped: bool = True
    over: bool = False


class Job:
    """One training job, seen from one of its ranks.

    Args:
        model: its parameters and buffers become replicated state.
        optimizer: over the model's parameters.
        dataset: map-style; sample ids are its indices.
        scheduler: stepped once per committed step; with `sync.every`, once per batch.
        scaler: a `torch.amp.GradScaler`; its decisions are taken on the reduced gradients, so they are the same everywhere;
            not with `sync.every`.
        evaluate, evaluate_every: `evaluate` is called every so many epochs, the JobSpec's where None, with (part, parts),
            spread over the ranks; returns sums. The sums `correct` and `count` give the accuracy. It must not change the
            model's parameters.
        collate_fn, num_workers: as for torch's DataLoader.
        clip_norm: largest L2 norm of the gradient that the optimizer steps by; the JobSpec's where None.
        phase: name of the phase in which the step after `step` committed ones is; by the epoch where None.
        after_round: called with the name and the results of every evaluation and collect(), on every rank, as part of its
            commit. It may change the model, keep or put back its weights, and add epochs, by what is committed alone: it
            also runs on a rank that joins later, when that takes the round over from a peer.

    Raises:
        TaskError: the data set has no length, a Job was made already in this process, or a scaler comes with `sync.every`.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        dataset: Dataset[Any],
        *,
        scheduler: Any = None,
        scaler: Any = None,
        evaluate: Part | None = None,
        evaluate_every: int | None = None,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        num_workers: int = 0,
        clip_norm: float | None = None,
        phase: Callable[[int], str] | None = None,
        after_round: Callable[[str, Sums], None] | None = None,
    ) -> None:
        binding = _binding
        self.config = binding.config if binding else TrainingConfig(name="solo")
        self._rank: Rank | SoloRank = binding.rank if binding else SoloRank()
        if self._rank.engine is not None:
            raise TaskError("this process has a Job already; make one Job per script")
        if not isinstance(dataset, Sized) or not len(dataset):
            raise TaskError("the data set of a Job must be map-style and hold at least one sample: give it a len()")
        if scaler is not None and self.config.sync.merges:
            raise TaskError(
                f"sync.every is {self.config.sync.every}, but a GradScaler would skip other steps on every rank that "
                "trains alone; write Job(scaler=None) and train in bfloat16 or float32, or write sync.every: 1"
            )
        self.model = model
        self.folder = self._rank.folder
        self._batches = BatchPlan(self.config, len(dataset))
        self._evaluate = evaluate
        self._evaluate_every = self.config.evaluate_every if evaluate_every is None else evaluate_every
        self._phase_of = phase
        self._machine = self._rank.machine
        self._engine = Engine(
            model,
            optimizer,
            machine=self._machine,
            faults=self._rank.faults,
            scheduler=scheduler,
            scaler=scaler,
            clip_norm=clip_norm if clip_norm is not None else self.config.clip_norm,
            compression=self._new_compression,
            sync=self.config.sync if self.config.sync.merges else None,
            sketch_seed=self.config.seed if binding else None,
        )
        self._reducer: Reducer | None = None
        self._units: Hosts | Groups = ()
        self._skipped = 0
        if after_round is not None:
            self._engine.after_round = after_round
        recorder = None
        if binding and self.config.record_samples:
            recorder = SampleRecorder(self.folder / "samples" / f"{self._rank.worker}.jsonl")
        self._recorder = recorder
        self._loader = MicroBatchLoader(dataset, collate_fn, num_workers, recorder, seed=self.config.seed)
        self._log = StepLog(self.folder / "steps.jsonl")
        self._engine.describe = lambda: {"recent": self._log.recent}
        self._keeper = Keeper(self._rank, self._engine, self.config)
        self._finder = Finder(binding.rank, self._engine.replica, self.config) if binding else None
        self._turn: _Turn | None = None
        self._refused: StateId | None = None
        self._again = 0  # the step that is computed once more in this generation, as a gradient was not finite
        self._collected: set[str] = set()
        self._planned = 0
        self._looped = False
        self._mark = time.perf_counter()
        self._busy = BusyTime()
        self._digests = DigestRhythm()
        self._phase = ""
        self._result: dict[str, Any] | None = None
        self._files: dict[str, Callable[[Path], None]] = {}
        global _job
        _job = self
        self._rank.serve(self._engine, self)

    def _new_compression(self, plan: BucketPlan) -> GradientCompression:
        per_epoch = self._batches.steps_per_epoch
        return compression_of(plan, self.config.wire, per_epoch * self.config.epochs, self.config.seed, per_epoch)

    # ------------------------------------------------------------------ what a task may read

    @property
    def committed(self) -> int:
        """Committed steps."""
        return self._machine.state.step

    @property
    def steps_per_epoch(self) -> int:
        return self._batches.steps_per_epoch

    @property
    def total_steps(self) -> int:
        """Steps of all epochs, those included that were added."""
        return self.steps_per_epoch * (self.config.epochs + sum(self.added_epochs.values()))

    @property
    def epoch(self) -> int:
        """Epoch, from 0, of the batch being computed; of the last one while it is evaluated and afterwards."""
        if self._turn is not None and not self._turn.over:
            return self._turn.epoch
        return max(0, min(self.committed - 1, self.total_steps - 1)) // self.steps_per_epoch

    @property
    def phase(self) -> str:
        """Name of the phase that the batch being computed belongs to."""
        if self._phase_of is not None:
            return self._phase_of(self.committed)
        return "fp32_warmup" if self.epoch < self.config.phases.fp32_epochs else "qat"

    @property
    def rank(self) -> int:
        """Stable number of this rank."""
        return self._rank.number

    @property
    def world(self) -> int:
        """How many ranks share the work right now."""
        return self._rank.world

    @property
    def history(self) -> list[tuple[int, str, Sums]]:
        """Every committed evaluation and collect(): (step, name, sums over all ranks)."""
        return list(self._engine.replica.history)

    @property
    def state_id(self) -> StateId:
        """Name of the state this rank holds: two ranks with the same one hold the same bytes."""
        return self._machine.state

    @property
    def digest(self) -> str:
        """BLAKE2b-128 of the replicated state, as it was committed."""
        return self._engine.digest()

    # ------------------------------------------------------------------ the loop

    def batches(self) -> Iterator[Any]:
        """Yield micro-batches until all epochs are committed; call `step(loss)` once for each."""
        self._looped = True
        while True:
            self._rank.ensure_training()
            if self._planned != self.total_steps:
                self._plan()
            if self._evaluation_due():
                self._run_round(EVALUATE, cast(Part, self._evaluate))
            elif self.committed >= self.total_steps:
                self._turn = None
                self._rank.page.set_busy(True)  # with what the script does after the loop
                return
            else:
                yield from self._compute()

    def step(self, loss: torch.Tensor) -> None:
        """Account for the micro-batch just yielded; on the share's last one, exchange and commit.

        Args:
            loss: scalar, the mean over the micro-batch.
        """
        turn = self._turn
        if turn is None or turn.stepped:
            raise TaskError("job.step(loss) belongs inside the loop over job.batches(), once for each batch it yields")
        turn.stepped = True
        self._rank.page.set_busy(False)
        with self._abandonable(turn):
            if self._rank.must_stop():
                raise Abandoned
            self._rank.faults.hit("in_backward", inner=turn.inner, attempt=turn.attempt)
            self._engine.backward(loss, turn.micro, turn.inner_batch, last=turn.last)
            self._rank.page.count_micro_batch()
            if turn.ends_batch:
                self._end_batch(turn)

    def collect(self, name: str, fn: Part, *, observe: bool = False, phase: str | None = None) -> Sums:
        """Before or after the loop: the results of `fn(part, parts)` over all ranks, committed like a step.

        Survives changes of members; a rank that joins later gets the results from its peers.

        Args:
            name: of its own; each is collected once before the loop or once after it.
            observe: what `StepObserver`s see in `fn` is taken over, as at the end of a step.
            phase: the phase it belongs to, as it is shown.

        Raises:
            TaskError: inside the loop, or the second time under the same name.
        """
        if self._turn is not None and not self._turn.over:
            raise TaskError(
                "job.collect() belongs before or after the loop over job.batches(); inside it, give Job(evaluate=...)"
            )
        if name in self._collected or name == EVALUATE:
            raise TaskError(f"job.collect({name!r}, …) is called twice, or is the evaluation's name; choose another name")
        self._collected.add(name)
        while True:
            self._rank.ensure_training()
            if self._looped and self.committed < self.total_steps and isinstance(self._rank, Rank):
                self._rank.leave("the gang began anew from an earlier step, and the loop of this process is over")
            for step, known, sums in self._engine.replica.history:
                if known == name and (step == self.committed or not self._looped):
                    return dict(sums)
            if phase is not None:
                self._keeper.enter(phase)
                self._show_phase(phase, self.committed)
            self._run_round(name, fn, observe=observe)

    def tell(self, kind: str, fields: dict[str, Any]) -> None:
        """Put an event into `events.jsonl`; of all ranks that call it, the first of the ring does."""
        if self._rank.index == 0:
            self._note(kind, fields)

    def hand_over(self, name: str, write: Callable[[Path], None]) -> None:
        """A file of the job's folder that its result has: `write(path)` makes it, in the end, by the ring's first."""
        self._files[name] = write

    def keep_weights(self) -> None:
        """In `after_round`: keep the present parameters and buffers, instead of those kept before."""
        self._engine.replica.keep()

    def put_back_weights(self) -> None:
        """In `after_round`: return to the parameters and buffers that were kept."""
        self._engine.replica.put_back()

    def add_epochs(self, number: int, phase: str) -> None:
        """In `after_round`: train `number` epochs more, by which `phase` grows."""
        added = self._engine.replica.added_epochs
        added[phase] = added.get(phase, 0) + number

    @property
    def added_epochs(self) -> dict[str, int]:
        """By phase: how many epochs were added."""
        return dict(self._engine.replica.added_epochs)

    # ------------------------------------------------------------------ one step

    def _compute(self) -> Iterator[Any]:
        turn = self._turn = self._next_turn()
        self._busy.begin()
        if self._phase_of is not None:
            self._keeper.enter(self.phase)
        self._rank.faults.hit("step_begin")
        if self._recorder is not None:
            self._recorder.begin(turn.step, self._machine.generation, turn.attempt, turn.epoch)
        share = self._batches.share(turn.step, self._seat(turn.step))
        turn.inner_steps = len(share.batches)
        turn.weight = sum(map(len, share.micro_batches)) / turn.batch
        self._engine.begin_step(self._rank.exchange_in_use, self._rank.must_stop, share.order, self._reducer)
        for turn.inner, (micro_batches, turn.inner_batch) in enumerate(zip(share.batches, share.samples, strict=True)):
            closing = turn.inner == turn.inner_steps - 1
            if not micro_batches:
                turn.last = closing
                with self._abandonable(turn):
                    self._end_batch(turn)
            for piece in range(len(micro_batches)):
                turn.ends_batch = piece == len(micro_batches) - 1
                turn.last = closing and turn.ends_batch
                yield from self._micro_batch(turn)
                if turn.over:
                    return
            if turn.over:
                return

    def _micro_batch(self, turn: _Turn) -> Iterator[Any]:
        ids, data = next(self._loader)
        turn.micro, turn.stepped = len(ids), False
        turn.samples += len(ids)
        self._rank.page.set_busy(self._rank.longest_step == 0.0)  # a first step may compile
        seed_torch(self.config.seed, turn.step, ids)
        with sample_keys(self.config.seed, turn.step, ids):
            yield data
        if not turn.stepped:
            raise TaskError("call job.step(loss) for every batch that job.batches() yields")

    def _end_batch(self, turn: _Turn) -> None:
        """This rank's share of a batch is computed: where it trains alone, a step of its own; after the last the commit."""
        if self._engine.outer is not None:
            self._engine.outer.inner_step(self._rank.host_exchange, self._rank.must_stop)
            if not turn.last:
                self._engine.stream(turn.inner + 1, turn.inner_steps, turn.weight)
        if turn.last:
            self._exchange_and_commit(turn)

    def _next_turn(self) -> _Turn:
        step = self.committed + 1
        return _Turn(step, *self._batches.position(step), len(self._batches.batch(step)), self._seat(step).attempt)

    @property
    def _elsewhere(self) -> int | None:
        """By how many members shares have to be turned so that each falls on another host; None where that cannot be."""
        hosts = [place.host for place in self._rank.topology.places]
        turns = range(1, len(hosts))
        return next((n for n in turns if all(a != b for a, b in zip(hosts, hosts[n:] + hosts[:n], strict=True))), None)

    def _seat(self, step: int) -> Seat:
        rank = self._rank
        attempt = rank.attempt if step == rank.first_step else 0
        if step == self._again:
            attempt += self._elsewhere or 0
        if rank.host_exchange is None or self.config.sync.within == "rank":
            return Seat(rank.world, rank.index, attempt, shares=rank.shares)
        together = next(host for host in rank.hosts if rank.index in host)
        return Seat(rank.world, rank.index, attempt, together, rank.shares)

    def _requests(self) -> Iterator[tuple[int, sampler.Ids]]:
        """This rank's micro-batches from here to the end of the job, as the present members share them."""
        for step in range(self.committed + 1, self.total_steps + 1):
            for ids in self._batches.share(step, self._seat(step)).micro_batches:
                yield step, ids

    def _exchange_and_commit(self, turn: _Turn) -> None:
        self._record()
        self._busy.arrive(turn.samples)
        self._engine.finish_exchange(turn.batch)
        self._rank.page.count_exchange()
        self._rank.page.count_collective()
        self._rank.faults.hit("before_apply")
        generation = self._machine.generation
        if self._rank.must_stop() or not self._machine.may_apply(generation):
            raise Abandoned
        if self._engine.refused and self._goes_again(turn):
            return
        meta = {
            "kind": "step",
            "epoch": turn.epoch,
            "batch": turn.index,
            "samples": turn.batch,
            "inner_steps": turn.inner_steps,
            "attempt": turn.attempt,
            "ranks": self._rank.world,
            "phase": self.phase,
            "loss_scale": self._engine.loss_scale,
            "hosts": [len(self._units), min(map(len, self._units))],
        }
        refused = self._engine.own_refusal
        commit = self._engine.apply_step(meta, generation)
        turn.over = True
        self._look_at_skipped(commit, refused)
        if self._rank.index == 0:
            for decision in self._engine.decisions:
                self._note(decision["kind"], {key: value for key, value in decision.items() if key != "kind"})
        self._rank.faults.hit("after_apply_alone")
        self._committed(commit)
        self._keeper.after_step(self.committed)

    def _goes_again(self, turn: _Turn) -> bool:
        """A gradient is not finite: all members compute the step once more, each another's share, to see whether it is the
        host or the data (GM-20). False where they have, or not every share can go to another host; or with a GradScaler,
        which expects such steps."""
        if self._again == turn.step or self._elsewhere is None or self._engine.replica.scaler is not None:
            return False
        self._tell_refused(turn.step, self._engine.own_refusal, again=False)
        self._again = turn.step
        self._engine.discard()
        turn.over = True
        self._busy.interrupt()
        self._loader.plan(self._requests())
        return True

    def _tell_refused(self, step: int, refused: str | None, *, again: bool) -> None:
        if refused is not None:
            self._note("non_finite", {"rank": self.rank, "step": step, "parameter": refused, "again": again})

    def _look_at_skipped(self, commit: Commit, refused: str | None) -> None:
        """A step with a gradient that is not finite changes nothing (CC-15); a run of them is a mistake of the task."""
        self._tell_refused(commit.after.step, refused, again=True)
        if self._again == commit.after.step and not commit.meta.get("skipped"):
            self.tell("finite_again", {"step": commit.after.step})
        self._skipped = self._skipped + 1 if commit.meta.get("skipped") else 0
        if self._skipped >= SKIPPED_IN_A_ROW and self._engine.replica.scaler is None:
            raise TaskError(
                f"the gradients of {self._skipped} steps in a row were not finite, the last at step {commit.after.step}; "
                "events.jsonl names the parameters: lower the learning rate, or write clip_norm: 1.0"
            )

    def _record(self) -> None:
        """What was read goes on record before it can reach a commit; a full disk is told, and training goes on."""
        if self._recorder is not None:
            try:
                self._recorder.flush()
            except OSError as error:
                self._note("record_failed", {"error": str(error), "step": self.committed + 1})

    def _abandonable(self, turn: _Turn) -> _Abandonable:
        return _Abandonable(self, turn)

    def _gave_up(self, turn: _Turn, error: BaseException) -> bool:
        """The step is discarded whole; `batches()` yields it again. True where the error is dealt with."""
        if isinstance(error, (Abandoned, ExchangeError, ApplyError)):
            turn.over = True
            self._busy.interrupt()
            if isinstance(error, ExchangeError):
                self._rank.exchange_failed(str(error))
            elif isinstance(error, ApplyError):
                self._rank.apply_failed(str(error))
            return True
        return False

    def _committed(self, commit: Commit) -> None:
        now = time.perf_counter()
        seconds, self._mark = now - self._mark, now
        self._rank.committed(seconds)
        self._rank.page.set_owed(self._engine.owed)
        seen = self._engine.agreement
        agreed = (seen.cosine, seen.norm, seen.step) if seen is not None else ()
        self._rank.page.set_signals(Signals(self._busy.per_sample, self._engine.own_loss, *agreed))
        self._tell_digest(commit.after, seconds)
        self._tell_wrong_sums(commit.after)
        self._busy.begin()
        self._log.add(self._line(commit, seconds))
        self._show_phase(commit.meta["phase"], commit.after.step)

    def _tell_digest(self, state: StateId, step_seconds: float) -> None:
        """To be compared with the others': now and then, for each checkpoint, and at the first step of a generation."""
        step, rank = state.step, self._rank
        if not isinstance(rank, Rank):
            return
        is_saved = step == rank.save_after or self.config.checkpoint.due(step) is not None
        is_saved |= self._keeper.saves_together(step)
        if not is_saved and step != rank.first_step and not self._digests.is_due(step):
            return
        begun = time.perf_counter()
        rank.page.set_busy(True)
        digest = pb.StateDigest(state=wire.state_to_wire(state), digest=bytes.fromhex(self.digest))
        rank.page.set_busy(False)
        self._digests.took(time.perf_counter() - begun, step_seconds)
        rank.link.send(pb.RankReport(worker=rank.worker, digest=digest))

    def _tell_wrong_sums(self, state: StateId) -> None:
        """Of the step before `state` (GM-16)."""
        sums, rank, step = self._engine.sums, self._rank, state.step - 1
        if sums is not None and sums.wrong and isinstance(rank, Rank):
            generation = wire.generation_to_wire(state.generation)
            wrong = pb.WrongSums(generation=generation, step=step, right=max(0, step - EVERY), owners=sums.wrong)
            rank.link.send(pb.RankReport(worker=rank.worker, wrong_sums=wrong))

    def _show_phase(self, phase: str, step: int) -> None:
        if self._rank.index == 0 and phase != self._phase:
            self._phase = phase
            self._note("phase", {"phase": phase, "step": step})

    def _line(self, commit: Commit, seconds: float | None) -> dict[str, Any]:
        meta, after = commit.meta, commit.after
        return {
            "schema_version": 1,
            "job": self.config.name,
            "attempt": meta["attempt"],
            "generation": list(after.generation),
            "t": time.time(),
            "phase": meta["phase"],
            "epoch": meta["epoch"],
            "step": after.step,
            "batch": meta["batch"],
            "samples": meta["samples"],
            "inner_steps": meta["inner_steps"],
            "loss": meta["loss"],
            "accuracy": self._accuracy(),
            "gradient_norm": meta.get("gradient_norm"),
            "lr_current": meta["lr_current"],
            "ranks": meta["ranks"],
            "training_rate": meta["samples"] / seconds if seconds else None,
            "step_seconds": seconds,
            "sent_bytes": self._reducer.sent_bytes if self._reducer is not None and seconds is not None else None,
            "lineage": f"{after.lineage:016x}",
        }

    # ------------------------------------------------------------------ rounds

    def _evaluation_due(self) -> bool:
        state = self._machine.state
        return self._evaluate is not None and state.round == 0 and self._ends_epoch(state.step)

    def _ends_epoch(self, step: int) -> bool:
        per_epoch = self.steps_per_epoch
        every = self._evaluate_every
        at_end = step == self.total_steps
        return step > 0 and step % per_epoch == 0 and (at_end if not every else (step // per_epoch) % every == 0)

    def _run_round(self, name: str, fn: Part, *, observe: bool = False) -> None:
        """One attempt at a round; the caller looks at the state again afterwards."""
        training = self.model.training
        self._busy.interrupt()
        try:
            self._rank.faults.hit("in_round")
            self._rank.page.set_busy(True)
            part = partial(fn, self._rank.index, self._rank.world)
            results, observed = self._engine.observe_round(part, observe=observe)
            self._rank.page.set_busy(False)
            self._rank.page.count_exchange()
            which, tensors = to_rows(results, observed)
            mark = fingerprint(name, which, observed)
            self._rank.exchange_in_use.all_reduce(mark, largest=True).wait(self._rank.must_stop)
            if not is_common(mark):
                self._refuse_round(name)
            for tensor, largest in zip(tensors, (False, True), strict=False):
                self._rank.exchange_in_use.all_reduce(tensor, largest=largest).wait(self._rank.must_stop)
            self._rank.page.count_collective()
            generation = self._machine.generation
            if self._rank.must_stop() or not self._machine.may_apply(generation):
                return
            self._engine.apply_round({"kind": "round", "name": name, "observe": observe, **which}, tensors, generation)
            if self._rank.index == 0:
                fields = {"step": self.committed, "name": name, "accuracy": accuracy(self.history[-1][2])}
                self._note("evaluation", fields)
        except Abandoned:
            return
        except ExchangeError as error:
            self._rank.exchange_failed(str(error))
        except ApplyError as error:
            self._rank.apply_failed(str(error))
        finally:
            self._rank.page.set_busy(False)
            self.model.train(training)
            self._mark = time.perf_counter()

    def _refuse_round(self, name: str) -> None:
        """Once more in a new generation; from the same state, it would go on like this for ever."""
        problem = f"another rank is in another round than {name!r}, or measures something else in it"
        if self._refused == self._machine.state:
            raise TaskError(f"{problem}: names and keys must be the same on every rank")
        self._refused = self._machine.state
        raise ExchangeError(problem)

    def _accuracy(self) -> float | None:
        measured = (accuracy(sums) for _, _, sums in reversed(self._engine.replica.history))
        return next((each for each in measured if each is not None), None)

    # ------------------------------------------------------------------ what the rank asks of us

    def found(self, at_most: int | None) -> Snapshot | None:
        return self._finder.find(at_most) if self._finder else None

    def restore(self, snapshot: Snapshot) -> None:
        lost = self._engine.restore(snapshot)
        if lost:
            self._rank.page.set_owed(0.0)
            self._note("residual_lost", {"worker": self._rank.worker, "residual_lost_norm": lost})
        self._log.take_over(snapshot.captured.meta.get("recent", []))

    def replay(self, commit: Commit) -> None:
        done = self._engine.replay(commit)
        if done.meta["kind"] == "step":
            self._log.add(self._line(done, None))

    def entered(self) -> None:
        if self._result is not None and self.committed < self.total_steps and isinstance(self._rank, Rank):
            self._rank.leave("the gang went back to an earlier step, and the task of this process has returned")
        first = self._rank.index == 0
        self._again = 0  # who is new does not know of it
        self._units = self._rank.topology.units(self._rank.hosts)
        self._engine.compression.begin_generation(self._units)
        self._keeper.begin_generation()
        self._reducer = self._new_reducer()
        self._log.write_from_now_on(first)
        self._busy.begin_generation()
        self._plan()
        self._mark = time.perf_counter()
        if first and self._result is not None:
            self._keep_the_end(self._result)

    def _new_reducer(self) -> Reducer | None:
        """None where gloo's own all-reduce does: nothing is encoded or sent early, no memory is shared, and all are in one
        group; or sums have one order."""
        rank, config = self._rank, self.config
        plain = not config.wire.compresses and not config.sync.staleness
        if config.reproducible or (plain and len(self._units) == rank.world):
            return None
        return Reducer(rank.exchange_in_use, rank.hosts, rank.host_exchange, self._engine.compression)

    def _plan(self) -> None:
        """What is to be read from here on, and for how long."""
        self._loader.plan(self._requests())
        self._planned = self.total_steps
        if self._rank.index == 0:
            plan = {
                "total_steps": self.total_steps,
                "steps_per_epoch": self.steps_per_epoch,
                "num_samples": self._batches.num_samples,
                "parameters": sum(p.numel() for p in self.model.parameters()),
            }
            self._note("plan", plan)

    def stop_requested(self) -> None:
        if self._turn is not None:
            self._turn.over = True
        if self._rank.index == 0:
            self._keeper.save_now()

    def relieve(self, seconds: float, above: float) -> None:
        self._keeper.relieve(seconds, above)

    def held(self) -> None:
        self._keeper.save_held()

    def conclude(self, result: dict[str, Any]) -> None:
        """The task has returned: keep its result and the last state, then wait for the others. Does not return."""
        self._rank.ensure_training()
        self._result = result
        if self._rank.index == 0:
            self._keep_the_end(result)
        self._rank.finish()

    def _keep_the_end(self, result: dict[str, Any]) -> None:
        if self.config.checkpoint.at_end:
            self._keeper.save_now()
        for name, write in self._files.items():
            self._keeper.write_file(name, write)
        self._keeper.write_result(result)

    def _note(self, kind: str, fields: dict[str, Any]) -> None:
        note = pb.Note(kind=kind, json=json.dumps(fields))
        self._rank.link.send(pb.RankReport(worker=self._rank.worker, note=note))


class _Abandonable:
    """Turns a given-up step into `turn.over`; anything else passes."""

    def __init__(self, job: Job, turn: _Turn) -> None:
        self._job, self._turn = job, turn

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        return error is not None and self._job._gave_up(self._turn, error)
