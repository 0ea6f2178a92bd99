"""The recipes: their networks, splits and measurements; and each to its end on a little data."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.workers.tasks.solo_job import RecordingJob, added, blobs, bound, config, run, splits
from workers.config import TrainingConfig
from workers.data.hashes import sample_hashes
from workers.data.library import LibraryText, read_library
from workers.data.measurements import measure_agreement
from workers.elastic import Largest
from workers.errors import DataError
from workers.qat import gates
from workers.qat.artifact import load_converted
from workers.qat.convert import blank, convert
from workers.qat.fidelity import correlation, rate_change
from workers.qat.layers import QuantActivation, QuantConv2d, QuantizedLayer, QuantLinear, set_switches
from workers.qat.state_quant import StateQuantizer
from workers.randomness import SampleDropout, sample_keys
from workers.spiking.lif import LIF, Integrator
from workers.spiking.surrogates import Learnable, make_surrogate
from workers.tasks import bytes as bytes_recipe
from workers.tasks import cnn, digits, mlp, pipeline, spiking
from workers.tasks.learning import NO_DECAY, OWN_RATE
from workers.tasks.recipe import Recipe

SPIKING: dict[str, Any] = {
    "recipe": "spiking",
    "hidden": [24],
    "spiking": {"num_steps": 6, "encoding": "current", "readout": "membrane"},
}
BYTES: dict[str, Any] = {
    "recipe": "bytes",
    "text": {"limit": 20_000, "context": 16, "width": 16, "depth": 1, "heads": 2},
}


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A library of twelve short files."""
    folder = tmp_path / "library"
    folder.mkdir()
    for number in range(12):
        lines = [f"def function_{number}_{line}(value):\n    return value + {line * number}\n" for line in range(20)]
        (folder / f"module_{number}.py").write_text("\n".join(lines))

    def read(limit: int) -> LibraryText:
        return read_library(limit, folder=folder)

    monkeypatch.setattr(bytes_recipe, "read_library", read)
    return folder


def recipe_of(wanted: TrainingConfig, features: int = 12) -> Recipe:
    """The recipe, before a job is made of it."""
    if wanted.task.recipe == "bytes":
        return bytes_recipe.BytesRecipe(wanted, bytes_recipe.preload(wanted))
    data = splits(wanted, blobs(features))
    if wanted.task.recipe == "spiking":
        return spiking.SpikingRecipe(wanted, data)
    build = cnn.build if wanted.task.recipe == "cnn" else mlp.build
    return digits.DigitsRecipe(wanted, data, build(wanted, features, 10))


ALL = [({"recipe": "mlp"}, 12), ({"recipe": "cnn"}, 64), (SPIKING, 12), (BYTES, 0)]
NAMES = ["mlp", "cnn", "spiking", "bytes"]
every_recipe = pytest.mark.parametrize(("task", "features"), ALL, ids=NAMES)


# ---------------------------------------------------------------------- to the end


@pytest.mark.parametrize(
    ("task", "features", "bits"),
    [
        ({"recipe": "mlp"}, 12, 8),
        ({"recipe": "cnn"}, 64, 8),
        ({"recipe": "cnn"}, 64, 4),
        (SPIKING, 12, 8),
        (SPIKING, 12, 4),
    ],
    ids=["mlp-8", "cnn-8", "cnn-4", "spiking-8", "spiking-4"],
)
def test_a_recipe_for_digits_learns_and_is_verified(task: dict[str, Any], features: int, bits: int) -> None:
    wanted = config(
        task=task,
        optimizer={"lr": 0.03 if task is SPIKING else 0.01},
        phases={"fp32_epochs": 6, "qat_epochs": 6},
        qat={"weight_bits": bits, "lr": 0.01},
    )
    done = run(wanted, splits(wanted, blobs(features)))
    accuracies = done.result["accuracy"]
    assert accuracies["fp32"] > 0.9 and accuracies[f"int{bits}"] > 0.9
    assert done.result["verified"] and done.job.added_epochs == {}
    asked = done.result["gates"][-1]["values"]
    assert ("rate_change.layers.0" in asked) == ("correlation.layers.0" in asked) == (task is SPIKING)
    path = done.rank.folder / "model" / f"int{bits}.safetensors"
    x = blobs(features).test_x
    again, integer = load_converted(blank(done.job.model), path), convert(done.job.model)
    with torch.no_grad():
        first, second = ((model(x, 6).logits if task is SPIKING else model(x)) for model in (again, integer))
    assert torch.equal(first, second) and first.isfinite().all()


