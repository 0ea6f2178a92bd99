"""A small convolutional network for handwritten digits (after LeCun et al., "Gradient-Based Learning", 1998)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from workers.models.transformer import MakeLinear, WrapActivation

MakeConv = Callable[[int, int, int, int], nn.Module]
"""(in_channels, out_channels, kernel_size, padding) to a layer with stride 1 and a bias."""


def plain_conv(in_channels: int, out_channels: int, kernel_size: int, padding: int) -> nn.Module:
    """`nn.Conv2d` with stride 1."""
    return nn.Conv2d(in_channels, out_channels, kernel_size, padding=padding)


class DigitsCNN(nn.Module):
    """Twice convolution, ReLU and 2 x 2 max-pooling, then one linear layer; first weights as torch's seed decides.

    No BatchNorm: its statistics would depend on how the batch is cut over the ranks, and conversion to integers would
    have to fold them into the weights after the ranges were learned.

    Args:
        num_features: pixels of a square image, 784 or 64; each side is a multiple of 4.
        num_classes: number of logits.
        channels: of the two convolutions.
        make_conv, make_linear: what makes the layers.
        wrap_activation: what makes the module before `first`, `second` and `classifier`; None: identities.

    Raises:
        ValueError: the images are not square, or their side is no multiple of 4.
    """

    def __init__(
        self,
        num_features: int = 784,
        num_classes: int = 10,
        channels: Sequence[int] = (16, 32),
        make_conv: MakeConv = plain_conv,
        make_linear: MakeLinear = nn.Linear,
        wrap_activation: WrapActivation | None = None,
    ) -> None:
        super().__init__()
        self.side = math.isqrt(num_features)
        if self.side**2 != num_features or self.side % 4 or not self.side:
            raise ValueError(f"an image of {num_features} pixels is no square with a side of 4, 8, 12, …; give 64 or 784")
        wrap = wrap_activation or (lambda name: nn.Identity())
        self.first_input = wrap("first")
        self.first = make_conv(1, channels[0], 3, 1)
        self.second_input = wrap("second")
        self.second = make_conv(channels[0], channels[1], 3, 1)
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.classifier_input = wrap("classifier")
        self.classifier = make_linear(channels[1] * (self.side // 4) ** 2, num_classes, True)

    def forward(self, x: Tensor) -> Tensor:
        """Pixels [B, num_features], row by row, to logits [B, num_classes]."""
        x = x.view(-1, 1, self.side, self.side)
        x = self.pool(self.relu(self.first(self.first_input(x))))
        x = self.pool(self.relu(self.second(self.second_input(x))))
        logits: Tensor = self.classifier(self.classifier_input(x.flatten(1)))
        return logits
