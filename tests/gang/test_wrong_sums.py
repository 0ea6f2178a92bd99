"""GM-16 on real processes: a rank adds up wrongly, everybody has the same wrong sum, and it is found even so."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.gang.harness import Gang
from tests.gang.test_governor import check_log, verdicts

StartGang = Callable[..., Gang]

MISCOUNT = "step_begin@rank=1,step=100=miscount"
"""Sums of step 100 are checked, as were those of step 50, after which there is a checkpoint."""

EPOCHS = 18


@pytest.mark.timeout(240)
def test_gm16_who_adds_up_wrongly_is_evicted_and_the_job_goes_back(gang: StartGang) -> None:
    g = gang(hosts=3, ranks_per_host=1, spares=0, epochs=EPOCHS, faults=(MISCOUNT,), codec="int8")
    g.wait_for("its end", lambda: g.events("rolled_back"))
    (wrong,) = g.events("wrong_sums")
    assert (wrong["step"], wrong["culprit"], wrong["hosts"], wrong["sound"]) == (100, "host-2", ["host-2"], 50)
    (verdict,) = verdicts(g, "evict")
    assert (verdict["target"], verdict["reasons"][0], verdict["rolls_back"]) == ("host-2", "REDUCE_CHECK", True)
    g.check()
    (begun,) = g.events("rolls_back")
    assert begun["at_most"] == 50
    assert [event["step"] for event in g.events("resumed")] == [50]
    assert g.events("digests_differ") == []
    assert {member["host"] for member in g.events("generation")[-1]["members"]} == {"host-1", "host-3"}
    check_log(g)
