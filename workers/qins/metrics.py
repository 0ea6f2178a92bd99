"""How much of a model survives a codec: the validation suite's figures (QN-15) and the production warnings (QN-16)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div

from workers.models.transformer import ByteTransformer, next_token_loss
from workers.qat.gates import Condition
from workers.qins.fidelity import Fidelity
from workers.qins.linear import QINSLinear
from workers.qins.recoding import CODECS, TIERS, Codec, recode
from workers.qins.size import v1_ratio

GREEDY_STEPS = 500
NUM_PROMPTS = 4
PROMPT_BYTES = 32
ROWS_AT_ONCE = 16

TOP1_GATE = 0.98
GATES = (
    Condition("greedy", ">=", 1.0),
    Condition("top1", ">=", TOP1_GATE),
    Condition("top10", ">=", 0.985),
    Condition("kl", "<=", 1e-3),
    Condition("perplexity_delta", "<", 0.005),
    Condition("sign_preservation", ">=", 1.0),
    Condition("mean_relative_error", "<", 0.02),
)
"""What QN-15 asks of the figures of a row of v1; `ratio_gate` of its size."""
LARGE_SHARE, LARGE_RATIO, SIZE_TOLERANCE = 0.975, 1.95, 0.01

BYTES_ABOVE_PLAN = 1.1
SPEED_OF_BASELINE = 0.9


@dataclass(frozen=True)
class Agreement:
    """A model beside the one that it was made from, on text. Shares from 0 to 1.

    `greedy` has, for each prompt, how many of `greedy_steps` freely generated tokens stand at equal positions; `top1` is
    the share of equal likeliest tokens, `top10` the mean of |A ∩ B| / 10; `kl` = mean KL(reference ‖ this) in nats;
    `perplexity` exp of the mean loss per token, and `perplexity_delta` its quotient with the reference's, less 1.
    """

    greedy: tuple[int, ...]
    greedy_steps: int
    top1: float
    top10: float
    kl: float
    perplexity: float
    perplexity_delta: float


@dataclass(frozen=True)
class Row:
    """One codec in the table of `compare`: `ratio` is float32 bytes over those of the file of tensors."""

    codec: str
    agreement: Agreement
    fidelity: Fidelity
    ratio: float

    def figures(self) -> dict[str, float]:
        """The metrics by name, `greedy` as the share of the worst prompt."""
        figures = {**asdict(self.agreement), **asdict(self.fidelity), "ratio": self.ratio}
        del figures["greedy_steps"], figures["num_weights"]
        steps = max(1, self.agreement.greedy_steps)
        return {**figures, "greedy": min(self.agreement.greedy, default=steps) / steps}


def compare(
    model: ByteTransformer,
    text: Tensor,
    prompts: Sequence[Tensor],
    codecs: Sequence[str] = tuple(CODECS),
    *,
    greedy_steps: int = GREEDY_STEPS,
    others: Mapping[str, Codec] | None = None,
) -> list[Row]:
    """A row for each codec, all applied to the same weights: those of the linear layers that v1 can hold, nothing else.

    Args:
        model: in evaluation mode; not changed.
        text: held-out windows, integers [M, context + 1].
        prompts: each int64 [L].
        codecs: of `CODECS`, `TIERS` and `others`.
        others: codecs by a name of their own.

    Raises:
        ValueError: a codec that is none of them; a weight that QINS refuses.
    """
    known = {**CODECS, **TIERS, **(others or {})}
    if unknown := [name for name in codecs if name not in known]:
        raise ValueError(f"codec {unknown[0]!r} is unknown; write one of {', '.join(known)}")
    rows = []
    for codec in codecs:
        other = recode(model, known[codec])
        agreed = agreement(model, other.model, text, prompts, greedy_steps=greedy_steps)
        rows.append(Row(codec, agreed, other.fidelity, other.ratio))
    return rows


def compare_on(model: nn.Module, text: bytes, num_windows: int, codecs: Sequence[str] = (*CODECS, *TIERS)) -> list[Row]:
    """`compare` on the first windows of `text`, with four prompts taken from evenly over it.

    Raises:
        ValueError: as `compare`; a text that fills no window; a model with codes already, or that is no `ByteTransformer`.
    """
    if not isinstance(model, ByteTransformer) or any(isinstance(module, QINSLinear) for module in model.modules()):
        raise ValueError(
            "the figures compare codecs with float weights; give a float byte transformer, not a converted one"
        )
    tokens = torch.tensor(list(text), dtype=torch.int64)
    length = model.context + 1
    if len(tokens) < length:
        raise ValueError(f"the text has {len(tokens)} bytes, less than the {length} of one window; give a longer one")
    windows = tokens[: len(tokens) // length * length].view(-1, length)[:num_windows]
    starts = range(0, len(tokens) - PROMPT_BYTES, max(1, (len(tokens) - PROMPT_BYTES) // NUM_PROMPTS))
    prompts = [tokens[start : start + PROMPT_BYTES] for start in starts][:NUM_PROMPTS]
    return compare(model, windows, prompts, codecs)


def agreement(
    reference: ByteTransformer,
    other: ByteTransformer,
    text: Tensor,
    prompts: Sequence[Tensor],
    *,
    greedy_steps: int = GREEDY_STEPS,
) -> Agreement:
    """`other` beside `reference` on `text`, windows of integers [M, context + 1], and after `prompts`, int64 [L]."""
    sums = torch.zeros(5, dtype=torch.float64)
    with torch.inference_mode():
        for rows in text.split(ROWS_AT_ONCE):
            x, y = rows[:, :-1], rows[:, 1:]
            sums += _sums(reference(x).double().flatten(0, 1), other(x).double().flatten(0, 1), y.flatten())
    top1, top10, kl, loss, other_loss = (sums / max(1, text[:, 1:].numel())).tolist()
    greedy = tuple(_greedy_matches(reference, other, prompt, greedy_steps) for prompt in prompts)
    delta = math.exp(other_loss - loss) - 1
    return Agreement(greedy, greedy_steps, top1, top10, kl, math.exp(other_loss), delta)


def first_difference(expected: Sequence[int], model: ByteTransformer, prompt: Tensor) -> int:
    """How many of the tokens `expected` after `prompt` int64 [L] `model` takes greedily before it takes another."""
    both = enumerate(zip(expected, model.generate(prompt, len(expected)), strict=True))
    return next((i for i, (ours, theirs) in both if ours != theirs), len(expected))


def ratio_gate(num_parameters: int, num_encoded: int, num_tensors: int) -> Condition:
    """QN-15 of the size of a v1 file: 1.95 where nearly all is encoded, else within 1 % of the formula (QN-7)."""
    if num_encoded >= LARGE_SHARE * num_parameters:
        return Condition("ratio", ">=", LARGE_RATIO)
    return Condition("ratio", ">=", (1 - SIZE_TOLERANCE) * v1_ratio(num_parameters, num_encoded, num_tensors))


def production_warnings(
    *,
    planned_bytes: int,
    used_bytes: int,
    baseline_speed: float,
    speed: float,
    top1: float,
    outputs: Tensor,
) -> list[str]:
    """One sentence for each sign that a served model is not what was planned; `speed` in tokens per second, warm."""
    found: list[str] = []
    if used_bytes > BYTES_ABOVE_PLAN * planned_bytes:
        found.append(f"memory: {used_bytes} bytes are used, more than 10 % above the {planned_bytes} planned")
    if speed < SPEED_OF_BASELINE * baseline_speed:
        found.append(f"speed: {speed:.1f} tokens per second, below 90 % of the baseline's {baseline_speed:.1f}")
    if not bool(torch.isfinite(outputs).all()):
        found.append(f"outputs: {int((~torch.isfinite(outputs)).sum())} of {outputs.numel()} values are NaN or Inf")
    if not top1 >= TOP1_GATE:
        found.append(f"top-1: {top1:.2%} of the likeliest tokens agree, below the gate of {TOP1_GATE:.0%}")
    return found


def _sums(reference: Tensor, other: Tensor, targets: Tensor) -> Tensor:
    """float64 [5] over positions: equal likeliest tokens, |top 10 shared| / 10, KL, both losses; logits [M, V]."""
    top = (min(10, reference.shape[1]),)
    ours, theirs = (logits.topk(*top).indices for logits in (reference, other))
    shared = (ours[:, :, None] == theirs[:, None, :]).sum() / top[0]
    p, q = reference.log_softmax(1), other.log_softmax(1)
    return torch.stack(
        [
            (reference.argmax(1) == other.argmax(1)).sum().double(),
            shared.double(),
            kl_div(q, p, reduction="sum", log_target=True),
            next_token_loss(reference[None], targets[None], "sum"),
            next_token_loss(other[None], targets[None], "sum"),
        ]
    )


def _greedy_matches(reference: ByteTransformer, other: ByteTransformer, prompt: Tensor, steps: int) -> int:
    both = zip(reference.generate(prompt, steps), other.generate(prompt, steps), strict=True)
    return sum(ours == theirs for ours, theirs in both)
