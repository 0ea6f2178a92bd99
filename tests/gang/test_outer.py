"""CC-24 on real processes: gangs whose ranks or hosts train alone and merge, killed in the middle of it.

`Gang.check` asserts what holds for single steps too: one line of steps, every sample once in an epoch, equal digests of
equal states (the outer momentum is in them), and that all members end in one state.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from orchestrator.records import read_steps
from tests.gang.harness import IMPATIENT, Gang
from workers.checkpoint import list_checkpoints, load

StartGang = Callable[..., Gang]

EPOCHS = 60
KILLS = {
    "in_backward": "in_backward@rank=2,step=20,inner=2=kill",
    "in_exchange": "in_exchange@rank=3,step=20,bucket=0=kill",
    "after_apply_alone": "after_apply_alone@rank=0,step=20=kill",
}


def later(point: str) -> Any:
    """Among the long tests: a round breaks there alike, whoever trains alone."""
    return pytest.param(point, marks=pytest.mark.long)


def run_with(fault: str, gang: StartGang, *, limits: dict[str, float] | None = None, **sync: Any) -> Gang:
    g = gang(faults=(fault,), epochs=EPOCHS, limits=limits or {}, sync=sync)
    g.wait_for_faults()
    g.wait_until_whole()
    g.check()
    return g


@pytest.mark.parametrize("point", KILLS)
def test_cc24_kill_in_the_middle_of_a_round(point: str, gang: StartGang) -> None:
    g = run_with(KILLS[point], gang, every=4, codec="int8")
    steps = read_steps(g.folder)
    assert {(step["inner_steps"], step["samples"]) for step in steps} == {(4, 128)}
    assert sum(step["loss"] for step in steps[-8:]) < 0.8 * sum(step["loss"] for step in steps[:8])


@pytest.mark.parametrize("codec", ["int4", "none"])
def test_cc24_rounds_that_an_epoch_cuts_short(codec: str, gang: StartGang) -> None:
    g = run_with(KILLS["after_apply_alone"], gang, every=3, codec=codec)
    assert [step["inner_steps"] for step in read_steps(g.folder)][:6] == [3, 3, 2, 3, 3, 2]


@pytest.mark.parametrize("point", [later("in_backward"), "in_exchange", later("after_apply_alone")])
def test_cc24_hosts_that_train_alone(point: str, gang: StartGang) -> None:
    run_with(KILLS[point], gang, every=4, codec="int8", within="host")


@pytest.mark.parametrize(
    ("codec", "point"),
    [
        ("int8", "in_exchange"),
        ("none", "after_apply_alone"),
        *(pytest.param(codec, "in_backward", marks=pytest.mark.long) for codec in ("int8", "none")),
        pytest.param("int8", "after_apply_alone", marks=pytest.mark.long),
        pytest.param("none", "in_exchange", marks=pytest.mark.long),
    ],
)
def test_cc24_differences_that_go_out_while_the_round_goes_on(codec: str, point: str, gang: StartGang) -> None:
    sync = {"every": 4, "codec": codec, "staleness": 3, "fragments": 3, "outer_momentum": 0.5}
    g = gang(faults=(KILLS[point],), epochs=EPOCHS // 2, wide=True, sync=sync)
    g.wait_for_faults()
    g.wait_until_whole()
    g.check()
    steps = read_steps(g.folder)
    assert sum(step["loss"] for step in steps[-8:]) < 0.8 * sum(step["loss"] for step in steps[:8])


def test_cc24_a_host_without_shared_memory_trains_as_single_ranks(gang: StartGang) -> None:
    g = gang(epochs=EPOCHS, sync={"every": 4, "within": "host"}, full=("host-1",))
    g.check()


@pytest.mark.long
@pytest.mark.parametrize("within", ["rank", "host"])
@pytest.mark.parametrize("point", ["in_backward@rank=1,step=20,inner=3", "in_exchange@rank=1,step=20,bucket=0"])
def test_cc24_stop_in_the_middle_of_a_round(point: str, within: str, gang: StartGang) -> None:
    run_with(f"{point}=stop", gang, limits=IMPATIENT, every=4, within=within)


def test_cc24_a_checkpoint_has_the_outer_momentum_and_a_job_goes_on_from_it(gang: StartGang) -> None:
    g = gang(epochs=EPOCHS, sync={"every": 4})
    g.wait_for_step(52)
    g.stop()
    g.finish()
    stopped = g.step()
    assert 52 <= stopped < 2 * EPOCHS
    tensors = load(list_checkpoints(g.folder / "checkpoints")[0].path).tensors
    parameters = {name.removeprefix("parameter.") for name in tensors if name.startswith("parameter.")}
    assert {name.removeprefix("outer.") for name in tensors if name.startswith("outer.")} == parameters
    assert all(tensors[f"outer.{name}"].norm() > 0 for name in parameters)
    g.start(resume=True)
    g.check()
    assert g.events("resumed")[-1]["step"] == stopped
