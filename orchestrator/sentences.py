"""What has happened to a job, in words: a sentence for an event, an incident, a reason to wait."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from orchestrator.explain_topology import probe_sentence
from orchestrator.records import Incident, Record, measured_accuracy, phase_words
from orchestrator.report import percent, size

CHANGE_REASONS = {
    "start": "chosen anew",
    "saves": "saves time",
    "no_gain": "no faster than none",
    "disappoints": "took no less than others had",
    "compares": "to see what steps with none take",
    "tries": "to see what steps with it take",
    "wins": "the fastest of those compared",
    "collapse": "the link has collapsed",
    "budget": "error budget exceeded",
    "dense_start_over": "dense start over",
    "round_trip": "round-trip time",
}
"""By the keys of `workers.compression.controller.explain.REASONS`, which is not imported: it loads torch."""


def incident_sentence(incident: Incident) -> str:
    """`rank 2 on host-2 was killed (SIGKILL): survivors went on after 0.14 s`."""
    host = incident.host or "a host"
    who = f"a spare process on {host}" if incident.rank is None else f"rank {incident.rank} on {host}"
    cause = f" ({incident.cause})" if incident.cause else ""
    what = {
        "worker_killed": f"{who} was killed{cause}",
        "worker_exited": f"{who} ended by itself{cause}",
        "host_lost": f"{host} was lost{cause}",
        "agent_lost": f"the agent of {host} is gone, its ranks train on",
        "coordinator_lost": "the coordinator was lost and is back from its journal",
        "apply_failed": f"{who} failed while applying a step{cause}",
    }.get(incident.kind, f"{who} left the job{cause}")
    if incident.recovery_seconds is None:
        return what
    if incident.kind == "agent_lost":
        return f"the agent of {host} is back after {incident.recovery_seconds:.2f} s and has its ranks again"
    return f"{what}: survivors went on after {incident.recovery_seconds:.2f} s"


def event_sentence(event: Record) -> str | None:
    """One event in words, or None for those that only a log needs."""
    match event:
        case {"kind": "waiting", "message": message}:
            return waiting(message)
        case {"kind": "host_up", "host": host}:
            group = event.get("group")
            return f"{host} is up{f', in group {group}' if group else ''}"
        case {"kind": "host_leaves", "host": host, "reason": reason}:
            return f"{host} leaves: {reason}"
        case {"kind": "drain_notice", "host": host, "reason": reason, "heard": heard, "deadline": deadline}:
            return f"{host} will be taken away within {deadline - heard:.0f} s: {reason}"
        case {"kind": "host_test", "host": host, "passed": True}:
            return f"{host} has passed the host test"
        case {"kind": "host_test", "host": host, "failures": failures}:
            return f"{host} has not passed the host test: {'; '.join(failures)}"
        case {"kind": "scaled", "hosts": hosts}:
            return f"up to {hosts} host{'' if hosts == 1 else 's'} from now on"
        case {"kind": "verdict", "target": target, "act": act, "reasons": reasons, "mode": "enforce", "guard": ""}:
            return _verdict(target, act, reasons)
        case {"kind": "hang", "seconds": seconds}:
            return f"nothing has been finished for {seconds:.1f} s: {_hang(event)}"
        case {"kind": "quorum_lost", "unreachable": hosts}:
            return f"members stay as they are, too many hosts cannot be reached: {', '.join(hosts)}"
        case {"kind": "quorum_back", "seconds": seconds}:
            return f"enough hosts agree again, after {seconds:.1f} s"
        case {
            "kind": "resource_pressure",
            "host": host,
            "code": "RESOURCE_MEMORY" | "RESOURCE_DISK" as code,
            "value": value,
        }:
            return _shortage(host, code, value, begins=event["begins"])
        case {"kind": "resource_pressure", "host": host, "code": "THERMAL", "value": value, "begins": True}:
            return f"{host} is too hot, {value:.0f} °C: it has half the work until it is cooler"
        case {"kind": "resource_pressure", "host": host, "code": "THERMAL", "value": value}:
            return f"{host} has cooled down to {value:.0f} °C, and has as much work as the others"
        case {"kind": "topology"}:
            return probe_sentence(event)
        case {"kind": "topology_warning", "message": message}:
            return str(message)
        case {"kind": "peer_refused", "check": check, "address": address, "message": message, "times": times}:
            return f"refused {address}{f' and others, {times} times' if times > 1 else ''} ({check}): {message}"
        case {"kind": "device_lost", "host": host, "error": error}:
            return f"a device of {host} does not work any more: {error}"
        case {"kind": "join_refused", "message": message}:
            return str(message)
        case {"kind": "certificate_expires", "message": message}:
            return str(message)
        case {"kind": "plaintext", "address": address}:
            return f"agents and operators talk to the coordinator at {address} in plaintext (security.plaintext: anywhere)"
        case {"kind": "rank_back", "rank": int(rank), "seconds": seconds}:
            return f"rank {rank} is back after {seconds:.1f} s"
        case {"kind": "rank_back", "host": host, "seconds": seconds}:
            return f"{host} is back after {seconds:.1f} s"
        case {"kind": "checkpoint", "step": step, "bytes": number, "seconds": seconds}:
            return f"checkpoint of step {step}: {size(number)} in {seconds:.2f} s"
        case {"kind": "checkpoint_failed", "error": error}:
            return f"checkpoint failed, training goes on: {error}"
        case {"kind": "checkpoint_skipped", "reason": reason}:
            return f"checkpoint skipped: {reason}"
        case {"kind": "resumed", "step": step, "path": path}:
            return f"resuming from step {step} ({path})"
        case {"kind": "task_error", "rank": int(rank), "host": host, "error": error}:
            return f"rank {rank} on {host} failed: {error}"
        case {"kind": "record_failed", "error": error}:
            return f"what is read cannot be recorded for the audit, training goes on: {error}"
        case {"kind": "shared_memory", "host": host, "message": message}:
            return f"{host}: {message}"
        case {"kind": "non_finite", "rank": int(rank), "step": step, "parameter": parameter}:
            what = "the loss" if parameter == "loss" else f"the gradient of {parameter}"
            then = "is skipped" if event.get("again", True) else "is computed once more"
            return f"step {step} {then}: on rank {rank} {what} is not finite (said once for each)"
        case {"kind": "rolls_back", "at_most": step, "reason": reason}:
            return f"back to the checkpoint of step {step}, or one before it: {reason}"
        case {"kind": "phase", "phase": phase}:
            return f"phase {phase_words(phase)}"
        case {"kind": "gate", "gate": gate, "passed": True}:
            return f"gate {gate} passed"
        case {"kind": "gate", "gate": gate, "values": values}:
            return f"gate {gate} failed: {_measured(values)}"
        case {"kind": "data_warning", "warning": warning}:
            return f"the data should be looked at: {warning}"
        case {"kind": "evaluation", "step": step, "name": name}:
            accuracy = measured_accuracy(event)
            return None if accuracy is None else f"step {step}: accuracy {percent(accuracy)} ({name})"
        case {"kind": "stopping", "reason": reason}:
            return f"stopping: {reason}"
        case {"kind": "finished", "step": step, "exit_code": 130}:
            return f"stopped after step {step}"
        case {"kind": "finished", "step": step}:
            return f"finished after step {step}"
        case {"kind": "failed"}:
            return f"failed: {event.get('error') or event.get('message') or 'no reason was given'}"
    return None


def _hang(event: Record) -> str:
    """Who hangs, and where."""
    if not event["culprits"]:
        unheard = ", ".join(event["unheard"])
        return f"nothing is heard of {unheard}" if unheard else "nobody stands apart from the others, so all begin again"
    hung = []
    for culprit in event["culprits"]:
        frames = event["stacks"].get(str(culprit["rank"]))
        hung.append(f"rank {culprit['rank']} on {culprit['host']} hangs{f' in {frames[0]}' if frames else ''}")
    return ", ".join(hung)


VERDICTS = {
    "suspect": "{target} is suspect{why}",
    "trust_again": "{target} is trusted again",
    "quarantine": "{target} is in quarantine{why}",
    "evict": "{target} is evicted{why}",
    "pause": "the governor calls for an operator{why}",
    "inform": "the job is slower than it is meant to be{why}",
    "regroup": "group {target} has a common cause{why}",
}
"""By the governor's act; those that are not here are steps on the way to one that is."""


