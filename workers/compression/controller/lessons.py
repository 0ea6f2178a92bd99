"""What plans that were in force have shown: whether they are faster than `none`, and what coding costs in a step (CC-18).

A plan is compared with `none` when its steps take no less time than those of `none` took; and now and then, where it
promises little, as what steps with `none` take may have been known badly, or have changed. Then a window goes with `none`,
and one with `RIVAL`, where that promises something: it is the one codec that needs no core between its transfers. Where
steps are no longer in one of them, what was missing of the promise is put down to encoding and decoding, which share cores
with backward, and count as so much dearer from then on.
"""

from __future__ import annotations

from dataclasses import replace

from workers.compression.choice import NONE, Choice, Plan
from workers.compression.controller.candidates import CANDIDATES, RIVAL
from workers.compression.controller.config import ControllerConfig
from workers.compression.controller.layout import Measured, Value
from workers.compression.controller.state import BucketState, ControllerState, Doubt

LEAST_LESSON, MOST_LESSON = 1.25, 4.0
"""Each time they turn out to be, encoding and decoding count as so many times dearer, at least and at most: a window in
which something else was in the way teaches too much."""

FORGET_STEPS = 1000
"""After which half of the first lesson is forgotten; twice as many after each further one."""

LITTLE = 1 / 2
"""Of a step: a plan that saves less over `none` is compared with it now and then. So a window of the comparison takes half
as much longer at most."""

BAR_STEPS = 500
"""For how long a choice is out that was no faster than `none`, or has broken the error budget. Twice as long each time that
happens again."""

NOISE = 2.0
"""Times what a plan has to save, `RIVAL` has to when it is tried: of two windows that take the same one is often 3 %
shorter."""

COMPARE_STEPS, MOST_COMPARE_STEPS = 100, 1600
"""From the first decision to the first comparison; four times as many after each that speaks for the plan."""


def dearer(state: ControllerState, step: int) -> float:
    """How much dearer coding counts; forgotten by and by: other work may end, and what was no gain may become one."""
    half = FORGET_STEPS * 2.0 ** max(0, state.lessons - 1)
    return 1 + (state.dearer - 1) * 0.5 ** ((step - state.dearer_since) / half)


def as_dear(measured: Measured, factor: float) -> Measured:
    """But for `RIVAL`, of which windows with nothing else have told whether it is worth it."""

    def dear(rates: tuple[Value, ...]) -> tuple[Value, ...]:
        pairs = zip(CANDIDATES, rates, strict=True)
        return tuple(rate if rate is None or choice == RIVAL else factor * rate for choice, rate in pairs)

    return replace(measured, encode=dear(measured.encode), decode=dear(measured.decode))


def barred(bucket: BucketState, choice: Choice, step: int) -> BucketState:
    """The choice is out for a while from `step` on."""
    text = str(choice)
    count = bucket.barred.get(text, (0, 0))[0]
    return replace(bucket, barred={**bucket.barred, text: (count + 1, step + BAR_STEPS * 2**count)})


def is_barred(bucket: BucketState, choice: Choice, step: int) -> bool:
    return step < bucket.barred.get(str(choice), (0, 0))[1]


def is_due(state: ControllerState, step: int, took: Value, saves: float) -> bool:
    """Whether what is in force is to be compared with `none`.

    Args:
        took: seconds of a step.
        saves: seconds that the plan saves over `none`.
    """
    if not state.chosen or took is None or state.doubt is not None:
        return False
    return 0 < state.compare_after <= step and saves < LITTLE * took


def chosen(state: ControllerState, step: int) -> ControllerState:
    """Something is in force after `none`."""
    return replace(state, compare_after=step + min(COMPARE_STEPS * 4**state.comparisons, MOST_COMPARE_STEPS))


def compared(state: ControllerState, doubt: Doubt) -> ControllerState:
    """The next window goes with `none`, and there is a first decision again after it."""
    return replace(state, chosen=False, doubt=doubt, compare_after=0)


def rival_is_next(state: ControllerState, none: float) -> ControllerState:
    """The window after that of `none` goes with `RIVAL`."""
    return replace(state, doubt=None if state.doubt is None else replace(state.doubt, none=none))


def second_thought(
    state: ControllerState, took: Value, step: int, config: ControllerConfig
) -> tuple[ControllerState, Plan | None]:
    """After the windows that follow a plan in doubt; and that plan, where it was the fastest: if steps with `none`, or with
    `RIVAL` if it was tried, are longer than its own, all has become slower, and it was not to blame.

    Args:
        took: seconds of a step of the last window.
    """
    doubt, plan = state.doubt, set(state.plan)
    if doubt is None or plan not in ({NONE}, {RIVAL}) or (plan == {RIVAL} and doubt.none is None):
        return replace(state, doubt=None), None
    if took is None:
        return state, None
    none, rival = (took, None) if plan == {NONE} else (doubt.none or 0.0, took)
    state = replace(state, doubt=None, rival_saves=0.0)
    if rival is not None:
        state = _rival_judged(state, none - rival, none, step, config)
    state = replace(state, none_step_seconds=none)
    if doubt.took < (1 - config.worth) * (none - state.rival_saves):
        saves = none - doubt.took if set(doubt.plan) == {RIVAL} else state.rival_saves
        return replace(state, comparisons=state.comparisons + 1, rival_saves=saves), doubt.plan
    if doubt.of_rival:
        return replace(_without_rival(state, step), comparisons=0), None
    return _taught(state, doubt, none, step), None


def _taught(state: ControllerState, doubt: Doubt, none: float, step: int) -> ControllerState:
    """How much dearer coding is in a step than by itself. Where `RIVAL` is in force now, it has won its first
    comparison."""
    now = dearer(state, step)
    missing = doubt.promised - (none - doubt.took)
    least, most = LEAST_LESSON * now, MOST_LESSON * now
    learned = min(max(least, now + missing / doubt.coding), most) if doubt.coding > 0 else least
    comparisons = 1 if state.rival_saves else 0
    return replace(state, dearer=learned, dearer_since=step, lessons=state.lessons + 1, comparisons=comparisons)


def _rival_judged(
    state: ControllerState, saves: float, none: float, step: int, config: ControllerConfig
) -> ControllerState:
    """It is out for a while where it was no faster."""
    return replace(state, rival_saves=saves) if saves > NOISE * config.worth * none else _without_rival(state, step)


def _without_rival(state: ControllerState, step: int) -> ControllerState:
    return replace(state, rival_saves=0.0, buckets=tuple(barred(each, RIVAL, step) for each in state.buckets))


def forgotten(state: ControllerState) -> ControllerState:
    """What was measured of steps, and by probes, which is no measure any more."""
    state = replace(state, none_step_seconds=None, rival_saves=0.0, doubt=None, compare_after=0, comparisons=0)
    return replace(state, awaited=0, slow_probes=0)


def of_world(state: ControllerState, hosts: int, local_ranks: int, step: int) -> ControllerState:
    """With other hosts all is measured anew, and what is in force compared."""
    if (state.hosts, state.local_ranks) == (hosts, local_ranks):
        return state
    if state.hosts:
        state = forgotten(state)
        if state.chosen and any(choice != NONE for choice in state.plan):
            state = replace(state, compare_after=step + COMPARE_STEPS)
    return replace(state, hosts=hosts, local_ranks=local_ranks)
