"""The decision at the end of a window (CC-18, CC-19, CC-21)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from workers.compression.choice import NONE
from workers.compression.controller import lessons, records
from workers.compression.controller.candidates import CANDIDATES, is_late
from workers.compression.controller.config import ControllerConfig
from workers.compression.controller.forecast import Option, ends, exposed, known_option, own_exposed, seconds
from workers.compression.controller.knapsack import least_lossy
from workers.compression.controller.layout import Measured, Value
from workers.compression.controller.link import Line
from workers.compression.controller.records import Record
from workers.compression.controller.state import BucketState, ControllerState
from workers.compression.controller.wire import BucketFacts, transfers

FOLLOW = 0.3
"""Weight of a window in the smoothed time per byte."""

COHERENCE_FALLS = 0.05
"""Relative, between windows."""

SHOWS = 4.0
"""Times as long as the latency, which is the noise too, the largest transfer has to take for its time to tell the speed."""

PASSES_BYTES = 1 << 20
"""Of a step, that a shaper may let pass at once, however fast the link behind it is."""

PROBE_STEPS = 100
"""Between two probes of a link that may only seem faster; twice as many after each that finds it as it was."""

MOST_PROBE_STEPS = 1600
LEAST_PROBE_BYTES, MOST_PROBE_BYTES = 1 << 16, 1 << 20

FASTER = 2.0
"""Times, by which a link has to seem faster for a probe, and a probe to be faster for a change."""

TOLERATED = 1.2
"""Of the budget, what is in force may seem to need before it is given up: errors are noisy."""

LIKE = 1.5
"""Times slower at most than it was, a link is about as it was."""

EARLY_SHARE = 3 / 4
"""Of a step: a plan that promises to save as much need not wait until it is well known how long steps with `none` take, and
over a link that seems slower than it was then nobody asks whether it does."""

BAR_STEPS = 500
"""For how long a choice that has broken the budget is out; and for how long nothing that sends more is in, after a link has
collapsed twice, as one does that had only seemed fast. Twice as long each time that happens again."""


def adaptive(
    state: ControllerState, measured: Measured, step: int, buckets: Sequence[BucketFacts], config: ControllerConfig
) -> tuple[ControllerState, list[Record]]:
    """The state after `step`, and the decisions.

    Without a measured link nothing is decided. The first decision that has something to choose from is made at once; it
    replaces what nobody chose. One that promises little waits for a second window of `none`: the first steps of a training
    are slow, and would make any plan look good. After it, a bucket changes:
    - to a choice that was predicted in `windows` windows in a row to take `change` less exposed time, or to `none` where
      its choice has not beaten `none` by `worth` for as long; not twice within `pause` steps;
    - at once where the link has collapsed, to any choice, where the plan as a whole takes `change` less; in the middle of a
      window, after an alarm, for this reason only;
    - at once where the plan in force is not within the error budget, to one that loses less; where that is so only while
      gradients change fast, it may go back as soon as they do not;
    - all of them at once to `none` where steps have turned out no faster than with `none` over such a link, or where it is
      time to see whether they are (`lessons`); then there is a first decision again after a window of `none`;
    - all of them once more after the window in which a link has collapsed, when it is better known.
    """
    line = measured.lines.get(buckets[0].level)
    if line is None or buckets[0].hosts < 2:
        return replace(state, step=step), []
    if step % config.every == 0:
        state = lessons.second_thought(state, measured.step_seconds, step, config)
    believed, unclear = _believed(line, state, buckets, measured.step_seconds, config)
    state, believed = _probed(state, measured, believed, unclear=unclear)
    state = _next_probe(state, measured.step_seconds, step, unclear=unclear)
    window = _Window(state, measured, step, buckets, config, believed)
    return window.outcome() if window.is_whole or window.collapsed else (state, [])


def _believed(
    line: Line, state: ControllerState, facts: Sequence[BucketFacts], took: Value, config: ControllerConfig
) -> tuple[Line, bool]:
    """The link as it was, where what is sent is so little that it would not show whether the link is faster now; and
    whether it seems to be.

    Either it takes no longer than noise may make it take; or shapers and queues let it pass at once, because the link
    had time for it while ranks computed.

    Args:
        took: seconds of a step.
    """
    before = state.seconds_per_byte
    if before is None:
        return line, False
    sent = [transfers(each, bucket.choice) for each, bucket in zip(facts, state.buckets, strict=True)]
    largest, total = max(map(max, sent)), sum(map(sum, sent))
    expected, seems_faster = line._replace(seconds_per_byte=before), line.seconds_per_byte * FASTER < before
    passes = total <= PASSES_BYTES and took is not None and total * before < took
    if passes and seems_faster:
        return expected, True
    shows = largest * before > SHOWS * line.latency
    if shows or line.seconds(largest) > config.collapse * expected.seconds(largest):
        return line, False
    return expected, seems_faster


def _probed(state: ControllerState, measured: Measured, line: Line, *, unclear: bool) -> tuple[ControllerState, Line]:
    """What a probe has found, where nothing else tells: the link is as it was, or faster, which is then known at once."""
    before, now = state.seconds_per_byte, measured.probe
    if now is None or before is None or not unclear:
        return state, line
    if now * FASTER > before:
        return replace(state, probes=state.probes + 1), line
    faster = replace(state, seconds_per_byte=now, probes=0, probe_after=0)  # how much faster the next one tells
    return faster, line._replace(seconds_per_byte=now)


def _next_probe(state: ControllerState, took: Value, step: int, *, unclear: bool) -> ControllerState:
    """It goes with the measures of the next decision, and sends what the link, as it is taken for, carries in a step."""
    before = state.seconds_per_byte
    if not unclear or not before or took is None or step < state.probe_after:
        return state
    nbytes = min(max(round(took / before), LEAST_PROBE_BYTES), MOST_PROBE_BYTES)
    rest = min(PROBE_STEPS * 2**state.probes, MOST_PROBE_STEPS)
    return replace(state, probing=nbytes, probe_after=step + rest)


@dataclass(frozen=True)
class _Budget:
    """Errors are shares of the model's energy. `tight` while gradients change fast."""

    weights: list[float]
    allowed: float
    tight: bool


