"""The results page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

from benchmarks.fleet.scenario import Death, Result
from benchmarks.governor import LIMITS

CORES = 1.0
"""That the coordinator may take."""

CHANGE_SECONDS = 2.0
"""For a new generation."""

_INTRODUCTION = """\
Real are: the coordinator in a process of its own, with its event loop, journal, events and log; the governor with all
rules in `enforce`, and its log on disk; gRPC, with every stream that the table says. Simulated are the hosts: a process
speaks the agents' protocol for many of them, and on each there is a rank, which is the real state machine of one without
model, data and peers. Beats go out every 0.5 s, with measures drawn from normal distributions; digests every 100 steps.
So no process starts, nothing is copied and no ranks are connected: times are what the control plane adds. All processes
share one machine and talk over loopback, without encryption. The clock is the real one.

With leaders, one stream carries what the hosts of a group say (GM-4). The coordinator's side of that is the product's;
the leader's side is simulated, as the hosts of a group are in the process of their leader, from the first moment on: that
hosts begin with streams of their own, and are sent to leaders later, is not in it. A leader keeps beats for 0.25 s at
most. What the death of a leader costs was not measured.

The process that starts a job asks how it is, and the answer lists all hosts. Here it asks every 10 s, `quantarion train`
asks four times a second; the table says what an answer takes.
"""

_NOTES = """\
- *cores*: processor time of a process by the time that has passed, while nothing happens.
- *late*: how much longer a sleep of 20 ms takes in the coordinator's event loop; and how late a turn of 50 ms is in the
  processes that simulate hosts. Where that is long, the machine was too small for the measurement.
- *an evaluation*: what follows from a window of 10 s: observations, policy, log, actions.
- *death*: since the kill of a host. Its agent says that its rank has exited and is gone; or, *silent*, its stream is
  reset and the ranks beside it in the ring tell of closed sockets, for which the coordinator waits 0.25 s for a reason.
- *configured*: CONFIGURE of the new generation has reached all members; *running*: all have said that they run.
- *slow*: since a host says that it takes twice as long for a sample: until the verdict that evicts it, which needs two
  alerts at least 20 s apart, and until all others run without it.
"""


def page(results: Sequence[Result], made_by: str) -> str:
    """In Markdown; a column for each fleet."""
    head = ["", *map(_name, results)]
    lines = [_line(head), _line(["---"] * len(head))]
    lines += [_line([name, *map(cell, results)]) for name, cell in _ROWS]
    table = "\n".join(lines)
    return f"# The coordinator against simulated fleets\n\n{_INTRODUCTION}\n{table}\n\n{_NOTES}\n{made_by}\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _name(each: Result) -> str:
    by = f"{each.streams} streams of leaders" if each.leaders else "a stream each"
    return f"{each.hosts:,} hosts, {by}"


def _cores(each: Result) -> str:
    return _with_limit(f"{each.quiet.cores['coordinator']:.2f}", each.quiet.cores["coordinator"], CORES, "")


def _simulation(each: Result) -> str:
    return " + ".join(f"{cores:.2f}" for name, cores in each.quiet.cores.items() if name != "coordinator")


def _memory(each: Result) -> str:
    return f"{each.quiet.mebibytes['coordinator']:.0f}, in the end {each.mebibytes['coordinator']:.0f}"


def _late(each: Result) -> str:
    return " / ".join(f"{late * 1e3:.1f}" for late in each.quiet.late)


def _evaluation(each: Result) -> str:
    seconds = each.quiet.evaluations
    if not seconds:
        return "none"
    text = f"{median(seconds) * 1e3:.0f} / {max(seconds) * 1e3:.0f} of {len(seconds)}"
    limit = LIMITS.get(each.hosts)
    return text if limit is None else _with_limit(text, max(seconds), limit, f"{limit * 1e3:.0f}")


def _death(silently: bool, of: Callable[[Death], float], limit: float | None = None) -> Callable[[Result], str]:
    def cell(each: Result) -> str:
        seconds = [of(death) for death in each.deaths if death.silently == silently]
        if not seconds:
            return "none"
        text = f"{median(seconds):.2f} / {max(seconds):.2f} of {len(seconds)}"
        return text if limit is None else _with_limit(text, max(seconds), limit, "")

    return cell


def _status(each: Result) -> str:
    return f"{median(each.status) * 1e3:.0f}" if each.status else "none"


def _with_limit(text: str, value: float, limit: float, said: str) -> str:
    found = f"{text} (limit {said or f'{limit:g}'})"
    return found if value <= limit else f"**{found}: not met**"


_ROWS: list[tuple[str, Callable[[Result], str]]] = [
    ("groups", lambda each: str(each.groups)),
    ("gRPC streams", lambda each: str(each.streams)),
    ("processes that simulate hosts", lambda each: str(each.generators)),
    ("start: all running, s", lambda each: f"{each.start:.1f}"),
    ("coordinator, cores", _cores),
    ("simulation, cores", _simulation),
    ("coordinator, MiB", _memory),
    ("beats heard a second, and sent", lambda each: f"{each.quiet.beats:,.0f}, {each.quiet.sent:,.0f}"),
    ("loop late, ms: median / 99 % / longest", _late),
    ("simulation late, ms: longest", lambda each: f"{each.quiet.generators_late * 1e3:.0f}"),
    ("an evaluation, ms: median / longest", _evaluation),
    ("death: round opened, s: median / longest", _death(False, lambda death: death.prepare)),
    ("death: all configured, s", _death(False, lambda death: death.configured)),
    ("death: all running, s", _death(False, lambda death: death.running, CHANGE_SECONDS)),
    ("silent death: round opened, s", _death(True, lambda death: death.prepare)),
    ("silent death: all configured, s", _death(True, lambda death: death.configured)),
    ("silent death: all running, s", _death(True, lambda death: death.running, CHANGE_SECONDS)),
    ("slow: verdict, s", lambda each: f"{each.verdict:.1f}"),
    ("slow: all running without it, s", lambda each: f"{each.left:.1f}"),
    ("verdicts on hosts that were well", lambda each: f"{len(each.others)}{_some(each.others)}"),
    ("streams lost", lambda each: str(each.lost_streams)),
    ("an answer to `status`, ms", _status),
]


def _some(verdicts: Sequence[str]) -> str:
    """The first ones."""
    return f" ({', '.join(verdicts[:3])}{', …' if len(verdicts) > 3 else ''})" if verdicts else ""
