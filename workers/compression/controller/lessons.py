"""What plans that were in force have shown: whether they are faster than `none`, and what coding costs in a step (CC-18).

A plan is compared with `none` when its steps take no less time than those of `none` took; and now and then, where it
promises little, as what steps with `none` take may have been known badly, or have changed. Then a window goes with `none`.
Where steps are no longer in it, what was missing of the promise is put down to encoding and decoding, which share cores
with backward, and count as so much dearer from then on.
"""

from __future__ import annotations

from dataclasses import replace

from workers.compression.choice import NONE
from workers.compression.controller.config import ControllerConfig
from workers.compression.controller.layout import Measured, Value
from workers.compression.controller.state import ControllerState

LEAST_LESSON, MOST_LESSON = 1.25, 4.0
"""Each time they turn out to be, encoding and decoding count as so many times dearer, at least and at most: a window in
which something else was in the way teaches too much."""

FORGET_STEPS = 1000
"""After which half of the first lesson is forgotten; twice as many after each further one."""

LITTLE = 1 / 2
"""Of a step: a plan that promises to save less over `none` is compared with it now and then. So a window of the comparison
takes half as much longer at most."""

COMPARE_STEPS, MOST_COMPARE_STEPS = 100, 1600
"""From the first decision to the first comparison; four times as many after each that speaks for the plan."""


def dearer(state: ControllerState, step: int) -> float:
    """How much dearer coding counts; forgotten by and by: other work may end, and what was no gain may become one."""
    half = FORGET_STEPS * 2.0 ** max(0, state.lessons - 1)
    return 1 + (state.dearer - 1) * 0.5 ** ((step - state.dearer_since) / half)


def as_dear(measured: Measured, factor: float) -> Measured:
    encode, decode = (
        tuple(None if rate is None else factor * rate for rate in rates) for rates in (measured.encode, measured.decode)
    )
    return replace(measured, encode=encode, decode=decode)


def is_due(state: ControllerState, step: int, took: Value, promised: float) -> bool:
    """Whether what is in force is to be compared with `none`.

    Args:
        took: seconds of a step.
        promised: seconds that the plan saves over `none`, as predicted.
    """
    if not state.chosen or took is None or state.disappointing is not None:
        return False
    return 0 < state.compare_after <= step and promised < LITTLE * took


def chosen(state: ControllerState, step: int) -> ControllerState:
    """Something is in force after `none`."""
    return replace(state, compare_after=step + min(COMPARE_STEPS * 4**state.comparisons, MOST_COMPARE_STEPS))


def compared(state: ControllerState, took: float, promised: float, coding: float) -> ControllerState:
    """The next window goes with `none`, and there is a first decision again after it.

    Args:
        took, promised: as of `is_due`.
        coding: seconds of a step that encoding and decoding take by themselves.
    """
    return replace(state, chosen=False, disappointing=took, promised=promised, coding=coding, compare_after=0)


def second_thought(state: ControllerState, none: Value, step: int, config: ControllerConfig) -> ControllerState:
    """After a window of `none` that follows a plan which was no faster: where its steps are longer than those of the plan,
    all has become slower, and the plan was not to blame.

    Args:
        none: seconds of a step of the window.
    """
    took = state.disappointing
    if any(choice != NONE for choice in state.plan):
        return replace(state, disappointing=None)
    if took is None or none is None:
        return state
    if took < (1 - config.worth) * none:
        return replace(state, disappointing=None, comparisons=state.comparisons + 1)
    now = dearer(state, step)
    missing = state.promised - (none - took)
    least, most = LEAST_LESSON * now, MOST_LESSON * now
    learned = min(max(least, now + missing / state.coding), most) if state.coding > 0 else least
    return replace(state, disappointing=None, dearer=learned, dearer_since=step, lessons=state.lessons + 1, comparisons=0)
