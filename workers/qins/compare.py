"""What each codec of weights makes of one checkpoint: its bytes, its errors, and what a resume from it costs (CK-1)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from workers.checkpoint.errors import CheckpointError, damaged
from workers.checkpoint.lossy import WEIGHTS, is_first_moment
from workers.checkpoint.manifest import EXACT, QINS
from workers.checkpoint.places import Where
from workers.checkpoint.reader import load
from workers.checkpoint.writer import save
from workers.config import TrainingConfig
from workers.models.transformer import ByteTransformer, next_token_loss
from workers.qins.fidelity import fidelity
from workers.qins.sources import RECIPE, from_checkpoint
from workers.state import Captured, ReplicatedState
from workers.tasks.learning import make_optimizer

STEPS = 40
BATCH = 16
HELD_OUT = 0.2
MOST_WINDOWS = 128
CHOICES = (EXACT, *WEIGHTS)


@dataclass(frozen=True)
class Choice:
    """One codec of weights; the moments are in the codecs that the qins tier has for them.

    `weights`, `first` and `second` are error norms over norms, ‖d − w‖ / ‖w‖, of the weights and moments; None where there
    are none. `at_restore` and `afterwards` are mean losses in nats on held-out windows, at once and after 40 steps; None
    without a text.
    """

    name: str
    bytes: int
    raw_bytes: int
    weights: float | None
    first: float | None
    second: float | None
    at_restore: float | None = None
    afterwards: float | None = None


def compare_checkpoint(path: Where, folder: Path, text: bytes | None, seed: int = 0) -> Iterator[Choice]:
    """A `Choice` for each codec, of which the first is exact; one at a time, as each takes a while.

    Args:
        path: of the checkpoint, of any tier.
        folder: of its job, whose `job.json` says what it trains; needed with `text` only.
        text: its first four fifths are trained on, in batches that `seed` decides, the last is held out.

    Raises:
        CheckpointError: with one sentence; with `text` also where the job is not of the recipe `bytes`.
        ValueError: the text is too short.
    """
    state = load(path)
    trial = _trial(path, folder, text, seed) if text is not None else None
    for name in CHOICES:
        yield _choice(name, state, trial)


def _choice(name: str, state: Captured, trial: Callable[[Captured], tuple[float, float]] | None) -> Choice:
    with TemporaryDirectory(prefix="quantarion-compare-") as root:
        published = save(
            state,
            Path(root),
            job="compare",
            step=0,
            generation=(0, 0),
            lineage=0,
            world=1,
            fence=lambda: True,
            tier=EXACT if name == EXACT else QINS,
            weights="int8" if name == EXACT else name,
        )
        back = load(published.path)
    errors = [_error(state.tensors, back.tensors, belongs) for belongs in (_is_weight, is_first_moment, _is_second)]
    losses = trial(back) if trial is not None else (None, None)
    return Choice(name, published.bytes, published.raw_bytes, *errors, *losses)


def _is_weight(name: str) -> bool:
    return name.startswith("parameter.")


def _is_second(name: str) -> bool:
    return name.rpartition("|")[2] in ("exp_avg_sq", "max_exp_avg_sq")


def _error(before: Mapping[str, Tensor], after: Mapping[str, Tensor], belongs: Callable[[str], bool]) -> float | None:
    pairs = [(tensor, after[name]) for name, tensor in before.items() if belongs(name) and tensor.is_floating_point()]
    return fidelity(pairs).nrmse if pairs else None


def _trial(path: Where, folder: Path, text: bytes, seed: int) -> Callable[[Captured], tuple[float, float]]:
    """From a state to its loss, and that after 40 further steps; the same steps for each."""
    model, _ = from_checkpoint(path, folder)
    assert isinstance(model, ByteTransformer)
    config = _config(folder)
    train, held_out = _windows(text, model.context)
    batches = torch.randint(len(train), (STEPS, BATCH), generator=torch.Generator().manual_seed(seed))

    def run(captured: Captured) -> tuple[float, float]:
        optimizer = make_optimizer(config, model.parameters())
        try:
            ReplicatedState(model, optimizer).restore_training(captured)
        except (KeyError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(f"{path} cannot be gone on from ({reason}); leave --text out") from None
        at_restore = _loss(model, held_out)
        for rows in batches:
            windows = train[rows]
            optimizer.zero_grad()
            next_token_loss(model(windows[:, :-1]), windows[:, 1:]).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        return at_restore, _loss(model, held_out)

    return run


def _config(folder: Path) -> TrainingConfig:
    path = folder / "job.json"
    settings: dict[str, Any] = json.loads(path.read_bytes())  # from_checkpoint has read it
    known = {key: settings[key] for key in ("name", "optimizer", "task") if key in settings}
    try:
        config = TrainingConfig.model_validate_json(json.dumps(known))
    except ValidationError as error:
        raise damaged(path, f"it is no JobSpec ({error.error_count()} fields)") from None
    assert config.task.recipe == RECIPE
    return config


def _windows(text: bytes, context: int) -> tuple[Tensor, Tensor]:
    """Trained on, and held out: int64 [N, context + 1]."""
    tokens = torch.tensor(list(text), dtype=torch.int64)
    windows = tokens[: len(tokens) // (context + 1) * (context + 1)].view(-1, context + 1)
    num_held_out = min(MOST_WINDOWS, int(len(windows) * HELD_OUT))
    if num_held_out < 1:
        least = (context + 1) * int(1 / HELD_OUT)
        raise ValueError(f"the text has {len(text)} bytes; give one of {least} or more")
    return windows[:-num_held_out], windows[-num_held_out:]


@torch.no_grad()
def _loss(model: ByteTransformer, windows: Tensor) -> float:
    parts = [next_token_loss(model(each[:, :-1]), each[:, 1:], "sum") for each in windows.split(32)]
    return float(torch.stack(parts).double().sum()) / windows[:, 1:].numel()
