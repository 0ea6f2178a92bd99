"""The decision at the end of a window (CC-18, CC-19, CC-21)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from workers.compression.choice import NONE, Choice, Plan
from workers.compression.controller import lessons, records
from workers.compression.controller.belief import Belief, believe, probed_next
from workers.compression.controller.candidates import CANDIDATES, RIVAL, is_late
from workers.compression.controller.config import ControllerConfig
from workers.compression.controller.forecast import Option, ends, exposed, known_option, own_exposed, seconds
from workers.compression.controller.knapsack import least_lossy
from workers.compression.controller.layout import Measured, Value
from workers.compression.controller.records import Record
from workers.compression.controller.state import BucketState, ControllerState, Doubt
from workers.compression.controller.wire import BucketFacts

FOLLOW = 0.3
"""Weight of a window in the smoothed time per byte."""

COHERENCE_FALLS = 0.05
"""Relative, between windows."""

LOOKS = 2
"""Steps in which it is looked at again whether a link that is much slower makes steps longer."""

TOLERATED = 1.2
"""Of the budget, what is in force may seem to need before it is given up: errors are noisy."""

URGENT = 1.5
"""Times longer than with `none` over the link as it was, steps under a link that has collapsed are at least, to be seen to
at once: three windows of less can be borne, and where ranks wait for a core a link seems slow for a while."""

LIKE = 1.5
"""Times slower at most than it was, a link is about as it was."""

EARLY_SHARE = 3 / 4
"""Of a step: a plan that promises to save as much need not wait until it is well known how long steps with `none` take, and
over a link that seems slower than it was then nobody asks whether it does."""

FAR_MORE = 4.0
"""Times the bytes: so much is not sent over a link of which little is known before a probe has crossed it."""

WAIT_STEPS = 500
"""For how long nothing that sends more is in, after a link has collapsed twice, as one does that had only seemed fast.
Twice as long each time that happens again."""


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
      time to see whether they are (`lessons`); after that window to `RIVAL`, where that promises something; then back to
      the plan where it was the fastest, and else there is a first decision again, which has to promise more than `RIVAL`
      was measured to save;
    - all of them once more after the window in which a link has collapsed, when it is better known.

    Where what is sent is so little that it tells nothing of the link, none of these sends `FAR_MORE` before a probe has
    told, but for the error budget's sake.
    """
    line = measured.lines.get(buckets[0].level)
    if line is None or buckets[0].hosts < 2:
        return replace(state, step=step), []
    state = lessons.of_world(state, buckets[0].hosts, buckets[0].local_ranks, step)
    state, belief = believe(line, state, measured, step, buckets, config)
    window = _Window(state, measured, step, buckets, config, belief)
    state = window.state = window.looked()
    if window.is_whole and state.doubt is not None and not window.collapsed and not window.tries_rival:
        state, back = lessons.second_thought(state, measured.step_seconds, step, config)
        window = _Window(state, measured, step, buckets, config, belief, back)
    return window.outcome() if window.is_whole or window.collapsed else (state, [])


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
        belief: Belief,
        back: Plan | None = None,
    ) -> None:
        """`back`: a plan that was the fastest of those compared."""
        self.dearer = lessons.dearer(state, step)
        self.state, self.measured = state, lessons.as_dear(measured, self.dearer)
        self.step, self.config, self.line = step, config, belief.line
        self.bears = belief.bears
        self.facts = facts
        self.is_whole = step % config.every == 0
        self.hidden = [max(0.0, value or 0.0) for value in measured.hidden]
        self.budget = _budget(state, measured, facts, config)
        self.present = [self._option(i, bucket.choice) for i, bucket in enumerate(state.buckets)]
        self.options = [self._options(i) for i in range(len(facts))]
        self.none = [seconds(self.line, each, NONE, *_or_zero(measured.rate(NONE))) for each in facts]
        self.rival = [option for options in self.options for option in options if option.choice == RIVAL]
        self.durations = [option.seconds for option in self.present]
        self.own = [own_exposed(self.durations, self.hidden, i, own) for i, own in enumerate(self.durations)]
        before = state.seconds_per_byte
        self.slower = before is not None and self.line.seconds_per_byte > config.collapse * before
        self.collapsed = self.slower and self._makes_steps_longer
        self.back = self._within_budget(back)
        self.streaks = [self._streaks(i) for i in range(len(facts))]
        self.over = self._error(self.present) > TOLERATED * self.budget.allowed

    def _within_budget(self, plan: Plan | None) -> list[Option] | None:
        options = None if plan is None else [self._option(i, choice) for i, choice in enumerate(plan)]
        return options if options is not None and self._error(options) <= self.budget.allowed else None

    @property
    def _makes_steps_longer(self) -> bool:
        """Than they were with `none` over the link as it was, by so much that it is urgent. While they are not, nothing has
        to be done at once about a link that is much slower than of late; and where ranks wait for a core, what they send
        only seems to crawl. Once that was found, it takes more than a single step to think otherwise."""
        none, last = self.state.none_step_seconds, self.measured.latest_seconds
        if self.state.looks >= LOOKS and self.measured.step_seconds is not None:
            last = self.measured.step_seconds
        return none is None or last is None or last > URGENT * none

    def looked(self) -> ControllerState:
        """It is looked again in the next steps: the step in which it became slower may have hardly begun."""
        if not self.slower or self.collapsed:
            return replace(self.state, looks=0)
        again = self.state.looks < LOOKS
        return replace(self.state, looks=self.state.looks + 1, alarmed=True) if again else self.state

    # ------------------------------------------------------------------ what there is to choose from

    def _options(self, i: int) -> list[Option]:
        """All that was measured, the present choice among them, of candidates in their order."""
        found = (known_option(self.line, self.facts[i], i, choice, self.measured) for choice in CANDIDATES)
        others = [option for option in found if option is not None and option.choice != self.present[i].choice]
        return [self.present[i], *others]

    def _option(self, i: int, choice: Choice) -> Option:
        """Where it was not measured, as after a restart, it is taken to be just within the budget."""
        known = known_option(self.line, self.facts[i], i, choice, self.measured)
        if known is not None:
            return known
        unmeasured = seconds(self.line, self.facts[i], choice, *_or_zero(self.measured.rate(choice)))
        error = self.measured.error(i, choice)
        return unmeasured._replace(error=self.budget.allowed if error is None else error)

    def gain(self, i: int, option: Option) -> float:
        """Share of the exposed seconds that bucket i causes which it would save; 0 where it causes none."""
        now = self.own[i]
        return 1 - own_exposed(self.durations, self.hidden, i, option.seconds) / now if now > 0 else 0.0

    def _enough(self, i: int, option: Option) -> bool:
        """Whether a change to `option` is worth it: `none` is where what is in force does not beat it by `worth`."""
        gain = self.gain(i, option)
        if option.choice == NONE and gain > -self.config.worth / (1 - self.config.worth):
            return True
        saves = gain * self.own[i] >= self.config.worth * (self.measured.step_seconds or 0.0)
        return gain >= self.config.change and saves

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
        allowed = [] if self._is_out(i) else [self.present[i]]
        for option in self.options[i][1:]:
            if is_late(option.choice) and self.step < self.state.dense_until:
                continue
            if lessons.is_barred(bucket, option.choice, self.step):
                continue
            ripe = not rests and self.streaks[i].get(str(option.choice), 0) >= config.windows
            safer = self.over and option.error < self.present[i].error
            small = option.nbytes <= self.present[i].nbytes or self.step >= self.state.small_until
            if safer or ((urgent or ripe) and small):
                allowed.append(option)
        return allowed or [self.present[i]]

    def _is_out(self, i: int) -> bool:
        """What is in force was only tried, and was no faster."""
        bucket = self.state.buckets[i]
        return not self.state.chosen and not self.collapsed and lessons.is_barred(bucket, bucket.choice, self.step)

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
        if self.over:
            return found
        if self.state.chosen and not self.collapsed:
            lossy = any(option.choice != NONE for option in found)
            is_measured = self._is_all_rival or self._sends_all
            keeps = self._takes_longer(found) or (is_measured and lossy and not self._worth(found))
            return self.present if keeps else found
        enough = self._saves(found) and (self.state.chosen or self._worth(found))
        return found if enough else self._otherwise

    def _takes_longer(self, found: list[Option]) -> bool:
        """By more than may be given for less error. So does what is within the budget, where what is in force is a little
        beyond it, as it may be, and of all that is within only something slow is ripe: a bucket whose exchange is hidden
        costs nothing, so that `none` is ripe for it, and nothing else."""
        now, then = (exposed([option.seconds for option in options], self.hidden) for options in (self.present, found))
        return then - now > self.config.worth * max(now, self.measured.step_seconds or 0.0)

    @property
    def _otherwise(self) -> list[Option]:
        """Without a plan that is worth it: `RIVAL` where it was measured to be, and nothing that was only tried."""
        if self.collapsed:
            return self.present
        if self.state.rival_saves and self.state.doubt is None and self._may_go_by_rival:
            return self.rival
        pairs = zip(self.none, self.present, strict=True)
        return [none if self._is_out(i) else option for i, (none, option) in enumerate(pairs)]

    def _saves(self, found: list[Option]) -> bool:
        """Whether a plan gains enough in which some buckets may take longer, and lose less, for the sake of others."""
        before = self._otherwise if any(map(self._is_out, range(len(self.facts)))) else self.present
        now, then = (exposed([option.seconds for option in options], self.hidden) for options in (before, found))
        return then < now and then <= (1 - self.config.change) * now

    def _worth(self, found: list[Option]) -> bool:
        """Whether the first plan is, or one instead of `RIVAL`."""
        saved = self._promised(found)
        step = self.measured.step_seconds or 0.0
        least = EARLY_SHARE * step if self._is_early else self.config.worth * max(self._none_exposed, step)
        return self._can_tell and saved > least + self.state.rival_saves

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
        if self.state.doubt is not None and not self.collapsed:
            return False
        return self.measured.step_seconds is not None or self._none_exposed >= max(self.hidden)

    @cached_property
    def _none_exposed(self) -> float:
        """Seconds of a step with `none`; as predicted, or as measured where that is in force and it was less: of a fast
        link a fit may say anything."""
        predicted, took = exposed([option.seconds for option in self.none], self.hidden), self.measured.took[-1]
        if took is None or not self._sends_all or not self.is_whole or self.collapsed:
            return predicted
        return min(predicted, max(0.0, took - self.hidden[-1]))

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
        is_due = lessons.is_due(self.state, self.step, self.measured.step_seconds, self._measured_savings)
        return "compares" if is_due else None

    @property
    def disappoints(self) -> bool:
        """Steps with what is encoded take no less time than they took when nothing was, or with `RIVAL`, over such a link;
        or over one that seems slower, where little is promised even so: small transfers tell less of a link, and a window
        of `none` more."""
        state, now = self.state, self.measured.step_seconds
        if not self.is_whole or now is None or state.none_step_seconds is None or self._sends_all or self._is_judged:
            return False
        like = self._is_no_slower(state.none_seconds_per_byte) or self._promised(self.present) < EARLY_SHARE * now
        best = state.none_step_seconds - (0.0 if self._is_all_rival else state.rival_saves)
        return like and now > (1 - self.config.worth) * best

    @property
    def _is_judged(self) -> bool:
        """The window was there to try `RIVAL`, which is judged by now."""
        return self._is_all_rival and not self.state.chosen

    @property
    def _is_all_rival(self) -> bool:
        return all(option.choice == RIVAL for option in self.present)

    @property
    def _measured_savings(self) -> float:
        """Over `none`, seconds of a step, or as predicted if that is less. While little is sent, predictions may be too
        good: ranks that wait for each other make a link's latency seem long, and `none` has the most transfers."""
        none, now, promised = self.state.none_step_seconds, self.measured.step_seconds, self._promised(self.present)
        is_known = none is not None and now is not None and self._is_no_slower(self.state.none_seconds_per_byte)
        return min(promised, (none or 0.0) - (now or 0.0)) if is_known else promised

    @property
    def tries_rival(self) -> bool:
        """The next window goes with it: a plan is in doubt, this one has told of `none`, and sending half promises
        something that the plan has not reached. What coding takes there is what is to be seen."""
        state, now = self.state, self.measured.step_seconds
        if not self.is_whole or self.collapsed or state.doubt is None or state.doubt.of_rival or now is None:
            return False
        if not self._sends_all or not self._may_go_by_rival or self.step < state.small_until:
            return False
        if not self._is_no_slower(state.seconds_per_byte):
            return False
        promised = self._promised([option._replace(seconds=option.seconds - option.coding) for option in self.rival])
        return promised > self.config.worth * now and state.doubt.took > now - promised

    @property
    def _may_go_by_rival(self) -> bool:
        """It is known of all buckets, within the error budget, and not out."""
        if len(self.rival) < len(self.facts) or self._error(self.rival) > self.budget.allowed:
            return False
        return not any(lessons.is_barred(bucket, RIVAL, self.step) for bucket in self.state.buckets)

    def _is_no_slower(self, before: float | None) -> bool:
        """The link is, than `before`, seconds per byte."""
        return before is None or self.line.seconds_per_byte <= LIKE * before

    @property
    def _sends_all(self) -> bool:
        return all(option.choice == NONE for option in self.present)

    def outcome(self) -> tuple[ControllerState, list[Record]]:
        trial, doubt = self.tries_rival, None if self.back else self._doubt
        chosen = self.rival if trial else self.back or (self.choose() if doubt is None else self.none)
        waits = self._must_be_probed(chosen)
        if waits:
            trial, doubt, chosen = False, None, self.present
        after, decisions = [], []
        for i, (old, new) in enumerate(zip(self.present, chosen, strict=True)):
            if new.choice == old.choice:
                after.append(replace(self.state.buckets[i], streaks=self.streaks[i]))
                continue
            reason = "tries" if trial else "wins" if self.back else doubt or self._reason(old, new)
            decisions.append(self._change(i, old, new, reason))
            after.append(self._changed(i, new, reason))
        state = replace(
            self.state,
            buckets=tuple(after),
            step=self.step,
            chosen=not self.collapsed and not trial and (self.state.chosen or (not waits and self._has_decided(chosen))),
            seconds_per_byte=self._smoothed(),
            gradient_norm=_or(self.measured.gradient_norm, self.state.gradient_norm),
            coherence=_or(self.measured.coherence, self.state.coherence),
        )
        if doubt is not None:
            coding = sum(option.coding for option in self.present if option.choice != RIVAL) / self.dearer
            took, promised = self.measured.step_seconds or 0.0, self._promised(self.present)
            state = lessons.compared(state, Doubt(took, promised, coding, self.state.plan))
        elif trial:
            state = lessons.rival_is_next(state, self.measured.step_seconds or 0.0)
        elif (self._sends_all or not self.state.chosen) and any(option.choice != NONE for option in chosen):
            state = lessons.chosen(state, self.step)
        if self.collapsed:
            state = self._collapsed(state)
        if self.measured.step_seconds is not None and self._sends_all and self._is_no_slower(self.state.seconds_per_byte):
            took, spent = self.measured.step_seconds, self.line.seconds_per_byte
            state = replace(state, none_step_seconds=took, none_seconds_per_byte=spent)
        if self.is_whole:
            state = self._probed_next(state, chosen, waits=waits)
        return state, [*decisions, self._plan(chosen)]

    def _must_be_probed(self, chosen: Sequence[Option]) -> bool:
        """Nothing tells whether the link bears what would be sent. Where probes that were asked for did not come, as with a
        new generation, it is sent for all that, and so is what the error budget asks for."""
        if not self.is_whole or self.collapsed or self.over or self.bears:
            return False
        now, then = (sum(option.nbytes for option in options) for options in (self.present, chosen))
        return then > FAR_MORE * now and not (self.state.awaited > 1 and self.measured.probe is None)

    def _probed_next(self, state: ControllerState, chosen: Sequence[Option], *, waits: bool) -> ControllerState:
        """With a probe in the next step, where something waits for one, or soon would."""
        state = replace(state, awaited=state.awaited + 1 if waits else 0)
        is_light = FAR_MORE * sum(option.nbytes for option in chosen) < sum(option.nbytes for option in self.none)
        is_new = (self._sends_all or self._is_all_rival) and chosen != self.present and not self.collapsed
        took = self.measured.step_seconds
        is_due = lessons.is_due(state, self.step + self.config.every, took, self._measured_savings)
        return probed_next(state, took) if waits or (is_light and (is_new or is_due)) else state

    def _collapsed(self, state: ControllerState) -> ControllerState:
        """What is encoded now may seem to cross a fast link, and is not to be compared with steps of before."""
        soon = self.step < max(state.small_until, state.probe_after) + lessons.FORGET_STEPS  # after it could be tried again
        collapses = state.collapses + 1 if soon and state.collapses else 1
        waits = WAIT_STEPS * 2 ** (collapses - 2) if collapses > 1 else 0
        return replace(
            lessons.forgotten(state),
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
        if reason == "budget" and not self.budget.tight:
            before = lessons.barred(before, before.choice, self.step)
        for_now = reason == "budget" and self.budget.tight  # gradients may be calm again soon, and the old choice as good
        streaks = {str(before.choice): self.config.windows} if for_now else {}
        changed = None if for_now else before.changed if reason == "start" else self.step
        return BucketState(new.choice, changed, streaks, before.barred)

    def _smoothed(self) -> float:
        """As it was where it seems much slower and nobody waits for it."""
        before, now = self.state.seconds_per_byte, self.line.seconds_per_byte
        if before is None or self.collapsed:
            return now
        return before if self.slower else before + FOLLOW * (now - before)

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
