"""The way from data to a verified integer model, by the real Job of one rank."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.workers.tasks.solo_job import RecordingJob, Run, added, blobs, bound, config, run, splits, switches
from workers.config import TrainingConfig
from workers.data.digits import Digits
from workers.elastic import Job
from workers.errors import DataError, TaskError
from workers.keeper import Keeper
from workers.qat import gates
from workers.qat.artifact import load_converted
from workers.qat.convert import IntegerLinear, PackedWeight, blank, convert, packed_bytes, ratio
from workers.qat.gates import Condition
from workers.qat.layers import QuantActivation, QuantizedLayer, QuantLinear, set_switches
from workers.qat.observers import range_observers
from workers.qat.phases import FP32, QUANTIZED, Phase, Schedule, Switches
from workers.rounds import Sums
from workers.tasks import mlp, spiking
from workers.tasks.digits import DigitsRecipe
from workers.tasks.pipeline import CALIBRATION_EPOCH, GATE_FAILED, Pipeline
from workers.transfer import Snapshot

SPIKING: dict[str, Any] = {
    "recipe": "spiking",
    "hidden": [24],
    "spiking": {"num_steps": 6, "encoding": "current", "readout": "membrane"},
}
STEPS = 7
"""Of an epoch: 220 training samples in batches of 32."""

MICRO_BATCHES = 2
"""Of a batch."""

GATES = ["fp32_warmup", "qat_enabled", "qat_complete", "calibration_complete", "conversion_complete", "verified"]


def failed_at(gate: str, parts: int = 1, **values: Any) -> Run:
    """A job that `gate` ends: exit code 10, one sentence, and no gate after it."""
    ended = run(config(**values), parts=parts, fails=TaskError)
    assert isinstance(ended.error, TaskError) and ended.error.exit_code == GATE_FAILED == 10
    sentence = str(ended.error)
    assert sentence.startswith(f"the gate {gate} has failed, and {gates.FAILED[gate]}: ") and "\n" not in sentence
    assert list(ended.verdicts.items()) == [(each, each != gate) for each in GATES[: GATES.index(gate) + 1]]
    return ended


def scripted(monkeypatch: pytest.MonkeyPatch, losses: list[float]) -> None:
    """The mean validation loss is what `losses` says: before training, then after each epoch."""
    real, left = DigitsRecipe.evaluate, iter(losses)

    def evaluate(self: DigitsRecipe, model: Any, split: Any, part: int, parts: int) -> Sums:
        sums = real(self, model, split, part, parts)
        return {**sums, "loss": next(left) * sums["count"]} if split == "validation" else sums

    monkeypatch.setattr(DigitsRecipe, "evaluate", evaluate)


# ---------------------------------------------------------------------- phases


def test_qs22_every_step_of_twelve_epochs_has_the_switches_rate_and_decay_of_the_table() -> None:
    done = run(
        config(
            task=SPIKING,
            phases={"fp32_epochs": 1, "qat_epochs": 12},
            optimizer={"lr": 1e-3, "weight_decay": 0.1},
        )
    )
    steps = done.job.steps
    assert [step.epoch for step in steps] == [epoch for epoch in range(13) for _ in range(STEPS)]
    table = [FP32, *[Switches(weights=True)] * 3, *[Switches(weights=True, activations=True, observing=True)] * 4]
    table += [QUANTIZED._replace(observing=True), *[QUANTIZED] * 4]
    phases = ["fp32_warmup", *["qat"] * 8, *["observer_freeze"] * 4]
    rates = [1e-3] + [1e-6 + 9.9e-5 * (1 + math.cos(math.pi * epoch / 12)) / 2 for epoch in range(12)]
    assert rates[1 + 4] == pytest.approx(7.525e-5) and rates[1 + 8] == pytest.approx(2.575e-5)
    for step in steps:
        assert (step.switches, step.phase) == (table[step.epoch], phases[step.epoch])
        assert step.training
        (rate, decay), *others = step.groups
        assert rate == pytest.approx(rates[step.epoch])
        assert decay == (0.1 if step.epoch == 0 else 1e-5)
        assert others and all(group == (rate, 0.0) for group in others)
    assert done.job.optimizer.param_groups[0]["lr"] == pytest.approx(1e-6)


@pytest.mark.parametrize("recipe", [{}, SPIKING])
def test_qs22_the_phases_begin_in_their_order(recipe: dict[str, Any]) -> None:
    done = run(config(task=recipe, phases={"qat_epochs": 4}))
    assert [fields["phase"] for fields in done.told("phase")] == list(Phase)
    assert list(done.verdicts) == GATES and all(list(done.verdicts.values())[:-1])
    names = [name for _, name, _ in done.job.history]
    calibrations = [f"calibration.{number}" for number in range(32)]
    trained, judged = (
        ["data", "start", *["evaluate"] * 6, "quantizers", "best"],
        ["calibrated.32", "fp32", "int8", "random", "compare"],
    )
    assert names == [*trained, *calibrations, *judged]
    assert [each["gate"] for each in done.result["gates"]] == GATES


def test_ck1_each_phase_is_entered_after_what_decides_that_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before its first step or round: after the evaluation that may prolong the one before, and before the best weights
    are put back. That is the state that the keeper saves."""
    entered: dict[str, tuple[int, int]] = {}
    calls: list[str] = []

    def enter(self: Keeper, phase: str) -> None:
        state = self._rank.machine.state
        entered.setdefault(phase, (state.step, state.round))
        calls.append(phase)

    monkeypatch.setattr(Keeper, "enter", enter)
    done = run(config(phases={"fp32_epochs": 2, "qat_epochs": 4}, qat={"freeze_from": 2}))
    assert list(entered) == list(Phase) and len(calls) > len(done.job.steps) == 6 * STEPS
    assert [entered[phase] for phase in list(Phase)[:5]] == [(0, 0), (0, 2), (2 * STEPS, 1), (4 * STEPS, 1), (6 * STEPS, 2)]


