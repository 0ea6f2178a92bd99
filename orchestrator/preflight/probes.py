"""The jobs of the gate: which tests are phases of which job, what happens in it and when, and its JobSpec (GM-40)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from orchestrator.governor.peers import LEAST_HOSTS, POOL
from orchestrator.jobspec import JobSpec
from orchestrator.preflight.hosts import Host, Roles

EVALUATION, APART = 2.0, 4.0
"""Seconds of an evaluation of the gate's governor, and between two alerts of it that count as two."""

SAMPLES_PER_HOST = 256
SAVED_EVERY = 20
"""Steps from one checkpoint, and digest, to the next."""

QUIET_STEPS = 20
"""Of PF-1."""

LOST_AT = 5
COMPARED_AT = LOST_AT + 20
"""The steps in which PF-2 loses hosts, and whose loss it compares."""

FLIPPED_AT = 70
"""The step of PF-5 where nothing but PF-1 comes before it: the job goes back to a checkpoint behind `COMPARED_AT`."""

LINK_DELAY = "0.05+-0.01"
HOST_DELAY = "0.5"
"""Seconds, of PF-3."""

QUIET_NOISE, LOUD_NOISE = 0.1, 10.0
"""Norms of PF-4, relative to the gradient's."""

QUIET_EVALUATIONS, LOUD_EVALUATIONS = 20, 4
LEAST_FOR_PEERS = LEAST_HOSTS
LEAST_FOR_MAJORITY = 3
LEAST_FOR_LOSS = 2
"""Hosts of PF-3 and PF-4, of PF-5, and of PF-2, PF-6 and PF-7."""

START_SECONDS = 45.0
"""For a job to come to its first step."""

_WINDOW_SECONDS = 2.1
"""Of an evaluation, at most: whoever looks at the clock does so ten times a second."""
_BEATS = 4
"""In an evaluation."""
_SKETCH_STEPS = 10
"""Steps from one comparison of gradients to the next (GM-15)."""
_DETECT_SECONDS = 13
"""For PF-3 to be over, before PF-5 begins: ten slow steps, an evaluation, and a second one `APART`."""

_OF_THE_TASK = (
    *("seed", "global_batch", "micro_batch", "reproducible", "threads_per_rank", "task", "optimizer", "schedule", "phases"),
    *("qat", "clip_norm", "evaluate_every", "compression", "sync", "checkpoint", "record_samples", "tensorboard", "faults"),
    "preflight",
)
"""Keys of the JobSpec that the probe has of its own; of whatever else there is, it has what the job has."""


class Probe(StrEnum):
    """A job of the gate."""

    AGREE = "agree"
    """Undisturbed at first (PF-1); then a host is late (PF-3), and then a bit flips (PF-5)."""
    LOSE = "lose"
    """Hosts are lost and come back (PF-2)."""
    RESTORE = "restore"
    """The one before goes on, on fewer hosts (PF-6)."""
    HALT = "halt"
    """Hosts are lost, and the job must not go on without them (PF-7)."""
    NOISE = "noise"
    """Links are slow (PF-3) and a gradient is noisy (PF-4), at first a little."""


LEAST_SECONDS: Mapping[Probe, float] = {
    Probe.AGREE: 8.0,
    Probe.LOSE: 12.0,
    Probe.RESTORE: 5.0,
    Probe.HALT: 6.0,
    Probe.NOISE: 8.0,
}
"""That a job takes to start and to end, and for what happens at steps and not at times."""

TESTS: Mapping[Probe, tuple[str, ...]] = {
    Probe.AGREE: ("PF-1", "PF-3", "PF-5"),
    Probe.LOSE: ("PF-2",),
    Probe.RESTORE: ("PF-6",),
    Probe.HALT: ("PF-7",),
    Probe.NOISE: ("PF-3", "PF-4"),
}

LEAST: Mapping[str, int] = {
    "PF-1": 1,
    "PF-2": LEAST_FOR_LOSS,
    "PF-3": LEAST_FOR_PEERS,
    "PF-4": LEAST_FOR_PEERS,
    "PF-5": LEAST_FOR_MAJORITY,
    "PF-6": LEAST_FOR_LOSS,
    "PF-7": LEAST_FOR_LOSS,
}
"""Hosts without which a test says nothing."""


def applicable(probe: Probe, hosts: int) -> tuple[str, ...]:
    """Those that so many hosts can be put to."""
    return tuple(test for test in TESTS[probe] if hosts >= LEAST[test])


@dataclass(frozen=True)
class Times:
    """Whole seconds after the first step.

    Attributes:
        slow: when a host becomes late in `AGREE`.
        flip: when a bit flips there.
        quiet: when links become slow and a gradient a little noisy, in `NOISE`.
        loud: when that gradient becomes very noisy, and links are as they were.
    """

    slow: int
    flip: int
    quiet: int
    loud: int


def times(hosts: int, step_seconds: float) -> Times:
    """With so many hosts, whose undisturbed steps take so long."""
    slow = _until_pools_are_full(hosts, _BEATS)
    quiet = _until_pools_are_full(hosts, EVALUATION / (_SKETCH_STEPS * step_seconds))
    loud = quiet + math.ceil((QUIET_EVALUATIONS + 1) * _WINDOW_SECONDS)
    return Times(slow, slow + _DETECT_SECONDS, quiet, loud)


