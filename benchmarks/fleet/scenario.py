"""What is measured of a fleet, one after the other: its start, a quiet while, deaths of hosts, a host that becomes slow."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

from benchmarks.fleet.fleet import Fleet
from benchmarks.fleet.settings import Settings
from orchestrator.governor.verdicts import Act
from orchestrator.records import Record

SETTLE_SECONDS = 5.0
"""After a change, before the next one."""

SLOW_TIMES = 2.0


@dataclass(frozen=True)
class Death:
    """Seconds since a host was killed: until the coordinator opened the round, until CONFIGURE of the new generation had
    reached all its members, until all had said that they run.

    Attributes:
        silently: nobody has seen its ranks exit; its stream was reset, and two peers have told of closed sockets.
    """

    silently: bool
    prepare: float
    configured: float
    running: float


@dataclass(frozen=True)
class Quiet:
    """A while in which nothing is done to anybody.

    Attributes:
        cores: of each process, seconds of processor time per second; `mebibytes`: its resident memory in the end.
        beats: that the coordinator has heard, per second; `sent`: that the hosts have sent.
        late: of the coordinator's event loop, in seconds: median, 99 % quantile, longest; `generators_late`: the longest
            of the processes that simulate hosts.
        evaluations: seconds of each.
    """

    seconds: float
    cores: Mapping[str, float]
    mebibytes: Mapping[str, float]
    beats: float
    sent: float
    late: tuple[float, float, float]
    generators_late: float
    evaluations: list[float]


@dataclass(frozen=True)
class Result:
    """Of one fleet.

    Attributes:
        start: seconds from the first stream to all ranks of the first generation running.
        verdict: seconds from a host's becoming slow to the verdict that evicts it; `left`: to all others running
            without it.
        others: verdicts about hosts to which nothing was done, as `host: act`.
        lost_streams: that ended though nobody has ended them.
        status: seconds of each answer to how all hosts are; `driver_seconds`: from one question to the next.
    """

    hosts: int
    groups: int
    streams: int
    leaders: bool
    generators: int
    start: float
    quiet: Quiet
    deaths: list[Death]
    verdict: float
    left: float
    others: list[str]
    lost_streams: int
    status: list[float]
    mebibytes: Mapping[str, float] = field(default_factory=dict)  # in the end


def measure(settings: Settings, storage: Path, *, seconds: float, deaths: int, patience: float) -> Result:
    """Raises FleetError where something does not come in time."""
    chance = random.Random(settings.seed)
    with Fleet(settings, storage, patience) as fleet:
        fleet.wait_for("the first generation", fleet.is_training)
        start = fleet.events("running")[-1]["t"] - fleet.attached_at
        fleet.rest(SETTLE_SECONDS)
        quiet = _rest(fleet, seconds)
        firsts = {nodes[0].host for nodes in fleet.settings.streams(fleet.settings.nodes)} if settings.leaders else set()
        victims = chance.sample([node.host for node in settings.nodes if node.host not in firsts], deaths + 1)
        found = [_kill(fleet, host, silently=number % 2 == 1) for number, host in enumerate(victims[:-1])]
        verdict, left = _slow(fleet, victims[-1])
        return Result(
            hosts=settings.hosts,
            groups=len({node.group for node in settings.nodes}),
            streams=settings.num_streams,
            leaders=settings.leaders,
            generators=settings.generators,
            start=start,
            quiet=quiet,
            deaths=found,
            verdict=verdict,
            left=left,
            others=[f"{v['target']}: {v['act']}" for v in fleet.events("verdict") if v["target"] not in victims],
            lost_streams=len(fleet.befell("stream_lost")),
            status=fleet.status_seconds,
            mebibytes=_memory(_processes(fleet)),
        )


def _processes(fleet: Fleet) -> dict[str, psutil.Process]:
    return {name: psutil.Process(pid) for name, pid in fleet.pids().items()}


def _busy(processes: Mapping[str, psutil.Process]) -> dict[str, float]:
    """Seconds of processor time so far."""
    return {name: sum(process.cpu_times()[:2]) for name, process in processes.items()}


def _memory(processes: Mapping[str, psutil.Process]) -> dict[str, float]:
    return {name: process.memory_info().rss / 2**20 for name, process in processes.items()}


def _rest(fleet: Fleet, seconds: float) -> Quiet:
    processes = _processes(fleet)
    begun, busy = time.time(), _busy(processes)
    fleet.rest(seconds)
    ended, after = time.time(), _busy(processes)

    def during(records: list[Record]) -> list[Record]:
        return [record for record in records if begun <= record["t"] <= ended]

    loads, paces = during(fleet.load("load")), during(fleet.befell("pace"))
    late = np.concatenate([load["late"] for load in loads])
    return Quiet(
        seconds=ended - begun,
        cores={name: (after[name] - busy[name]) / (ended - begun) for name in busy},
        mebibytes=_memory(processes),
        beats=sum(load["beats"] for load in loads) / sum(load["seconds"] for load in loads),
        sent=sum(pace["beats"] for pace in paces) / sum(pace["seconds"] for pace in paces) * fleet.settings.generators,
        late=(float(np.median(late)), float(np.quantile(late, 0.99)), float(late.max())),
        generators_late=max(pace["late"] for pace in paces),
        evaluations=[record["seconds"] for record in during(fleet.load("evaluation"))],
    )


def _kill(fleet: Fleet, host: str, *, silently: bool) -> Death:
    """And wait until all others train without it."""
    before = fleet.events("generation")[-1]["generation"]
    fleet.kill(host, silently=silently)
    fleet.wait_for(f"a generation without {host}", lambda: fleet.trains_without(host))
    configured = fleet.wait_for("all to be configured", fleet.configured_at)
    (killed,) = [record["t"] for record in fleet.befell("killed") if record["host"] == host]
    running = fleet.events("running")[-1]["t"]
    fleet.rest(SETTLE_SECONDS)
    prepared = next(event["t"] for event in fleet.events("prepare") if event["generation"] > before)
    return Death(silently, prepared - killed, configured - killed, running - killed)


def _slow(fleet: Fleet, host: str) -> tuple[float, float]:
    """How long it takes until the governor says that it is to go, and until all others train without it."""
    fleet.slow(host, SLOW_TIMES)

    def verdict() -> Record | None:
        verdicts = fleet.events("verdict")
        return next((each for each in verdicts if each["target"] == host and each["act"] == Act.EVICT.value), None)

    found = fleet.wait_for(f"the verdict on {host}", verdict)
    fleet.wait_for(f"a generation without {host}", lambda: fleet.trains_without(host))
    (slow,) = [record["t"] for record in fleet.befell("slow") if record["host"] == host]
    return found["t"] - slow, fleet.events("running")[-1]["t"] - slow
