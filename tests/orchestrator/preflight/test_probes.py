"""GM-40: the jobs of the gate, what is injected into them and when, and when they have shown enough."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.governor.codes import Code
from orchestrator.governor.config import GovernorConfig, Mode, Pools
from orchestrator.governor.peers import POOL
from orchestrator.jobspec import JobSpec
from orchestrator.preflight import probes
from orchestrator.preflight.gate import CLEAR_SECONDS, SECONDS
from orchestrator.preflight.hosts import Host, roles
from orchestrator.preflight.probes import Probe, applicable
from orchestrator.preflight.shown import is_shown
from orchestrator.records import Record
from tests.orchestrator.preflight.made_up import HOSTS, WHO, generation, verdict
from workers.faults import parse
from workers.tasks import load

JOB: dict[str, Any] = {
    "name": "real",
    "seed": 5,
    "global_batch": 4096,
    "micro_batch": 32,
    "ranks_per_host": 4,
    "spares_per_host": 2,
    "hosts": {"min": 2, "max": 16, "wait": 900.0},
    "task": {"recipe": "spiking"},
    "reproducible": True,
    "clip_norm": 1.0,
    "limits": {"agent_grace": 7.0},
    "preflight": "require",
    "topology": {"groups": {"site": ["10.0.0.1"]}, "probe": True},
    "governor": {
        "certain": "shadow",
        "remember": 200.0,
        "signals": {"GRAD_NORM": {"alert": 4.0, "mode": "shadow"}},
    },
}


def ring_of(hosts: int) -> list[Host]:
    return [Host(f"10.0.0.{number}", f"n{number}") for number in range(1, hosts + 1)]


def spec_of(probe: Probe, hosts: int = HOSTS, turn: int = 0, **values: Any) -> JobSpec:
    ring, when = ring_of(hosts), probes.times(hosts, 0.05)
    who = roles(ring, turn)
    injected = probes.faults(probe, hosts, who, when)
    job = JobSpec.model_validate({**JOB, **values})
    return probes.jobspec(probe, job, ring, who, injected, name="preflight-x", storage=Path("/runs"))


@pytest.mark.parametrize(
    ("hosts", "tests"),
    [
        (1, {"PF-1"}),
        (2, {"PF-1", "PF-2", "PF-6", "PF-7"}),
        (3, {"PF-1", "PF-2", "PF-5", "PF-6", "PF-7"}),
        (4, {f"PF-{number}" for number in range(1, 8)}),
        (64, {f"PF-{number}" for number in range(1, 8)}),
    ],
)
def test_gm40_peers_need_four_hosts_and_a_majority_three(hosts: int, tests: set[str]) -> None:
    assert {test for probe in Probe for test in applicable(probe, hosts)} == tests


@pytest.mark.parametrize("probe", list(Probe))
@pytest.mark.parametrize("hosts", [1, 2, 3, 4, 64])
def test_gm40_a_job_of_the_gate_is_valid_and_has_a_rank_on_each_host(probe: Probe, hosts: int) -> None:
    spec = spec_of(probe, hosts)
    most = max(1, hosts // 2) if probe is Probe.RESTORE else hosts
    assert (spec.hosts.max, spec.ranks_per_host, spec.spares_per_host) == (most, 1, 0)
    assert spec.hosts.only == [f"n{number}" for number in range(1, hosts + 1)]
    assert spec.global_batch == spec.micro_batch == 256 * hosts
    assert (spec.name, spec.folder, spec.seed, spec.preflight) == ("preflight-x", Path("/runs/preflight-x"), 5, "off")
    assert callable(load(spec).run)
    assert {parse(text).point for text in spec.faults} <= {"in_backward", "in_exchange", "step_begin"}
    assert JobSpec.model_validate_json(spec.model_dump_json()) == spec


def test_gm40_embedded_hosts_are_named_by_address() -> None:
    ring = [Host("127.0.0.2"), Host("127.0.0.3")]
    job = JobSpec.model_validate(JOB)
    spec = probes.jobspec(Probe.LOSE, job, ring, roles(ring), probes.Faults(), name="a", storage=Path("/runs"))
    assert spec.hosts.only == ["127.0.0.2", "127.0.0.3"]


def test_gm40_the_control_plane_is_that_of_the_job_and_the_training_the_probes_own() -> None:
    spec = spec_of(Probe.NOISE)
    assert spec.limits.agent_grace == 7.0 and spec.topology.groups == {"site": ["10.0.0.1"]}
    assert (spec.reproducible, spec.clip_norm, spec.task.recipe, spec.topology.probe) == (False, None, "preflight", False)


def test_gm40_the_governor_acts_with_short_evaluations_and_pools_of_single_steps() -> None:
    governor = spec_of(Probe.NOISE).governor
    assert (governor.certain, governor.noisy, governor.pool) == (Mode.ENFORCE, Mode.ENFORCE, Pools.STEPS)
    assert (governor.evaluation, governor.apart, governor.remember) == (2.0, 4.0, 200.0)
    assert governor.mode(Code.GRAD_NORM) is Mode.ENFORCE and governor.signal(Code.GRAD_NORM).limits.alert == 4.0
    assert GovernorConfig().pool is Pools.EVALUATIONS


def test_pf2_pf7_hosts_are_lost_in_step_5_and_one_of_the_jobs_may_not_go_on_without_them() -> None:
    lose, halt = spec_of(Probe.LOSE, 16), spec_of(Probe.HALT, 16)
    assert lose.faults == halt.faults == [f"in_backward@rank={rank},step=5=lose" for rank in (15, 14)]
    assert (lose.hosts.min, lose.record_samples) == (14, True) and lose.hosts.replace_wait > 20
    assert (halt.hosts.min, halt.hosts.replace_wait) == (16, 0.0)


def test_pf6_the_job_that_lost_hosts_goes_on_on_fewer_and_in_peace() -> None:
    lose, restore = spec_of(Probe.LOSE, 5), spec_of(Probe.RESTORE, 5)
    assert (restore.hosts.min, restore.hosts.max, restore.faults) == (2, 2, [])
    same = {"global_batch", "seed", "task", "phases", "checkpoint", "name", "storage"}
    assert restore.model_dump(include=same) == lose.model_dump(include=same)


def test_pf3_pf4_what_is_injected_on_which_rank_and_when() -> None:
    assert spec_of(Probe.NOISE).faults == [
        *(f"in_exchange@rank={rank},bucket=0,second=19=delay:0.05+-0.01" for rank in range(4)),
        *(f"in_exchange@rank={rank},bucket=0,second=64=delay:0" for rank in range(4)),
        "in_backward@rank=3,second=19=noise:0.1",
        "in_backward@rank=3,second=64=noise:10",
    ]
    assert spec_of(Probe.AGREE).faults == [
        "in_backward@rank=2,second=19=delay:0.5",
        "step_begin@rank=1,second=32=flip",
    ]
    assert spec_of(Probe.AGREE, 3).faults == ["step_begin@rank=2,step=70=flip"]
    assert spec_of(Probe.AGREE, 2).faults == []
    assert "rank=2,second=19=noise" in spec_of(Probe.NOISE, turn=1).faults[-2]


@given(st.integers(4, 64), st.floats(0.02, 0.2))
def test_gm40_pools_are_full_before_anything_is_injected(hosts: int, step_seconds: float) -> None:
    """Heartbeats come twice a second, gradients are compared every ten steps; an evaluation takes 2 to 2.1 s."""
    when = probes.times(hosts, step_seconds)
    assert hosts * 4 * (when.slow // 2.1) >= POOL
    assert hosts * min(4, 2 / (10 * step_seconds)) * (when.quiet // 2.1) >= POOL
    assert (when.loud - when.quiet) / 2.1 >= 20 + 1  # the one in which it begins does not count
    assert when.flip - when.slow >= 10 * (0.5 + step_seconds) + 2 * 2.1  # half of the steps of a median, and a whole one


def test_gm40_all_of_it_fits_into_180_seconds_where_hosts_start_fast() -> None:
    for hosts in (4, 8, 64):
        when = probes.times(hosts, 0.05)
        assert sum(probes.least_seconds(probe, hosts, when) for probe in Probe) <= SECONDS - CLEAR_SECONDS - 10
    assert probes.least_seconds(Probe.AGREE, 2, probes.times(2, 0.05)) < 10


@pytest.mark.parametrize("probe", list(Probe))
def test_gm40_a_job_has_longer_than_it_needs(probe: Probe) -> None:
    for hosts in (2, 4, 64):
        when = probes.times(hosts, 0.05)
        assert probes.limit(probe, hosts, when) > probes.least_seconds(probe, hosts, when) + 10


# ---------------------------------------------------------------- shown


def said(host: str, act: str, *reasons: Code, guard: str = "") -> Record:
    return {"kind": "verdict", **verdict(host, act, *reasons, t=1.0, guard=guard)}


def shown(probe: Probe, *events: Record, step: int = 100, noted: int = 0, hosts: int = HOSTS) -> bool:
    return is_shown(probe, hosts, WHO, [generation(), *events], step, noted)


def test_gm40_a_job_ends_once_all_that_it_is_for_has_happened() -> None:
    late, flipped = said("host-3", "suspect", Code.STRAGGLER), said("host-2", "evict", Code.SDC_DIGEST)
    assert shown(Probe.AGREE, late, flipped)
    assert not shown(Probe.AGREE, late, flipped, step=25)
    assert not shown(Probe.AGREE, late) and not shown(Probe.AGREE, flipped)
    assert not shown(Probe.AGREE, said("host-1", "suspect", Code.STRAGGLER), flipped)
    assert not shown(Probe.AGREE, said("host-3", "suspect", Code.THERMAL), flipped)
    assert shown(Probe.AGREE, flipped, hosts=3) and not shown(Probe.AGREE, hosts=3) and shown(Probe.AGREE, hosts=2)


def test_gm40_hosts_that_were_lost_are_back_and_something_is_saved() -> None:
    back, saved = {"kind": "rank_back", "rank": 3}, {"kind": "checkpoint", "step": 20}
    assert shown(Probe.LOSE, back, saved)
    assert not shown(Probe.LOSE, back) and not shown(Probe.LOSE, saved) and not shown(Probe.LOSE, back, saved, step=25)
    assert not shown(Probe.LOSE, {"kind": "rank_back", "rank": 2}, saved)


def test_gm40_the_others() -> None:
    assert shown(Probe.RESTORE, noted=2) and not shown(Probe.RESTORE, noted=1)
    assert not shown(Probe.HALT, step=10_000)
    assert shown(Probe.NOISE, said("host-4", "quarantine", Code.GRAD_NORM))
    assert not shown(Probe.NOISE, said("host-4", "quarantine", Code.GRAD_NORM, guard="cap"))
    assert not shown(Probe.NOISE, said("host-4", "suspect", Code.GRAD_NORM))
    assert not shown(Probe.NOISE, said("host-3", "quarantine", Code.GRAD_NORM))
    assert not shown(Probe.NOISE, said("host-4", "quarantine", Code.STRAGGLER))


@pytest.mark.parametrize("probe", [Probe.AGREE, Probe.LOSE, Probe.HALT, Probe.NOISE])
def test_gm40_nothing_is_shown_by_nothing(probe: Probe) -> None:
    assert not is_shown(probe, HOSTS, WHO, [], 0, 0)