def test_the_spiking_recipe_with_counted_spikes_of_encoded_digits_comes_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """So small a network learns little and loses more; a large one is measured in docs/results."""
    monkeypatch.setitem(gates.LARGEST_DROP, 8, 0.2)
    task = {"recipe": "spiking", "hidden": [32], "spiking": {"num_steps": 12}}
    wanted = config(task=task, optimizer={"lr": 0.03}, phases={"fp32_epochs": 6, "qat_epochs": 3})
    done = run(wanted)
    assert done.result["accuracy"]["fp32"] > 0.3 and done.result["accuracy"]["int8"] > 0.3
    last = done.result["gates"][-1]["values"]
    assert {name for name in last if "." in name} == {
        f"{k}.layers.{n}" for k in ("rate_change", "correlation") for n in (0, 1)
    }


@pytest.mark.parametrize("bits", [8, 4])
def test_the_bytes_recipe_learns_and_is_verified(library: Path, bits: int) -> None:
    wanted = config(task=BYTES, phases={"fp32_epochs": 6, "qat_epochs": 3}, qat={"weight_bits": bits, "lr": 0.003})
    done = run(wanted, bytes_recipe.preload(wanted))
    start = next(sums for _, name, sums in done.job.history if name == "start")
    assert start["start_loss"] / start["start_count"] == pytest.approx(math.log(256), rel=0.1)
    assert done.result["loss"]["fp32"] < 3.0 and done.result["loss"][f"int{bits}"] < 3.0
    asked = done.result["gates"][-1]["values"]
    difference = done.result["loss"][f"int{bits}"] - done.result["loss"]["fp32"]
    assert asked["perplexity_increase"] == pytest.approx(math.expm1(difference))
    assert done.result["verified"]
    recipe = bytes_recipe.BytesRecipe(wanted, bytes_recipe.preload(wanted))
    again = load_converted(blank(done.job.model), done.rank.folder / "model" / f"int{bits}.safetensors")
    with torch.no_grad():
        counted = recipe.evaluate(again, "test", 0, 1)
    assert counted == next(sums for _, name, sums in done.job.history if name == f"int{bits}")


def test_qs29_2_bits_are_reported_and_nothing_is_asked_of_their_spikes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gates.LARGEST_DROP, 2, 0.5)
    done = run(config(task=SPIKING, optimizer={"lr": 0.03}, phases={"fp32_epochs": 4}, qat={"weight_bits": 2}))
    assert set(done.result["gates"][-1]["values"]) == {"accuracy_drop", "not_finite", "not_finite_random"}
    assert any(name == "compare" for _, name, _ in done.job.history)


# ---------------------------------------------------------------------- networks


@every_recipe
def test_ep3_the_first_weights_depend_on_the_seed_alone(task: dict[str, Any], features: int, library: Path) -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = recipe_of(config(task=task), features).model.state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    second, other = (recipe_of(config(task=task, seed=seed), features).model.state_dict() for seed in (3, 4))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


@every_recipe
@pytest.mark.parametrize(("weight_bits", "activation_bits", "averaging"), [(8, 8, 0.01), (4, 6, 0.02)])
def test_the_network_has_the_quantizers_that_the_jobspec_asks_for(
    task: dict[str, Any], features: int, library: Path, weight_bits: int, activation_bits: int, averaging: float
) -> None:
    qat = {
        "weight_bits": weight_bits,
        "activation_bits": activation_bits,
        "averaging": averaging,
        "state_bits": weight_bits,
    }
    modules = list(recipe_of(config(task=task, qat=qat), features).model.modules())
    layers = [module for module in modules if isinstance(module, QuantizedLayer)]
    activations = [module for module in modules if isinstance(module, QuantActivation)]
    assert layers and {layer.quantizer.bits for layer in layers} == {weight_bits}
    assert not any(isinstance(m, nn.Linear | nn.Conv2d) and not isinstance(m, QuantizedLayer) for m in modules)
    assert {module.bits for module in activations} == {activation_bits}
    assert {module.observer.averaging for module in activations} == {averaging}
    states = [module for module in modules if isinstance(module, StateQuantizer)]
    assert {module.bits for module in states} == ({weight_bits} if task is SPIKING else set())


