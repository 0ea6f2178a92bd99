"""QN-15, QN-16: the table of what a codec costs, on a model that has learned something, and the warnings."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from workers.models.transformer import ByteTransformer
from workers.qat.gates import judge
from workers.qins.fidelity import fidelity
from workers.qins.metrics import (
    GATES,
    Row,
    agreement,
    compare,
    compare_on,
    first_difference,
    production_warnings,
    ratio_gate,
)
from workers.qins.recoding import CODECS, linear_int8, recode
from workers.qins.size import v1_ratio

STEPS = 500


@pytest.fixture(scope="module")
def rows(trained: ByteTransformer, tokens: torch.Tensor) -> dict[str, Row]:
    prompts = [tokens[0, :8], tokens[100, :16]]
    return {row.codec: row for row in compare(trained, tokens[-64:], prompts, greedy_steps=STEPS)}


@pytest.mark.parametrize("codec", ["v1", "v1_floor"])
def test_qn15_v1_meets_its_gates(codec: str, rows: dict[str, Row]) -> None:
    """On a small model; `benchmarks.language` shows them on the trained one. Greedy: 500 of 500 after each fixed prompt."""
    verdict = judge("qn15", GATES, rows[codec].figures())
    assert verdict.passed, verdict.failures
    assert rows[codec].agreement.greedy == (STEPS, STEPS)


def test_qn15_the_gates_are_those_of_the_requirement() -> None:
    asked = {gate.measurement: (gate.relation, gate.limit) for gate in GATES}
    assert asked == {
        "greedy": (">=", 1.0),
        "top1": (">=", 0.98),
        "top10": (">=", 0.985),
        "kl": ("<=", 1e-3),
        "perplexity_delta": ("<", 0.005),
        "sign_preservation": (">=", 1.0),
        "mean_relative_error": ("<", 0.02),
    }


def test_qn15_the_ratio_is_195_where_nearly_all_is_encoded_else_that_of_the_formula() -> None:
    assert ratio_gate(1000, 975, 1).limit == 1.95
    assert ratio_gate(1000, 974, 1).limit == pytest.approx(0.99 * v1_ratio(1000, 974, 1))


def test_qn15_a_floor_lowers_the_error_norm_and_the_divergence(rows: dict[str, Row]) -> None:
    plain, lifted = rows["v1"], rows["v1_floor"]
    assert lifted.fidelity.nrmse < plain.fidelity.nrmse and lifted.agreement.kl < plain.agreement.kl
    assert lifted.fidelity.sign_preservation == 1 and lifted.ratio == plain.ratio


def test_qn15_a_first_difference_is_where_another_token_is_taken(trained: ByteTransformer, tokens: torch.Tensor) -> None:
    prompt = tokens[0, :8]
    text = list(trained.generate(prompt, 20))
    assert first_difference(text, trained, prompt) == 20
    assert first_difference([*text[:7], (text[7] + 1) % 256, *text[8:]], trained, prompt) == 7


def test_qn15_recoding_leaves_the_model_alone_and_changes_linear_weights_only(trained: ByteTransformer) -> None:
    before = copy.deepcopy(trained.state_dict())
    other = recode(trained, CODECS["v1_floor"])
    assert other.num_layers == 9
    changed = {name for name, tensor in other.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert len(changed) == 9 and all(name.endswith("weight") for name in changed)
    assert all(torch.equal(tensor, before[name]) for name, tensor in trained.state_dict().items())


def test_qn15_each_codec_stands_where_the_format_says(rows: dict[str, Row]) -> None:
    """v1 weighs what bf16 does and errs about nine times as much; linear INT8 is half that and loses signs."""
    error = {codec: row.fidelity.mean_relative_error for codec, row in rows.items()}
    assert 5 < error["v1"] / error["bf16"] < 15
    assert rows["bf16"].agreement.kl < rows["v1"].agreement.kl
    assert rows["int8"].fidelity.nrmse < rows["v1"].fidelity.nrmse and error["int8"] > error["v1"]
    assert rows["int8"].fidelity.sign_preservation < 1
    assert rows["int8"].ratio > 1.3 * rows["v1"].ratio


def test_qn15_the_ratio_is_that_of_the_formula(rows: dict[str, Row], trained: ByteTransformer) -> None:
    total = sum(parameter.numel() for parameter in trained.parameters())
    weights = rows["v1"].fidelity.num_weights
    assert rows["v1"].ratio == pytest.approx(v1_ratio(total, weights, 9), rel=0.03)  # the header of a small file
    assert 1 < rows["v1"].ratio < 2


def test_qn15_a_model_agrees_with_itself_exactly(trained: ByteTransformer, tokens: torch.Tensor) -> None:
    found = agreement(trained, trained, tokens[:8], [tokens[0, :4]], greedy_steps=20)
    assert (found.greedy, found.top1, found.top10, found.kl, found.perplexity_delta) == ((20,), 1, 1, 0, 0)


def test_qn15_the_figures_are_those_of_the_definitions_in_float64(trained: ByteTransformer, tokens: torch.Tensor) -> None:
    other = copy.deepcopy(trained)
    with torch.no_grad():
        next(other.head.parameters()).mul_(1.1)
    rows = tokens[:5]
    found = agreement(trained, other, rows, [])
    p, q = (each(rows[:, :-1]).double().log_softmax(-1) for each in (trained, other))
    assert found.kl == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), abs=1e-9)
    losses = [-float(each.gather(-1, rows[:, 1:, None]).mean()) for each in (p, q)]
    assert found.perplexity == pytest.approx(math.exp(losses[1]), rel=1e-6)
    assert found.perplexity_delta == pytest.approx(math.exp(losses[1] - losses[0]) - 1, rel=1e-6)
    tops = [each.topk(10).indices.flatten(0, 1).tolist() for each in (p, q)]
    shared = [len(set(a) & set(b)) / 10 for a, b in zip(*tops, strict=True)]
    assert found.top10 == pytest.approx(sum(shared) / len(shared), abs=1e-9)


def test_qn15_fidelity_counts_zeros_signs_and_tiny_weights() -> None:
    w = torch.tensor([0.0, 1.0, -2.0, 1e-12, 4.0])
    d = torch.tensor([0.0, 1.1, 2.0, 1e-8, 4.0])
    found = fidelity([(w[:2], d[:2]), (w[2:], d[2:])])
    assert (found.num_weights, found.sign_preservation) == (5, 0.8)
    assert found.mean_relative_error == pytest.approx((0.1 + 2 + 0) / 3, abs=1e-6)
    assert found.nrmse == pytest.approx(math.sqrt(16.01 / 21), abs=1e-6)


def test_qn15_linear_int8_is_symmetric_per_row() -> None:
    codes, scale = linear_int8(torch.tensor([[1.0, -2.0], [0.0, 0.0], [1e-3, 5e-4]]))
    assert codes.tolist() == [[64, -127], [0, 0], [127, 64]]
    assert scale.flatten().tolist()[::2] == pytest.approx([2 / 127, 1e-3 / 127])


def test_qn15_unknown_codecs_short_texts_and_converted_models_are_refused(trained: ByteTransformer) -> None:
    with pytest.raises(ValueError, match="'zip' is unknown; write one of v1, v1_floor, bf16, int8"):
        compare(trained, torch.zeros(1, 33, dtype=torch.int64), [], ["zip"])
    with pytest.raises(ValueError, match="10 bytes, less than the 33"):
        compare_on(trained, b"0123456789", 4)
    with pytest.raises(ValueError, match="float byte transformer"):
        compare_on(torch.nn.Linear(2, 2), b"", 4)


FINE = {"planned_bytes": 100, "used_bytes": 110, "baseline_speed": 100.0, "speed": 90.0, "top1": 0.98}


def test_qn16_nothing_is_said_of_a_model_as_planned() -> None:
    assert production_warnings(**FINE, outputs=torch.zeros(3)) == []  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"used_bytes": 111}, "memory"),
        ({"speed": 89.9}, "speed"),
        ({"top1": 0.9799}, "top-1"),
        ({"top1": math.nan}, "top-1"),
        ({"outputs": torch.tensor([1.0, math.nan])}, "1 of 2 values"),
        ({"outputs": torch.tensor([math.inf, 1.0])}, "outputs"),
    ],
)
def test_qn16_each_departure_is_one_sentence(change: dict[str, object], word: str) -> None:
    values = {**FINE, "outputs": torch.zeros(3), **change}
    [warning] = production_warnings(**values)  # type: ignore[arg-type]
    assert word in warning and "\n" not in warning