class _Window:
    """One decision, from its inputs to its outcome."""

    def __init__(
        self,
        state: ControllerState,
        measured: Measured,
        step: int,
        facts: Sequence[BucketFacts],
        config: ControllerConfig,
        line: Line,
    ) -> None:
        self.dearer = lessons.dearer(state, step)
        self.state, self.measured = state, lessons.as_dear(measured, self.dearer)
        self.step, self.config, self.line = step, config, line
        self.facts = facts
        self.is_whole = step % config.every == 0
        self.hidden = [max(0.0, value or 0.0) for value in measured.hidden]
        self.budget = _budget(state, measured, facts, config)
        self.present = [self._present(i) for i in range(len(facts))]
        self.options = [self._options(i) for i in range(len(facts))]
        self.none = [seconds(line, each, NONE, *_or_zero(measured.rate(NONE))) for each in facts]
        self.durations = [option.seconds for option in self.present]
        before = state.seconds_per_byte
        self.collapsed = before is not None and line.seconds_per_byte > config.collapse * before
        self.streaks = [self._streaks(i) for i in range(len(facts))]
        self.over = self._error(self.present) > TOLERATED * self.budget.allowed

    # ------------------------------------------------------------------ what there is to choose from

    def _options(self, i: int) -> list[Option]:
        """All that was measured, the present choice among them, of candidates in their order."""
        found = (known_option(self.line, self.facts[i], i, choice, self.measured) for choice in CANDIDATES)
        others = [option for option in found if option is not None and option.choice != self.present[i].choice]
        return [self.present[i], *others]

    def _present(self, i: int) -> Option:
        """What is in force. Where it was not measured, as after a restart, it is taken to be just within the budget."""
        choice = self.state.buckets[i].choice
        known = known_option(self.line, self.facts[i], i, choice, self.measured)
        if known is not None:
            return known
        unmeasured = seconds(self.line, self.facts[i], choice, *_or_zero(self.measured.rate(choice)))
        error = self.measured.error(i, choice)
        return unmeasured._replace(error=self.budget.allowed if error is None else error)

    def gain(self, i: int, option: Option) -> float:
        """Share of the exposed seconds that bucket i causes which it would save; 0 where it causes none."""
        now = own_exposed(self.durations, self.hidden, i, self.durations[i])
        return 1 - own_exposed(self.durations, self.hidden, i, option.seconds) / now if now > 0 else 0.0

    def _enough(self, i: int, option: Option) -> bool:
        """Whether a change to `option` is worth it: `none` is where what is in force does not beat it by `worth`."""
        if option.choice == NONE and self.gain(i, option) > -self.config.worth / (1 - self.config.worth):
            return True
        saved = self.gain(i, option) * own_exposed(self.durations, self.hidden, i, self.durations[i])
        return self.gain(i, option) >= self.config.change and saved >= self.config.worth * (
            self.measured.step_seconds or 0.0
        )

    def _streaks(self, i: int) -> dict[str, int]:
        before = self.state.buckets[i].streaks
        if not self.is_whole:
            return dict(before)
        others = self.options[i][1:]
        return {str(each.choice): before.get(str(each.choice), 0) + 1 for each in others if self._enough(i, each)}

    def _allowed(self, i: int) -> list[Option]:
        """The present choice first."""
        bucket, config = self.state.buckets[i], self.config
        urgent = self.collapsed or not self.state.chosen
        rests = bucket.changed is not None and self.step - bucket.changed < config.pause
        allowed = [self.present[i]]
        for option in self.options[i][1:]:
            text = str(option.choice)
            if is_late(option.choice) and self.step < self.state.dense_until:
                continue
            if text in bucket.barred and self.step < bucket.barred[text][1]:
                continue
            ripe = not rests and self.streaks[i].get(text, 0) >= config.windows
            safer = self.over and option.error < self.present[i].error
            small = option.nbytes <= self.present[i].nbytes or self.step >= self.state.small_until
            if safer or ((urgent or ripe) and small):
                allowed.append(option)
        return allowed

    # ------------------------------------------------------------------ the choice

    def _error(self, options: Sequence[Option]) -> float:
        return sum(weight * option.error for weight, option in zip(self.budget.weights, options, strict=True))

    def choose(self) -> list[Option]:
        """The least lossy within the budget that none of the allowed beats by more than `worth`."""
        allowed = [self._allowed(i) for i in range(len(self.facts))]
        items = [
            [(option.seconds, weight * option.error) for option in options]
            for options, weight in zip(allowed, self.budget.weights, strict=True)
        ]
        chosen = least_lossy(items, self.hidden, self.budget.allowed, self.config.worth)
        if chosen is None:  # within the budget, but not once every error is rounded up
            return self.present
        found = [options[index] for options, index in zip(allowed, chosen, strict=True)]
        if self.over or (self.state.chosen and not self.collapsed):
            return found
        enough = self._saves(found) and (self.state.chosen or self._worth(found))
        return found if enough else self.present

    def _saves(self, found: list[Option]) -> bool:
        """Whether a plan gains enough in which some buckets may take longer, and lose less, for the sake of others."""
        now, then = (exposed([option.seconds for option in options], self.hidden) for options in (self.present, found))
        return then < now and then <= (1 - self.config.change) * now

    def _worth(self, found: list[Option]) -> bool:
        """Whether the first plan is."""
        saved = self._promised(found)
        step = self.measured.step_seconds or 0.0
        least = EARLY_SHARE * step if self._is_early else self.config.worth * max(self._none_exposed, step)
        return self._can_tell and saved > least

    def _promised(self, options: Sequence[Option]) -> float:
        """Exposed seconds that they save over `none`."""
        return self._none_exposed - exposed([option.seconds for option in options], self.hidden)

    @property
    def _is_early(self) -> bool:
        """How long a step takes when nothing is encoded is known from this window alone."""
        return self._sends_all and self.measured.step_seconds is not None and self.state.none_step_seconds is None

    @property
    def _can_tell(self) -> bool:
        """It is known how long a step takes when nothing is encoded, to compare with; or that the exchange takes longer
        than backward, where any plan that promises something is better. Not before it is known what to think of a plan
        that has disappointed, but in a collapse."""
        if self.state.disappointing is not None and not self.collapsed:
            return False
        return self.measured.step_seconds is not None or self._none_exposed >= max(self.hidden)

    @cached_property
    def _none_exposed(self) -> float:
        return exposed([option.seconds for option in self.none], self.hidden)

    def _reason(self, old: Option, new: Option) -> str:
        if self.over and new.error < old.error:
            return "budget"
        if self.collapsed:
            return "collapse"
        if not self.state.chosen:
            return "start"
        if is_late(new.choice) and self.state.step < self.state.dense_until:
            return "dense_start_over"
        return "saves" if new.seconds < old.seconds else "no_gain"

    # ------------------------------------------------------------------ the outcome

    @property
    def _doubt(self) -> str | None:
        """Why the next window goes with `none`, if it does."""
        if self.disappoints:
            return "disappoints"
        if not self.is_whole or self.collapsed or self._sends_all:
            return None
        due = lessons.is_due(self.state, self.step, self.measured.step_seconds, self._promised(self.present))
        return "compares" if due else None

    @property
    def disappoints(self) -> bool:
        """Steps with what is encoded take no less time than they took when nothing was, over such a link; or over one that
        seems slower, where little is promised even so: small transfers tell less of a link, and a window of `none` more."""
        state, now = self.state, self.measured.step_seconds
        if not self.is_whole or now is None or state.none_step_seconds is None or self._sends_all:
            return False
        like = self._is_no_slower(state.none_seconds_per_byte) or self._promised(self.present) < EARLY_SHARE * now
        return like and now > (1 - self.config.worth) * state.none_step_seconds

    def _is_no_slower(self, before: float | None) -> bool:
        """The link is, than `before`, seconds per byte."""
        return before is None or self.line.seconds_per_byte <= LIKE * before

    @property
    def _sends_all(self) -> bool:
        return all(option.choice == NONE for option in self.present)

    def outcome(self) -> tuple[ControllerState, list[Record]]:
        doubt = self._doubt
        chosen = self.choose() if doubt is None else self.none
        after, decisions = [], []
        for i, (old, new) in enumerate(zip(self.present, chosen, strict=True)):
            if new.choice == old.choice:
                after.append(replace(self.state.buckets[i], streaks=self.streaks[i]))
                continue
            reason = doubt or self._reason(old, new)
            decisions.append(self._change(i, old, new, reason))
            after.append(self._changed(i, new, reason))
        state = replace(
            self.state,
            buckets=tuple(after),
            step=self.step,
            chosen=not self.collapsed and (self.state.chosen or self._has_decided(chosen)),
            seconds_per_byte=self._smoothed(),
            gradient_norm=_or(self.measured.gradient_norm, self.state.gradient_norm),
            coherence=_or(self.measured.coherence, self.state.coherence),
        )
        if doubt is not None:
            coding = sum(option.coding for option in self.present) / self.dearer
            state = lessons.compared(state, self.measured.step_seconds or 0.0, self._promised(self.present), coding)
        elif (self._sends_all or not self.state.chosen) and any(option.choice != NONE for option in chosen):
            state = lessons.chosen(state, self.step)
        if self.collapsed:
            state = self._collapsed(state)
        if self.measured.step_seconds is not None and self._sends_all and self._is_no_slower(self.state.seconds_per_byte):
            took, spent = self.measured.step_seconds, self.line.seconds_per_byte
            state = replace(state, none_step_seconds=took, none_seconds_per_byte=spent)
        return state, [*decisions, self._plan(chosen)]

    def _collapsed(self, state: ControllerState) -> ControllerState:
        """What is encoded now may seem to cross a fast link, and is not to be compared with steps of before."""
        soon = self.step < max(state.small_until, state.probe_after) + lessons.FORGET_STEPS  # after it could be tried again
        collapses = state.collapses + 1 if soon and state.collapses else 1
        waits = BAR_STEPS * 2 ** (collapses - 2) if collapses > 1 else 0
        return replace(
            state,
            none_step_seconds=None,
            compare_after=0,
            comparisons=0,
            collapses=collapses,
            small_until=self.step + waits,
            probes=0,
            probe_after=self.step + 2 * waits,  # where a probe has said that it is fast, and it was not
        )

    def _has_decided(self, chosen: list[Option]) -> bool:
        """Whether changes are held back from here on: there was something to choose from, in a window whose steps tell how
        good what is in force is."""
        if chosen != self.present:
            return True
        is_known = self.measured.step_seconds is not None and self._can_tell and not self._is_early
        return is_known and any(len(options) > 1 for options in self.options)

    def _changed(self, i: int, new: Option, reason: str) -> BucketState:
        before = self.state.buckets[i]
        barred = dict(before.barred)
        if reason == "budget" and not self.budget.tight:
            text = str(before.choice)
            count = barred.get(text, (0, 0))[0]
            barred[text] = (count + 1, self.step + BAR_STEPS * 2**count)
        for_now = reason == "budget" and self.budget.tight  # gradients may be calm again soon, and the old choice as good
        streaks = {str(before.choice): self.config.windows} if for_now else {}
        changed = None if for_now else before.changed if reason == "start" else self.step
        return BucketState(new.choice, changed, streaks, barred)

    def _smoothed(self) -> float:
        before, now = self.state.seconds_per_byte, self.line.seconds_per_byte
        return now if before is None or self.collapsed else before + FOLLOW * (now - before)

    def _change(self, i: int, old: Option, new: Option, reason: str) -> Record:
        encode, decode = self.measured.rate(new.choice)
        measures: dict[str, Value] = {
            **records.of_line(self.line),
            "smoothed_bandwidth": records.bandwidth(self.state.seconds_per_byte),
            "hidden": self.hidden[i],
            "encode": encode,
            "decode": decode,
            "from_bytes": old.nbytes,
            "to_bytes": new.nbytes,
            "from_seconds": old.seconds,
            "to_seconds": new.seconds,
            "gain": self.gain(i, new),
            "from_error": old.error,
            "to_error": new.error,
            "windows": self.streaks[i].get(str(new.choice), 0),
            **self._model(),
        }
        return records.change(self.step, i, old.choice, new.choice, reason, **measures)

    def _plan(self, chosen: Sequence[Option]) -> Record:
        durations = [option.seconds for option in chosen]
        times = [end + spare for end, spare in zip(ends(durations, self.hidden), self.hidden, strict=True)]
        kept = zip(self.measured.took, self.present, chosen, strict=True)
        took = [value if old.choice == new.choice else None for value, old, new in kept]
        measures: dict[str, Value] = {
            **records.of_line(self.line),
            "exposed": exposed(durations, self.hidden),
            "exposed_before": exposed(self.durations, self.hidden),
            "exposed_none": self._none_exposed,
            "error": self._error(chosen),
            **self._model(),
        }
        return records.plan(self.step, tuple(option.choice for option in chosen), times, took, **measures)

    def _model(self) -> dict[str, Value]:
        return {
            "budget": self.budget.allowed,
            "critical": self.budget.tight,
            "dearer": self.dearer,
            "gradient_norm": self.measured.gradient_norm,
            "coherence": self.measured.coherence,
        }