def test_the_mlp_has_the_widths_and_the_dropout_of_the_jobspec() -> None:
    model = mlp.build(config(task={"hidden": [7, 5], "dropout": 0.2}), 12, 10)
    shapes = [tuple(module.weight.shape) for module in model if isinstance(module, QuantLinear)]
    assert shapes == [(7, 12), (5, 7), (10, 5)]
    assert [module.p for module in model if isinstance(module, SampleDropout)] == [0.2, 0.2]


def test_dropout_is_keyed_by_sample_and_training_with_it_works() -> None:
    model, x = mlp.build(config(task={"dropout": 0.5}), 12, 10), blobs().test_x[:8]
    with sample_keys(1, 1, torch.arange(8)):
        whole = model(x)
    with sample_keys(1, 1, torch.arange(4, 8)):
        assert torch.allclose(model(x[4:]), whole[4:], atol=1e-6)
    with sample_keys(1, 1, torch.arange(8, 16)):
        assert not torch.allclose(model(x), whole)
    done = run(config(task={"dropout": 0.2}, phases={"fp32_epochs": 6, "qat_epochs": 2}))
    assert done.result["accuracy"]["fp32"] > 0.5


def test_the_cnn_is_of_convolutions_and_one_linear_layer() -> None:
    modules = list(cnn.build(config(task={"recipe": "cnn"}), 64, 10).modules())
    assert sum(isinstance(module, QuantConv2d) for module in modules) == 2
    assert sum(isinstance(module, QuantLinear) for module in modules) == 1


@pytest.mark.parametrize("surrogate", ["fast_sigmoid", "atan", "rectangular", "triangular", "learnable"])
@pytest.mark.parametrize("slope", [None, 20.0])
def test_qs8_the_surrogate_is_the_one_described(surrogate: str, slope: float | None) -> None:
    task = {**SPIKING, "spiking": {"surrogate": surrogate, "slope": slope, "decay": 0.9}}
    neurons = [m for m in spiking.build(config(task=task), 12, 10).modules() if isinstance(m, LIF)]
    assert len(neurons) == 2
    for layer in neurons:
        assert layer.beta.item() == pytest.approx(0.9)
        assert type(layer.surrogate) is type(make_surrogate(surrogate))
        if slope is not None:
            width = getattr(layer.surrogate, "w", None)
            k = 1 / width if width is not None else torch.as_tensor(layer.surrogate.k).item()
            assert k == pytest.approx(slope)


def test_without_state_bits_membranes_are_left_as_they_are() -> None:
    model = spiking.build(config(task=SPIKING, qat={"state_bits": None}), 12, 10)
    assert not any(isinstance(module, StateQuantizer) for module in model.modules())
    assert run(config(task=SPIKING, qat={"state_bits": None}, optimizer={"lr": 0.03})).result["gates"]


@pytest.mark.parametrize("surrogate", ["fast_sigmoid", "learnable"])
def test_qs10_neurons_are_not_decayed_and_surrogates_keep_their_rate(surrogate: str) -> None:
    """In every step of a job, in both phases."""
    task = {**SPIKING, "spiking": {**SPIKING["spiking"], "surrogate": surrogate}}
    done = run(config(task=task, optimizer={"lr": 0.03, "weight_decay": 0.1}, qat={"lr": 0.005, "weight_decay": 0.2}))
    groups = done.job.optimizer.param_groups
    assert [(bool(group.get(NO_DECAY)), bool(group.get(OWN_RATE))) for group in groups] == [
        (False, False),
        (True, False),
        *([(True, True)] if surrogate == "learnable" else []),
    ]
    owners = {id(p): m for m in done.job.model.modules() for p in m.parameters(recurse=False)}
    kinds = [{type(owners[id(parameter)]) for parameter in group["params"]} for group in groups]
    assert kinds[0] == {QuantLinear} and kinds[1] <= {LIF, Integrator} and kinds[2:] in ([], [{Learnable}])
    assert sum(len(group["params"]) for group in groups) == len(list(done.job.model.parameters()))
    for step in done.job.steps:
        warmup = step.phase == "fp32_warmup"
        (rate, decay), *others = step.groups
        assert decay == (0.1 if warmup else 0.2) and (rate == 0.03 if warmup else rate <= 0.005)
        assert others == [(rate, 0.0), *([(1e-3, 0.0)] if surrogate == "learnable" else [])]


# ---------------------------------------------------------------------- splits and measurements


