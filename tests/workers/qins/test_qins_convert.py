"""QN-11, QN-13: conversion replaces linear layers, all or none, and reports; the legacy mode is as bad as it is said."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from workers.models.transformer import ByteTransformer
from workers.qat.layers import QuantLinear
from workers.qins.codec import QINSCodec
from workers.qins.convert import FLOOR, VARIABLE, codec_at_rest, convert_model_to_projective, report_of
from workers.qins.linear import ProjectiveLinear, QINSLinear
from workers.qins.metrics import agreement
from workers.qins.size import v1_bytes


class Tied(nn.Module):
    """A head tied to its embedding, and two layers on one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embedding.weight
        self.free = nn.Linear(4, 4)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.free(self.second(self.first(self.embedding(ids)))))


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return copy.deepcopy(model.state_dict())


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_qn11_every_linear_layer_and_nothing_else_is_replaced(model: ByteTransformer) -> None:
    before = state(model)
    converted = convert_model_to_projective(model)
    assert converted is model
    report = report_of(model)
    kinds = {name: type(module) for name, module in model.named_modules()}
    assert nn.Linear not in kinds.values()
    assert {name for name, kind in kinds.items() if kind is QINSLinear} == set(report.layers)
    assert len(report.layers) == 9 and not report.skipped
    for name, tensor in model.state_dict().items():
        if not name.endswith((".stored", ".sign", ".log_min", ".log_max")):
            assert torch.equal(tensor, before[name])
    for name in report.layers:
        module = model.get_submodule(name)
        assert isinstance(module, QINSLinear)
        assert torch.equal(module.weight, QINSCodec.decode(*QINSCodec.encode(before[f"{name}.weight"], floor=FLOOR)))


def test_qn11_a_conversion_takes_the_floor_it_is_given() -> None:
    def convert(floor: float) -> QINSLinear:
        torch.manual_seed(0)
        converted = convert_model_to_projective(nn.Linear(64, 64), floor=floor)
        assert isinstance(converted, QINSLinear)
        return converted

    torch.manual_seed(0)
    weight = nn.Linear(64, 64).weight
    for floor in (0.0, 1e-2):
        assert torch.equal(convert(floor).weight, QINSCodec.decode(*QINSCodec.encode(weight, floor=floor)))
    assert report_of(convert(1e-2)).quality.nrmse < report_of(convert(0.0)).quality.nrmse
    with pytest.raises(ValueError, match="write 0 to"):
        convert(0.5)


def test_qn11_the_report_counts_bytes_and_errors(model: ByteTransformer) -> None:
    total = sum(parameter.numel() for parameter in model.parameters())
    report = report_of(convert_model_to_projective(model))
    assert report.bytes_before == 4 * total
    assert report.bytes_after == v1_bytes(total, report.quality.num_weights, len(report.layers))
    assert 0 < report.quality.mean_relative_error < 0.02 and report.quality.sign_preservation == 1


def test_qn11_the_skip_list_stays_and_is_listed(model: ByteTransformer) -> None:
    convert_model_to_projective(model, skip=["head"])
    assert isinstance(model.head, nn.Linear)
    assert report_of(model).skipped == {"head": "it is in the skip list"}
    with pytest.raises(ValueError, match=r"'nothing'.*no linear layer"):
        convert_model_to_projective(model, skip=["nothing"])


def test_qn11_tied_weights_stay_tied() -> None:
    model = Tied()
    report = report_of(convert_model_to_projective(model))
    assert report.layers == ("free",)
    assert set(report.skipped) == {"first", "second", "head"} and "embedding.weight" in report.skipped["head"]
    assert model.head.weight is model.embedding.weight and model.first.weight is model.second.weight


