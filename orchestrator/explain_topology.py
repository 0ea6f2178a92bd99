"""`quantarion explain topology JOB`: the groups of a job's hosts, and the links that were measured, as plain tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from orchestrator.records import Record

Matrix = Sequence[Sequence[float | None]]


def explain(name: str, events: Sequence[Record]) -> str:
    """Of the job's last start, from its events in their order."""
    begins = [n for n, event in enumerate(events) if event["kind"] == "coordinator_started" and not event["recovered"]]
    latest = events[begins[-1] :] if begins else events
    hosts = _hosts(latest)
    if not hosts:
        return f"{name} has no hosts yet."
    lines = _table([["host", "address", "group"], *([host, *told] for host, told in hosts.items())], align=str.ljust)
    if not any(group for _, group in hosts.values()):
        lines += ["", "No group is known: neither topology.groups nor a label names one."]
    for event in latest:
        if event["kind"] == "topology_warning":
            lines += ["", str(event["message"])]
    probes = [event for event in latest if event["kind"] == "topology"]
    lines += ["", *(_probe(probes[-1]) if probes else ["The links were not measured (topology.probe)."])]
    return "\n".join(lines)


def probe_sentence(event: Record) -> str:
    """What a probe came to, in a sentence: `3 of 3 links measured in 1.6 s: …`."""
    start = f"{event['measured']} of {event['pairs']} links between hosts measured in {event['seconds']:.1f} s: "
    found: dict[str, list[str]] = {}
    for host, group in event["found"].items():
        found.setdefault(group, []).append(host)
    if not found:
        told = all(event["groups"].values())
        return start + ("every host has been told its group" if told else "no groups stand out")
    return start + ", ".join(f"{', '.join(hosts)} in group {group}" for group, hosts in sorted(found.items()))


def _hosts(events: Sequence[Record]) -> dict[str, list[str]]:
    """Host to [address, group], of those that are there."""
    found: dict[str, list[str]] = {}
    for event in events:
        if event["kind"] == "host_up":
            found[event["host"]] = [str(event["address"]), str(event.get("group", ""))]
        elif event["kind"] == "host_lost":
            found.pop(event["host"], None)
        elif event["kind"] == "topology":
            for host in found.keys() & event["groups"].keys():
                found[host][1] = event["groups"][host]
    return found


def _probe(event: Record) -> Iterator[str]:
    hosts = [str(host) for host in event["hosts"]]
    yield f"Before the first step {probe_sentence(event)}."
    if event["measured"]:
        yield ""
        yield "Mbit/s from the host of a row to that of a column:"
        yield from _matrix(hosts, event["bytes_per_second"], lambda rate: _figures(rate * 8e-6))
        yield ""
        yield "Round-trip time, ms:"
        yield from _matrix(hosts, event["round_trip_seconds"], lambda seconds: _figures(seconds * 1e3))
    if event["failures"]:
        yield ""
        yield from event["failures"]


def _matrix(hosts: Sequence[str], matrix: Matrix, write: Callable[[float], str]) -> list[str]:
    rows = [
        [host, *("-" if cell is None else write(cell) for cell in row)] for host, row in zip(hosts, matrix, strict=True)
    ]
    return _table([["", *hosts], *rows], align=str.rjust)


def _figures(value: float) -> str:
    """At least two figures that count, and no exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _table(rows: Sequence[Sequence[str]], align: Callable[[str, int], str]) -> list[str]:
    """Columns as wide as their widest cell, two spaces between them; the first one to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join([row[0].ljust(widths[0]), *map(align, row[1:], widths[1:])]).rstrip() for row in rows]
