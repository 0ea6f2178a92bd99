"""PF-1 to PF-7: what is passed, and each way in which it is not."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from orchestrator.governor.codes import Code
from orchestrator.governor.config import GovernorConfig, SignalConfig
from orchestrator.preflight import verdicts
from orchestrator.preflight.probes import Probe
from orchestrator.preflight.runs import Run
from orchestrator.preflight.verdicts import Finding, Outcome, failed, passed, skipped, together
from tests.orchestrator.preflight.made_up import (
    HOSTS,
    QUIET_AT,
    SLOW_AT,
    USUAL,
    WHO,
    alerting,
    digests,
    generation,
    halted,
    injected,
    late,
    lost,
    marks,
    noisy,
    restored,
    step,
    steps,
    undisturbed,
    verdict,
    windows,
)

Change = Callable[[Run], Run]


def without(number: int, **others: Any) -> Change:
    """One step is another one, or with nothing else is not there."""

    def change(run: Run) -> Run:
        kept = [each for each in run.steps if each["step"] != number]
        return replace(run, steps=[*kept, {**step(number), **others}] if others else kept)

    return change


def with_(**fields: Any) -> Change:
    return lambda run: replace(run, **fields)


def refuses(found: Finding, words: str) -> None:
    assert found.outcome is Outcome.FAILED
    assert words in found.reason


def test_a_test_of_parts_is_passed_where_each_part_is() -> None:
    assert together([passed("a"), passed("b")]) == passed("a; b")
    assert together([passed("a"), failed("b"), skipped("c"), failed("d")]) == failed("b; d")
    assert together([passed("a"), skipped("c")]) == skipped("c")


# ---------------------------------------------------------------- PF-1


def test_pf1_equal_digests_and_a_finite_loss() -> None:
    found = verdicts.pf1(undisturbed(), HOSTS)
    assert found == passed("4 ranks hold the same after 20 steps, loss 1.600")
    assert verdicts.pf1(replace(undisturbed(), steps=steps(60, ranks=1), digests=digests(60, 1)), 1).outcome == "passed"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (with_(steps=steps(19)), "step 20 of 20 was not committed"),
        (
            with_(steps=[], events=[{"kind": "waiting", "t": 1.0, "message": "waiting for 1 more host"}]),
            "(waiting for 1 more",
        ),
        (without(7, loss=None), "the loss of step 7 is not finite"),
        (without(20, loss=math.inf), "the loss of step 20 is not finite"),
        (without(3, ranks=3), "step 3 was computed on 3 of 4 hosts"),
        (with_(digests=digests(60, 3)), "3 of 4 ranks have told what they hold after step 20"),
        (with_(digests=digests(19)), "0 of 4 ranks"),
        (with_(digests=digests(60, rank2="odd")), "after step 20 other bytes than most are held by host-3"),
        (
            with_(events=[generation(), {"kind": "digests_differ", "t": 1.0, "step": 1, "hosts": ["host-2"]}]),
            "digests differed after step 1",
        ),
    ],
)
def test_pf1_fails(change: Change, words: str) -> None:
    refuses(verdicts.pf1(change(undisturbed()), HOSTS), words)


def test_pf1_a_difference_that_comes_later_is_for_others_to_judge() -> None:
    later = {"kind": "digests_differ", "t": 9.0, "step": 80, "hosts": ["host-2"]}
    assert verdicts.pf1(replace(undisturbed(), events=[generation(), later]), HOSTS).outcome is Outcome.PASSED


def test_pf2_is_compared_with_the_same_step_of_an_undisturbed_run() -> None:
    found = verdicts.reference(undisturbed(), [1.4, 1.5, 1.6])
    assert found is not None and found.loss == pytest.approx(2.0 - 0.02 * 25) and found.step_seconds == 0.05
    assert found.spread == pytest.approx(0.1 / 1.5)
    assert verdicts.reference(without(25)(undisturbed()), [1.0, 1.0]) is None
    assert verdicts.reference(without(25, loss=None)(undisturbed()), [1.0, 1.0]) is None


# ---------------------------------------------------------------- PF-2 and PF-7


LOST = injected(Probe.LOSE)


def pf2(run: Run, usual: verdicts.Reference | None = USUAL) -> Finding:
    return verdicts.pf2(run, WHO.lost, LOST, HOSTS, usual)


def test_pf2_the_survivors_go_on_and_the_lost_come_back() -> None:
    found = pf2(lost())
    assert found.outcome is Outcome.PASSED
    assert found.reason.startswith(
        "host-4 lost in step 5: next commit after 0.60 s (at most 1.60 s), whole again after 8.0 s"
    )
    assert found.reason.endswith("loss off by 0.00% (at most 3.0%)")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (with_(marks={}), "host-4 was not lost in step 5"),
        (with_(steps=steps(4)), "after the loss of host-4 nobody went on"),
        (
            with_(steps=steps(4), events=[generation(), {"kind": "failed", "t": 1.0, "message": "too few"}]),
            "nobody went on (too few)",
        ),
        (without(5, ranks=2, t=0.5), "2 of 3 survivors went on"),
        (without(5, ranks=4, t=0.5), "4 of 3 survivors went on"),
        (with_(events=[generation()]), "host-4 did not train again within 20 s"),
        (with_(problems=["sample 7 in no committed step"]), "samples: sample 7 in no committed step"),
        (with_(problems=None), "no samples are on record"),
        (without(9, samples=1023), "not computed over equally many samples"),
        (without(25), "there is no finite loss of step 25"),
        (without(25, loss=1.5 * 1.04), "the loss of step 25 is off by 4.0%, more than 3.0%"),
        (without(25, loss=1.5 * 0.96), "the loss of step 25 is off by 4.0%, more than 3.0%"),
        (without(25, loss=math.nan), "there is no finite loss of step 25"),
    ],
)
def test_pf2_fails(change: Change, words: str) -> None:
    refuses(pf2(change(lost())), words)


def test_pf2_gm39_fails_where_it_takes_too_long() -> None:
    refuses(pf2(lost(gap=1.61)), "the next commit took 1.61 s, more than 1.60 s")
    assert pf2(lost(gap=1.59)).outcome is Outcome.PASSED
    refuses(pf2(lost(back=20.1)), "host-4 did not train again within 20 s")
    assert pf2(lost(gap=1.7), replace(USUAL, step_seconds=0.2)).outcome is Outcome.PASSED


def test_pf2_fails_without_an_undisturbed_run() -> None:
    refuses(pf2(lost(), None), "no undisturbed run")


def test_pf2_the_tolerance_is_two_percent_or_three_spreads() -> None:
    off = without(25, loss=1.5 * 1.025)(lost())
    refuses(pf2(off, replace(USUAL, spread=0.001)), "off by 2.5%, more than 2.0%")
    assert pf2(off, replace(USUAL, spread=0.009)).outcome is Outcome.PASSED


def pf7(run: Run, usual: verdicts.Reference | None = USUAL) -> Finding:
    return verdicts.pf7(run, WHO.lost, LOST, HOSTS, usual)


def test_pf7_without_recovery_pf2_fails() -> None:
    found = pf7(halted())
    assert found.outcome is Outcome.PASSED
    assert "PF-2 fails: after the loss of host-4 nobody went on (fewer than hosts.min=4 hosts for 0 s)" in found.reason


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (lost(), "PF-2 is passed although recovery is switched off"),
        (replace(halted(), marks={}), "so that nothing is shown"),
        (replace(halted(), steps=steps(3)), "so that nothing is shown"),
        (replace(halted(), exit_code=130), "was to end in step 5 with exit code 9"),
        (replace(halted(), exit_code=None), "was to end in step 5 with exit code 9"),
        (replace(lost(back=30.0), exit_code=9), "was to end in step 5 with exit code 9"),  # it went on for a while
    ],
)
def test_pf7_fails_where_the_gate_cannot_fail_or_shows_nothing(run: Run, words: str) -> None:
    refuses(pf7(run), words)


def test_pf7_fails_without_an_undisturbed_run() -> None:
    refuses(pf7(halted(), None), "no undisturbed run")


# ---------------------------------------------------------------- PF-3


NOISE, AGREE = injected(Probe.NOISE), injected(Probe.AGREE)


def pf3_links(run: Run) -> Finding:
    return verdicts.pf3_links(run, NOISE)


def test_pf3_links_that_are_slow_cost_nobody_its_place() -> None:
    assert pf3_links(noisy()) == passed("links 50 ms slower: nobody removed in 22 evaluations")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (with_(marks=marks(*NOISE.linked[1:], at=QUIET_AT)), "links did not become slow"),
        (with_(steps=steps(760)), "were not felt"),
        (with_(steps=[]), "were not felt"),
        (with_(windows=[*windows(10), *windows(9, begin=200, since=120.0)]), "compared in 9 evaluations, fewer than 10"),
        (with_(windows=[*windows(10), *windows(23, begin=200, since=120.0, judged=())]), "compared in 0 evaluations"),
        (
            with_(verdicts=[verdict("host-2", "quarantine", Code.STRAGGLER, t=140.0)]),
            "host-2 was removed (STRAGGLER) while links were 50 ms slower",
        ),
        (with_(verdicts=[verdict("host-2", "quarantine", Code.STRAGGLER, t=122.0)]), "host-2 was removed"),
        (with_(verdicts=[verdict("host-2", "evict", Code.HEARTBEAT_DEAD, t=141.3)]), "was removed (HEARTBEAT_DEAD)"),
        (
            with_(verdicts=[verdict("host-2", "quarantine", Code.NET_SLOW, t=140.0, guard="cap")]),
            "host-2 was removed (NET_SLOW)",
        ),
    ],
)
def test_pf3_fails_where_slow_links_are_not_felt_or_held_against_a_host(change: Change, words: str) -> None:
    refuses(pf3_links(change(noisy())), words)


def test_pf3_what_happens_before_and_after_is_for_others_to_judge() -> None:
    said = [verdict("host-2", "quarantine", Code.STRAGGLER, t=t) for t in (118.0, 168.0)]
    assert pf3_links(replace(noisy(), verdicts=said)).outcome is Outcome.PASSED


def test_pf3_a_late_host_is_suspected() -> None:
    found = verdicts.pf3_host(late(), WHO.slow, AGREE)
    assert found == passed("host-3 500 ms late: suspected within 10.0 s (STRAGGLER, SLOWDOWN)")


@pytest.mark.parametrize("act", ["suspect", "quarantine", "evict"])
def test_pf3_at_least_suspect(act: str) -> None:
    run = replace(late(), verdicts=[verdict("host-3", act, Code.SLOWDOWN, t=198.0)])
    assert verdicts.pf3_host(run, WHO.slow, AGREE).outcome is Outcome.PASSED


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (with_(marks={}), "host-3 did not become slow"),
        (with_(marks={}, events=[]), "a host did not become slow"),
        (with_(verdicts=[]), "host-3, 500 ms late, was not suspected"),
        (with_(verdicts=[verdict("host-2", "suspect", Code.STRAGGLER, t=148.0)]), "was not suspected"),
        (with_(verdicts=[verdict("host-3", "suspect", Code.THERMAL, t=148.0)]), "was not suspected"),
        (with_(verdicts=[verdict("host-3", "trust_again", Code.STRAGGLER, t=148.0)]), "was not suspected"),
        (with_(verdicts=[verdict("host-3", "suspect", Code.STRAGGLER, t=130.0)]), "was not suspected"),  # before it was
        (with_(verdicts=[verdict("host-3", "suspect", Code.STRAGGLER, t=198.5)]), "was not suspected"),  # after 60.5 s
        (with_(windows=[]), "no evaluation before"),
    ],
)
def test_pf3_fails_where_a_late_host_is_not_suspected_in_time(change: Change, words: str) -> None:
    refuses(verdicts.pf3_host(change(late()), WHO.slow, AGREE), words)


# ---------------------------------------------------------------- PF-4


def pf4(run: Run, config: GovernorConfig | None = None) -> Finding:
    return verdicts.pf4(run, WHO.noisy, NOISE, config or GovernorConfig())


def test_pf4_a_little_noise_is_nothing_and_much_of_it_costs_a_host_its_place() -> None:
    assert pf4(noisy()) == passed(
        "noise of 0.1 on host-4: no alert in 22 evaluations; 10: quarantined in evaluation 3 (GRAD_NORM, GRAD_DIRECTION)"
    )


def alerts(index: int, host: str, *codes: Code) -> Change:
    def change(run: Run) -> Run:
        seen = list(run.windows)
        seen[index] = alerting(seen[index], host, *codes)
        return replace(run, windows=seen)

    return change


def quarantine(t: float, *reasons: Code, host: str = "host-4", guard: str = "") -> Change:
    return with_(verdicts=[verdict(host, "quarantine", *(reasons or (Code.GRAD_NORM,)), t=t, guard=guard)])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (with_(marks=marks(NOISE.quiet, at=QUIET_AT)), "the gradient of host-4 was not disturbed"),
        (with_(windows=[*windows(10), *windows(19, begin=200, since=120.0)]), "was compared in 19 of 20 evaluations"),
        (
            with_(windows=[*windows(10), *windows(23, begin=200, since=120.0, judged=("host-1", "host-2"))]),
            "was compared in 0 of 20 evaluations",
        ),
        (alerts(15, "host-4", Code.GRAD_NORM), "noise of 0.1 in the gradient of host-4 alerted on host-4 (GRAD_NORM)"),
        (alerts(15, "host-1", Code.STRAGGLER, Code.GRAD_DIRECTION), "alerted on host-1 (GRAD_DIRECTION)"),
        (with_(verdicts=[]), "host-4 with noise of 10 was not quarantined in 4 evaluations"),
        (quarantine(174.5), "was not quarantined"),  # the fifth
        (quarantine(164.0), "was not quarantined"),  # before there was much
        (quarantine(172.0, Code.STRAGGLER), "was not quarantined"),
        (quarantine(172.0, host="host-1"), "was not quarantined"),
        (quarantine(172.0, guard="cap"), "was not quarantined"),
    ],
)
def test_pf4_fails(change: Change, words: str) -> None:
    refuses(pf4(change(noisy())), words)


@pytest.mark.parametrize(("t", "number"), [(168.0, 1), (174.0, 4)])
def test_pf4_within_four_evaluations(t: float, number: int) -> None:
    found = pf4(quarantine(t)(noisy()))
    assert found.outcome is Outcome.PASSED and f"quarantined in evaluation {number} " in found.reason


def test_pf4_alerts_before_and_after_a_little_noise_do_not_count() -> None:
    assert pf4(alerts(5, "host-1", Code.GRAD_NORM)(noisy())).outcome is Outcome.PASSED
    assert pf4(alerts(34, "host-4", Code.GRAD_NORM)(noisy())).outcome is Outcome.PASSED


def limits(**signals: SignalConfig) -> GovernorConfig:
    return GovernorConfig(signals={Code(code): limit for code, limit in signals.items()})


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (limits(GRAD_NORM=SignalConfig(good=1.0, alert=1.004, bad=2.0)), "GRAD_NORM.alert lies inside noise of 0.1"),
        (limits(GRAD_DIRECTION=SignalConfig(good=1.0, alert=0.999)), "GRAD_DIRECTION.alert lies inside noise of 0.1"),
        (
            limits(GRAD_DIRECTION=SignalConfig(alert=0.05), GRAD_NORM=SignalConfig(alert=20.0, bad=30.0)),
            "limits for gradients that noise of 10 does not reach",
        ),
    ],
)
def test_gm40_limits_that_lie_inside_the_noise_would_test_chance(config: GovernorConfig, words: str) -> None:
    refuses(pf4(noisy(), config), words)


def test_gm40_one_of_the_two_limits_has_to_be_reached() -> None:
    assert verdicts.noise_between_limits(limits(GRAD_NORM=SignalConfig(alert=20.0, bad=30.0))) == ""
    assert verdicts.noise_between_limits(GovernorConfig()) == ""


# ---------------------------------------------------------------- PF-5


def pf5(run: Run) -> Finding:
    return verdicts.pf5(run, WHO.flipped, AGREE)


def test_pf5_a_flipped_bit_is_seen_at_the_next_digest() -> None:
    assert pf5(late()) == passed("a bit flipped on host-2 in step 430: SDC_DIGEST at the digest after step 440")


def differ(**fields: Any) -> Change:
    event = {"kind": "digests_differ", "t": 160.0, "step": 440, "hosts": ["host-2"], "split": False, "sound": 420, **fields}
    return with_(events=[generation(), event])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (with_(marks=marks(AGREE.slow, at=SLOW_AT)), "no bit was flipped on host-2"),
        (with_(events=[generation()]), "a bit flipped on host-2 in step 430 was not seen"),
        (differ(step=460), "but digests differed after step 460"),
        (differ(step=420), "but digests differed after step 420"),
        (differ(hosts=["host-1"]), "but host-1 was named"),
        (differ(hosts=["host-2", "host-1"]), "but host-2, host-1 was named"),
        (differ(hosts=[], split=True), "but nobody was named"),
        (with_(verdicts=[]), "it was not convicted"),
        (with_(verdicts=[verdict("host-2", "evict", Code.STRAGGLER, t=160.0)]), "it was not convicted"),
        (
            with_(verdicts=[verdict(host, "evict", Code.SDC_DIGEST, t=160.0) for host in ("host-2", "host-1")]),
            "it was not convicted",
        ),
    ],
)
def test_pf5_fails(change: Change, words: str) -> None:
    refuses(pf5(change(late())), words)


def test_pf5_a_digest_in_between_counts_too() -> None:
    assert pf5(differ(step=431)(late())).outcome is Outcome.PASSED


# ---------------------------------------------------------------- PF-6


def test_pf6_what_fewer_hosts_restore_is_what_was_saved() -> None:
    found = verdicts.pf6(digests(60), restored(), HOSTS, 2)
    assert found == passed("saved after step 40 on 4 hosts, restored on 2: equal digests")


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], "0 of 2 hosts have restored"),
        (restored(ranks=1), "1 of 2 hosts have restored"),
        (restored(rank1="odd"), "hosts that have restored the same checkpoint hold different states"),
        (restored(rank0="odd", rank1="odd"), "the state after step 40 is another one"),
        (restored(at=0), "the job began anew"),
        (restored(at=50), "the job began anew"),
    ],
)
def test_pf6_fails(lines: list[dict[str, Any]], words: str) -> None:
    refuses(verdicts.pf6(digests(60), lines, HOSTS, 2), words)


def test_pf6_fails_where_those_that_saved_did_not_agree() -> None:
    refuses(verdicts.pf6(digests(60, rank1="odd"), restored(), HOSTS, 2), "another one")
