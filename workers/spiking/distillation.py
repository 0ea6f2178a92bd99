"""A quantized student that learns from its frozen FP32 teacher, on the same spikes (QS-25).

Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015, with the membranes as a second lesson.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax, mse_loss

from workers.spiking.networks import SpikingOutput


@dataclass(frozen=True)
class Distillation:
    """(1 - alpha) CE(z, y) + alpha tau^2 KL(teacher || student) + membrane MSE(u_student, u_teacher).

    KL compares the softmax of z / tau and is the mean over the samples; MSE is the mean over all membranes before the reset
    of a layer, and over the layers. With `alpha` and `membrane` 0 only the cross-entropy is computed.

    Raises:
        ValueError: alpha is not in [0, 1], tau is not positive, or membrane is negative.
    """

    alpha: float = 0.5
    tau: float = 4.0
    membrane: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"distillation's alpha is the teacher's part, 0 to 1, not {self.alpha}")
        if not self.tau > 0:
            raise ValueError(f"distillation's tau, a temperature, must be above 0, not {self.tau}")
        if self.membrane < 0:
            raise ValueError(f"distillation's membrane weight must be at least 0, not {self.membrane}")

    def __call__(self, student: SpikingOutput, teacher: SpikingOutput, labels: Tensor) -> Tensor:
        """The loss, float32 [], for `labels` int64 [B]; no gradient reaches the teacher."""
        loss = cross_entropy(student.logits, labels)
        if self.alpha > 0:
            loss = (1 - self.alpha) * loss + self.alpha * self.tau**2 * self._divergence(student.logits, teacher.logits)
        if self.membrane > 0:
            pairs = zip(student.membranes, teacher.membranes, strict=True)
            loss = loss + self.membrane * torch.stack([mse_loss(own, its.detach()) for own, its in pairs]).mean()
        return loss

    def _divergence(self, student: Tensor, teacher: Tensor) -> Tensor:
        wanted = log_softmax(teacher.detach() / self.tau, dim=1)
        return kl_div(log_softmax(student / self.tau, dim=1), wanted, reduction="batchmean", log_target=True)
