"""CC-18: bytes, exposed time, and the knapsack, against their definitions in float64."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.workers.compression.controller.conftest import mlp
from workers.collectives.levels import levels
from workers.compression.choice import NONE, Choice
from workers.compression.controller.candidates import CANDIDATES
from workers.compression.controller.forecast import ends, exposed, own_exposed, seconds
from workers.compression.controller.knapsack import UNITS, least_lossy
from workers.compression.controller.link import Line
from workers.compression.controller.wire import BucketFacts, transfers, work
from workers.compression.powersgd import PowerSGD
from workers.compression.registry import codec_of, make_codec
from workers.compression.shards import DIRECT_BYTES, sent_bytes

TIMES = st.lists(st.tuples(st.floats(0, 10), st.floats(0, 10)), min_size=1, max_size=6)


@pytest.mark.parametrize("hosts", [2, 3, 4, 8])
@pytest.mark.parametrize("choice", CANDIDATES, ids=str)
def test_cc18_bytes_are_those_of_the_rank_that_sends_most(choice: Choice, hosts: int) -> None:
    for facts in mlp(hosts):
        total = sum(transfers(facts, choice))
        if choice.is_low_rank:
            codec = PowerSGD({name: torch.Size(shape) for name, shape in facts.shapes}, int(choice.value or 0))
            factors = codec_of(choice)
            sizes = codec.sizes([name for name, _ in facts.shapes])
            direct = [(hosts - 1) * factors.nbytes(size) for size in sizes]
            by_owners = [max(sent_bytes(factors, size, hosts, i) for i in range(hosts)) for size in sizes]
            little = [factors.name != "none" and each <= DIRECT_BYTES for each in direct]
            assert len(transfers(facts, choice)) == sum(1 if each else 2 for each in little)
            most = sum(a if each else b for a, b, each in zip(direct, by_owners, little, strict=True))
            assert most <= total <= 1.01 * most + 16 * factors.granularity
        else:
            codec_ = make_codec(choice.codec, **choice.parameters)
            most = max(sent_bytes(codec_, facts.elements, hosts, index) for index in range(hosts))
            assert most <= total <= 1.01 * most + 8 * codec_.granularity


@pytest.mark.parametrize("choice", [NONE, Choice("powersgd", 4)], ids=str)
def test_cc18_ranks_of_a_host_share_what_they_send(choice: Choice) -> None:
    one, two = (BucketFacts((("w", (512, 512)),), 4, local_ranks=ranks) for ranks in (1, 2))
    assert sum(transfers(two, choice)) == sum(transfers(one, choice)) / 2


@pytest.mark.parametrize("grouped", [False, True])
def test_cc18_low_rank_sends_what_its_lanes_say(grouped: bool) -> None:
    """Hosts of two ranks each: four of them, or two groups of two."""
    shapes = (("w", (2048, 1024)),)
    hosts = tuple((rank, rank + 1) for rank in range(0, 8, 2))
    groups = (tuple(range(4)), tuple(range(4, 8))) if grouped else (tuple(range(8)),)
    facts = BucketFacts(shapes, *((2, 4) if grouped else (4, 2)))
    sizes = PowerSGD({name: torch.Size(shape) for name, shape in shapes}, 4).sizes(["w"])
    assert all(size % 512 == 0 for size in sizes)
    out_p, back_p, out_q, back_q = transfers(facts, Choice("powersgd", 4))
    for size, out, back in ((sizes[0], out_p, back_p), (sizes[1], out_q, back_q)):
        for member in range(8):
            cut = levels(size, hosts, groups, member).between
            assert out == 4 * sum(part.stop - part.start for parts in cut.others for part in parts)
            assert back == 4 * sum(piece.size * (len(piece.members) - 1) for piece in cut.owned)


def test_cc18_seconds_are_latencies_bytes_and_coding() -> None:
    facts, line = mlp()[1], Line(1e-3, 1e-7)
    for choice in CANDIDATES:
        sent, counts = transfers(facts, choice), work(facts, choice)
        option = seconds(line, facts, choice, 1e-9, 2e-9)
        coding = counts.encoded * 1e-9 + counts.decoded * 2e-9
        assert option.seconds == pytest.approx(len(sent) * 1e-3 + sum(sent) * 1e-7 + coding, rel=1e-12)
        assert (option.nbytes, option.coding) == (sum(sent), coding)


@given(st.floats(0, 10), st.floats(0, 10))
def test_cc18_of_one_bucket_exposed_is_what_backward_does_not_hide(duration: float, hidden: float) -> None:
    assert exposed([duration], [hidden]) == pytest.approx(max(0.0, duration - hidden), abs=1e-12)
    assert own_exposed([1.0], [hidden], 0, duration) == pytest.approx(max(0.0, duration - hidden), abs=1e-12)


@given(TIMES)
def test_cc18_buckets_follow_each_other_and_no_second_of_backward_hides_two(times: list[tuple[float, float]]) -> None:
    """Against a clock that is moved by hand; together they are exposed at least by what does not fit into backward."""
    durations, hidden = [list(each) for each in zip(*times, strict=True)]
    clock = float("-inf")
    for duration, spare, end in zip(durations, hidden, ends(durations, hidden), strict=True):
        clock = max(clock, -spare)
        clock += duration
        assert end == clock
    assert exposed(durations, hidden) >= sum(durations) - max(hidden) - 1e-9
    assert exposed(durations, hidden) >= max(max(0.0, d - h) for d, h in times[-1:]) - 1e-9
    assert sum(durations) + 1e-9 >= exposed(durations, hidden)


ITEM = st.tuples(st.floats(0.001, 10), st.floats(0, 1))
PROBLEM = st.lists(st.lists(ITEM, min_size=1, max_size=4), min_size=1, max_size=4)


@given(PROBLEM, st.lists(st.floats(0, 5), min_size=4, max_size=4), st.floats(0, 2), st.sampled_from([0.0, 0.03]))
def test_cc19_the_knapsack_is_within_the_budget_and_as_good_as_any(
    items: list[list[tuple[float, float]]], hidden: list[float], budget: float, slack: float
) -> None:
    """Against all selections. Errors are rounded up to 1/4096: it is as good as the best one that has that much room."""
    hidden = hidden[: len(items)]
    chosen = least_lossy(items, hidden, budget, slack)

    def judge(which: tuple[int, ...]) -> tuple[float, float]:
        each = [options[index] for options, index in zip(items, which, strict=True)]
        return exposed([duration for duration, _ in each], hidden), sum(error for _, error in each)

    every = [judge(which) for which in product(*(range(len(options)) for options in items))]
    roomy = [time for time, error in every if error <= budget * (1 - len(items) / UNITS)]
    if chosen is None:
        assert not roomy or budget == 0
        return
    time, error = judge(tuple(chosen))
    assert error <= budget * (1 + 1e-12)
    if roomy:
        assert time * (1 - slack) <= min(roomy) + 1e-12


def test_cc19_one_bucket_may_exceed_the_budget_where_another_saves() -> None:
    exact, coarse = (1.0, 0.0), (0.1, 0.15)
    assert least_lossy([[exact, coarse], [exact, coarse]], [0.0, 0.0], 0.2, 0.03) in ([0, 1], [1, 0])
    assert least_lossy([[exact, coarse], [exact, coarse]], [0.0, 0.0], 0.3001, 0.03) == [1, 1]


def test_cc18_of_what_takes_equally_long_the_least_lossy_is_taken() -> None:
    assert least_lossy([[(1.0, 0.0), (0.98, 0.01)]], [0.0], 0.1, 0.03) == [0]
    assert least_lossy([[(1.0, 0.0), (0.96, 0.01)]], [0.0], 0.1, 0.03) == [1]
    assert least_lossy([[(1.0, 0.0), (0.1, 0.01)]], [2.0], 0.1, 0.03) == [0], "all of it is hidden"