def _until_pools_are_full(hosts: int, values: float) -> int:
    """Seconds, where each host gives so many values in an evaluation, and never more than it has heartbeats."""
    evaluations = math.ceil(POOL / (hosts * max(0.5, min(_BEATS, values))))
    return math.ceil((evaluations + 1) * _WINDOW_SECONDS)


def least_seconds(probe: Probe, hosts: int, when: Times) -> float:
    """That a job takes, however fast its hosts start."""
    planned = {Probe.AGREE: when.flip if hosts >= LEAST_FOR_PEERS else 0, Probe.NOISE: when.loud}
    return LEAST_SECONDS[probe] + planned.get(probe, 0)


def limit(probe: Probe, hosts: int, when: Times) -> float:
    """Seconds after which a job has shown all that it can."""
    after = {
        Probe.AGREE: 20.0 + (when.flip if hosts >= LEAST_FOR_PEERS else 0),
        Probe.LOSE: 35.0,
        Probe.RESTORE: 15.0,
        Probe.HALT: 15.0,
        Probe.NOISE: when.loud + (LOUD_EVALUATIONS + 1) * _WINDOW_SECONDS + 1,
    }
    return START_SECONDS + after[probe]


@dataclass(frozen=True)
class Faults:
    """The names of what is injected into a job (`workers.faults`)."""

    lost: tuple[str, ...] = ()
    slow: str = ""
    flipped: str = ""
    linked: tuple[str, ...] = ()
    freed: tuple[str, ...] = ()
    """Where `linked` ends."""
    quiet: str = ""
    loud: str = ""

    @property
    def all(self) -> list[str]:
        single = (self.slow, self.flipped, self.quiet, self.loud)
        return [text for text in (*self.lost, *self.linked, *self.freed, *single) if text]


def faults(probe: Probe, hosts: int, who: Roles, when: Times) -> Faults:
    tests = applicable(probe, hosts)
    if probe in (Probe.LOSE, Probe.HALT):
        return Faults(lost=tuple(f"in_backward@rank={rank},step={LOST_AT}=lose" for rank in who.lost))
    if probe is Probe.AGREE:
        slow = f"in_backward@rank={who.slow},second={when.slow}=delay:{HOST_DELAY}" if "PF-3" in tests else ""
        at = f"second={when.flip}" if slow else f"step={FLIPPED_AT}"
        return Faults(slow=slow, flipped=f"step_begin@rank={who.flipped},{at}=flip" if "PF-5" in tests else "")
    if probe is Probe.NOISE:
        link = "in_exchange@rank={rank},bucket=0,second={second}=delay:{delay}"
        return Faults(
            linked=tuple(link.format(rank=rank, second=when.quiet, delay=LINK_DELAY) for rank in who.linked),
            freed=tuple(link.format(rank=rank, second=when.loud, delay=0) for rank in who.linked),
            quiet=f"in_backward@rank={who.noisy},second={when.quiet}=noise:{QUIET_NOISE:g}",
            loud=f"in_backward@rank={who.noisy},second={when.loud}=noise:{LOUD_NOISE:g}",
        )
    return Faults()


def fewer(hosts: int) -> int:
    """On which PF-6 restores what so many have saved."""
    return max(1, hosts // 2)


def jobspec(
    probe: Probe, job: JobSpec, ring: Sequence[Host], who: Roles, injected: Faults, *, name: str, storage: Path
) -> JobSpec:
    """Of a job of the gate, for `job`, with one rank on each host of the `ring`."""
    hosts, values = len(ring), job.model_dump(mode="json")
    for key in _OF_THE_TASK:
        del values[key]
    most = fewer(hosts) if probe is Probe.RESTORE else hosts
    gone = {Probe.AGREE: min(2, hosts - 1), Probe.LOSE: len(who.lost), Probe.NOISE: 1}.get(probe, 0)
    batch = SAMPLES_PER_HOST * hosts
    values |= {
        "name": name,
        "storage": str(storage),
        "seed": job.seed,
        "task": {"recipe": "preflight"},
        "global_batch": batch,
        "micro_batch": batch,
        "phases": {"fp32_epochs": 1_000_000, "qat_epochs": 0},
        "evaluate_every": 0,
        "checkpoint": {"every": SAVED_EVERY},
        "record_samples": probe is Probe.LOSE,
        "ranks_per_host": 1,
        "spares_per_host": 0,
        "faults": injected.all,
        "preflight": "off",
        "hosts": {
            **values["hosts"],
            "min": max(1, most - gone),
            "max": most,
            "wait": START_SECONDS,
            "replace_wait": 0.0 if probe is Probe.HALT else START_SECONDS,
            "only": [host.node_id or host.address for host in ring],
        },
        "topology": {**values["topology"], "probe": False},
        "governor": _governor(values["governor"]),
    }
    return JobSpec.model_validate_json(json.dumps(values))


def _governor(values: dict[str, Any]) -> dict[str, Any]:
    """The job's, for the gate: all rules act, evaluations and pauses are short, pools are of single steps."""
    limits = {code: {**signal, "mode": None} for code, signal in values["signals"].items()}
    modes = {"certain": "enforce", "noisy": "enforce", "pool": "steps"}
    return {**values, **modes, "signals": limits, "evaluation": EVALUATION, "apart": APART}
