"""CC-22: the policies to compare with."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from tests.workers.compression.controller.conftest import FAST, measured, mlp
from workers.compression.choice import NONE, Choice
from workers.compression.controller.config import ControllerConfig
from workers.compression.controller.policy import decide
from workers.compression.controller.state import initial_state

BUCKETS = mlp()
LADDER = ControllerConfig(policy="latency_ladder")


@pytest.mark.parametrize(
    ("round_trip", "codec"),
    [(0.0501, "topk 0.05"), (0.05, "int8"), (0.0201, "int8"), (0.02, "powersgd 4"), (0.0001, "powersgd 4")],
)
def test_cc22_the_ladder_goes_by_the_round_trip(round_trip: float, codec: str) -> None:
    state = initial_state(LADDER, 2, 100)
    state, records = decide(state, measured(FAST, round_trip=round_trip), 20, BUCKETS, LADDER)
    assert state.plan == (Choice.parse(codec),) * 2
    assert [record["round_trip"] for record in records] == [round_trip] * 3


def test_cc22_the_ladder_stays_where_nothing_was_measured() -> None:
    state = initial_state(LADDER, 2, 100)
    assert decide(state, measured(FAST), 20, BUCKETS, LADDER)[0].plan == (NONE, NONE)


def test_cc14_before_the_dense_start_is_over_int8_stands_for_what_needs_it() -> None:
    state = initial_state(LADDER, 2, 1000)
    state, _ = decide(state, measured(FAST, round_trip=0.1), 20, BUCKETS, LADDER)
    assert state.plan == (Choice("int8"),) * 2
    state, _ = decide(state, measured(FAST, round_trip=0.1), 40, BUCKETS, LADDER)
    state, records = decide(state, measured(FAST, round_trip=0.1), 60, BUCKETS, LADDER)
    assert state.plan == (Choice("topk", 0.05),) * 2 and records[0]["reason"] == "dense_start_over"


@pytest.mark.parametrize("codec", ["int7", "topk", "topk 2", "powersgd 0", "none 3"])
def test_cc22_a_codec_that_cannot_work_is_refused(codec: str) -> None:
    with pytest.raises(ValidationError):
        ControllerConfig(policy="fixed", codec=codec)
