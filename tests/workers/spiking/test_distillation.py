"""Distillation: its formula, a teacher that is left alone, and settings that make sense."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from workers.spiking.distillation import Distillation
from workers.spiking.networks import SpikingOutput


def output(seed: int) -> SpikingOutput:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()

    return SpikingOutput(draw(3, 4) * 5, (), (draw(6, 3, 7), draw(6, 3, 4)))


@pytest.mark.parametrize(("alpha", "tau", "membrane"), [(0.5, 4.0, 0.1), (1.0, 1.0, 0.0), (0.0, 2.0, 3.0)])
def test_qs25_the_loss_follows_its_formula(alpha: float, tau: float, membrane: float) -> None:
    student, teacher, labels = output(0), output(1), torch.tensor([2, 0, 3])
    p, q = (torch.softmax(one.logits / tau, dim=1) for one in (teacher, student))
    entropy = -torch.log(torch.softmax(student.logits, dim=1))[range(3), labels].mean()
    divergence = (p * (p.log() - q.log())).sum(dim=1).mean()
    distance = sum(((a - b) ** 2).mean() for a, b in zip(student.membranes, teacher.membranes, strict=True)) / 2
    expected = (1 - alpha) * entropy + alpha * tau**2 * divergence + membrane * distance
    found = Distillation(alpha, tau, membrane)(student, teacher, labels)
    assert found.item() == pytest.approx(expected.item(), abs=1e-6)


def test_qs25_no_gradient_reaches_the_teacher() -> None:
    student, teacher = output(0), output(1)
    loss = Distillation()(student, teacher, torch.tensor([2, 0, 3]))
    tensors = [teacher.logits, *teacher.membranes, student.logits, *student.membranes]
    found = torch.autograd.grad(loss, tensors, allow_unused=True)
    assert [g is None for g in found] == [True] * 3 + [False] * 3


def test_qs25_a_student_like_its_teacher_has_nothing_to_learn_from_it() -> None:
    student = output(0)
    labels = torch.tensor([2, 0, 3])
    alone = Distillation(alpha=0, membrane=0)(student, student, labels)
    assert Distillation()(student, student, labels).item() == pytest.approx(0.5 * alone.item(), abs=1e-9)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"alpha": 1.5}, "alpha"), ({"tau": 0.0}, "tau, a temperature"), ({"membrane": -1.0}, "membrane weight")],
)
def test_qs25_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Distillation(**settings)
