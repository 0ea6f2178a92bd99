"""PF-1 to PF-7: from what jobs have left on record to whether a test is passed, and why. Pure.

Limits are wider than what was injected, or a test would be passed by chance: `noise_between_limits` sees to those that the
JobSpec sets.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import mean, median, stdev

from orchestrator.errors import ExitCode
from orchestrator.governor.codes import Code
from orchestrator.governor.config import GovernorConfig
from orchestrator.preflight.probes import (
    COMPARED_AT,
    LOST_AT,
    LOUD_EVALUATIONS,
    LOUD_NOISE,
    QUIET_EVALUATIONS,
    QUIET_NOISE,
    QUIET_STEPS,
    SAVED_EVERY,
    Faults,
)
from orchestrator.preflight.runs import Run
from orchestrator.records import Record

NEXT_COMMIT_SECONDS = 1.5
"""From the loss of a host whose sockets close to the survivors' next commit, less steps: 0.5 to know of it (GM-18), and 1
(GM-39)."""

BACK_SECONDS = 20.0
"""From the loss until the same ranks train again (GM-39)."""

LOSS_TOLERANCE = 0.02
SPREADS = 3.0

SUSPECT_SECONDS = 60.0
FELT_SECONDS = 0.03
"""By which links that are 40 to 60 ms slower lengthen a step at least."""

LEAST_WINDOWS = 10
"""Evaluations in which nobody was removed for such links."""

SLOW = frozenset({Code.STRAGGLER.value, Code.SLOWDOWN.value})
OF_GRADIENTS = frozenset({Code.GRAD_DIRECTION, Code.GRAD_NORM})


class Outcome(StrEnum):
    """The worst one last."""

    PASSED = "passed"
    SKIPPED = "skipped"
    FAILED = "failed"


@dataclass(frozen=True)
class Finding:
    outcome: Outcome
    reason: str


def passed(reason: str) -> Finding:
    return Finding(Outcome.PASSED, reason)


def failed(reason: str) -> Finding:
    return Finding(Outcome.FAILED, reason)


def skipped(reason: str) -> Finding:
    return Finding(Outcome.SKIPPED, reason)


def together(findings: Sequence[Finding]) -> Finding:
    """Of a test in several parts: passed where each of them is."""
    worst = max((each.outcome for each in findings), key=list(Outcome).index)
    return Finding(worst, "; ".join(each.reason for each in findings if each.outcome is worst))


@dataclass(frozen=True)
class Reference:
    """Of an undisturbed run of the same probe on the same hosts.

    Attributes:
        loss: in step `COMPARED_AT`.
        spread: standard deviation of that loss over seeds, relative to its mean.
        step_seconds: of a step.
    """

    loss: float
    spread: float
    step_seconds: float


def reference(run: Run, losses: Sequence[float]) -> Reference | None:
    """Of a run, and of trainings with other seeds; None where the run has not come so far."""
    compared, seconds = run.step(COMPARED_AT), _step_seconds(run, 2, COMPARED_AT)
    if compared is None or not _is_finite(compared["loss"]) or seconds is None:
        return None
    return Reference(float(compared["loss"]), stdev(losses) / mean(losses), seconds)


def pf1(run: Run, hosts: int) -> Finding:
    """Undisturbed, ranks hold the same bytes, and the loss is finite."""
    for number in range(1, QUIET_STEPS + 1):
        step = run.step(number)
        if step is None:
            return failed(f"step {number} of {QUIET_STEPS} was not committed{_end(run)}")
        if not _is_finite(step["loss"]):
            return failed(f"the loss of step {number} is not finite")
        if step["ranks"] != hosts:
            return failed(f"step {number} was computed on {step['ranks']} of {hosts} hosts")
    told = {int(line["rank"]): str(line["digest"]) for line in run.digests if line["step"] == QUIET_STEPS}
    if len(told) < hosts:
        return failed(f"{len(told)} of {hosts} ranks have told what they hold after step {QUIET_STEPS}")
    if others := _deviating(told):
        return failed(f"after step {QUIET_STEPS} other bytes than most are held by {_ranks(run, others)}")
    differ = next((event for event in _of(run, "digests_differ") if event["step"] <= QUIET_STEPS), None)
    if differ is not None:
        return failed(f"digests differed after step {differ['step']}")
    last = run.step(QUIET_STEPS)
    assert last is not None
    return passed(f"{_many(hosts, 'rank')} hold the same after {QUIET_STEPS} steps, loss {last['loss']:.3f}")


def pf2(run: Run, lost: Sequence[int], injected: Faults, hosts: int, usual: Reference | None) -> Finding:
    """Hosts are lost: the others go on at once, the same ranks come back, each sample counts once, and the loss stays."""
    who = _ranks(run, lost)
    if missing := [rank for rank, name in zip(lost, injected.lost, strict=True) if run.begun(name) is None]:
        return failed(f"{_ranks(run, missing)} was not lost in step {LOST_AT}{_end(run)}")
    if usual is None:
        return failed("there is no undisturbed run to compare with")
    before, after = run.step(LOST_AT - 1), run.step(LOST_AT)
    if before is None or after is None:
        return failed(f"after the loss of {who} nobody went on{_end(run)}")
    gap, allowed = float(after["t"]) - float(before["t"]), NEXT_COMMIT_SECONDS + 2 * usual.step_seconds
    if after["ranks"] != hosts - len(lost):
        return failed(f"after the loss of {who} {after['ranks']} of {hosts - len(lost)} survivors went on")
    if gap > allowed:
        return failed(f"after the loss of {who} the next commit took {gap:.2f} s, more than {allowed:.2f} s")
    back = {int(event["rank"]): float(event["seconds"]) for event in _of(run, "rank_back") if event["rank"] is not None}
    if late := [rank for rank in lost if back.get(rank, math.inf) > BACK_SECONDS]:
        return failed(f"{_ranks(run, late)} did not train again within {BACK_SECONDS:g} s")
    if run.problems is None or run.problems:
        return failed(f"samples: {run.problems[0]}" if run.problems else "no samples are on record")
    if len({step["samples"] for step in run.steps}) != 1:
        return failed("steps were not computed over equally many samples")
    compared = run.step(COMPARED_AT)
    if compared is None or not _is_finite(compared["loss"]):
        return failed(f"there is no finite loss of step {COMPARED_AT}{_end(run)}")
    tolerance, off = max(LOSS_TOLERANCE, SPREADS * usual.spread), abs(float(compared["loss"]) / usual.loss - 1)
    if off > tolerance:
        return failed(f"the loss of step {COMPARED_AT} is off by {off:.1%}, more than {tolerance:.1%}")
    return passed(
        f"{who} lost in step {LOST_AT}: next commit after {gap:.2f} s (at most {allowed:.2f} s), whole again after "
        f"{max(back[rank] for rank in lost):.1f} s, loss off by {off:.2%} (at most {tolerance:.1%})"
    )


def pf3_links(run: Run, injected: Faults) -> Finding:
    """Links that are 50 ms slower cost nobody its place."""
    begun, ended = [run.begun(name) for name in injected.linked], [run.begun(name) for name in injected.freed]
    if None in begun:
        return failed(f"links did not become slow{_end(run)}")
    first, end = max(filter(None, begun)), min(filter(None, ended), default=math.inf)
    slow, usual = _step_seconds(run, first + 1, end), _step_seconds(run, 2, min(filter(None, begun)))
    if slow is None or usual is None or slow - usual < FELT_SECONDS:
        return failed("links that are 50 ms slower were not felt: steps took as long as before")
    since, windows = run.last_before(first), run.within(first, end)
    judged = [window for window in windows if window.judged[Code.STRAGGLER]]
    if since is None or len(judged) < LEAST_WINDOWS:
        return failed(f"hosts with slow links were compared in {len(judged)} evaluations, fewer than {LEAST_WINDOWS}")
    removal = next((each for each in _removals(run) if since < each["t"] <= windows[-1].time), None)
    if removal is not None:
        return failed(f"{removal['target']} was removed ({_reasons(removal)}) while links were 50 ms slower")
    return passed(f"links 50 ms slower: nobody removed in {len(judged)} evaluations")


def pf3_host(run: Run, rank: int, injected: Faults) -> Finding:
    """A host that is 500 ms late is suspected."""
    host, begun = run.host(rank), run.begun(injected.slow)
    if begun is None:
        return failed(f"{host or 'a host'} did not become slow{_end(run)}")
    since = run.last_before(begun)
    if since is None:
        return failed("there was no evaluation before a host became slow")
    for each in run.verdicts:
        if each["target"] == host and each["act"] in ("suspect", "quarantine", "evict") and SLOW & set(each["reasons"]):
            seconds = float(each["t"]) - since
            if 0 <= seconds <= SUSPECT_SECONDS:
                return passed(f"{host} 500 ms late: suspected within {seconds:.1f} s ({_reasons(each)})")
    return failed(f"{host}, 500 ms late, was not suspected{_end(run)}")


def pf4(run: Run, rank: int, injected: Faults, config: GovernorConfig) -> Finding:
    """A little noise in a host's gradient alerts nobody; very much of it costs the host its place."""
    if wrong := noise_between_limits(config):
        return failed(wrong)
    host, quiet, loud = run.host(rank), run.begun(injected.quiet), run.begun(injected.loud)
    if quiet is None or loud is None:
        return failed(f"the gradient of {host or 'a host'} was not disturbed{_end(run)}")
    calm = [each for each in run.within(quiet, loud) if all(host in each.judged[code] for code in OF_GRADIENTS)]
    if len(calm) < QUIET_EVALUATIONS:
        return failed(f"the gradient of {host} was compared in {len(calm)} of {QUIET_EVALUATIONS} evaluations")
    for who, code in [(who, code) for each in calm for who, codes in each.alerts.items() for code in codes]:
        if code in OF_GRADIENTS:
            return failed(f"noise of {QUIET_NOISE:g} in the gradient of {host} alerted on {who} ({code})")
    since, whole = run.last_before(loud) or 0.0, run.within(loud, math.inf)
    until = whole[LOUD_EVALUATIONS - 1].time if len(whole) >= LOUD_EVALUATIONS else math.inf
    for each in [each for each in _removals(run) if each["act"] == "quarantine" and not each["guard"]]:
        if each["target"] == host and _is_of_gradients(each) and since < each["t"] <= until:
            number = max(1, sum(window.time <= each["t"] for window in whole))
            return passed(
                f"noise of {QUIET_NOISE:g} on {host}: no alert in {len(calm)} evaluations; {LOUD_NOISE:g}: quarantined in "
                f"evaluation {number} ({_reasons(each)})"
            )
    return failed(f"{host} with noise of {LOUD_NOISE:g} was not quarantined in {len(whole)} evaluations{_end(run)}")