def test_the_splits_are_all_digits_once_and_every_class_gives_its_part() -> None:
    data = splits(config(task={"data": {"validation": 0.25}}))
    assert [len(rows.y) for rows in data[1:]] == [180, 60, 100]
    assert torch.equal(torch.cat([rows.ids for rows in data[1:]]), torch.arange(340))
    assert torch.bincount(data.validation.y).tolist() == [6] * 10
    x, y = data.digits.train.tensors
    hashes = sample_hashes(torch.cat([data.train.x, data.validation.x]))
    assert sorted(hashes.tolist()) == sorted(sample_hashes(x).tolist())
    assert torch.bincount(torch.cat([data.train.y, data.validation.y])).tolist() == torch.bincount(y).tolist()


@pytest.mark.parametrize(("validation", "train"), [(0.0, 240), (0.1, 30)])
def test_where_no_validation_data_is_left_the_held_out_digits_choose(validation: float, train: int) -> None:
    """A tenth of three samples of a class is none."""
    wanted = config(task={"data": {"validation": validation}})
    data = splits(wanted, blobs(train=train))
    assert data.validation is data.test and len(data.train.y) == train
    assert run(config(phases={"fp32_epochs": 1, "qat_epochs": 0}), data).evaluations[0]["validation_count"] == 100


@every_recipe
@pytest.mark.parametrize("parts", [2, 7, 150])
def test_qs39_the_parts_of_a_measurement_are_all_of_it_once(
    task: dict[str, Any], features: int, parts: int, library: Path
) -> None:
    recipe = recipe_of(config(task=task), features)
    with torch.no_grad():
        for split in ("validation", "test"):
            whole = recipe.evaluate(recipe.model, split, 0, 1)
            cut = added([recipe.evaluate(recipe.model, split, part, parts) for part in range(parts)])
            assert whole["count"] > 0
            assert cut == {**whole, "loss": pytest.approx(whole["loss"], rel=1e-5)}
        checked = recipe.check(0, 1, Largest)
        assert added([recipe.check(part, parts, Largest) for part in range(parts)]) == checked
        assert {key for key, value in checked.items() if isinstance(value, Largest)} >= {"highest", "lowest"}
        compared = recipe.compare(0, 1)
        cut = added([recipe.compare(part, parts) for part in range(parts)])
        assert cut == pytest.approx(compared, rel=1e-6) and bool(compared) == (task is SPIKING)


@every_recipe
def test_a_sample_is_evaluated_alike_every_time_and_nothing_is_changed_by_it(
    task: dict[str, Any], features: int, library: Path
) -> None:
    recipe = recipe_of(config(task=task), features)
    set_switches(recipe.model, weights=True, activations=True, state=True, observing=False)
    before = {name: tensor.clone() for name, tensor in recipe.model.state_dict().items()}
    with torch.no_grad():
        first = recipe.evaluate(recipe.model, "test", 0, 1)
        recipe.model.train()
        assert recipe.evaluate(recipe.model, "test", 0, 1) == first
    assert all(torch.equal(tensor, before[name]) for name, tensor in recipe.model.state_dict().items())


@every_recipe
def test_qs29_random_input_has_the_shape_and_range_of_the_data_and_is_of_the_seed_alone(
    task: dict[str, Any], features: int, library: Path
) -> None:
    recipes = [recipe_of(config(task=task, seed=seed), features) for seed in (3, 3, 4)]
    found: list[torch.Tensor] = []
    for recipe in recipes:
        recipe.model.load_state_dict(recipes[0].model.state_dict())
        torch.manual_seed(len(found))
        with torch.no_grad():
            found.append(recipe.answer_random(recipe.model.train()))
        assert not recipe.model.training
    first, second, other = found
    assert first.shape == other.shape and len(first) >= 32 and first.isfinite().all()
    assert torch.equal(first, second) and not torch.equal(first, other)
    assert len(torch.unique(first, dim=0)) > len(first) // 2
    inputs: list[torch.Tensor] = []
    handle = recipes[0].model.register_forward_pre_hook(lambda module, given: inputs.append(given[0]))
    with torch.no_grad():
        recipes[0].answer_random(recipes[0].model)
        recipes[0].evaluate(recipes[0].model, "test", 0, 1)
    handle.remove()
    random, real = inputs[0], inputs[1]
    axis = random.dim() - 2
    assert random.dtype == real.dtype
    assert [*random.shape[:axis], *random.shape[axis + 1 :]] == [*real.shape[:axis], *real.shape[axis + 1 :]]
    low, high = (0, 255) if task is BYTES else (0.0, 1.0) if task is SPIKING else blobs(features).bounds
    width = high - low
    assert low <= random.min() < low + width / 20 and high - width / 20 < random.max() <= high


