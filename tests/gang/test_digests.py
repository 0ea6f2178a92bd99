"""GM-17 on real processes: a bit flips in the memory of a rank, and what the job holds in the end is right even so.

`Gang.check` asserts that every sample is in exactly one step of the line that stands, and that equal states have equal
digests.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from orchestrator.records import read_steps
from tests.gang.harness import Gang
from tests.gang.test_governor import check_log, host, verdicts
from workers.checkpoint import list_checkpoints

StartGang = Callable[..., Gang]

FLIP = "after_apply_alone@rank=1,step=60=flip"
"""Found at the checkpoint of step 100; at that of step 50 all was well."""

EPOCHS = 18


def rolled_back(g: Gang) -> None:
    """Once, to the checkpoint of step 50."""
    (begun,), (_,) = g.events("rolls_back"), g.events("rolled_back")
    assert begun["at_most"] == 50
    assert [event["step"] for event in g.events("resumed")] == [50]
    assert min(step["generation"] for step in read_steps(g.folder) if step["step"] > 50) > [1, 1]


@pytest.mark.timeout(240)
def test_gm17_a_host_that_deviates_from_the_majority_is_evicted_and_the_job_goes_back(gang: StartGang) -> None:
    g = gang(hosts=3, ranks_per_host=1, spares=0, epochs=EPOCHS, faults=(FLIP,))
    g.wait_for("its end", lambda: g.events("rolled_back"))
    (differ,) = g.events("digests_differ")
    assert (differ["step"], differ["hosts"], differ["split"], differ["sound"]) == (100, ["host-2"], False, 50)
    (verdict,) = verdicts(g, "evict")
    assert (verdict["target"], verdict["reasons"][0], verdict["rolls_back"]) == ("host-2", "SDC_DIGEST", True)
    assert host(g, "host-2")["standing"] in ("evicted", "cooling")
    g.check()
    rolled_back(g)
    assert {member["host"] for member in g.events("generation")[-1]["members"]} == {"host-1", "host-3"}
    check_log(g)


@pytest.mark.timeout(240)
def test_gm17_where_nobody_has_a_majority_the_job_goes_back_and_nobody_is_evicted(gang: StartGang) -> None:
    g = gang(hosts=2, ranks_per_host=1, spares=0, epochs=EPOCHS, faults=(FLIP,))
    g.wait_for("its end", lambda: g.events("rolled_back"))
    (differ,) = g.events("digests_differ")
    assert differ["split"] and differ["hosts"] == []
    g.check()
    rolled_back(g)
    assert verdicts(g, "evict") == [] and len(g.events("generation")[-1]["members"]) == 2
    aside = [path.name for path in (g.folder / "checkpoints").iterdir() if path.name.startswith("rolled-back-")]
    assert len(aside) == 1 and "100" in aside[0]
    assert list_checkpoints(g.folder / "checkpoints")[0].step > 100


@pytest.mark.timeout(240)
def test_gm17_a_job_whose_ranks_differ_again_and_again_ends(gang: StartGang) -> None:
    again = "after_apply_alone@rank=1,step=70,generation=2=flip"
    g = gang(hosts=2, ranks_per_host=1, spares=0, epochs=EPOCHS, faults=(FLIP, again))
    assert g.finish() == 1
    assert len(g.events("digests_differ")) == 2 and len(g.events("rolled_back")) == 1
    assert "DIGEST_SPLIT" in g.events("failed")[-1]["message"]
