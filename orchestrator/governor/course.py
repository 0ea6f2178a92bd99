"""How the job as a whole goes: whether its loss has jumped (GM-20), and whether it does the steps that it is meant to.

No host is compared with another here; what all of them have together is in the model, in the data, or in what they share.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import median

from orchestrator.governor.readings import Observation
from orchestrator.governor.signals import SIGNIFICANT

JUMP = 5.0
"""Times what it was before, a loss or the norm of a gradient has jumped."""

WINDOWS, ENOUGH_WINDOWS = 12, 3
"""Evaluations that say what it was before, and the fewest that can."""

IN_A_ROW = 2
"""Evaluations, after which it is no batch that was hard by chance."""

PACED = 6
"""Evaluations over which steps are counted."""

UNDERRUN, BACK = 0.95, 0.97
"""Of the steps that the job is meant to do: with fewer it is behind, and with so many it is not any more."""

DEVIATION = 1.4826
"""Times the median absolute deviation is the standard deviation, where values are normal."""


@dataclass(frozen=True)
class Course:
    """What is remembered of it.

    Attributes:
        losses, norms: of the last evaluations, the median over the hosts; those of a jump are not among them.
        high: in how many evaluations in a row one of them was far beyond what it was.
        paces: the times of the last evaluations, and how many steps were committed by then.
        is_behind: steps are too few, and were not enough since.
    """

    losses: tuple[float, ...] = ()
    norms: tuple[float, ...] = ()
    high: int = 0
    paces: tuple[tuple[float, int], ...] = ()
    is_behind: bool = False

    @property
    def has_jumped(self) -> bool:
        """And is not back."""
        return self.high >= IN_A_ROW


def after(before: Course, observations: Iterable[Observation], time: float, steps: int, target: float | None) -> Course:
    """After an evaluation in which these hosts took part.

    Args:
        time: of it, in seconds.
        steps: that were committed by then.
        target: steps per second that the job is meant to do; None where nobody has said.
    """
    seen = list(observations)
    loss = _middle(each.loss for each in seen)
    norm = _middle(each.norm for each in seen)
    if before.high >= WINDOWS:  # it stays there: that is how it is by now
        before = replace(before, losses=(), norms=(), high=0)
    jumps = [_is_far_beyond(loss, before.losses), _is_far_beyond(norm, before.norms)]
    known = loss is not None or norm is not None
    paces = (*before.paces, (time, steps))[-PACED - 1 :]
    return replace(
        before,
        losses=before.losses if jumps[0] else _remembered(before.losses, loss),
        norms=before.norms if jumps[1] else _remembered(before.norms, norm),
        high=before.high if not known else before.high + 1 if any(jumps) else 0,
        paces=paces,
        is_behind=_is_behind(paces, target, before=before.is_behind),
    )


def _middle(values: Iterable[float | None]) -> float | None:
    """Of those that are known."""
    known = [value for value in values if value is not None]
    return median(known) if known else None


def _is_far_beyond(now: float | None, usual: Sequence[float]) -> bool:
    """What it was, and what it does by chance."""
    if now is None or len(usual) < ENOUGH_WINDOWS:
        return False
    middle = median(usual)
    spread = DEVIATION * median(abs(each - middle) for each in usual)
    return now > JUMP * middle > 0 and now > middle + SIGNIFICANT * spread


def _remembered(values: tuple[float, ...], now: float | None) -> tuple[float, ...]:
    return values if now is None else (*values, now)[-WINDOWS:]


def _is_behind(paces: Sequence[tuple[float, int]], target: float | None, *, before: bool) -> bool:
    """Steps that were computed once more count once, so they are fewer then; after a return to a checkpoint they are not
    counted before it is made up for."""
    if target is None or len(paces) <= PACED:
        return before and target is not None
    (began, first), (ended, last) = paces[0], paces[-1]
    if ended <= began:
        return before
    return (last - first) / (ended - began) < (BACK if before else UNDERRUN) * target
