"""GM-19, GM-30: ranks that hang, and agents that are away, in gangs of real processes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from orchestrator.governor.log import replay
from tests.gang.harness import Gang

StartGang = Callable[..., Gang]

LIMITS = {"patience": 4.0, "prepare": 60.0}
"""A rank that hangs is not waited for as long as one that has something to do."""


def test_gm19_a_rank_that_hangs_is_named_with_its_place_and_replaced(gang: StartGang) -> None:
    """In a call that never returns; the others wait for it. No host is evicted for that."""
    g = gang(faults=("step_begin@rank=2,step=20=hang",), limits=LIMITS)
    (hang,) = g.wait_for("the hang", lambda: g.events("hang"))
    assert hang["culprits"] == [{"host": "host-2", "rank": 2}] and hang["unheard"] == []
    assert (hang["step"], hang["limit"], hang["waiting"]) == (19, 4.0, [0, 1, 3])
    assert hang["stacks"]["2"][0].startswith("workers/faults.py:")
    assert all(any("workers/" in frame for frame in hang["stacks"][rank]) for rank in ("0", "1", "3"))
    assert len(set(hang["numbers"].values())) == 1 and set(hang["numbers"]) == {"0", "1", "2", "3"}
    g.wait_until_whole()
    g.check()
    assert g.events("evidence") == []
    assert [event for event in g.events("verdict") if event["act"] != "relieve"] == []  # a busy machine has that said


@pytest.mark.timeout(240)
def test_gm19_a_host_whose_ranks_all_stand_still_is_evicted(gang: StartGang) -> None:
    """They are stopped, and show no stack; their agent lives."""
    stops = tuple(f"in_exchange@rank={rank},step=20,bucket=0=stop" for rank in (2, 3))
    g = gang(faults=stops, limits=LIMITS)
    (hang,) = g.wait_for("the hang", lambda: g.events("hang"))
    assert [culprit["rank"] for culprit in hang["culprits"]] == [2, 3]
    assert (hang["stacks"]["2"], hang["stacks"]["3"]) == ([], [])
    g.wait_for("the end of host-2", lambda: g.events("host_left"))
    (verdict,) = [event for event in g.events("verdict") if event["act"] == "evict"]
    assert (verdict["target"], verdict["reasons"]) == ("host-2", ["HANG_CULPRIT"])
    g.check()
    assert {member["host"] for member in g.events("generation")[-1]["members"]} == {"host-1"}
    with (g.folder / "governor.jsonl").open() as log:
        assert replay(log).difference is None


def test_gm30_where_most_agents_are_away_nobody_is_given_up_and_training_goes_on(gang: StartGang) -> None:
    g = gang(hosts=3, ranks_per_host=1, agent_grace=2.0)
    g.wait_for_step(20)
    for host in ("host-2", "host-3"):
        g.kill_agent(host, hold=True)
    (lost,) = g.wait_for("the loss of the quorum", lambda: g.events("quorum_lost"))
    assert (lost["code"], lost["agreeing"], lost["unreachable"]) == ("QUORUM_LOST", ["host-1"], ["host-2", "host-3"])
    g.wait_for_step(g.step() + 20)
    g.release("agent")
    g.wait_for("the quorum", lambda: g.events("quorum_back"))
    g.check()
    assert len(g.events("generation")) == 1 and g.events("host_lost") == []
