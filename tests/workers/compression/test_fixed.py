"""CC-14, CC-22: one codec for all buckets, after a dense start where it needs one."""

from __future__ import annotations

import pytest
from torch import Size

from workers.collectives.buckets import plan_buckets
from workers.compression.choice import NONE, Choice
from workers.compression.config import CompressionConfig
from workers.compression.setup import compression_of

PLAN = plan_buckets([("a", Size([500, 10])), ("b", Size([10]))], tail=3, first_bytes=8, bucket_bytes=8)


@pytest.mark.parametrize(
    "codec", ["none", "bf16", "fp16", "int8", "int4", "sign", "topk 0.1", "powersgd 4", "powersgd-int8 4", "threshold 0.02"]
)
@pytest.mark.parametrize(("planned", "start"), [(60, 10), (500, 25)])
def test_cc14_cc22_one_codec_from_the_first_step_or_the_end_of_the_dense_start_on(
    codec: str, planned: int, start: int
) -> None:
    config = CompressionConfig(codec=codec)
    assert config.compresses == (codec != "none")
    choices = compression_of(PLAN, config, planned)._policy
    late = codec.split()[0] in {"sign", "topk", "threshold", "powersgd", "powersgd-int8"}
    for step in range(1, planned + 1):
        expected = Choice("int8") if late and step <= start else Choice.parse(codec)
        assert choices(step) == (expected,) * 2


def test_cc22_without_a_setting_nothing_is_encoded() -> None:
    assert compression_of(PLAN, CompressionConfig(), 100).choices == (NONE, NONE)


def test_cc13_the_density_comes_down_in_the_first_epochs() -> None:
    choices = compression_of(PLAN, CompressionConfig(codec="topk 0.01", ramp=True), 100, steps_per_epoch=20)._policy
    found = [str(choices(step)[0]) for step in (10, 11, 20, 21, 41, 61, 100)]
    assert found == ["int8", "topk 0.25", "topk 0.25", "topk 0.0625", "topk 0.0156", "topk 0.01", "topk 0.01"]
