"""`quantarion hosts|drain|evict|readmit|scale|events`: what people ask of a running job's coordinator."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import grpc
from quantarion.v1 import operator_pb2 as pb
from quantarion.v1 import operator_pb2_grpc as rpc

from orchestrator import status
from orchestrator.errors import ExitCode, UserError, command
from orchestrator.records import EVENT_KEYS, Record, parse_line, read_events

ASK_SECONDS = 5.0

COLUMNS = ("host", "address", "state", "standing", "score", "trust", "memory", "disk", "load", "cpu", "why")

SHORT = {"memory": "RESOURCE_MEMORY", "disk": "RESOURCE_DISK", "load": "RESOURCE_LOAD"}
"""The code of a shortage, by what there is too little of."""


def ask(job: str, storage: Path, what: Callable[[rpc.OperatorStub], pb.OperatorReply]) -> pb.OperatorReply:
    """Give a command to the coordinator of `job`, and print its answer, which is returned.

    Raises:
        UserError: exit code 2, there is no such job, or a guard refuses; 6, no coordinator answers.
    """
    folder = status.find(job, storage)
    coordinator = status.read_coordinator(folder)
    try:
        if coordinator is None or status.fetch(folder, ASK_SECONDS) is None:
            raise ValueError
        with status.channel(coordinator) as link:
            reply = what(rpc.OperatorStub(link))
    except (grpc.RpcError, ValueError):
        raise UserError(
            status.trouble(coordinator)
            or f"{job} is not running: no coordinator answers; see {command('status', job, storage=storage)}",
            ExitCode.RAY,
        ) from None
    if not reply.accepted:
        raise UserError(f"{job} refuses ({reply.guard}): {reply.message}")
    sys.stdout.write(f"{job}: {reply.message}\n")
    sys.stdout.flush()
    return reply


def drain(job: str, host: str, reason: str, storage: Path) -> int:
    """`ask` that a host leaves."""
    request = pb.HostRequest(host=host, reason=reason)
    ask(job, storage, lambda operator: operator.Drain(request, timeout=ASK_SECONDS))
    return ExitCode.DONE


def evict(job: str, host: str, reason: str, storage: Path) -> int:
    """`ask` that a host is removed."""
    request = pb.HostRequest(host=host, reason=reason)
    ask(job, storage, lambda operator: operator.Evict(request, timeout=ASK_SECONDS))
    return ExitCode.DONE


def readmit(job: str, host: str, storage: Path) -> int:
    """`ask` that a host may come back."""
    request = pb.HostRequest(host=host)
    ask(job, storage, lambda operator: operator.Readmit(request, timeout=ASK_SECONDS))
    return ExitCode.DONE


def scale(job: str, hosts: int, storage: Path) -> int:
    """`ask` for so many hosts."""
    request = pb.ScaleRequest(hosts=hosts)
    ask(job, storage, lambda operator: operator.Scale(request, timeout=ASK_SECONDS))
    return ExitCode.DONE


def hosts(job: str, storage: Path, as_json: bool) -> int:
    """Print the hosts of a job, those that were evicted too, and how they stand with the governor; the exit code."""
    found = status.read(status.find(job, storage))["hosts"]
    if as_json:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
        return ExitCode.DONE
    rows = [COLUMNS, *(_row(host) for host in found)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        sys.stdout.write("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() + "\n")
    return ExitCode.DONE


def events(job: str, storage: Path, follow: bool, as_json: bool) -> int:
    """Print what has happened, and with `follow` what happens, until the job has ended; the exit code."""
    folder = status.find(job, storage)
    if not follow:
        for event in read_events(folder):
            _show(event, as_json)
        return ExitCode.DONE
    coordinator = status.read_coordinator(folder)
    try:
        if coordinator is None:
            raise ValueError
        with status.channel(coordinator) as link:
            for event in rpc.OperatorStub(link).Watch(pb.WatchRequest()):
                if (whole := parse_line(event.json.encode(), EVENT_KEYS)) is not None:
                    _show(whole, as_json)
    except KeyboardInterrupt:
        return ExitCode.STOPPED
    except (grpc.RpcError, ValueError):
        raise UserError(
            status.trouble(coordinator)
            or f"{job} is not running: no coordinator answers; {command('events', job, storage=storage)} shows what was",
            ExitCode.RAY,
        ) from None
    return ExitCode.DONE


def _row(host: Record) -> tuple[str, ...]:
    score = "" if host.get("score") is None else f"{host['score']:.2f}"
    trust = f"{host['trust']:.2f}" if host.get("standing") else ""
    why = host.get("reason") or ""
    if host.get("excluded"):
        why = "excluded until it is readmitted"
    elif host.get("returns_at"):
        why = time.strftime("may return at %H:%M:%S", time.localtime(host["returns_at"]))
    sensors = [_sensed(host, sensor) for sensor in status.SENSORS]
    return host["host"], host["address"], host["state"], host.get("standing") or "", score, trust, *sensors, why


def _sensed(host: Record, sensor: str) -> str:
    """With an exclamation mark where the host is short of it."""
    value = host.get(sensor)
    if value is None:
        return ""
    text = f"{value:.2f}" if sensor == "load" else f"{100 * value:.0f} %"
    return f"{text}!" if SHORT.get(sensor) in host["short_of"] else text


def _show(event: Record, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(event) + "\n")
    else:
        when = time.strftime("%H:%M:%S", time.localtime(event["t"]))
        fields = " ".join(f"{key}={json.dumps(value)}" for key, value in event.items() if key not in ("t", "kind"))
        sys.stdout.write(f"{when} {event['kind']} {fields}\n")
    sys.stdout.flush()
