"""The convolutional network: shapes, injected layers, and that a sample does not depend on its batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from workers.models.cnn import DigitsCNN, plain_conv


@pytest.mark.parametrize("num_features", [64, 784])
def test_logits_of_a_sample_do_not_depend_on_the_batch(num_features: int) -> None:
    torch.manual_seed(0)
    model, x = DigitsCNN(num_features, 10), torch.randn(6, num_features)
    logits = model(x)
    assert logits.shape == (6, 10)
    assert torch.allclose(model(x[2:3]), logits[2:3], atol=1e-6)
    assert not [name for name, _ in model.named_buffers()]


def test_pixels_are_read_row_by_row() -> None:
    model, x = DigitsCNN(64), torch.randn(1, 64)
    assert torch.equal(model(x), model(x.view(1, 8, 8)))
    assert not torch.allclose(model(x), model(x.view(8, 8).T.reshape(1, 64)), atol=1e-4)


def test_every_weight_learns() -> None:
    torch.manual_seed(0)
    model = DigitsCNN(64, 4)
    cross_entropy(model(torch.randn(32, 64)), torch.arange(32) % 4).backward()
    assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in model.parameters())


def test_layers_and_what_comes_before_them_are_injected() -> None:
    made: list[nn.Module] = []
    seen: dict[str, tuple[int, ...]] = {}

    class Probe(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def forward(self, x: Tensor) -> Tensor:
            seen[self.name] = tuple(x.shape)
            return x

    def make_conv(*sizes: int) -> nn.Module:
        made.append(plain_conv(*sizes))
        return made[-1]

    def make_linear(in_features: int, out_features: int, bias: bool) -> nn.Module:
        made.append(nn.Linear(in_features, out_features, bias))
        return made[-1]

    model = DigitsCNN(784, 10, (4, 6), make_conv, make_linear, Probe)
    assert made == [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    model(torch.randn(3, 784))
    assert seen == {"first": (3, 1, 28, 28), "second": (3, 4, 14, 14), "classifier": (3, 6 * 7 * 7)}


@pytest.mark.parametrize("num_features", [0, 63, 36, 100])
def test_other_images_are_refused(num_features: int) -> None:
    with pytest.raises(ValueError, match=f"{num_features} pixels is no square with a side of 4, 8, 12"):
        DigitsCNN(num_features)
