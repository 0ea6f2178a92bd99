"""CC-4, CC-10, CC-16: every codec on the sharded route, all members in one process."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.workers.compression.conftest import SPECS, Member, codec, sharded_reduce
from workers.compression.registry import make_codec
from workers.compression.shards import cut, sent_bytes

NAMES = sorted(SPECS)
MEMBERS = (1, 2, 3, 4, 8)


def gradients(members: int, n: int, seed: int) -> list[Tensor]:
    noise = torch.Generator().manual_seed(seed)
    return [torch.randn(n, generator=noise) * 10.0 ** -(member % 3) for member in range(members)]


@given(st.integers(0, 5000), st.integers(1, 9), st.sampled_from([1, 64, 256, 512]))
def test_cc10_shards_are_contiguous_whole_multiples_and_even(n: int, members: int, granularity: int) -> None:
    shards = cut(n, members, granularity)
    assert len(shards) == members
    assert [i for shard in shards for i in range(n)[shard]] == list(range(n))
    assert all(shard.start % granularity == 0 or shard.start == n for shard in shards)
    lengths = [shard.stop - shard.start for shard in shards]
    assert max(lengths) - min(lengths) <= 2 * granularity


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("members", MEMBERS)
@pytest.mark.parametrize("n", [3, 1000, 5003])
def test_cc4_all_members_end_with_the_same_bits_and_send_the_bytes_stated(name: str, members: int, n: int) -> None:
    gang = [Member(codec(name), n) for _ in range(members)]
    for step in range(3):
        sent = sharded_reduce(gang, gradients(members, n, step))
        assert sent == sum(sent_bytes(gang[0].codec, n, members, index) for index in range(members))
        assert bool(gang[0].result.any())
        for member in gang:
            assert torch.equal(member.result.view(torch.int32), gang[0].result.view(torch.int32))
            member.commit()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("members", [1, 4])
def test_cc10_what_was_sent_and_what_is_owed_is_the_sum_of_all_gradients(name: str, members: int) -> None:
    """Over 100 steps, every fourth one discarded, in float64: nothing is lost on either side of the exchange."""
    n = 1100
    gang = [Member(codec(name), n) for _ in range(members)]
    applied, given_, moved = (torch.zeros(n, dtype=torch.float64) for _ in range(3))
    for step in range(100):
        each = gradients(members, n, step)
        sharded_reduce(gang, each)
        if step % 4 == 3:
            before = [member.owed for member in gang]
            for member, owed in zip(gang, before, strict=True):
                member.discard()
                assert torch.equal(member.owed, owed)
            continue
        for member in gang:
            member.commit()
        applied += gang[0].result.double()
        given_ += torch.stack(each).double().sum(0)
        moved += torch.stack(each).double().abs().sum(0)
        owed = torch.stack([member.owed for member in gang]).sum(0)
        assert float((applied + owed - given_).abs().max()) <= 1e-6 * float(moved.max())
    if name != "none":
        assert float(torch.stack([member.owed for member in gang]).abs().max()) > 0, "both sides never owed anything"


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"none"}))
def test_cc10_the_owner_has_a_residual_of_its_own_shard_only(name: str) -> None:
    n, members = 4096, 4
    gang = [Member(codec(name), n) for _ in range(members)]
    sharded_reduce(gang, gradients(members, n, 0))
    for member, shard in zip(gang, cut(n, members, gang[0].codec.granularity), strict=True):
        member.commit()
        kept = member.owner.state_dict()["bucket"]
        assert bool(kept[shard].any())
        kept[shard] = 0
        assert not bool(kept.any())


@pytest.mark.parametrize("name", NAMES)
def test_cc12_joins_leaves_and_new_shards_lose_nothing(name: str) -> None:
    """A leaver's residuals go to a survivor, a second residual to the first before shards are cut anew."""
    n = 2500
    gang = [Member(codec(name), n) for _ in range(4)]
    applied, given_ = (torch.zeros(n, dtype=torch.float64) for _ in range(2))
    for step, members in enumerate([4] * 5 + [3] * 5 + [5] * 5 + [1] * 5):
        if members != len(gang):
            for member in gang:
                member.sender.absorb(member.owner.state_dict())
                member.owner.load_state_dict({})
            for leaver in gang[members:]:
                gang[0].sender.absorb(leaver.sender.state_dict())
            gang = gang[:members] + [Member(codec(name), n) for _ in range(members - len(gang))]
        each = gradients(members, n, step)
        sharded_reduce(gang, each)
        for member in gang:
            member.commit()
        applied += gang[0].result.double()
        given_ += torch.stack(each).double().sum(0)
        owed = torch.stack([member.owed for member in gang]).sum(0)
        assert float((applied + owed - given_).abs().max()) <= 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_cc10_error_feedback_delivers_a_constant_gradient(name: str) -> None:
    """Without a memory most codecs would send the same wrong numbers for ever; with it the mean of what is sent is g."""
    n, members, steps = 700, 3, 200
    gang = [Member(codec(name), n) for _ in range(members)]
    each = gradients(members, n, 1)
    mean = torch.zeros(n, dtype=torch.float64)
    for _ in range(steps):
        sharded_reduce(gang, each)
        for member in gang:
            member.commit()
        mean += gang[0].result.double() / steps
    exact = torch.stack(each).double().sum(0)
    assert float((mean - exact).norm() / exact.norm()) < (0.3 if name in {"topk", "threshold"} else 0.1)


@pytest.mark.parametrize("name", ["none", "bf16", "fp16", "int8", "int4"])
def test_cc16_the_reduce_is_linear_in_the_bits_of_a_power_of_two(name: str) -> None:
    """Twice the gradients are exactly twice the sum: no codec has a scale of its own."""
    for factor in (2.0, 2.0**-20, -4.0):
        results = []
        for scale in (1.0, factor):
            gang = [Member(codec(name), 3000) for _ in range(4)]
            sharded_reduce(gang, [gradient * scale for gradient in gradients(4, 3000, 2)])
            results.append(gang[0].result)
        assert torch.equal(results[1], results[0] * factor)


@pytest.mark.parametrize(
    ("name", "relative"), [("none", 1e-6), ("bf16", 4e-3), ("fp16", 5e-4), ("int8", 0.011), ("int4", 0.2)]
)
def test_cc16_the_reduce_is_linear_within_the_codecs_error(name: str, relative: float) -> None:
    """The reduce of what N members have is the sum, as close as the codec is on one tensor, twice over."""
    gang = [Member(codec(name), 5000) for _ in range(8)]
    each = gradients(8, 5000, 3)
    sharded_reduce(gang, each)
    exact = torch.stack(each).double().sum(0)
    assert float((gang[0].result.double() - exact).norm() / exact.norm()) < relative


@pytest.mark.parametrize(
    ("name", "per_element"),
    [("none", 8), ("bf16", 4), ("fp16", 4.001), ("int8", 2 * 1.008), ("int4", 1.06 + 0.003), ("sign", 0.25 * 1.06)],
)
@pytest.mark.parametrize("members", [2, 3, 4, 8])
def test_cc16_bytes_sent_per_rank_are_those_of_the_table(name: str, per_element: float, members: int) -> None:
    """int8: 2n(N−1)/N · 1.008. Two bytes for 64 codes of half a byte make 1.0625, which the table rounds to 1.06."""
    n = 1 << 20
    which = make_codec(name, **SPECS[name])
    sent = sum(sent_bytes(which, n, members, index) for index in range(members)) / members
    exact = per_element * n * (members - 1) / members
    rounding = 4 * 2 * members
    assert 0.9 * exact < sent <= exact + rounding
