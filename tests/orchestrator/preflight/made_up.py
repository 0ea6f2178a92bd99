"""Records as a job of the gate would leave them, made up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from orchestrator.governor.codes import Code
from orchestrator.preflight.hosts import Host, Roles, roles
from orchestrator.preflight.probes import Faults, Probe, Times, faults
from orchestrator.preflight.runs import Run, Window
from orchestrator.preflight.verdicts import Reference
from orchestrator.records import Record

HOSTS = 4
WHO: Roles = roles([Host(f"10.0.0.{number}") for number in range(1, HOSTS + 1)])
WHEN = Times(slow=20, flip=33, quiet=20, loud=65)
USUAL = Reference(loss=1.5, spread=0.01, step_seconds=0.05)
NAMES = tuple(f"host-{number}" for number in range(1, HOSTS + 1))


def injected(probe: Probe, hosts: int = HOSTS) -> Faults:
    return faults(probe, hosts, WHO, WHEN)


def step(number: int, **others: Any) -> Record:
    """A line of `steps.jsonl`: 50 ms after the one before."""
    usual = {"generation": [1, 1], "t": 0.05 * number, "loss": 2.0 - 0.02 * number, "ranks": HOSTS, "samples": 1024}
    return {"step": number, **usual, "step_seconds": 0.05, **others}


def steps(last: int, first: int = 1, **others: Any) -> list[Record]:
    return [step(number, **others) for number in range(first, last + 1)]


def generation(hosts: Sequence[str] = NAMES) -> Record:
    members = [{"rank": rank, "host": host, "pid": 1, "worker": f"w{rank}"} for rank, host in enumerate(hosts)]
    return {"kind": "generation", "t": 0.0, "generation": [1, 1], "members": members}


def digests(last: int, ranks: int = HOSTS, **odd: str) -> list[Record]:
    """A line of each rank after every 20th step; `rank3="…"`: what that one holds instead."""
    return [
        {"step": number, "rank": rank, "digest": odd.get(f"rank{rank}", f"d{number}")}
        for rank in range(ranks)
        for number in range(0, last + 1, 20)
    ]


def verdict(host: str, act: str, *reasons: Code, t: float, guard: str = "") -> Record:
    plain = {"target": host, "scope": "node", "act": act, "reasons": [code.value for code in reasons]}
    return {"t": t, **plain, "mode": "enforce", "guard": guard, "rolls_back": False}


def windows(
    number: int, *, begin: int = 0, each: int = 20, since: float = 100.0, judged: Sequence[str] = NAMES
) -> list[Window]:
    """So many evaluations of 2 s, in each of which so many steps are committed, the first one from step `begin` on."""
    known = {code: frozenset(judged) for code in (Code.STRAGGLER, Code.GRAD_DIRECTION, Code.GRAD_NORM)}
    return [
        Window(since + 2.0 * (index + 1), begin + each * index, begin + each * (index + 1), known, {})
        for index in range(number)
    ]


def alerting(window: Window, host: str, *codes: Code) -> Window:
    return replace(window, alerts={**window.alerts, host: codes})


def marks(*names: str, at: int) -> dict[str, Record]:
    """That these faults have happened in step `at`."""
    return {name: {"rank": 0, "step": at} for name in names}


# ---------------------------------------------------------------- runs that pass


def undisturbed() -> Run:
    return Run(exit_code=130, steps=steps(60), events=[generation()], digests=digests(60))


def lost(gap: float = 0.6, back: float = 8.0, *, rank: int = WHO.lost[0]) -> Run:
    """A host is lost in step 5; the next commit comes `gap` seconds after the one before, and it is back after `back`."""
    after = [{**step(number), "t": 0.2 + gap + 0.05 * (number - 5), "ranks": HOSTS - 1} for number in range(5, 60)]
    back_again = {"kind": "rank_back", "t": 9.0, "rank": rank, "host": NAMES[rank], "seconds": back, "world": HOSTS}
    return Run(
        exit_code=130,
        steps=[*steps(4), *after],
        events=[generation(), back_again],
        digests=digests(60),
        marks=marks(*injected(Probe.LOSE).lost, at=5),
        problems=[],
    )


def halted() -> Run:
    ended = {"kind": "failed", "t": 1.0, "step": 4, "message": "fewer than hosts.min=4 hosts for 0 s", "exit_code": 9}
    return Run(exit_code=9, steps=steps(4), events=[generation(), ended], marks=marks(*injected(Probe.HALT).lost, at=5))


QUIET_AT, LOUD_AT = 200, 660


def noisy(rank: int = WHO.noisy) -> Run:
    """Ten evaluations of 20 steps, 23 more while links are slow and there is a little noise, four while there is much."""
    seen, host, faulty = [*windows(10), *windows(23, begin=200, since=120.0)], NAMES[rank], injected(Probe.NOISE)
    slow = [step(number, step_seconds=0.11) for number in range(QUIET_AT, LOUD_AT)]
    return Run(
        exit_code=130,
        steps=[*steps(QUIET_AT - 1), *slow, *steps(760, LOUD_AT)],
        events=[generation()],
        windows=[*seen, *windows(4, begin=660, since=166.0)],
        verdicts=[
            verdict(host, "suspect", Code.GRAD_NORM, t=168.0),
            verdict(host, "quarantine", Code.GRAD_NORM, Code.GRAD_DIRECTION, t=172.0),
            verdict(host, "evict", Code.GRAD_NORM, t=172.0),
        ],
        marks=marks(*faulty.linked, faulty.quiet, at=QUIET_AT) | marks(*faulty.freed, faulty.loud, at=LOUD_AT),
    )


SLOW_AT, FLIP_AT = 400, 430


def late(slow: int = WHO.slow, flipped: int = WHO.flipped) -> Run:
    """After a quiet time a host is late from step 400 on, and is suspected; then a bit flips on another one."""
    host, faulty = NAMES[flipped], injected(Probe.AGREE)
    differ = {"kind": "digests_differ", "t": 160.0, "step": 440, "hosts": [host], "split": False, "sound": 420}
    return replace(
        undisturbed(),
        events=[generation(), differ],
        windows=[*windows(20), *windows(10, begin=400, each=4, since=140.0)],
        verdicts=[
            verdict(NAMES[slow], "suspect", Code.STRAGGLER, Code.SLOWDOWN, t=148.0),
            verdict(host, "evict", Code.SDC_DIGEST, t=160.0),
        ],
        marks=marks(faulty.slow, at=SLOW_AT) | marks(faulty.flipped, at=FLIP_AT),
    )


def restored(at: int = 40, ranks: int = 2, **odd: str) -> list[Record]:
    """Lines of digests of so many ranks that begin after step `at`."""
    lines = [{"step": at, "rank": rank, "digest": odd.get(f"rank{rank}", f"d{at}")} for rank in range(ranks)]
    return [*lines, *({**line, "step": at + 20, "digest": "later"} for line in lines)]
