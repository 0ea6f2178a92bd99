"""Spiking multi-layer perceptrons: linear layers and LIF neurons in turns, read as spike counts or as membranes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from workers.spiking.lif import LIF, Integrator
from workers.spiking.surrogates import Learnable

PRESETS = {"small": (784, 1000, 10), "deep": (784, 1000, 500, 10)}
"""Sizes of the layers; `small` has 795,010 weights and biases, 3.18 MB in FP32."""

MakeLinear = Callable[[int, int], nn.Linear]
WrapCurrent = Callable[[str], nn.Module]


class SpikingOutput(NamedTuple):
    """What a network has answered for B samples in T steps.

    `logits` [B, C]; `spikes`, one [T, B, N] for each layer that fires; `membranes` before the reset, one [T, B, N] for
    each layer.
    """

    logits: Tensor
    spikes: tuple[Tensor, ...]
    membranes: tuple[Tensor, ...]


class SpikingMLP(nn.Module):
    """`Linear -> current quantizer -> LIF` for each pair of sizes (QS-12). The state starts at 0 in every forward.

    The last layer fires too and its spike counts are the logits, or, with `readout="membrane"`, it integrates without
    firing and its time-mean membrane is. Rates are never logits: the cross-entropy of ten rates in 0..1 cannot fall below
    1.46.

    Args:
        sizes: of input, hidden layers and output, at least two.
        readout: `counts` or `membrane`.
        make_lif: makes the neurons of a layer; a plain `LIF` if None.
        make_linear: makes a linear layer of (in, out) features, which is then initialised here.
        wrap_current: from the name of a layer, `layers.0` and so on, to the module that its currents, [T, B, N] or
            [B, N] if they are repeated, pass through; None for nothing.
        weight_std: of the normal distribution that the weights are drawn from with torch's generator; biases are 0. A
            single number, or one for each layer.

    Raises:
        ValueError: fewer than two sizes, an unknown readout, or another number of standard deviations than layers.
    """

    def __init__(
        self,
        sizes: Sequence[int] = PRESETS["small"],
        *,
        readout: str = "counts",
        make_lif: Callable[[], LIF] | None = None,
        make_linear: MakeLinear = nn.Linear,
        wrap_current: WrapCurrent | None = None,
        weight_std: float | Sequence[float] = 0.02,
    ) -> None:
        super().__init__()
        if len(sizes) < 2:
            raise ValueError(f"a network needs the sizes of an input and an output at least, not {list(sizes)}")
        if readout not in ("counts", "membrane"):
            raise ValueError(f"readout is {readout!r}; write counts or membrane")
        stds = [weight_std] * (len(sizes) - 1) if isinstance(weight_std, int | float) else list(weight_std)
        if len(stds) != len(sizes) - 1:
            raise ValueError(f"{len(stds)} values of weight_std for {len(sizes) - 1} layers: give one, or one for each")
        self.readout = readout
        self.layers = nn.ModuleList()
        for number, (inputs, outputs, std) in enumerate(zip(sizes, sizes[1:], stds, strict=False)):
            fires = readout == "counts" or number < len(sizes) - 2
            linear = make_linear(inputs, outputs)
            nn.init.normal_(linear.weight, std=std)
            nn.init.zeros_(linear.bias)
            current = nn.Identity() if wrap_current is None else wrap_current(f"layers.{number}")
            neurons = Integrator() if not fires else LIF() if make_lif is None else make_lif()
            self.layers.append(SpikingLayer(linear, current, neurons))

    def forward(self, inputs: Tensor, num_steps: int | None = None) -> SpikingOutput:
        """From spikes [T, B, F], or from one current [B, F] that is repeated `num_steps` times, to the answer.

        Raises:
            ValueError: a current without `num_steps`, or `num_steps` that is not the number of steps of the spikes.
        """
        if inputs.dim() == 2 and num_steps is None:
            raise ValueError("a network got values [B, F] without num_steps: say how many steps they are repeated for")
        if inputs.dim() == 3 and num_steps not in (None, len(inputs)):
            raise ValueError(f"a network got spikes of {len(inputs)} steps and num_steps = {num_steps}")
        spikes: list[Tensor] = []
        membranes: list[Tensor] = []
        x = inputs
        for layer in self.layers:
            fired, u = layer(x, num_steps)
            membranes.append(u)
            if fired is not None:
                spikes.append(x := fired)
        logits = membranes[-1].mean(dim=0) if self.readout == "membrane" else spikes[-1].sum(dim=0)
        return SpikingOutput(logits, tuple(spikes), tuple(membranes))


class SpikingLayer(nn.Module):
    """One linear layer, what its currents pass through, and its neurons."""

    def __init__(self, linear: nn.Linear, current: nn.Module, neurons: LIF | Integrator) -> None:
        super().__init__()
        self.linear = linear
        self.current = current
        self.neurons = neurons

    def forward(self, x: Tensor, num_steps: int | None = None) -> tuple[Tensor | None, Tensor]:
        """From spikes [T, B, F] or a current [B, F] to spikes, None if the layer does not fire, and membranes, [T, B, N].

        All steps are one product of matrices; a current that is repeated is multiplied once.
        """
        currents = self.linear(x.flatten(0, 1)).unflatten(0, x.shape[:2]) if x.dim() == 3 else self.linear(x)
        currents = self.current(currents)
        if x.dim() == 2:
            currents = currents.expand(num_steps, *currents.shape)
        if isinstance(self.neurons, Integrator):
            return None, self.neurons(currents)[0]
        output = self.neurons(currents)
        return output.spikes, output.membranes


def parameter_groups(
    model: nn.Module, lr: float, weight_decay: float, surrogate_lr: float = 1e-3
) -> list[dict[str, list[nn.Parameter] | float]]:
    """The parameters of `model` for an optimizer, each in one group; groups without parameters are left out.

    First what is left, then the leaks, thresholds and reset values, which are not decayed, then the learnable surrogates
    (QS-10), not decayed either and with a learning rate of their own.
    """
    surrogates = [p for module in model.modules() if isinstance(module, Learnable) for p in module.parameters()]
    neurons = [
        p for module in model.modules() if isinstance(module, LIF | Integrator) for p in module.parameters(recurse=False)
    ]
    special = {id(p) for p in (*surrogates, *neurons)}
    rest = [p for p in model.parameters() if id(p) not in special]
    groups: list[dict[str, list[nn.Parameter] | float]] = [
        {"params": rest, "lr": lr, "weight_decay": weight_decay},
        {"params": neurons, "lr": lr, "weight_decay": 0.0},
        {"params": surrogates, "lr": surrogate_lr, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def count_weights(model: nn.Module) -> int:
    """Numbers in the weights and biases of the linear layers: 795,010 for 784-1000-10.

    What the neurons and surrogates learn, a few numbers a layer, is not part of it.
    """
    return sum(p.numel() for module in model.modules() if isinstance(module, nn.Linear) for p in module.parameters())
