"""Whether a job of the gate has shown what it is for, so that it may end. Cheap, as it is asked twice a second; pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from orchestrator.governor.codes import Code
from orchestrator.preflight.hosts import Roles
from orchestrator.preflight.probes import COMPARED_AT, Probe, applicable, fewer
from orchestrator.preflight.runs import Run
from orchestrator.preflight.verdicts import OF_GRADIENTS, SLOW
from orchestrator.records import Record


def is_shown(probe: Probe, hosts: int, who: Roles, events: Sequence[Record], step: int, noted: int) -> bool:
    """By the events of a job, its last committed step, and how many of its ranks have noted what they hold."""
    host = Run(events=events).host
    verdicts = [event for event in events if event["kind"] == "verdict"]
    match probe:
        case Probe.AGREE:
            tests = applicable(probe, hosts)
            suspected = "PF-3" not in tests or _said(verdicts, host(who.slow), ("suspect", "quarantine", "evict"), SLOW)
            convicted = "PF-5" not in tests or _said(verdicts, None, ("evict",), {Code.SDC_DIGEST.value})
            return step > COMPARED_AT and suspected and convicted
        case Probe.LOSE:
            back = {event["rank"] for event in events if event["kind"] == "rank_back"}
            is_saved = any(event["kind"] == "checkpoint" for event in events)
            return step > COMPARED_AT and is_saved and back >= set(who.lost)
        case Probe.RESTORE:
            return noted >= fewer(hosts)
        case Probe.NOISE:
            out = [verdict for verdict in verdicts if not verdict["guard"]]
            return _said(out, host(who.noisy), ("quarantine",), {code.value for code in OF_GRADIENTS})
        case Probe.HALT:
            return False  # it has to end by itself


def _said(verdicts: Sequence[Record], host: str | None, acts: Collection[str], reasons: Collection[str]) -> bool:
    """One of these, of that host or of any, for one of these reasons."""
    return any(
        verdict["act"] in acts and host in (None, verdict["target"]) and not set(reasons).isdisjoint(verdict["reasons"])
        for verdict in verdicts
    )