def pf5(run: Run, rank: int, injected: Faults) -> Finding:
    """A flipped bit is seen at the next digest, and who has it is named."""
    host, begun = run.host(rank), run.begun(injected.flipped)
    if begun is None:
        return failed(f"no bit was flipped on {host or 'a host'}{_end(run)}")
    due = -(-begun // SAVED_EVERY) * SAVED_EVERY
    found = next(iter(_of(run, "digests_differ")), None)
    if found is None:
        return failed(f"a bit flipped on {host} in step {begun} was not seen{_end(run)}")
    if not begun <= found["step"] <= due:
        return failed(f"a bit flipped on {host} in step {begun}, but digests differed after step {found['step']}")
    if found["split"] or list(found["hosts"]) != [host]:
        named = ", ".join(found["hosts"]) or "nobody"
        return failed(f"a bit flipped on {host}, but {named} was named")
    convicted = [each for each in run.verdicts if each["act"] == "evict" and Code.SDC_DIGEST.value in each["reasons"]]
    if [each["target"] for each in convicted] != [host]:
        return failed(f"a bit flipped on {host}, and its digest differed, but it was not convicted")
    return passed(f"a bit flipped on {host} in step {begun}: SDC_DIGEST at the digest after step {found['step']}")


def pf6(saved: Sequence[Record], restored: Sequence[Record], hosts: int, fewer: int) -> Finding:
    """What is restored on fewer hosts is what was saved. `saved`, `restored`: lines of digests."""
    told = {int(line["rank"]): (int(line["step"]), str(line["digest"])) for line in reversed(restored)}  # each one's first
    if len(told) < fewer:
        return failed(f"{len(told)} of {fewer} hosts have restored the checkpoint")
    if len(set(told.values())) > 1:
        return failed("hosts that have restored the same checkpoint hold different states")
    step, digest = next(iter(told.values()))
    before = {str(line["digest"]) for line in saved if line["step"] == step}
    if step == 0 or not before:
        return failed("the job began anew: there was no checkpoint to be restored")
    if before != {digest}:
        return failed(f"the state after step {step} is another one when it was saved and restored")
    return passed(f"saved after step {step} on {_many(hosts, 'host')}, restored on {fewer}: equal digests")


def pf7(run: Run, lost: Sequence[int], injected: Faults, hosts: int, usual: Reference | None) -> Finding:
    """PF-2 can fail: it does, where a job may neither go on with fewer hosts nor wait for others."""
    if any(run.begun(name) is None for name in injected.lost) or run.step(LOST_AT - 1) is None:
        return failed(f"hosts were not lost in step {LOST_AT}, so that nothing is shown{_end(run)}")
    if usual is None:
        return failed("there is no undisturbed run to compare with")
    found = pf2(run, lost, injected, hosts, usual)
    if found.outcome is Outcome.PASSED:
        return failed("PF-2 is passed although recovery is switched off")
    if run.step(LOST_AT) is not None or run.exit_code != ExitCode.FAILED:
        return failed(f"without recovery the job was to end in step {LOST_AT} with exit code 9{_end(run)}")
    return passed(f"without recovery PF-2 fails: {found.reason}")


def noise_between_limits(config: GovernorConfig) -> str:
    """Why noise of PF-4's norms would say nothing under these limits; '' where it does.

    Noise of norm r turns a gradient by atan(r), and lengthens it to sqrt(1 + r^2).
    """
    limits = {code: config.signal(code).limits for code in (Code.GRAD_DIRECTION, Code.GRAD_NORM)}

    def beyond(noise: float) -> list[Code]:
        length = math.sqrt(1 + noise**2)
        signs = {Code.GRAD_DIRECTION: 1 / length, Code.GRAD_NORM: length}
        return [
            code
            for code, limit in limits.items()
            if (signs[code] > limit.alert if limit.bad > limit.alert else signs[code] < limit.alert)
        ]

    if narrow := beyond(QUIET_NOISE):
        return f"governor.signals.{narrow[0]}.alert lies inside noise of {QUIET_NOISE:g}, so that PF-4 would test chance"
    if not beyond(LOUD_NOISE):
        return f"governor.signals has limits for gradients that noise of {LOUD_NOISE:g} does not reach"
    return ""


# ---------------------------------------------------------------- reading


def _of(run: Run, kind: str) -> list[Record]:
    return [event for event in run.events if event["kind"] == kind]


def _removals(run: Run) -> list[Record]:
    """Verdicts that take a host out, for whatever reason, those included that a guard has held back."""
    return [each for each in run.verdicts if each["act"] in ("quarantine", "evict") and each["mode"] == "enforce"]


def _reasons(verdict: Record) -> str:
    return ", ".join(verdict["reasons"])


def _is_of_gradients(verdict: Record) -> bool:
    return any(code.value in verdict["reasons"] for code in OF_GRADIENTS)


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _step_seconds(run: Run, first: int, end: float) -> float | None:
    """Median of the steps from `first` to before `end`."""
    found = [float(each["step_seconds"]) for each in run.steps if first <= each["step"] < end and each["step_seconds"]]
    return median(found) if found else None


def _deviating(told: dict[int, str]) -> list[int]:
    """Ranks whose digest is not the most frequent one."""
    usual = Counter(told.values()).most_common(1)[0][0]
    return sorted(rank for rank, digest in told.items() if digest != usual)


def _ranks(run: Run, ranks: Sequence[int]) -> str:
    """Their hosts, for a sentence."""
    return ", ".join(run.host(rank) or f"rank {rank}" for rank in ranks)


def _many(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _end(run: Run) -> str:
    """How a job ended that did not come to what it was to show."""
    kind = "failed" if any(event["kind"] == "generation" for event in run.events) else "waiting"
    end = next((event for event in reversed(run.events) if event["kind"] in ("failed", kind)), None)
    return f" ({end['message']})" if end is not None else ""
