"""CC-25: the hook under DDP, in real processes on one host and on several."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from tests.codecs import CODECS
from tests.workers.comm import scenarios
from tests.workers.comm.ranks import run
from tests.workers.comm.scenarios import SMALL_BUCKETS, STEPS, Outcome

HOSTS = {(1, 1): ((0,), (1,)), (2, 2): ((0, 1), (2, 3)), (2, 1): ((0, 1), (2,)), (3,): ((0, 1, 2),)}


NEAR = 0.15
"""Of the losses, which begin at 1.4."""


def loss(ranks: list[Outcome]) -> float:
    return sum(rank.loss for rank in ranks) / len(ranks)


def difference(one: Outcome, other: Outcome) -> float:
    return float((one.parameters - other.parameters).abs().max())


@pytest.mark.parametrize("shape", HOSTS, ids=str)
def test_cc25_cc4_parameters_are_the_same_bits_everywhere_and_near_those_of_ddp(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    ours = [{"policy": "fixed", "codec": codec} for codec in CODECS]
    ranks = run(tmp_path, shape, scenarios.train_each, [None, *ours])
    plain = ranks[0][0]
    by_codec = {codec: [each[1 + i] for each in ranks] for i, codec in enumerate(CODECS)}
    sent = {codec: sum(rank.sent for rank in each) for codec, each in by_codec.items()}
    for codec, each in by_codec.items():
        assert {rank.digest for rank in each} == {each[0].digest}
        assert {rank.steps for rank in each} == {STEPS}
        assert {rank.hosts for rank in each} == {HOSTS[shape]}
        assert all(set(rank.choices) == {codec} for rank in each)
        assert abs(loss(each) - loss([rank[0] for rank in ranks])) < NEAR
        if len(shape) == 1:
            assert sent[codec] == 0
        else:
            assert 0 < sent[codec] <= sent["none"] and (codec == "none") == (sent[codec] == sent["none"])
    assert difference(by_codec["none"][0], plain) < 1e-6
    if len(shape) > 1:
        assert difference(by_codec["int8"][0], plain) > 0


@pytest.mark.parametrize(("shape", "groups"), [((1, 1, 1), "aab"), ((2, 1), "ab")], ids=str)
def test_cc1_cc4_groups_of_hosts_come_from_the_environment(tmp_path: Path, shape: tuple[int, ...], groups: str) -> None:
    ours = [{"policy": "fixed", "codec": codec, "dense_steps": 1} for codec in ("none", "int8", "powersgd 2")]
    ranks = run(tmp_path, shape, scenarios.train_each, [None, *ours], groups=groups)
    for rank in ranks:
        assert [outcome.digest for outcome in rank[1:]] == [outcome.digest for outcome in ranks[0][1:]]
        assert all(outcome.groups == ((0, 1), (2,)) for outcome in rank[1:])
        assert rank[1].sent > rank[2].sent > 0
        assert abs(loss([rank[2]]) - loss([rank[0]])) < NEAR
    assert difference(ranks[0][1], ranks[0][0]) < 1e-6
    assert difference(ranks[0][2], ranks[0][0]) > 0


def test_cc25_ranks_of_one_host_in_two_groups_are_refused_on_all_ranks(tmp_path: Path) -> None:
    told = run(tmp_path, (1, 2), scenarios.ranks_of_a_host_differ_in_their_group)
    assert set(told) == {
        "ranks 1 and 2 share a host, and QUANTARION_GROUP is not the same for both: write one name for all ranks of a "
        "host, as in QUANTARION_GROUP=site-a torchrun ..."
    }


def test_cc25_a_script_can_make_process_groups_after_those_of_groups_of_hosts(tmp_path: Path) -> None:
    totals = run(tmp_path, (1, 1, 1), scenarios.groups_of_the_script_come_after, {}, groups="aab")
    assert totals == [2.0, 1.0, 2.0]


def test_cc25_cc20_by_default_it_adapts_alike_on_all_ranks(tmp_path: Path) -> None:
    ranks = run(tmp_path, (2, 2), scenarios.train, {}, 90)
    assert {rank.digest for rank in ranks} == {ranks[0].digest}
    assert {tuple(rank.choices) for rank in ranks} == {tuple(ranks[0].choices)}
    assert ranks[0].choices and ranks[0].steps == 90


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 1)], ids=str)
def test_cc21_where_a_rank_finds_its_link_collapsed_all_decide_after_that_very_step(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    """Where nothing is encoded they tell each other in every other step only; a step that decides anyway does so once."""
    ranks = run(tmp_path, shape, scenarios.train_alarmed, 1, [24, 27, 40, 42])
    assert {outcome.digest for outcome, _ in ranks} == {ranks[0][0].digest}
    for outcome, decided in ranks:
        assert outcome.steps == 45
        assert set(decided) - {27} == {20, 24, 40, 42} and len(decided) == len(set(decided))


@pytest.mark.parametrize("codec", ["int8", "powersgd 2"])
def test_cc25_many_buckets_one_of_a_bias_alone(tmp_path: Path, codec: str) -> None:
    ours = {"policy": "fixed", "codec": codec, "dense_steps": 1}
    ranks = run(tmp_path, (2, 1), scenarios.train_in_small_buckets, [None, ours])
    assert {rank[1].digest for rank in ranks} == {ranks[0][1].digest}
    assert len(ranks[0][1].choices) > 3
    assert abs(loss([rank[1] for rank in ranks]) - loss([rank[0] for rank in ranks])) < NEAR


def test_cc25_what_ddp_offers_works_as_without_the_hook(tmp_path: Path) -> None:
    modes = [
        ("accumulate", {}),
        ("branch", {"find_unused_parameters": True}),
        ("branch", {"find_unused_parameters": True, "bucket_cap_mb": SMALL_BUCKETS}),
        ("", {"static_graph": True, "bucket_cap_mb": SMALL_BUCKETS}),
        ("", {"gradient_as_bucket_view": True, "bucket_cap_mb": SMALL_BUCKETS}),
        ("accumulate", {"gradient_as_bucket_view": True, "bucket_cap_mb": SMALL_BUCKETS}),
    ]
    ranks = run(tmp_path, (2, 1), scenarios.train_modes, modes)
    for index, mode in enumerate(modes):
        pairs = [each[index] for each in ranks]
        assert {ours.digest for _, ours in pairs} == {pairs[0][1].digest}, mode
        assert difference(*pairs[0]) < 1e-6, mode
        assert pairs[0][1].choices, mode


def test_cc25_sixteen_bits_are_summed_as_float32(tmp_path: Path) -> None:
    ranks = run(tmp_path, (2, 1), scenarios.train_modes, [("bfloat16", {})])
    pairs = [each[0] for each in ranks]
    assert {ours.digest for _, ours in pairs} == {pairs[0][1].digest}
    assert difference(*pairs[0]) < 0.05


def test_cc6_buckets_are_exchanged_while_backward_goes_on(tmp_path: Path) -> None:
    for seen in run(tmp_path, (1, 1), scenarios.backward_waits_for_the_first_sum):
        assert seen == [True] * 5


def test_cc2_ranks_without_room_in_shared_memory_use_sockets_and_all_know_it(tmp_path: Path) -> None:
    ranks = run(tmp_path, (2, 2), scenarios.train_without_room, [1])
    assert {rank.hosts for rank in ranks} == {((0,), (1,), (2, 3))}
    assert {rank.digest for rank in ranks} == {ranks[0].digest}
    assert torch.isfinite(ranks[0].parameters).all()


@pytest.mark.parametrize(
    "codec,shape",
    [("none", (2, 1)), ("int8", (2, 1)), ("powersgd 2", (2, 1)), ("none", (1, 1)), ("bf16-ring", (1, 1)), ("int8", (1, 1))],
)
def test_cc11_cc15_all_ranks_see_a_gradient_that_is_not_finite_and_keep_their_residuals(
    tmp_path: Path, codec: str, shape: tuple[int, ...]
) -> None:
    ranks = run(tmp_path, shape, scenarios.one_gradient_is_infinite, codec)
    for rank in ranks:
        assert rank.nan == [False, False, True]
        assert rank.kept and rank.finite
        assert rank.scales == [4.0] * 8 + [2.0] * 4
        assert rank.digest == ranks[0].digest


@pytest.mark.parametrize("codec", ["none", "int8", "powersgd 2"])
@pytest.mark.parametrize("shape", [(2,), (1, 1), (2, 2)], ids=str)
def test_cc7_a_dead_rank_ends_backward_with_an_error_on_all_others(
    tmp_path: Path, shape: tuple[int, ...], codec: str
) -> None:
    """And nothing of it is left in /dev/shm."""
    victim = sum(shape) - 1
    before = left_in_memory()
    ranks = run(tmp_path, shape, scenarios.one_is_killed, victim, codec)
    assert ranks.pop(victim) is None
    assert ranks
    for heard in ranks:
        assert heard.startswith("5 ") and "ExchangeError: " in heard
    new = left_in_memory() - before  # tests beside this one have theirs there too, which go away
    deadline = time.monotonic() + 30
    while new & left_in_memory() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not new & left_in_memory()


def left_in_memory() -> set[str]:
    return {path.name for path in Path("/dev/shm").glob("quantarion-*/comm/*")}
