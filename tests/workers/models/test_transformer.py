"""The byte transformer: what a prediction may see, first weights, injected layers, generation."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from workers.models.transformer import ByteTransformer, next_token_loss


def small(seed: int = 0, **options: Any) -> ByteTransformer:
    torch.manual_seed(seed)
    return ByteTransformer(**{"vocabulary": 20, "context": 12, "width": 16, "depth": 2, "heads": 2, **options})


def tokens(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(0, 20, shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=20)
@given(st.integers(1, 12), st.data())
def test_a_prediction_sees_no_later_token(length: int, data: st.DataObject) -> None:
    model, text = small(), tokens(2, length)
    place = data.draw(st.integers(0, length - 1))
    changed = text.clone()
    changed[:, place] = (changed[:, place] + 7) % 20
    before, after = model(text), model(changed)
    assert before.shape == (2, length, 20)
    assert torch.allclose(before[:, :place], after[:, :place], atol=1e-6)
    assert not torch.allclose(before[:, place], after[:, place], atol=1e-3)


def test_a_sample_does_not_depend_on_its_neighbours() -> None:
    model, text = small(), tokens(5, 9)
    assert torch.allclose(model(text)[3], model(text[3:4])[0], atol=1e-6)


def test_bytes_and_int64_tokens_are_the_same() -> None:
    model, text = small(), tokens(2, 6)
    assert torch.equal(model(text), model(text.to(torch.uint8)))


def test_first_weights_are_decided_by_the_seed_and_predict_nothing_yet() -> None:
    states = [list(small(seed).state_dict().values()) for seed in (3, 3, 4)]
    assert all(torch.equal(a, b) for a, b in zip(states[0], states[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(states[0], states[2], strict=True))
    torch.manual_seed(0)
    model, text = ByteTransformer(), torch.randint(0, 256, (4, 128))
    assert abs(float(next_token_loss(model(text), text).detach()) - math.log(256)) < 1.0


def test_the_default_model_has_as_many_parameters_as_its_docstring_says() -> None:
    count = sum(parameter.numel() for parameter in ByteTransformer().parameters())
    assert f"{count:,} parameters" in (ByteTransformer.__doc__ or "") and count == 676_992


def test_every_linear_layer_and_what_comes_before_it_is_injected() -> None:
    made: list[nn.Linear] = []
    reached: list[str] = []

    class Probe(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def forward(self, x: Tensor) -> Tensor:
            reached.append(self.name)
            return x

    def make_linear(in_features: int, out_features: int, bias: bool) -> nn.Module:
        made.append(nn.Linear(in_features, out_features, bias))
        return made[-1]

    torch.manual_seed(0)
    model = ByteTransformer(20, 12, 16, 2, 2, make_linear, Probe)
    layers = ("qkv", "out", "up", "down")
    assert made == [m for m in model.modules() if isinstance(m, nn.Linear)] and len(made) == 9
    assert torch.equal(model(tokens(1, 4)), small()(tokens(1, 4)))
    assert reached == [f"blocks.{block}.{layer}" for block in range(2) for layer in layers] + ["head"]
    assert {name.removesuffix("_input") for name, m in model.named_modules() if isinstance(m, Probe)} == set(reached)


def test_what_passes_a_wrapped_activation_is_what_the_layer_gets() -> None:
    class Zero(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.zeros_like(x)

    model = small(wrap_activation=lambda name: Zero())
    assert torch.equal(model(tokens(2, 5)), torch.zeros(2, 5, 20))


def test_every_weight_learns() -> None:
    model, text = small(), tokens(4, 13)
    next_token_loss(model(text[:, :-1]), text[:, 1:].to(torch.uint8)).backward()
    assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in model.parameters())


def test_the_loss_is_the_mean_of_the_negative_logarithms() -> None:
    logits, targets = torch.randn(2, 3, 5, dtype=torch.float64), torch.tensor([[0, 4, 1], [2, 2, 3]])
    chances = logits.exp() / logits.exp().sum(-1, keepdim=True)
    expected = -sum(float(chances[b, t, targets[b, t]].log()) for b in range(2) for t in range(3))
    assert abs(float(next_token_loss(logits, targets, "sum")) - expected) < 1e-6
    assert abs(float(next_token_loss(logits, targets)) - expected / 6) < 1e-6


def test_greedy_tokens_are_the_likeliest_and_come_one_by_one() -> None:
    model, text = small(), tokens(7)
    stream = model.generate(text, 30)
    first = next(stream)
    assert first == int(model(text[None])[0, -1].argmax())
    seen = text.tolist()
    for token in [first, *stream]:
        assert token == int(model(torch.tensor([seen[-12:]]))[0, -1].argmax())
        seen.append(token)
    assert len(seen) == 37


def test_generation_leaves_autograd_and_the_mode_alone() -> None:
    model = small().train()
    stream = model.generate(tokens(3), 2)
    next(stream)
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled() and model.training
    model(tokens(1, 3)).sum().backward()


def test_drawn_tokens_follow_the_generator_and_the_temperature() -> None:
    model, text = small(), tokens(4)

    def drawn(seed: int, temperature: float) -> list[int]:
        return list(model.generate(text, 25, temperature, torch.Generator().manual_seed(seed)))

    assert drawn(1, 1.0) == drawn(1, 1.0) != drawn(2, 1.0)
    assert drawn(1, 1e-6) == list(model.generate(text, 25))


def test_what_cannot_be_computed_is_refused_in_one_sentence() -> None:
    with pytest.raises(ValueError, match="width 10 cannot be cut into 4 heads"):
        ByteTransformer(width=10)
    with pytest.raises(ValueError, match="13 tokens, but the model sees 12; give the last 12"):
        small()(tokens(1, 13))
    with pytest.raises(ValueError, match="no text to go on from"):
        small().generate(tokens(0), 1)
    for temperature in (-0.1, float("nan")):
        with pytest.raises(ValueError, match="write 0 for the likeliest token"):
            small().generate(tokens(1), 1, temperature)