def test_an_evaluation_sees_what_its_epoch_quantizes_and_is_not_observed(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Switches, bool]] = []
    real = DigitsRecipe.evaluate

    def evaluate(self: DigitsRecipe, model: Any, split: Any, part: int, parts: int) -> Sums:
        if split == "validation":
            seen.append((switches(model), torch.is_grad_enabled()))
        return real(self, model, split, part, parts)

    monkeypatch.setattr(DigitsRecipe, "evaluate", evaluate)
    done = run(config(task=SPIKING, phases={"fp32_epochs": 1, "qat_epochs": 3}))
    steps = {step.epoch: step.switches._replace(observing=False) for step in done.job.steps}
    assert seen == [(FP32, False), *((steps[epoch], False) for epoch in range(4))]
    assert len(set(steps.values())) == 4


def test_qs22_without_a_warm_up_quantization_begins_at_once() -> None:
    done = run(config(phases={"fp32_epochs": 0, "qat_epochs": 2}))
    assert all(step.switches.weights for step in done.job.steps) and len(done.job.steps) == 2 * STEPS
    assert list(done.verdicts) == GATES[1:]


@pytest.mark.parametrize("qat_epochs", [1, 2, 3, 5])
def test_qs22_few_epochs_still_end_with_everything_quantized(qat_epochs: int) -> None:
    done = run(config(task=SPIKING, phases={"fp32_epochs": 1, "qat_epochs": qat_epochs}))
    assert done.job.steps[-1].switches[:3] == QUANTIZED[:3]
    assert done.job.added_epochs == {} and done.verdicts["qat_complete"]


class WatchesBits(RecordingJob):
    """Remembers, by epoch, the bits of every weight, and how often ranges were updated when the epoch began."""

    def step(self, loss: Tensor) -> None:
        bits = {layer.quantizer.bits for layer in self.model.modules() if isinstance(layer, QuantizedLayer)}
        updates = {int(observer.updates) for observer in range_observers(self.model).values()}
        self.seen = getattr(self, "seen", {})
        self.seen.setdefault(self.epoch, (bits, updates))
        super().step(loss)


MULTI: dict[str, Any] = {
    "phases": {"fp32_epochs": 2, "qat_epochs": 8},
    "qat": {"weight_bits": 4, "bits_before": [8], "lr": 2e-3},
}


@pytest.mark.parametrize("recipe", [{}, SPIKING])
def test_qs23_weights_get_fewer_bits_on_the_way_and_ranges_are_observed_anew(recipe: dict[str, Any]) -> None:
    """8 bits for three epochs, then 4 for five, at half the rate; what is handed over has 4."""
    done = run(config(task=recipe, **MULTI), job_class=WatchesBits)
    job = done.job
    assert isinstance(job, WatchesBits) and len(job.steps) == 10 * STEPS
    assert [job.seen[epoch][0] for epoch in range(2, 10)] == [{8}] * 3 + [{4}] * 5
    assert [step.groups[0][0] for step in job.steps[2 * STEPS :: STEPS]] == [2e-3] * 3 + [1e-3] * 5
    (first,) = [epoch for epoch in range(3, 10) if job.seen[epoch][1] == {0} and job.seen[epoch - 1][1] != {0}]
    assert first == 5 and job.seen[6][1] == {STEPS} and job.seen[4][1] != {0}
    assert set(done.verdicts) == set(GATES) and set(done.result["accuracy"]) == {"fp32", "int4"}
    integer = load_converted(blank(job.model), done.rank.folder / "model" / "int4.safetensors")
    assert {module.bits for module in integer.modules() if isinstance(module, PackedWeight)} == {4}


def test_qs37_a_job_that_goes_on_in_any_stage_comes_to_the_same_end() -> None:
    whole = run(config(**MULTI), job_class=Photographed)
    assert isinstance(whole.job, Photographed)
    for place in ("step 31", "evaluate 35", "step 38", "evaluate 70", "calibrated.32 70", "compare 70"):
        resumed = run(config(**MULTI), job_class=type("Resumed", (Photographed,), {"begin": whole.job.pictures[place]}))
        assert (resumed.job.digest, resumed.result) == (whole.job.digest, whole.result), place


# ---------------------------------------------------------------------- the best epoch


class WeightsOfEpochs(RecordingJob):
    """Remembers the weights that each evaluation saw, and those when the training was judged."""

    def _run_round(self, name: str, fn: Any, *, observe: bool = False) -> None:
        if name == "evaluate":
            self.weights = [*getattr(self, "weights", []), self.now()]
        super()._run_round(name, fn, observe=observe)

    def now(self) -> dict[str, Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self.model.named_parameters()}