def test_qn11_a_layer_in_two_places_is_converted_once() -> None:
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    report = report_of(convert_model_to_projective(model))
    assert report.layers == ("0",) and model[0] is model[2] and isinstance(model[0], QINSLinear)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_qn11_a_failure_leaves_the_model_unchanged(bad: float, model: ByteTransformer) -> None:
    with torch.no_grad():
        next(model.head.parameters())[0, 0] = bad
    before, kinds = state(model), [type(module) for module in model.modules()]
    with pytest.raises(ValueError, match=r"head\.weight"):
        convert_model_to_projective(model)
    after = state(model)
    assert before.keys() == after.keys() and [type(module) for module in model.modules()] == kinds
    assert all(torch.equal(before[name], after[name]) for name in before if name != "head.weight")
    assert not hasattr(model, "qins_report")


def test_qn11_what_qins_cannot_hold_or_replace_is_skipped_with_the_reason() -> None:
    class Doubled(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(input)

    constant = nn.Linear(4, 4)
    nn.init.ones_(constant.weight)
    attention = nn.MultiheadAttention(4, 2, batch_first=True)
    model = nn.ModuleDict({"constant": constant, "doubled": Doubled(4, 4), "attention": attention, "fine": nn.Linear(4, 4)})
    report = report_of(convert_model_to_projective(model))
    assert report.layers == ("fine",)
    assert "equal" in report.skipped["constant"] and "Doubled" in report.skipped["doubled"]
    assert "MultiheadAttention" in report.skipped["attention.out_proj"]
    x = torch.randn(1, 3, 4)
    assert attention(x, x, x)[0].shape == x.shape


def test_qn11_a_quantization_aware_layer_is_converted_where_it_computes_with_its_own_weight() -> None:
    plain, fake = QuantLinear(6, 4), QuantLinear(6, 4, fake_quant=True)
    report = report_of(convert_model_to_projective(nn.ModuleDict({"plain": plain, "fake": fake})))
    assert report.layers == ("plain",) and "turn that off first" in report.skipped["fake"]


def test_qn11_a_model_that_is_a_linear_layer_is_replaced() -> None:
    converted = convert_model_to_projective(nn.Linear(4, 3))
    assert isinstance(converted, QINSLinear) and report_of(converted).layers == ("",)


@pytest.mark.parametrize(("value", "expected"), [(None, True), ("1", True), ("0", False)])
def test_qn13_the_variable_chooses_the_mode(value: str | None, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(VARIABLE, value)
    assert codec_at_rest() is expected


@pytest.mark.parametrize("value", ["", "true", "2"])
def test_qn13_other_values_are_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, value)
    with pytest.raises(ValueError, match=VARIABLE):
        convert_model_to_projective(nn.Linear(2, 2))
    assert isinstance(convert_model_to_projective(nn.Linear(2, 2), use_codec=True), QINSLinear)


def test_qn13_the_argument_overrides_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "0")
    assert report_of(convert_model_to_projective(nn.Linear(2, 2), use_codec=True)).mode == "at-rest"
    with pytest.warns(DeprecationWarning):
        assert report_of(convert_model_to_projective(nn.Linear(2, 2))).mode == "legacy"


def test_qn13_computing_on_codes_agrees_far_less(trained: ByteTransformer, tokens: torch.Tensor) -> None:
    """The negative test: QN-1's reason. The text repeats itself, so a poor model is right now and then."""
    with pytest.warns(DeprecationWarning):
        legacy = convert_model_to_projective(copy.deepcopy(trained), use_codec=False)
    at_rest = convert_model_to_projective(copy.deepcopy(trained), use_codec=True)
    assert any(isinstance(module, ProjectiveLinear) for module in legacy.modules())
    prompts = [tokens[0, :8], tokens[50, :8]]
    sound, wrong = (
        agreement(trained, each, tokens[:64], prompts, greedy_steps=100)
        for each in (at_rest, legacy)
        if isinstance(each, ByteTransformer)
    )
    assert sound.top1 > 0.97 and sound.greedy == (100, 100)
    assert wrong.top1 < 0.7 and max(wrong.greedy) < 60 and wrong.kl > 1000 * sound.kl
