"""`docs/results/storm.md` from the records of a storm."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from benchmarks.machine import made_by
from benchmarks.storm.findings import ANSWERABLE_SECONDS, Finding, Outcome, evicts
from benchmarks.storm.kinds import TRAITS, Kind
from benchmarks.storm.peers import KillRun
from benchmarks.storm.program import PACE_SECONDS
from benchmarks.storm.records import Fault
from benchmarks.storm.summary import Run

EMPTY = "–"

LIMITS = {
    Kind.KILL: "0.5 s",
    Kind.KILL_HOST: "0.5 s",
    Kind.AGENT: "0.5 s",
    Kind.STOP: "learned limit + 2 s",
    Kind.STOP_HOST: "max(4 s, dead limit + 0.5 s)",
    Kind.CUT: "max(4 s, dead limit + 0.5 s)",
    Kind.FLIP: "the next digest",
}


def page(run: Run | None, summary: Mapping[str, Any], kills: Sequence[KillRun], command: str, picture: str | None) -> str:
    """The whole page; without a storm in the lab where there was none, without the comparison where nobody was compared."""
    lines = ["# A storm of faults", ""]
    if run is not None:
        lines += [*_introduction(run, summary), *_figures(run, summary)]
        lines += [f"![Steps a second, and faults]({picture})", ""] if picture else []
        lines += [*_times(run.findings, run.faults), *_all(run), *_evictions(run)]
    lines += _compared(kills)
    return "\n".join([*lines, made_by(command), ""])


def _introduction(run: Run, summary: Mapping[str, Any]) -> list[str]:
    faults = summary["faults"]
    hosts = {str(event["host"]) for event in run.events if event["kind"] == "host_up"}
    return [
        f"{run.ranks} ranks on {len(hosts)} hosts, which are network namespaces of one machine (`benchmarks/lab`), with an "
        "idle worker on each; coordinator, agents and workers are the real ones, and all rules of the governor are in "
        f"force. In a step a rank waits {PACE_SECONDS * 1000:.3g} ms for each of its samples, as for an accelerator, and "
        f"computes. {faults['done']} faults of {len(faults['by_kind'])} kinds in {summary['seconds']:.0f} seconds, "
        f"seed {run.seed}; {faults['planned'] - faults['done']} more were passed over. What counts as quiet is the same "
        "job before the storm and after it, with all ranks.",
        "",
    ]


def _figures(run: Run, summary: Mapping[str, Any]) -> list[str]:
    quiet = summary["samples_per_second_quiet"]
    equal = "yes" if summary["digests_equal"] else "NO"
    lines = [
        "| figure | value |",
        "|---|---|",
        f"| throughput kept (samples per second, storm over quiet) | {_percent(summary['throughput_kept'])} |",
        f"| goodput: seconds in steps that were committed and kept, over all seconds | {_percent(summary['goodput'])} "
        f"(quiet: {_percent(summary['goodput_quiet'])}) |",
        f"| steps kept of all that were tried | {_percent(summary['step_efficiency'])} |",
        f"| steps kept in the storm; attempts discarded | {summary['steps']}; {summary['discarded']} |",
        f"| samples a second: storm; quiet before and after | {summary['samples_per_second']:.0f}; "
        f"{', '.join(f'{each:.0f}' for each in quiet) or EMPTY} |",
        f"| each sample in exactly one step that counts (`quantarion audit`) | {'yes' if summary['each_once'] else 'NO'} |",
        f"| digests of equal states equal | {equal}, {summary['digests_compared']} states compared |",
        f"| false evictions | {summary['false_evictions']} |",
        f"| faults noticed later than the limit | {summary['late']} |",
        "",
    ]
    if run.failure:
        lines += [f"**The job did not outlive it:** {run.failure}", ""]
    if len(run.quiet) < 2 and not run.failure:
        lines += ["After the storm not all ranks came back in time, so quiet is what was before it only.", ""]
    return [*lines, *(f"- {problem}" for problem in summary["problems"]), *([""] if summary["problems"] else [])]


def _percent(value: float | None) -> str:
    return EMPTY if value is None else f"{100 * value:.1f} %"


def _times(findings: Sequence[Finding], faults: Sequence[Fault]) -> list[str]:
    lines = [
        "## By kind of fault",
        "",
        "| kind | done | ridden out | noticed after, s | limit | in time | trains again, s | its ranks again, s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for kind in Kind:
        mine = [finding for finding in findings if finding.fault.kind is kind]
        if not any(fault.kind is kind for fault in faults):
            continue
        judged = [finding.in_time for finding in mine if finding.in_time is not None]
        cells = [
            f"`{kind.value}`: {TRAITS[kind].words}",
            str(len(mine)),
            str(sum(finding.outcome is not Outcome.NOTICED for finding in mine) or EMPTY),
            _spread([finding.noticed for finding in mine]),
            LIMITS.get(kind, EMPTY),
            f"{sum(judged)} of {len(judged)}" if judged else EMPTY,
            _spread([finding.trained for finding in mine]),
            _spread([finding.full for finding in mine]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return [
        *lines,
        "",
        "Median, in brackets the smallest and the largest. *Ridden out*: it was over before anybody had to notice, or a "
        "rank with a flipped bit was gone before the next digest. A limit is not applied where the coordinator or the "
        "agent of that host was away itself, having been killed. *Trains again*: the first step of the generation that "
        "follows; of a NaN, the step that was discarded for it; of a coordinator and an agent, when it was back; of a full "
        "disk and a drained host, from when it was emptied or readmitted to the next checkpoint or until it trained. *Its "
        "ranks*: its host trains with as many as before. Faults overlap, so that one may wait for another.",
        "",
    ]


def _spread(values: Sequence[float | None]) -> str:
    known = sorted(value for value in values if value is not None)
    if not known:
        return EMPTY
    middle = f"{median(known):.2f}"
    return middle if len(known) == 1 else f"{middle} ({known[0]:.2f} to {known[-1]:.2f})"


def _all(run: Run) -> list[str]:
    """Every fault."""
    found = {finding.fault.number: finding for finding in run.findings}
    lines = ["## Every fault", "", "| s | what | noticed | by | its ranks again, s |", "|---|---|---|---|---|"]
    for fault in sorted(run.faults, key=lambda each: each.number):
        finding = found.get(fault.number)
        if fault.t is None or finding is None:
            lines.append(f"| {fault.at:.0f} | {fault.words} | passed over: {fault.skipped} | {EMPTY} | {EMPTY} |")
            continue
        lines.append(
            f"| {fault.t - run.storm.begin:.0f} | {fault.words} | {_noticed(finding)} | {finding.by or EMPTY} "
            f"| {EMPTY if finding.full is None else f'{finding.full:.2f}'} |"
        )
    return [*lines, ""]


def _noticed(finding: Finding) -> str:
    if finding.noticed is None:
        return finding.outcome.value
    late = ", LATE" if finding.in_time is False else ""
    if finding.limit_step is not None:
        return f"{finding.noticed:.2f} s, by the digest of step {finding.noticed_step} (due: {finding.limit_step}){late}"
    return f"{finding.noticed:.2f} s{late}"


def _evictions(run: Run) -> list[str]:
    made = [event for event in run.events if evicts(event)]
    counted = Counter(str(event["reasons"][0]) if event["reasons"] else EMPTY for event in made)
    words = ", ".join(f"{number} for {code}" for code, number in sorted(counted.items())) or "none"
    lines = [
        f"Hosts evicted by the governor: {words}. An eviction is false where nothing was done to the host, or not within "
        f"the last {ANSWERABLE_SECONDS:g} seconds.",
        "",
    ]
    for event in run.evictions:
        seconds = float(event["t"]) - run.storm.begin
        lines += [f"- **False:** {event['target']} after {seconds:.0f} s, {', '.join(event['reasons'])}", ""]
    return lines


def _compared(kills: Sequence[KillRun]) -> list[str]:
    if not kills:
        return []
    lines = [
        "## Kills only, and the peers",
        "",
        "All on one host, the MLP of 1.29 M parameters of the other comparisons, computed on the CPU. The same seeded "
        "moments and ranks for each: `kill -9` of a rank. Steps that a system goes back over count once.",
        "",
        "| system | settings | kills | passed over | throughput kept | steps kept of all committed "
        "| samples a second: storm; quiet |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in kills:
        if each.problem and each.throughput_kept is None:
            lines.append(f"| {each.label} | {each.settings} | {EMPTY} | {EMPTY} | {each.problem} | {EMPTY} | {EMPTY} |")
            continue
        lines.append(
            f"| {each.label} | {each.settings} | {each.kills} | {each.skipped} | {_percent(each.throughput_kept)} "
            f"| {_percent(each.step_efficiency)} | {each.storm:.0f}; {', '.join(f'{rate:.0f}' for rate in each.quiet)} |"
        )
    problems = [f"- {each.label} ({each.settings}): {each.problem}" for each in kills if each.problem and each.quiet]
    return [*lines, "", *problems, *([""] if problems else [])]