@pytest.mark.parametrize(
    ("losses", "best"),
    [
        ([0.5, 0.3, 0.4, 0.3, 0.6], 4),  # the first of two that are equal
        ([0.5, 0.6, 0.4, 0.7, 0.2], 7),
        ([0.2, 0.6, 0.4, 0.7, 0.3], 3),
        ([0.5, math.nan, 0.4, math.nan, 0.6], 5),
    ],
)
def test_qs22_the_best_of_the_fully_quantized_epochs_is_put_back(
    losses: list[float], best: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Epochs 0 and 1 are the warm-up's, 2 quantizes weights alone; their losses are lower and do not count."""
    scripted(monkeypatch, [9.0, 0.9, 0.1, 0.05, *losses])
    wanted = config(phases={"fp32_epochs": 2, "qat_epochs": 6}, qat={"activations_from": 1, "state_from": 1, "lr": 0.01})
    done = run(wanted, job_class=WeightsOfEpochs)
    job = done.job
    assert isinstance(job, WeightsOfEpochs) and len(job.weights) == 8
    equal = [all(torch.equal(old[name], new) for name, new in job.now().items()) for old in job.weights]
    assert [epoch for epoch, same in enumerate(equal) if same] == [best]


# ---------------------------------------------------------------------- calibration


@pytest.mark.parametrize(("asked", "batches"), [(5, 32), (40, 40)])
@pytest.mark.parametrize("recipe", [{}, SPIKING])
def test_qs22_ranges_are_the_mean_of_the_calibration_batches_alone(
    asked: int, batches: int, recipe: dict[str, Any]
) -> None:
    wanted = config(task=recipe, qat={"calibration_batches": asked})
    done = run(wanted)
    model, observers = done.job.model, range_observers(done.job.model)
    assert {int(observer.updates) for observer in observers.values()} == {batches}
    assert sum(name.startswith("calibration.") for _, name, _ in done.job.history) == batches
    with bound(wanted), torch.no_grad():
        pipeline = of(wanted)
        pipeline.model.load_state_dict(model.state_dict())
        for observer in range_observers(pipeline.model).values():
            observer.restart(calibrating=True)
        rows: list[Tensor] = []
        for number in range(batches):
            pipeline._observe(number, 0, 1)
            rows.append(torch.cat([o.seen.double() for o in range_observers(pipeline.model).values()]))
            for observer in range_observers(pipeline.model).values():
                observer.seen.fill_(-math.inf)
    mean = torch.stack(rows).mean(dim=0).view(-1, 2)
    expected = [[-float(low), float(high)] for low, high in mean]
    for found, wanted_range in zip(done.result["ranges"].values(), expected, strict=True):
        assert found == pytest.approx(wanted_range, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(("qat_epochs", "weights"), [(2, True), (0, False)])
def test_qs22_qs24_calibration_runs_in_evaluation_mode_without_gradients(
    qat_epochs: int, weights: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, real = [], mlp.DigitsRecipe.logits

    def logits(self: DigitsRecipe, model: Any, rows: Any, epoch: int) -> Tensor:
        now = switches(model)
        if now.observing and not model.training:
            found.append((now, torch.is_grad_enabled()))
        return real(self, model, rows, epoch)

    monkeypatch.setattr(mlp.DigitsRecipe, "logits", logits)
    run(config(phases={"fp32_epochs": 2, "qat_epochs": qat_epochs}))
    assert set(found) == {(Switches(weights=weights, observing=True), False)}
    assert len(found) == (32 if qat_epochs else 64) * MICRO_BATCHES


def of(wanted: TrainingConfig) -> Pipeline:
    """The pipeline of a job in a `bound` process, before it runs."""
    data = splits(wanted)
    if wanted.task.recipe == "spiking":
        return Pipeline(wanted, spiking.SpikingRecipe(wanted, data), Job)
    return Pipeline(wanted, DigitsRecipe(wanted, data, mlp.build(wanted, 12, 10)), Job)


@pytest.mark.parametrize("recipe", [{}, SPIKING])
def test_qs40_a_calibration_batch_is_seen_alike_by_any_number_of_ranks(recipe: dict[str, Any]) -> None:
    wanted = config(task=recipe)
    with bound(wanted), torch.no_grad():
        pipeline = of(wanted)
        for number in (0, 6, 9):  # 6 is the short last batch of an epoch
            found = []
            for parts in (1, 2, 8, 40):
                ranks = []
                for part in range(parts):
                    for observer in range_observers(pipeline.model).values():
                        observer.seen.fill_(-math.inf)
                    assert pipeline._observe(number, part, parts) == {}
                    ranks.append(torch.cat([o.seen for o in range_observers(pipeline.model).values()]))
                found.append(torch.stack(ranks).amax(dim=0))
            assert found[0].isfinite().all()
            for other in found[1:]:
                assert torch.allclose(other, found[0], rtol=1e-5, atol=1e-6)


def test_qs22_calibration_batches_are_training_samples_in_an_order_of_their_own() -> None:
    wanted = config()
    with bound(wanted):
        pipeline = of(wanted)
        ids = [torch.tensor(pipeline._calibration_batch(number)) for number in range(2 * STEPS)]
        assert torch.equal(torch.cat(ids[:STEPS]).sort().values, torch.arange(220))
        assert torch.equal(torch.cat(ids[STEPS:]).sort().values, torch.arange(220))
        assert not torch.equal(ids[0], ids[STEPS])
        assert wanted.epochs < CALIBRATION_EPOCH


def blind(monkeypatch: pytest.MonkeyPatch, batches: int) -> None:
    """The first calibration batches are not looked at; the samples that the quantizers are judged by are."""
    real, left = DigitsRecipe.observe, iter(range(batches * MICRO_BATCHES))

    def observe(self: DigitsRecipe, ids: Any) -> None:
        calibrating = switches(self.model).observing
        real(self, ids[:0] if calibrating and next(left, None) is not None else ids)

    monkeypatch.setattr(DigitsRecipe, "observe", observe)


def test_ta19_a_calibration_that_saw_too_little_gets_as_many_batches_again(monkeypatch: pytest.MonkeyPatch) -> None:
    blind(monkeypatch, 1)
    done = run(config())
    assert sum(name.startswith("calibration.") for _, name, _ in done.job.history) == 64
    assert done.result["gates"][3]["values"]["calibration_batches"] == 63


def test_ta19_a_calibration_without_data_ends_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    blind(monkeypatch, 1000)
    ended = failed_at("calibration_complete")
    assert "calibration_batches is 0, but must be >= 32" in str(ended.error)
    assert "blind_observers is 2, but must be <= 0" in str(ended.error)


# ---------------------------------------------------------------------- gates


def test_ta19_the_warm_up_is_extended_epoch_by_epoch_until_its_gate_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "fp32_warmup", lambda phases: [Condition("epochs", ">=", 5)])
    schedule = {"name": "cosine"}
    done = run(config(phases={"fp32_epochs": 3, "qat_epochs": 2}, schedule=schedule, optimizer={"lr": 0.01}))
    assert done.job.added_epochs == {"fp32_warmup": 2}
    warmup = [step.switches == FP32 and step.phase == "fp32_warmup" for step in done.job.steps]
    assert warmup == [True] * 5 * STEPS + [False] * 2 * STEPS
    assert len(done.evaluations) == 7 and done.verdicts["fp32_warmup"]
    planned = {3: 3 * STEPS, 4: 4 * STEPS}  # while epoch 3 runs, the warm-up has 4 of them
    for epoch, total in planned.items():
        rate = done.job.steps[epoch * STEPS].groups[0][0]
        assert rate == pytest.approx(0.005 * (1 + math.cos(math.pi * epoch * STEPS / (total + STEPS))))


def test_ta19_a_warm_up_that_learns_nothing_ends_after_ten_epochs() -> None:
    ended = failed_at("fp32_warmup", phases={"fp32_epochs": 8}, optimizer={"lr": 1e-30})
    assert str(ended.error).endswith("extended as far as it goes: loss_over_start is 1, but must be < 1")
    assert len(ended.job.steps) == 10 * STEPS and ended.job.added_epochs == {"fp32_warmup": 2}
    assert {step.switches for step in ended.job.steps} == {FP32}


def test_ta19_a_warm_up_longer_than_ten_epochs_is_not_extended() -> None:
    ended = failed_at("fp32_warmup", phases={"fp32_epochs": 11}, optimizer={"lr": 1e-30})
    assert len(ended.job.steps) == 11 * STEPS and ended.job.added_epochs == {}


def test_ta19_qat_is_extended_once_by_three_epochs_at_half_its_first_rate() -> None:
    """Here nothing is quantized whole before the third epoch, so there is no accuracy to judge after two."""
    phases = {"fp32_epochs": 4, "qat_epochs": 2}
    done = run(config(phases=phases, qat={"activations_from": 2, "state_from": 2, "lr": 1e-3}))
    assert done.job.added_epochs == {"qat": 3} and done.verdicts["qat_complete"]
    assert len(done.job.steps) == 9 * STEPS and len(done.evaluations) == 9
    assert [step.groups[0][0] for step in done.job.steps[6 * STEPS :]] == [pytest.approx(5e-4)] * 3 * STEPS
    assert all(step.switches.activations for step in done.job.steps[6 * STEPS :])


def test_ta19_qat_that_loses_too_much_ends_after_both_extensions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gates.LARGEST_DROP, 8, -2.0)
    ended = failed_at("qat_complete", phases={"fp32_epochs": 2, "qat_epochs": 2})
    assert "accuracy_drop is " in str(ended.error) and "but must be <= -2" in str(ended.error)
    assert len(ended.job.steps) == 10 * STEPS and ended.job.added_epochs == {"qat": 3, "first_layer_fp32": 3}


def test_ta19_a_first_layer_without_others_is_not_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing would be quantized."""
    monkeypatch.setitem(gates.LARGEST_DROP, 8, -2.0)
    monkeypatch.setattr(gates, "qat_enabled", lambda layers, activations: [])  # here is no activation either
    ended = failed_at("qat_complete", task={"hidden": []}, phases={"fp32_epochs": 2, "qat_epochs": 1})
    assert ended.job.added_epochs == {"qat": 3}


class WatchesTheFirstLayer(WeightsOfEpochs):
    """Remembers in which steps the first layer, and the activation after it, were in full precision."""

    def step(self, loss: Tensor) -> None:
        parts = [module for module in self.model.modules() if isinstance(module, (*QuantizedLayer, QuantActivation))]
        self.left = [*getattr(self, "left", []), [part.fp32 and not part.fake_quant for part in parts]]
        super().step(loss)


def hard_to_quantize(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network that knows nothing of the test data while its first layer is quantized."""
    real = DigitsRecipe.evaluate

    def evaluate(self: DigitsRecipe, model: Any, split: Any, part: int, parts: int) -> Sums:
        sums = real(self, model, split, part, parts)
        first = next((m for m in model.modules() if isinstance(m, (*QuantizedLayer, PackedWeight))), None)
        coded = isinstance(first, PackedWeight) and first.shape[1] == 12
        knows = not coded and not getattr(first, "fake_quant", False)
        return {**sums, "correct": sums["count"] if knows else 0.0}

    monkeypatch.setattr(DigitsRecipe, "evaluate", evaluate)


HARD: dict[str, Any] = {"phases": {"fp32_epochs": 2, "qat_epochs": 2}, "qat": {"lr": 1e-3}}


@pytest.mark.parametrize("recipe", [{}, SPIKING])
def test_ta19_where_more_epochs_do_not_help_the_first_layer_is_left_in_full_precision(
    recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For three epochs, for good, and in the model that is handed over; which says so, and weighs what it does."""
    hard_to_quantize(monkeypatch)
    done = run(config(task=recipe, **HARD), job_class=WatchesTheFirstLayer)
    job = done.job
    assert isinstance(job, WatchesTheFirstLayer) and job.added_epochs == {"qat": 3, "first_layer_fp32": 3}
    assert len(job.steps) == 10 * STEPS and [step.epoch for step in job.steps[-3 * STEPS :: STEPS]] == [7, 8, 9]
    assert [step.groups[0][0] for step in job.steps[4 * STEPS :]] == [pytest.approx(5e-4)] * 6 * STEPS
    nothing, whole = [False] * len(job.left[0]), [True, True, *[False] * (len(job.left[0]) - 2)]
    per_step = 2  # micro-batches
    before, after = job.left[: -3 * STEPS * per_step], job.left[-3 * STEPS * per_step :]
    assert before == [nothing] * len(before) and after == [whole] * len(after) and len(before) > 0
    equal = [all(torch.equal(old[name], new) for name, new in job.now().items()) for old in job.weights]
    assert sum(equal) == 1 and equal.index(True) >= 7  # the best of the epochs that were trained so

    assert done.verdicts["qat_complete"] and done.verdicts["qat_enabled"]
    name = "layers.0.linear" if recipe else "0"
    assert done.result["unquantized"] == [f"{name}.weight"]
    path = done.rank.folder / "model" / "int8.safetensors"
    again = load_converted(blank(job.model), path)
    first = again.get_submodule(name)
    assert type(first) is torch.nn.Linear
    assert torch.equal(first.weight, job.model.get_submodule(name).weight)  # type: ignore[arg-type]
    assert done.result["bytes"]["int8_packed"] == packed_bytes(again) > 4 * 12 * 24
    values = {gate["gate"]: gate["values"] for gate in done.result["gates"]}
    layers = sum(isinstance(module, QuantizedLayer) for module in job.model.modules())
    assert values["qat_enabled"]["weights_changed"] == layers - 1
    assert values["conversion_complete"]["ratio"] == ratio(job.model, again) < 3.0


def test_qs37_a_job_that_goes_on_with_its_first_layer_left_out_comes_to_the_same_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also after the last step, where no epoch of this process has left it out."""
    hard_to_quantize(monkeypatch)
    whole = run(config(**HARD), job_class=Photographed)
    assert isinstance(whole.job, Photographed)
    for place in (
        "evaluate 28",
        "evaluate 49",
        "step 52",
        "step 66",
        "evaluate 70",
        "best 70",
        "calibrated.32 70",
        "compare 70",
    ):
        resumed = run(config(**HARD), job_class=type("Resumed", (Photographed,), {"begin": whole.job.pictures[place]}))
        assert (resumed.job.digest, resumed.result) == (whole.job.digest, whole.result), place
        name = Path("model") / "int8.safetensors"
        assert (resumed.rank.folder / name).read_bytes() == (whole.rank.folder / name).read_bytes(), place


def test_ta19_quantizers_that_do_nothing_stop_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.tasks.pipeline.quantizers", lambda model: {})
    ended = failed_at("qat_enabled")
    assert "weight_quantizers was not measured, but must be >= 1" in str(ended.error)
    assert [name for _, name, _ in ended.job.history][-1] == "quantizers"


def test_ta19_quantizers_that_the_training_never_switched_on_stop_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """QS-33: what they could do is not asked."""
    monkeypatch.setattr(Schedule, "switches", lambda self, epoch: FP32)
    monkeypatch.setattr(Schedule, "is_complete", lambda self, epoch: epoch > 1)
    ended = failed_at("qat_enabled")
    assert {step.switches for step in ended.job.steps} == {FP32}
    for what, number in (("weight_quantizers", 3), ("activation_quantizers", 2), ("weights_changed", 3)):
        assert f"{what} is 0, but must be >= {number}" in str(ended.error)


@pytest.mark.parametrize("recipe", [{}, SPIKING])
def test_ta19_quantizers_that_let_everything_pass_stop_the_job(
    recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """QS-18: they are there, switched on, and have a range."""
    real = QuantActivation.forward

    def forward(self: QuantActivation, x: Tensor) -> Tensor:
        real(self, x)
        return x

    monkeypatch.setattr(QuantActivation, "forward", forward)
    ended = failed_at("qat_enabled", task=recipe)
    assert str(ended.error).endswith("do not do what they should: activations_changed is 0, but must be >= 2")


def test_ta19_a_layer_whose_weights_pass_unchanged_stops_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of three: the others do not speak for it."""
    monkeypatch.setattr(QuantLinear, "forward", lambda self, x: plain_in_the_last_layer(self, x))
    ended = failed_at("qat_enabled")
    assert str(ended.error).endswith("do not do what they should: weights_changed is 2, but must be >= 3")


def plain_in_the_last_layer(layer: QuantLinear, x: Tensor) -> Tensor:
    weight = layer.quantizer(layer.weight) if layer.fake_quant and layer.out_features != 10 else layer.weight
    return torch.nn.functional.linear(x, weight, layer.bias)


def test_qs33_the_quantizers_are_judged_without_moving_any_range(monkeypatch: pytest.MonkeyPatch) -> None:
    """By real training samples, with the switches of the last epoch."""
    looked: list[tuple[Switches, int]] = []
    real = DigitsRecipe.observe

    def observe(self: DigitsRecipe, ids: Any) -> None:
        before = [observer.seen.clone() for observer in range_observers(self.model).values()]
        real(self, ids)
        if not switches(self.model).observing:
            looked.append((switches(self.model), len(ids)))
            after = [observer.seen for observer in range_observers(self.model).values()]
            assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))

    monkeypatch.setattr(DigitsRecipe, "observe", observe)
    done = run(config(task=SPIKING, qat={"freeze_from": 50}), parts=40)
    last = done.job.steps[-1].switches
    assert last.observing and [on for on, _ in looked] == [last._replace(observing=False)] * MICRO_BATCHES
    assert sum(number for _, number in looked) == 32


def test_ta19_a_model_of_another_size_is_not_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gates.LARGEST_RATIO, 8, 1.0)
    ended = failed_at("conversion_complete")
    assert not ended.job._files
    assert [fields["phase"] for fields in ended.told("phase")] == list(Phase)[:-1]


def test_qs29_a_model_that_answers_random_input_with_nan_is_not_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each rank's answers to the same input the largest count, not their sum; the test data shows nothing."""
    real = DigitsRecipe.answer_random

    def answer_random(self: DigitsRecipe, model: Any) -> Tensor:
        logits = real(self, model)
        logits[5, :2] = math.nan
        return logits

    monkeypatch.setattr(DigitsRecipe, "answer_random", answer_random)
    ended = failed_at("conversion_complete", parts=3)
    assert str(ended.error).endswith("was not kept: not_finite_random is 2, but must be <= 0") and not ended.job._files


def test_qs29_the_integer_model_is_what_random_input_is_given_to(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    real = DigitsRecipe.answer_random

    def answer_random(self: DigitsRecipe, model: Any) -> Tensor:
        asked.append(model)
        return real(self, model)

    monkeypatch.setattr(DigitsRecipe, "answer_random", answer_random)
    done = run(config())
    (model,) = asked
    assert sum(isinstance(module, IntegerLinear) for module in model.modules()) == 3
    assert done.result["gates"][-1]["values"]["not_finite_random"] == 0.0


def test_qs29_a_model_that_is_not_verified_is_said_to_be_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "verified", lambda qat: [Condition("accuracy_drop", "<=", -2.0)])
    done = run(config())
    assert done.result["verified"] is False and done.verdicts["verified"] is False
    assert done.result["gates"][-1]["failures"][0].startswith("accuracy_drop is ")


@pytest.mark.parametrize("recipe", [{}, SPIKING])
def test_qs39_one_rank_and_many_come_to_the_same_verdicts_and_ranges(recipe: dict[str, Any]) -> None:
    """Every measurement in 3 and in 40 parts, of which some are empty, and added up as the exchange does it."""
    one, *others = (run(config(task=recipe), parts=parts) for parts in (1, 3, 40))
    for many in others:
        assert len(many.job.steps) == 5 * STEPS
        assert many.verdicts == one.verdicts and len(one.verdicts) == len(GATES)
        assert many.result["accuracy"] == one.result["accuracy"]
        for first, second in zip(one.result["gates"], many.result["gates"], strict=True):
            assert second["values"] == pytest.approx(first["values"], rel=1e-5, abs=1e-6)
        for name, found in one.result["ranges"].items():
            assert many.result["ranges"][name] == pytest.approx(found, rel=1e-3)


# ---------------------------------------------------------------------- data


def spoiled(change: Callable[[Tensor, Tensor, Tensor, Tensor], None]) -> Digits:
    digits = blobs()
    x, y = digits.train.tensors
    change(x, y, digits.test_x, digits.test_y)
    return digits


def set_to(tensor: Tensor, row: int, value: Any) -> None:
    tensor[row] = value


def without_a_class(x: Tensor, y: Tensor, test_x: Tensor, test_y: Tensor) -> None:
    y[y == 4] = 5


FAULTS = {
    "samples hold NaN": lambda x, y, test_x, test_y: set_to(x, 7, math.nan),
    "samples hold an infinite value": lambda x, y, test_x, test_y: set_to(x, 7, math.inf),
    "samples have no label from 0 to 9": lambda x, y, test_x, test_y: set_to(y, 7, 10),
    "samples have no label from 0 to 9; correct": lambda x, y, test_x, test_y: set_to(y, 7, -1),
    "1 of 340 samples hold NaN": lambda x, y, test_x, test_y: set_to(test_x, 50, math.nan),
    "1 of 340 samples have no label": lambda x, y, test_x, test_y: set_to(test_y, 50, 10),
    "1 test samples are in the split train": lambda x, y, test_x, test_y: None,
    "classes have no sample, namely 4": without_a_class,
    "standard deviations from the manifest's": lambda x, y, test_x, test_y: x.add_(1.0),
}


@pytest.mark.parametrize("sentence", FAULTS)
@pytest.mark.parametrize("validation", [0.0, 0.1])
@pytest.mark.parametrize("recipe", [{}, SPIKING])
def test_qs1_data_with_a_fault_ends_the_job_before_the_first_step(
    sentence: str, validation: float, recipe: dict[str, Any]
) -> None:
    wanted = config(task={**recipe, "data": {"validation": validation}})
    data = splits(wanted, spoiled(FAULTS[sentence]))
    if sentence.endswith("split train"):
        data.test.x[50] = data.train.x[9]
    ended = run(wanted, data, fails=DataError)
    assert str(ended.error).startswith("the data digits (blobs) cannot be trained on: ") and sentence in str(ended.error)
    assert "\n" not in str(ended.error)
    assert ended.job.committed == 0 and [name for _, name, _ in ended.job.history] == ["data"]


@pytest.mark.parametrize("rows", [slice(0, 240), slice(240, None)])
def test_qs1_a_fault_in_any_split_is_found_and_its_first_sample_named(rows: slice) -> None:
    """Numbers count through train, validation and test."""
    wanted = config()
    data = splits(wanted)
    total = torch.cat([data.train.x, data.validation.x, data.test.x])
    for number in (rows.start, (rows.stop or len(total)) - 1):
        data = splits(wanted)
        sizes = [len(part.y) for part in (data.train, data.validation, data.test)]
        place, at = number, 0
        while place >= sizes[at]:
            place, at = place - sizes[at], at + 1
        (data.train, data.validation, data.test)[at].x[place, 3] = math.nan
        ended = run(wanted, data, parts=3, fails=DataError)
        assert f"the first of them is number {number}" in str(ended.error)


def test_qs1_a_warning_is_told_and_the_training_goes_on() -> None:
    def far(x: Tensor, y: Tensor, test_x: Tensor, test_y: Tensor) -> None:
        x[:4, 0] = 6.5

    wanted = config()
    done = run(wanted, splits(wanted, spoiled(far)))
    (warning,) = done.told("data_warning")
    assert warning["check"] == "outliers" and "more than 6 standard deviations" in warning["warning"]
    assert len(done.job.steps) == 5 * STEPS and done.result
    assert not run(wanted).told("data_warning")


# ---------------------------------------------------------------------- the result


@pytest.mark.parametrize("bits", [8, 6, 4, 2])
def test_the_result_says_what_the_integers_are_worth(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gates.LARGEST_DROP, 2, 0.2)  # so small a network loses more than a large one
    wanted = config(phases={"fp32_epochs": 6, "qat_epochs": 6}, qat={"weight_bits": bits}, seed=5)
    done = run(wanted)
    result, name = json.loads((done.rank.folder / "result.json").read_text(), parse_constant=pytest.fail), f"int{bits}"
    assert set(result) == {"accuracy", "loss", "bytes", "unquantized", "verified", "gates", "ranges", "digest"}
    assert result["unquantized"] == []
    assert set(result["accuracy"]) == set(result["loss"]) == {"fp32", name}
    assert result["accuracy"]["fp32"] > 0.9 and result["accuracy"][name] > 0.8
    assert result["verified"] is done.result["gates"][-1]["passed"]
    assert set(result["ranges"]) == set(range_observers(done.job.model))
    weights, outputs = 12 * 24 + 24 * 16 + 16 * 10, 24 + 16 + 10
    scales = 2  # of the activations
    assert result["bytes"] == {
        "fp32": 4 * (weights + outputs),
        f"{name}_packed": weights * bits // 8 + 8 * outputs + 4 * scales,
    }
    assert result["digest"] == done.job.digest


def test_the_better_of_warm_up_and_final_weights_is_called_fp32() -> None:
    done = run(config(phases={"fp32_epochs": 2, "qat_epochs": 3}, qat={"lr": 0.02}))
    (full,) = (sums for _, name, sums in done.job.history if name == "fp32")
    warmup = max(sums["correct"] / sums["count"] for sums in done.evaluations[:2])
    assert done.result["accuracy"]["fp32"] == max(full["correct"] / 100, warmup)
    assert full["correct"] / 100 != warmup
    values = done.result["gates"][-1]["values"]
    assert values["accuracy_drop"] == done.result["accuracy"]["fp32"] - done.result["accuracy"]["int8"]


@pytest.mark.parametrize("recipe", [{}, SPIKING])
@pytest.mark.parametrize("bits", [8, 4])
def test_qs29_the_model_file_is_the_model_that_was_measured_bit_for_bit(bits: int, recipe: dict[str, Any]) -> None:
    wanted = config(task=recipe, qat={"weight_bits": bits, "state_bits": bits})
    done = run(wanted)
    model, path = done.job.model, done.rank.folder / "model" / f"int{bits}.safetensors"
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    again, integer = load_converted(blank(model), path), convert(model)
    assert again.state_dict().keys() == integer.state_dict().keys()
    assert all(torch.equal(tensor, integer.state_dict()[name]) for name, tensor in again.state_dict().items())
    with bound(wanted), torch.no_grad():
        recipe_ = of(wanted).recipe
        counted = recipe_.evaluate(again, "test", 0, 1)
        set_switches(model, weights=True, activations=True, state=True, observing=False)
        emulated = recipe_.evaluate(model, "test", 0, 1)
    (measured,) = (sums for _, name, sums in done.job.history if name == f"int{bits}")
    assert counted == measured == emulated


def test_qs24_without_qat_a_trained_model_is_quantized_afterwards() -> None:
    done = {
        bits: run(config(phases={"fp32_epochs": 6, "qat_epochs": 0}, qat={"weight_bits": bits}, seed=5)) for bits in (8, 4)
    }
    for bits, each in done.items():
        assert {step.switches for step in each.job.steps} == {FP32} and len(each.job.steps) == 6 * STEPS
        assert sum(name.startswith("calibration.") for _, name, _ in each.job.history) == 64
        assert list(each.verdicts) == [gate for gate in GATES if not gate.startswith("qat")]
        assert each.result["accuracy"]["fp32"] > 0.9 and each.result["accuracy"][f"int{bits}"] > 0.85
    eight, four = (convert(each.job.model).state_dict()["0.codes"] for each in done.values())
    assert eight.shape != four.shape


# ---------------------------------------------------------------------- going on elsewhere


class Photographed(RecordingJob):
    """Keeps the state after some rounds and steps; or begins from one."""

    begin: Snapshot | None = None

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.pictures: dict[str, Snapshot] = {}
        if self.begin is not None:
            self._engine.restore(self.begin)

    def step(self, loss: Tensor) -> None:
        super().step(loss)
        if self.committed % STEPS == 3:
            self.pictures[f"step {self.committed}"] = self._engine.capture()

    def _run_round(self, name: str, fn: Any, *, observe: bool = False) -> None:
        super()._run_round(name, fn, observe=observe)
        self.pictures[f"{name} {self.committed}"] = self._engine.capture()


def test_qs37_qs41_a_job_that_goes_on_from_any_phase_comes_to_the_same_end() -> None:
    """With a best epoch that is kept, an extension of both phases, and ranges half-way through calibration."""
    wanted = config(
        task=SPIKING,
        phases={"fp32_epochs": 1, "qat_epochs": 2},
        qat={"activations_from": 1, "state_from": 2},
        optimizer={"lr": 0.03},
    )
    whole = run(wanted, job_class=Photographed)
    assert isinstance(whole.job, Photographed) and whole.job.added_epochs == {"qat": 3}
    pictures = whole.job.pictures
    places = ["data 0", "start 0", "step 3", "evaluate 7", "step 10", "step 17", "evaluate 21", "step 24", "evaluate 42"]
    places += ["quantizers 42", "best 42", "calibration.5 42", "calibration.31 42", "int8 42", "compare 42"]
    for place in places:
        resumed = run(wanted, job_class=type("Resumed", (Photographed,), {"begin": pictures[place]}))
        assert resumed.job.digest == whole.job.digest, place
        assert resumed.result == whole.result, place
        steps = len(resumed.job.steps)
        assert resumed.job.steps == (whole.job.steps[-steps:] if steps else []), place
        assert steps == len(whole.job.steps) - int(place.rpartition(" ")[2]), place


def test_qs1_a_rank_that_has_read_other_data_does_not_go_on() -> None:
    """The measurements are on record: it is told without another look at the data of all."""
    whole = run(config(), job_class=Photographed)
    assert isinstance(whole.job, Photographed)
    begin = {"begin": whole.job.pictures["step 3"]}
    other = splits(config(), blobs(noise=0.2))
    ended = run(config(), other, job_class=type("Resumed", (Photographed,), begin), fails=DataError)
    assert "this host has read other data" in str(ended.error)


def test_qs37_a_job_that_goes_on_in_the_second_calibration_makes_no_other_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """By then the ranges are made of enough batches, but the verdict on the first ones stands."""
    blind(monkeypatch, 1)
    whole = run(config(), job_class=Photographed)
    assert isinstance(whole.job, Photographed)
    for place in ("calibrated.32 35", "calibration.40 35"):
        resumed = run(config(), job_class=type("Resumed", (Photographed,), {"begin": whole.job.pictures[place]}))
        assert (resumed.result, resumed.job.digest) == (whole.result, whole.job.digest)


def test_the_helper_adds_up_as_the_exchange_does() -> None:
    from workers.rounds import Largest

    assert added([{"a": 1.0, "b": Largest(2)}, {"a": 3.0, "b": Largest(-1)}]) == {"a": 4.0, "b": 2.0}
    with pytest.raises(AssertionError):
        added([{"a": 1.0}, {"b": 1.0}])


def test_the_folder_of_a_test_is_temporary(tmp_path: Path) -> None:
    assert tmp_path in run(config(phases={"fp32_epochs": 1, "qat_epochs": 0})).rank.folder.parents


def test_only_what_was_counted_on_the_held_out_digits_is_shown_as_an_accuracy() -> None:
    done = run(config())
    shown = [(fields["name"], fields["accuracy"]) for fields in done.told("evaluation") if fields["accuracy"] is not None]
    counted = [*(sums["correct"] / 100 for sums in done.evaluations), *(done.result["accuracy"][key] for key in ("int8",))]
    assert [name for name, _ in shown] == [*["evaluate"] * 5, "fp32", "int8"]
    assert [accuracy for name, accuracy in shown if name != "fp32"] == counted