@pytest.mark.parametrize("encoding", ["rate", "temporal", "latency", "burst"])
def test_qs3_a_sample_has_the_same_spikes_beside_any_others(encoding: str) -> None:
    task = {**SPIKING, "spiking": {"num_steps": 8, "encoding": encoding}}
    recipe = recipe_of(config(task=task))
    assert isinstance(recipe, spiking.SpikingRecipe)
    rows = recipe.splits.test
    with torch.no_grad():
        whole = recipe.output(recipe.model, rows, 5).spikes[0]
        pieces = [recipe.output(recipe.model, rows.part(part, 3), 5).spikes[0] for part in range(3)]
        other = recipe.output(recipe.model, rows, 6).spikes[0]
    assert whole.sum() > 0 and torch.equal(torch.cat(pieces, dim=1), whole)
    assert torch.equal(other, whole) == (encoding != "rate")


def test_qs30_the_comparison_is_of_the_same_weights_with_quantizers_on_and_off() -> None:
    done = run(config(task=SPIKING, optimizer={"lr": 0.03}))
    sums = next(sums for _, name, sums in done.job.history if name == "compare")
    assert sums["n.layers.0"] == 6 * 100 * 24 and sums["on.layers.0"] > 0
    values = done.result["gates"][-1]["values"]
    assert values["rate_change.layers.0"] == rate_change(sums, "layers.0")
    assert values["correlation.layers.0"] == correlation(sums, "layers.0")
    assert sums["dd.layers.0"] > 0, "quantization changes something"


def test_qs1_windows_of_the_test_are_of_other_files_and_in_no_other_split(
    library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the held-out text repeats itself."""
    read = bytes_recipe.read_library(20_000)
    repeated = read.held_out + b"~" * 200
    monkeypatch.setattr(bytes_recipe, "read_library", lambda limit: dataclasses.replace(read, held_out=repeated))
    text = bytes_recipe.preload(config(task=BYTES))
    seen = {name: set(sample_hashes(getattr(text, name)).tolist()) for name in ("train", "validation", "test")}
    assert all(seen.values())
    assert not seen["train"] & (seen["validation"] | seen["test"]) and not seen["validation"] & seen["test"]


@pytest.mark.parametrize("number", [5, 300, 511, 512, 513, 5000])
def test_windows_are_taken_from_the_whole_text(number: int) -> None:
    rows = torch.arange(number)[:, None]
    kept = bytes_recipe._spread(rows, 512).flatten()
    assert min(number, 256) <= len(kept) <= 512 and kept[0] == 0 and kept[-1] >= number - max(1, -(-number // 512))


def test_qs1_hosts_that_read_other_text_are_found(library: Path) -> None:
    wanted = config(task=BYTES)
    here = bytes_recipe.BytesRecipe(wanted, bytes_recipe.preload(wanted))
    with (library / "module_3.py").open("a") as file:
        file.write("# another release\n")
    there = bytes_recipe.BytesRecipe(wanted, bytes_recipe.preload(wanted))
    assert here.digest != there.digest
    totals = added([measure_agreement(each.digest, Largest) for each in (here, there)])
    findings = {finding.check: finding for finding in pipeline.checks.judge(totals, here.manifest)}
    assert not findings["agreement"].passed and "the hosts read different data" in findings["agreement"].sentence


def test_qs1_a_test_window_that_was_trained_on_ends_the_job(library: Path) -> None:
    wanted = config(task=BYTES)
    text = bytes_recipe.preload(wanted)
    text.test[3] = text.train[5]
    ended = run(wanted, text, fails=DataError)
    assert "1 test samples are in the split train" in str(ended.error) and not ended.job.steps


def test_a_text_with_too_little_to_hold_out_is_refused(library: Path) -> None:
    with pytest.raises(DataError, match=r"held-out text of \d+ bytes has too few windows of 17 that are not in"):
        bytes_recipe.preload(config(task={**BYTES, "text": {**BYTES["text"], "limit": 300}}))


def test_clip_norm_reaches_the_job() -> None:
    class Looked(RecordingJob):
        clip: float | None = None

        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            self.clip = self._engine.clip_norm

    done = run(config(clip_norm=0.5, phases={"fp32_epochs": 1, "qat_epochs": 0}), job_class=Looked)
    assert isinstance(done.job, Looked) and done.job.clip == 0.5


def test_a_job_is_of_one_process() -> None:
    from workers import elastic

    before = elastic.current_job()
    with bound(config()):
        pass
    assert elastic.current_job() is before