def _verdict(target: str, act: str, reasons: list[str]) -> str | None:
    if act == "test" and "LOSS_SPIKE" in reasons:
        return "the loss of the job has jumped: all hosts test themselves (LOSS_SPIKE)"
    why = f" ({', '.join(reasons)})" if reasons else ""
    return VERDICTS[act].format(target=target or "of all", why=why) if act in VERDICTS else None


def _shortage(host: str, code: str, share: float, *, begins: bool) -> str:
    what = {"RESOURCE_MEMORY": "memory", "RESOURCE_DISK": "disk"}[code]
    if begins:
        return f"{host} is short of {what}: {percent(share)} of it is used"
    return f"{host} has {what} again: {percent(share)} of it is used"


class CompressionChanges:
    """Makes one sentence of a decision of the compression controller, which tells of each bucket in an event of its own."""

    def __init__(self) -> None:
        self._changes: list[Record] = []

    def add(self, event: Record) -> str | None:
        """`from step 21: 2 buckets int8 instead of none (saves time)`; None until the event that ends a decision, and where
        nothing has changed."""
        if event["kind"] == "compression":
            self._changes.append(event)
        if event["kind"] != "compression_plan":
            return None
        changes = [change for change in self._changes if change["step"] == event["step"]]
        self._changes.clear()
        alike = Counter((change["to"], change["from"], change["reason"]) for change in changes)
        parts = [
            f"{number} bucket{'' if number == 1 else 's'} {new} instead of {old} ({CHANGE_REASONS.get(reason, reason)})"
            for (new, old, reason), number in alike.items()
        ]
        return f"from step {event['step'] + 1}: {', '.join(parts)}" if parts else None


def _measured(values: Mapping[str, float | None]) -> str:
    """`accuracy_drop 0.023, not_finite 0`."""
    return ", ".join(f"{name} {'not measured' if value is None else f'{value:.6g}'}" for name, value in values.items())


def waiting(message: str) -> str:
    """`waiting for 1 more host`, and `waiting: 1 of 2 hosts` where the message does not say that it waits."""
    return message if message.startswith("waiting") else f"waiting: {message}"
