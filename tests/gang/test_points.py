"""EP-19: a fault at every named point, one at a time, on real processes.

`Gang.check` asserts what must hold whatever was broken: the job ends well, every step and every sample once, equal
digests of equal states, no process lost but the one that was killed, none left over. The gangs are reproducible, so
that they also end with the bits of another number of ranks to which nothing has happened.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.gang.harness import IMPATIENT, TOTAL_STEPS, WORLD, Gang, name
from workers.faults import POINTS

StartGang = Callable[..., Gang]

KILLS = {
    # while the first generation forms
    "before_prepared": "before_prepared@generation=0=kill",
    "after_prepared": "after_prepared@generation=0=kill",
    "in_configure": "in_configure@rank=1,generation=1=kill",
    "in_connect": "in_connect@rank=1,generation=1=kill",
    "in_heal": "in_heal@rank=1,generation=1=kill",
    "in_serve": "in_serve@rank=0,generation=1=kill",
    # inside a step; rank 0 writes the logs and checkpoints
    "step_begin": "step_begin@rank=1,step=20=kill",
    "in_backward": "in_backward@rank=2,step=20=kill",
    "in_exchange": "in_exchange@rank=3,step=20,bucket=1=kill",
    "before_apply": "before_apply@rank=1,step=20=kill",
    "in_apply": "in_apply@rank=2,step=20=kill",
    "after_apply_alone": "after_apply_alone@rank=0,step=20=kill",
    # elsewhere
    "in_round": "in_round@rank=1,step=41=kill",
    "in_publish": "in_publish@rank=0,step=51=kill",
    "at_finish": f"at_finish@rank=0,step={TOTAL_STEPS + 1}=kill",
    # a joiner is needed first: somebody else has to die
    "in_join_copy": "in_join_copy=kill",
    "after_ready": "after_ready=kill",
}
SLOW_ONLY = [  # every other rank, the first and the last step, the end of an epoch
    *(f"{point}@rank={rank},step={step}=kill" for rank in range(WORLD) for point, step in (
        ("step_begin", 1), ("in_backward", 24), ("in_exchange", TOTAL_STEPS), ("before_apply", 21),
        ("in_apply", 29), ("after_apply_alone", TOTAL_STEPS), ("after_apply_alone", 40), ("at_finish", TOTAL_STEPS + 1),
        ("in_round", 41), ("in_round", TOTAL_STEPS + 1),
    )),
    *(f"{point}@rank={rank},generation=1=kill" for rank in (0, 2, 3) for point in ("in_configure", "in_connect")),
    *(f"in_exchange@rank=1,step=30,bucket={bucket}=kill" for bucket in (0, 2)),
]  # fmt: skip
STOPS = [
    "after_prepared@generation=0=stop",
    "in_configure@rank=2,generation=1=stop",
    "in_connect@rank=1,generation=1=stop",
    "in_heal@rank=3,generation=1=stop",
    "in_serve@rank=0,generation=1=stop",
    "step_begin@rank=0,step=20=stop",
    "in_backward@rank=3,step=20=stop",
    "in_exchange@rank=1,step=20,bucket=0=stop",
    "before_apply@rank=2,step=20=stop",
    "in_apply@rank=1,step=20=stop",
    "after_apply_alone@rank=3,step=20=stop",
    "in_round@rank=2,step=41=stop",
    "in_publish@rank=0,step=51=stop",
    f"at_finish@rank=1,step={TOTAL_STEPS + 1}=stop",
    "step_begin@rank=2,step=20=hang",
    "in_exchange@rank=0,step=20,bucket=1=hang",
]
FIRST_A_DEATH = "step_begin@rank=1,step=20=kill"


def test_ep19_every_point_is_hit() -> None:
    assert set(KILLS) == set(POINTS)


def test_ep19_nothing_happens(gang: StartGang, undisturbed: str) -> None:
    """The same run twice gives the same bytes, so a difference in another test means something."""
    g = gang()
    g.check(same_as=undisturbed)
    assert len(g.events("generation")) == 1


@pytest.mark.parametrize(
    "point",
    [
        "in_exchange",
        "in_apply",
        *(pytest.param(point, marks=pytest.mark.long) for point in ("in_backward", "before_apply")),
    ],
)
def test_ep19_kill_where_sums_have_no_order(point: str, gang: StartGang) -> None:
    """By default the exchange overlaps with the backward pass; the gangs of the other tests are reproducible."""
    g = gang(faults=(KILLS[point],))
    g.wait_for_faults()
    g.wait_until_whole()
    g.check()


@pytest.mark.parametrize("point", POINTS)
def test_ep19_kill_at(point: str, gang: StartGang, bits_of_one_host: str) -> None:
    first = (FIRST_A_DEATH,) if point in ("in_join_copy", "after_ready") else ()
    g = gang(reproducible=True, faults=(*first, KILLS[point]))
    if point == "at_finish":
        g.hurry()
    else:
        g.wait_for_faults()
        g.wait_until_whole()
    g.check(same_as=bits_of_one_host)


@pytest.mark.long
@pytest.mark.parametrize("fault", SLOW_ONLY, ids=map(name, SLOW_ONLY))
def test_ep19_kill_elsewhere(fault: str, gang: StartGang, bits_of_one_host: str) -> None:
    g = gang(reproducible=True, faults=(fault,))
    if f"step={TOTAL_STEPS}" in fault or f"step={TOTAL_STEPS + 1}" in fault:
        g.hurry()
    else:
        g.wait_for_faults()
        g.wait_until_whole()
    g.check(same_as=bits_of_one_host)


@pytest.mark.long
@pytest.mark.parametrize("reproducible", [True, False])
@pytest.mark.parametrize("fault", STOPS, ids=map(name, STOPS))
def test_ep19_stop_at(fault: str, reproducible: bool, gang: StartGang, bits_of_one_host: str) -> None:
    """A rank that stands still but lives is killed by its agent (EP-8)."""
    g = gang(reproducible=reproducible, faults=(fault,), limits=IMPATIENT)
    if "at_finish" in fault:
        g.hurry()
    else:
        g.wait_for_faults()
        g.wait_until_whole()
    g.check(same_as=bits_of_one_host if reproducible else None)


@pytest.mark.long
@pytest.mark.parametrize("point", ["in_join_copy", "after_ready"])
def test_ep19_a_joiner_stops(point: str, gang: StartGang) -> None:
    g = gang(faults=(FIRST_A_DEATH, f"{point}=stop"), limits=IMPATIENT)
    g.wait_for_faults()
    g.wait_until_whole()
    g.check()


def test_ep19_a_bug_in_the_task_ends_the_job(gang: StartGang) -> None:
    """What the task raises on more than one rank is not healed away: exit code 1, the traceback kept, no process left."""
    g = gang(faults=("in_backward@rank=2,step=20=raise", "in_backward@rank=1,step=20=raise"))
    assert g.finish() == 1
    assert "InjectedFault: injected at in_backward" in (g.folder / "traceback.txt").read_text()
    assert g.left_over == []


def test_rounds_that_differ_end_the_job(gang: StartGang) -> None:
    """A round has a name and keys that all ranks share; else numbers of different meaning would be added up."""
    g = gang(odd_rounds=True)
    g.hurry()
    assert g.finish() == 2
    assert "names and keys must be the same on every rank" in g.events("failed")[-1]["message"]
    assert g.left_over == []