def _budget(state: ControllerState, measured: Measured, facts: Sequence[BucketFacts], config: ControllerConfig) -> _Budget:
    """Σ w (1 − gain) over the buckets may be Σ w (1 − least gain), where w is the bucket's share of the energy |g+e|²."""
    energies = [value for value in measured.energy if value is not None and value >= 0]
    complete = len(energies) == len(facts) and sum(energies) > 0
    weights = energies if complete else [float(each.elements) for each in facts]
    total = sum(weights) or 1.0
    weights = [weight / total for weight in weights]
    tight = _is_critical(state, measured, config)
    loose, strict = config.error_budget, config.error_budget * config.tight_share
    each = [strict if tight else loose + (strict - loose) * fact.sensitive for fact in facts]
    return _Budget(weights, sum(weight * most for weight, most in zip(weights, each, strict=True)), tight)


def _is_critical(state: ControllerState, measured: Measured, config: ControllerConfig) -> bool:
    """Gradients change fast (Accordion; Agarwal et al., MLSys 2021), or agree less and less."""
    now, before = measured.gradient_norm, state.gradient_norm
    changes = now is not None and before is not None and abs(now - before) > config.critical_change * before
    agrees, agreed = measured.coherence, state.coherence
    return changes or (agrees is not None and agreed is not None and agreed - agrees > COHERENCE_FALLS * abs(agreed))


def _or(value: Value, otherwise: Value) -> Value:
    return otherwise if value is None else value


def _or_zero(rates: tuple[Value, Value]) -> tuple[float, float]:
    return rates[0] or 0.0, rates[1] or 0.0
