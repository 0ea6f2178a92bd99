"""From data to a verified integer model: every recipe goes the same way (QS-22), which a kill at any point does not change.

What is measured is committed by rounds of the job, so all ranks judge the same numbers, also one that joins or resumes in
the middle. What follows from a verdict (more epochs, the best weights, new ranges) is part of the commit it follows from.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from workers.data import checks, sampler
from workers.data.measurements import measure_agreement
from workers.errors import DataError, TaskError
from workers.qat import gates
from workers.qat.artifact import load_converted, save_converted
from workers.qat.convert import blank, convert, fp32_bytes, packed_bytes, ratio, unquantized
from workers.qat.gates import Verdict, judge
from workers.qat.layers import first_layer, set_first_layer, set_switches, set_weight_bits
from workers.qat.observers import range_observers
from workers.qat.phases import (
    CALIBRATING,
    FIRST_LAYER_FP32,
    FP32,
    MAX_WARMUP_EPOCHS,
    MORE_QAT_EPOCHS,
    QUANTIZED,
    Phase,
    Schedule,
    Switches,
)
from workers.qat.verify import acting, activity, differences, not_finite, quantizers, scale_error
from workers.rounds import EVALUATE, Largest, Sums
from workers.tasks.learning import StepSchedule, learning_rate_factor, make_optimizer
from workers.tasks.recipe import Recipe, Split

if TYPE_CHECKING:
    from workers.config import TrainingConfig
    from workers.elastic import Job

GATE_FAILED = 10
"""Exit code of a job that a gate has ended."""

CALIBRATION_EPOCH = 1 << 40
"""The order of the samples in calibration is that of no training epoch."""

DATA, START, QUANTIZERS, BEST, CALIBRATION, CALIBRATED = "data", "start", "quantizers", "best", "calibration", "calibrated"
RANDOM = "random"


class Pipeline:
    """One rank's way through the phases.

    Args:
        make_job: `Job`, or something with its signature.
    """

    def __init__(self, config: TrainingConfig, recipe: Recipe, make_job: Callable[..., Job]) -> None:
        self.config, self.recipe, self.model = config, recipe, recipe.model
        optimizer = make_optimizer(config, recipe.parameter_groups())
        self._added: Callable[[], dict[str, int]] = dict
        self._per_epoch = sampler.steps_per_epoch(len(recipe.train), config.global_batch)  # type: ignore[arg-type]
        self._learning = StepSchedule(optimizer, self._settings)
        self.job: Job = make_job(
            self.model,
            optimizer,
            recipe.train,
            scheduler=self._learning,
            evaluate=self._evaluate,
            clip_norm=config.clip_norm,
            evaluate_every=1,  # gates stand on it
            phase=lambda step: self.schedule.phase(step // self.job.steps_per_epoch),
            after_round=self._after_round,
        )
        self._added = lambda: self.job.added_epochs
        self.verdicts: list[Verdict] = []

    @property
    def schedule(self) -> Schedule:
        """The epochs as they are planned now."""
        return Schedule(self.config.phases, self.config.qat, self._added())

    def run(self) -> dict[str, Any]:
        """Go all the way; what stands in `result.json`.

        Raises:
            DataError: the data failed a check.
            TaskError: a gate failed for good (exit code 10).
        """
        self._check_data()
        for batch in self.job.batches():
            self._enter_step()
            self.job.step(self.recipe.loss(batch, self.job.epoch))
        self._judge_training()
        self._calibrate()
        return self._verify()

    # ------------------------------------------------------------------ phases

    def _check_data(self) -> None:
        """Before anything is computed from it; then the loss that the first weights have.

        A rank that joins, or a job that resumes, finds the measurements on record, and must have read the same data.
        """
        digest = self.recipe.digest
        agreement = measure_agreement(digest, Largest)
        measured = self.job.collect(
            DATA, lambda part, parts: self.recipe.check(part, parts, Largest) | agreement, phase=Phase.DATA
        )
        findings = checks.judge(measured, self.recipe.manifest)
        checks.refuse(findings, self.recipe.manifest)
        if measured["digest_high"] != digest:
            raise DataError(
                f"this host has read other data ({self.recipe.manifest.name}) than the job began with; give it the same "
                "files, and for text the same release of Python"
            )
        for finding in findings:
            if not finding.passed and not self.job.committed:
                self.job.tell("data_warning", {"check": finding.check, "value": finding.value, "warning": finding.sentence})
        self.job.collect(START, self._start)

    def _enter_step(self) -> None:
        """Switches follow the step alone (QS-37); QAT begins where the gate of the warm-up has passed."""
        epoch, schedule = self.job.epoch, self.schedule
        if epoch == schedule.warmup_epochs:
            self._judge_warmup()
        self._switch(schedule.switches(epoch))

    def _judge_warmup(self) -> None:
        if not self.verdicts and self.config.phases.fp32_epochs:
            self._pass(self._warmup_verdict(self._evaluations()))

    def _judge_training(self) -> None:
        self._judge_warmup()
        if self.config.phases.qat_epochs:
            measured = self.job.collect(QUANTIZERS, self._active)
            there = (measured.get("layers", 0.0), measured.get("activations", 0.0))
            self._pass(judge("qat_enabled", gates.qat_enabled(*there), measured | acting(measured)))
            self._pass(self._qat_verdict(self._evaluations()))

    def _calibrate(self) -> None:
        """The best weights, new ranges from training batches in evaluation mode, then observers off."""
        self.job.collect(BEST, lambda part, parts: {}, phase=Phase.CALIBRATION)
        batches = max(self.config.qat.calibration_batches, gates.least_batches(self.config.phases))
        verdict = self._calibrated(range(batches))
        if not verdict.passed:
            verdict = self._calibrated(range(batches, 2 * batches))
        self._pass(verdict)

    def _calibrated(self, numbers: range) -> Verdict:
        """The verdict after these batches too."""
        for number in numbers:
            self.job.collect(
                f"{CALIBRATION}.{number}", partial(self._observe, number), observe=True, phase=Phase.CALIBRATION
            )
        measured = self.job.collect(
            f"{CALIBRATED}.{numbers.stop}", partial(self._ranges, numbers.stop), phase=Phase.CALIBRATION
        )
        return judge("calibration_complete", gates.calibration_complete(self.config.phases), measured)

    def _verify(self) -> dict[str, Any]:
        """Hand the integer model over if it runs and keeps its size, and find whether it is fit to be used."""
        qat, job = self.config.qat, self.job
        self._switch(QUANTIZED)
        integer, quantized_name = convert(self.model), f"int{qat.weight_bits}"
        full = job.collect("fp32", partial(self._scored, FP32, "test"), phase=Phase.CONVERT)
        quantized = job.collect(quantized_name, partial(self.recipe.evaluate, integer, "test"), phase=Phase.CONVERT)
        answered = job.collect(RANDOM, partial(self._answered, integer), phase=Phase.CONVERT)
        finite = {"not_finite": quantized["not_finite"], "not_finite_random": answered["not_finite"]}
        in_full = [full, *self._evaluations()[: self.schedule.warmup_epochs]]
        best, lowest = max(map(accuracy, in_full)), min(in_full, key=mean_loss)
        size = {
            "ratio": ratio(self.model, integer),
            "reload_differs": reload_differs(self.model, integer),
            **finite,
        }
        self._pass(judge("conversion_complete", gates.conversion_complete(qat), size))
        job.hand_over(f"model/{quantized_name}.safetensors", partial(save_converted, integer))
        compared = job.collect("compare", self.recipe.compare, phase=Phase.VERIFY)
        kept = {**self.recipe.measured(compared, lowest, quantized), **finite}
        kept["accuracy_drop"] = best - accuracy(quantized)
        verdict = judge("verified", [*gates.verified(qat), *self.recipe.conditions()], kept)
        self._record(verdict)
        return {
            "accuracy": {"fp32": best, quantized_name: accuracy(quantized)},
            "loss": {"fp32": mean_loss(lowest), quantized_name: mean_loss(quantized)},
            "bytes": {"fp32": fp32_bytes(self.model), f"{quantized_name}_packed": packed_bytes(integer)},
            "unquantized": unquantized(self.model),
            "verified": verdict.passed,
            "gates": [each.to_json() for each in self.verdicts],
            "ranges": {name: [float(o.low), float(o.high)] for name, o in range_observers(self.model).items()},
        }

    # ------------------------------------------------------------------ what follows from a round

    def _after_round(self, name: str, results: Sums) -> None:
        """Part of the commit, on every rank: of what is committed alone."""
        if name == EVALUATE:
            self._after_epoch([*self._evaluations(), results])
        elif name == BEST:
            if self._complete_epochs(self._evaluations()):
                self.job.put_back_weights()
            for observer in range_observers(self.model).values():
                observer.restart(calibrating=True)

    def _after_epoch(self, evaluations: list[Sums]) -> None:
        """Keep the best weights of the epochs in which everything is quantized; add epochs where a gate asks for them."""
        schedule, number = self.schedule, len(evaluations)
        earlier = self._complete_epochs(evaluations[:-1])
        if schedule.is_complete(number - 1) and all(
            validation_loss(evaluations[-1]) < validation_loss(each) for each in earlier
        ):
            self.job.keep_weights()
        if number == schedule.warmup_epochs and number < MAX_WARMUP_EPOCHS and self.config.phases.fp32_epochs:
            if not self._warmup_verdict(evaluations).passed:
                self.job.add_epochs(1, Phase.FP32_WARMUP)
        elif number == schedule.epochs and self.config.phases.qat_epochs:
            measures = [Phase.QAT, *([FIRST_LAYER_FP32] if first_layer(self.model) else [])]
            left = [each for each in measures if each not in self._added()]
            if left and not self._qat_verdict(evaluations).passed:
                self.job.add_epochs(MORE_QAT_EPOCHS, left[0])
        if self.schedule.observes_anew(number):
            for observer in range_observers(self.model).values():
                observer.restart()
        self._learning.refresh()

    def _complete_epochs(self, evaluations: list[Sums]) -> list[Sums]:
        return [sums for epoch, sums in enumerate(evaluations) if self.schedule.is_complete(epoch)]

    def _warmup_verdict(self, evaluations: list[Sums]) -> Verdict:
        warmup = evaluations[: self.schedule.warmup_epochs]
        start = next(sums for _, name, sums in self.job.history if name == START)
        measured = {"epochs": float(len(warmup)), "not_finite": sum(sums["not_finite"] for sums in warmup)}
        if warmup:
            measured["loss_over_start"] = validation_loss(warmup[-1]) / (start["start_loss"] / start["start_count"])
        return judge("fp32_warmup", gates.fp32_warmup(self.config.phases), measured)

    def _qat_verdict(self, evaluations: list[Sums]) -> Verdict:
        warmup = [pooled_accuracy(sums) for sums in evaluations[: self.schedule.warmup_epochs]]
        complete = [pooled_accuracy(sums) for sums in self._complete_epochs(evaluations)]
        measured = {"qat_epochs": float(len(evaluations) - len(warmup))}
        if complete:
            measured["accuracy_drop"] = max(warmup, default=0.0) - max(complete)
        return judge("qat_complete", gates.qat_complete(self.schedule, self.config.qat), measured)

    # ------------------------------------------------------------------ measuring

    def _start(self, part: int, parts: int) -> Sums:
        """Before training; under names of their own, for it is no accuracy that anyone would be shown."""
        scored = self._scored(FP32, "validation", part, parts)
        return {"start_loss": scored["loss"], "start_count": scored["count"]}

    def _evaluate(self, part: int, parts: int) -> Sums:
        """After an epoch, with what was quantized in it."""
        switches = self.schedule.switches(self.job.epoch)
        validation = self._scored(switches, "validation", part, parts)
        return {
            **self._scored(switches, "test", part, parts),
            **{f"validation_{key}": value for key, value in validation.items()},
        }

    def _scored(self, switches: Switches, split: Split, part: int, parts: int) -> Sums:
        self._switch(switches, observing=False)
        return self.recipe.evaluate(self.model, split, part, parts)

    def _answered(self, integer: nn.Module, part: int, parts: int) -> Sums:
        """To random input, which is little: the whole of it on every rank."""
        return {"not_finite": Largest(not_finite(self.recipe.answer_random(integer)))}

    def _observe(self, number: int, part: int, parts: int) -> Sums:
        self._switch(CALIBRATING._replace(weights=self.config.phases.qat_epochs > 0))
        self._look_at(number, part, parts)
        return {}

    def _active(self, part: int, parts: int) -> Sums:
        """What quantizers do to training samples, switched as in the last epoch; on record, for the model changes later."""
        self._switch(self.schedule.switches(self.schedule.epochs - 1), observing=False)
        found = activity(self.model, partial(self._look_at, 0, part, parts))
        return {name: Largest(value) for name, value in (quantizers(self.model) | found).items()}

    def _look_at(self, number: int, part: int, parts: int) -> None:
        """Run this part of a calibration batch through the model."""
        for ids in self._calibration_share(number, part, parts):
            self.recipe.observe(ids)

    def _ranges(self, batches: int, part: int, parts: int) -> Sums:
        """What a calibration of so many batches has come to; also on record, because another may follow."""
        self._switch(QUANTIZED)
        measured: Sums = {name: Largest(value) for name, value in quantizers(self.model).items()}
        updates = [int(observer.updates) for observer in range_observers(self.model).values()]
        measured["calibration_batches"] = Largest(min(updates, default=batches))
        measured["test_samples"] = Largest(self._outside_train(batches))
        if not measured["blind_observers"]:
            measured["scale_error"] = Largest(max(scale_error(self.model, convert(self.model)).values(), default=0.0))
        return measured

    def _calibration_share(self, number: int, part: int, parts: int) -> list[sampler.Ids]:
        """Whole micro-batches: the same bits on any number of ranks."""
        pieces = sampler.micro_batches(self._calibration_batch(number), self.config.micro_batch)
        mine = sampler.piece(len(pieces), parts, part, 0)
        return pieces[mine.start : mine.stop]

    def _calibration_batch(self, number: int) -> sampler.Ids:
        """One global batch of training samples (QS-40)."""
        samples, batch = len(self.recipe.train), self.config.global_batch  # type: ignore[arg-type]
        turn, index = divmod(number, self._per_epoch)
        return sampler.batch(self.config.seed, CALIBRATION_EPOCH + turn, index, samples, batch)

    def _outside_train(self, batches: int) -> float:
        samples = len(self.recipe.train)  # type: ignore[arg-type]
        return float(sum(int((self._calibration_batch(n) >= samples).sum()) for n in range(batches)))

    def _evaluations(self) -> list[Sums]:
        """Of every epoch so far, in order."""
        return [sums for _, name, sums in self.job.history if name == EVALUATE]

    # ------------------------------------------------------------------ small parts

    def _switch(self, switches: Switches, *, observing: bool | None = None) -> None:
        if self.config.qat.bits_before:
            set_weight_bits(self.model, self.schedule.weight_bits(self.job.epoch))
        set_first_layer(self.model, fp32=self.schedule.leaves_first_layer(self.job.epoch))
        on = switches.observing if observing is None else observing
        weights, activations, state, _ = switches
        set_switches(self.model, weights=weights, activations=activations, state=state, observing=on)

    def _pass(self, verdict: Verdict) -> None:
        """Raises TaskError where the gate has failed: the phase after it does not begin."""
        self._record(verdict)
        if not verdict.passed:
            raise TaskError(
                f"the gate {verdict.gate} has failed, and {gates.FAILED[verdict.gate]}: {'; '.join(verdict.failures)}",
                exit_code=GATE_FAILED,
            )

    def _record(self, verdict: Verdict) -> None:
        self.verdicts.append(verdict)
        self.job.tell("gate", {"gate": verdict.gate, "passed": verdict.passed, "values": verdict.values})

    def _settings(self, step: int) -> dict[str, float]:
        """Learning rate and weight decay in the step after `step` others; steps of the optimizer, of one batch each."""
        config, schedule = self.config, self.schedule
        epoch = step // self._per_epoch
        if epoch < schedule.warmup_epochs:
            steps = schedule.warmup_epochs * self._per_epoch
            factor = learning_rate_factor(step, steps, config.schedule.name, config.schedule.warmup_steps)
            return {"lr": config.optimizer.lr * factor, "weight_decay": config.optimizer.weight_decay}
        base = config.qat.lr if config.qat.lr is not None else config.optimizer.lr / 10
        return {"lr": schedule.qat_rate(epoch - schedule.warmup_epochs, base), "weight_decay": config.qat.weight_decay}


def accuracy(sums: Sums) -> float:
    """The part of the test data that is correct, 0..1."""
    return sums["correct"] / sums["count"] if sums["count"] else 0.0


def mean_loss(sums: Sums) -> float:
    """Of the test data, in nats; infinite where it is NaN, so that it is never the lowest."""
    loss = sums["loss"] / sums["count"] if sums["count"] else math.inf
    return loss if loss == loss else math.inf


def pooled_accuracy(sums: Sums) -> float:
    """Of an evaluation: the part of all data that was not trained on that is correct, 0..1.

    A gate asks for one point, which a small validation set alone cannot tell from chance; no weights are chosen by it.
    """
    count = sums["validation_count"] + sums["count"]
    return (sums["validation_correct"] + sums["correct"]) / count if count else 0.0


def validation_loss(sums: Sums) -> float:
    """Of an evaluation: mean loss, in nats; infinite where it is NaN, so that it is never the lowest."""
    loss = sums["validation_loss"] / sums["validation_count"]
    return math.inf if math.isnan(loss) else loss


def reload_differs(model: nn.Module, integer: nn.Module) -> float:
    """How many numbers of `integer` are others after it was written to a file and read again."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_converted(integer, path)
        again = load_converted(blank(model), path).state_dict()
    return sum(differences(tensor, again[name]) for name, tensor in integer.state_dict().items())
