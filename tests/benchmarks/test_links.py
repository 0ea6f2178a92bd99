"""The tables of the slow links: which cells there are, and what is made of their measurements."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.links import kept as kept_module
from benchmarks.links.cells import LAYOUTS, RATES, Cell, Effort, accuracy_cells, contests, timing_cells
from benchmarks.links.change import STEPS, change_cells, change_section, spent
from benchmarks.links.kept import kept_cells, measure_kept
from benchmarks.links.limit import duration, least_seconds
from benchmarks.links.methods import ADAPTIVE, ALONE, FP16, FP32, METHODS, NONE, PEERS, POWERSGD, START
from benchmarks.links.page import page
from benchmarks.links.picture import UNSHAPED_AT, draw, points, spread
from benchmarks.links.records import Records
from benchmarks.links.summary import Table, always_first, exposed, learned, seconds_to_target, timings, verdicts
from benchmarks.links.tasks import TASKS, Data, batch
from workers.compression.choice import FACTOR_CODECS
from workers.compression.registry import CODECS


def time_record(rate: str, method: str, *seconds: float, **more: Any) -> dict[str, Any]:
    cell = Cell("time", "mlp", "4x1", rate, method, 0)
    return {
        **cell.key,
        "seconds": list(seconds),
        "payload": 1000.0,
        "claimed": None,
        "settled": 2,
        "command": "time",
        **more,
    }


def accuracy_record(method: str, *curve: list[float], rate: str = "unshaped", seed: int = 1) -> dict[str, Any]:
    cell = Cell("accuracy", "mlp", "4x1", rate, method, seed)
    return {**cell.key, "loss": 0.1, "held_out": 0.2, "accuracy": curve[-1][3], "curve": list(curve), "command": "learn"}


def table(**seconds: tuple[float, ...]) -> Table:
    """Steps in the order of `RATES`, by method with _ for -."""
    return timings(
        [
            time_record(rate, key.replace("_", "-"), value)
            for key, row in seconds.items()
            for rate, value in zip(RATES, row, strict=False)
        ],
        "mlp",
        "4x1",
    )


def test_cc27_there_is_a_cell_for_every_codec_policy_and_peer_at_every_speed_and_layout() -> None:
    cells = list(timing_cells(["mlp"]))
    assert len(cells) == len(set(cells))
    wanted = {f"ours-{codec}" for codec in (*CODECS, *FACTOR_CODECS)} | {
        "ours-adaptive",
        "ours-adaptive-loose",
        "ours-ladder",
        *PEERS,
    }
    for layout in ("2x1", "4x1", "4x2"):
        for rate in (10.0, 100.0, 1000.0, None):
            found = {cell.method for cell in cells if cell.layout == layout and RATES[cell.rate] == rate}
            assert found - {ALONE.key} == wanted


def test_cc27_all_methods_of_a_layout_and_speed_are_measured_together_and_what_is_no_timing_by_itself() -> None:
    found = contests(timing_cells(["mlp", "transformer"]))
    assert len(found) == 2 * len(LAYOUTS) * len(RATES)
    for cells in found:
        assert [cell.method for cell in cells] == list(METHODS)
        assert len({(cell.model, cell.layout, cell.rate) for cell in cells}) == 1
    assert all(len(cells) == 1 for cells in contests(accuracy_cells(["mlp"], [1, 2], "4x1")))


def test_cc27_every_method_learns_unshaped_and_the_adaptive_policy_at_every_speed() -> None:
    cells = list(accuracy_cells(["mlp"], [1, 2, 3], "4x1"))
    for method in METHODS:
        rates = {(cell.rate, cell.number) for cell in cells if cell.method == method}
        speeds = [] if method == ALONE.key else list(RATES) if METHODS[method].reacts else ["unshaped"]
        assert rates == {(rate, seed) for rate in speeds for seed in (1, 2, 3)}


@given(
    pace=st.floats(1e-3, 100.0),
    steps=st.integers(1, 60),
    least=st.integers(1, 60),
    seconds=st.floats(0.1, 100.0),
)
def test_cc27_a_cell_has_its_steps_unless_it_is_slow_and_then_the_least(
    pace: float, steps: int, least: int, seconds: float
) -> None:
    total = Effort(steps, least, seconds).steps_at(pace)
    assert least <= total <= max(steps, least)
    if pace * steps <= seconds:
        assert total >= steps
    if total > least:
        assert pace * (total - 1) <= seconds


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.key)
@pytest.mark.parametrize("world", [2, 4, 8])
def test_cc27_the_ranks_share_a_batch_that_does_not_depend_on_their_number(task: Any, world: int) -> None:
    numbers = torch.arange(5000)
    data = Data("numbers", (numbers, -numbers), (numbers, numbers))
    for step in range(3):
        whole, targets = batch(task, data, 1, step, 0, 1)
        assert torch.equal(whole, -targets)
        shares = [batch(task, data, 1, step, rank, world)[0] for rank in range(world)]
        assert len({len(share) for share in shares}) == 1
        assert torch.equal(torch.stack(shares, dim=1).flatten(), whole)
    assert not torch.equal(batch(task, data, 2, 0, 0, 1)[0], batch(task, data, 1, 0, 0, 1)[0])


def test_cells_are_chosen_by_layout_rate_and_method() -> None:
    cell = Cell("time", "mlp", "4x1", "100", "ours-int8", 0)
    assert cell.matches([])
    assert cell.matches(["2x1,*,*", "4x1,100,ours-*"])
    assert not cell.matches(["4x1,1000,*", "*,*,ddp-*"])


def test_a_timing_is_of_its_own_layout() -> None:
    records = [
        time_record("100", "ours-int8", 0.1, 0.3, 0.2, 0.4, 0.5, claimed=900.0),
        time_record("100", "ours-int8", 9.0) | {"layout": "2x1"},
    ]
    (found,) = timings(records, "mlp", "4x1").values()
    assert (found.steps, found.median, found.p95, found.claimed) == (5, 0.3, 0.5, 900.0)


def test_cc27_exposed_is_what_a_step_takes_beyond_its_compute() -> None:
    found = table(alone=(0.02, 0.02), ddp_fp32=(0.05, 0.08), ddp_fp16=(0.019,))
    assert exposed(found, "1000", FP32.key) == pytest.approx(0.06)
    assert exposed(found, "unshaped", FP16.key) == 0.0
    assert exposed(table(ddp_fp32=(0.05,)), "unshaped", FP32.key) is None


CURVE = ([10, 1.0, 2.0, 0.5], [20, 3.0, 1.0, 0.9], [30, 5.0, 0.5, 0.95])


def test_cc27_the_time_to_an_accuracy_counts_the_dense_start_at_the_price_of_dense_steps() -> None:
    found = table(ddp_fp32=(0.05, 0.08, 0.7), torch_powersgd=(0.06, 0.06, 0.06))
    run = learned([accuracy_record(POWERSGD.key, *CURVE)], "mlp", POWERSGD, "100", target=0.9)
    assert run is not None
    assert run.steps_to_target == 20
    assert seconds_to_target(found, "100", POWERSGD, run) == pytest.approx(START * 0.7 + (20 - START) * 0.06)
    without = {key: value for key, value in found.items() if key[1] != FP32.key}
    assert seconds_to_target(without, "100", POWERSGD, run) is None


def test_cc27_what_reacts_to_the_link_is_timed_as_it_learned_there() -> None:
    records = [
        accuracy_record(ADAPTIVE.key, *CURVE),
        accuracy_record(ADAPTIVE.key, *([step, 10 * t, loss, accuracy] for step, t, loss, accuracy in CURVE), rate="10"),
    ]
    run = learned(records, "mlp", ADAPTIVE, "10", target=0.9)
    assert seconds_to_target(table(ours_adaptive=(1.0,) * 4), "10", ADAPTIVE, run) == 30.0
    assert learned(records, "mlp", ADAPTIVE, "100", target=0.9) is None


def test_cc27_a_target_that_one_seed_misses_is_not_reached() -> None:
    records = [accuracy_record(NONE.key, *CURVE), accuracy_record(NONE.key, CURVE[0], seed=2)]
    run = learned(records, "mlp", NONE, "10", target=0.9)
    assert run is not None
    assert (run.accuracies, run.steps_to_target) == ([0.95, 0.5], None)
    assert seconds_to_target(table(ours_none=(1.0,) * 4), "10", NONE, run) is None


PEER_STEPS = {"ddp_fp32": (0.040, 0.080, 0.7, 7.0), "ddp_fp16": (0.041, 0.055, 0.35, 3.5)}


def test_cc28_targets_of_a_model_with_gradients_of_low_rank() -> None:
    found = table(**PEER_STEPS, torch_powersgd=(0.05, 0.05, 0.05, 0.1), ours_adaptive=(0.041, 0.053, 0.051, 0.1))
    results = {each.rate: each for each in verdicts(found, low_rank=True)}
    assert [each.met for each in results.values()] == [True, False, False, True]  # 1.025, 1.06, 1.02, 1.0
    assert [each.bound for each in results.values()] == [1.03, 1.05, 1.0, 1.0]
    assert results["1000"].against == POWERSGD.label
    assert list(results) == ["unshaped", "1000", "100", "10"]


def test_cc28_targets_of_another_model() -> None:
    found = table(**PEER_STEPS, torch_powersgd=(0.05, 0.05, 0.05, 0.1), ours_adaptive=(0.041, 0.052, 0.175, 1.01))
    results = verdicts(found, low_rank=False)
    assert [each.met for each in results] == [True, True, True, False]  # 3.5 / 1.01 is less than 3.5
    assert {each.against for each in results[2:]} == {FP16.label}


def test_cc28_no_verdict_without_every_peer() -> None:
    assert verdicts(table(**PEER_STEPS, ours_adaptive=(0.04,) * 4), low_rank=True) == []


def test_cc28_only_what_is_near_the_fastest_peer_everywhere_is_first() -> None:
    steps = {**PEER_STEPS, "torch_powersgd": (0.05, 0.05, 0.05, 0.1), "ours_adaptive": (0.041, 0.052, 0.052, 0.1)}
    assert always_first(table(**steps)) == [ADAPTIVE.label]
    assert always_first(table(**steps, ours_none=(0.01, 0.01, 0.01))) == [ADAPTIVE.label]  # not measured at 10
    assert always_first(table(**{**steps, "ours_adaptive": (0.043, 0.05, 0.05, 0.1)})) == []


def test_cc21_a_change_counts_every_step_of_what_reacts_and_compares_it_with_the_best_of_each_stretch() -> None:
    def record(key: str, *stretches: list[float]) -> dict[str, Any]:
        return {"kind": "change", "model": "mlp", "method": key, "stretches": list(stretches)}

    fast, slow = [0.1] * STEPS, [1.0] * 10 + [0.2] * (STEPS - 10)
    adaptive = record(ADAPTIVE.key, fast, slow, fast)
    none, int8 = record(NONE.key, [0.1] * 3, [4.0, 5.0, 60.0], [0.1] * 3), record("ours-int8", [0.3], [0.5], [0.3])
    assert spent(adaptive) == pytest.approx([0.1 * STEPS, 10 + 0.2 * (STEPS - 10), 0.1 * STEPS])
    assert spent(none) == pytest.approx([0.1 * STEPS, 5.0 * STEPS, 0.1 * STEPS])
    assert spent(record(ADAPTIVE.key, [0.5, 1.0])) == pytest.approx([0.5 + (STEPS - 1) * 1.0])
    text = "\n".join(change_section([adaptive, none, int8]))
    ratio = sum(spent(adaptive)) / (0.7 * STEPS)
    assert f"- ours, adaptive: {ratio:.3f} of the best, met (1.10)\n" in text
    assert "MISSED" in "\n".join(change_section([record(ADAPTIVE.key, fast, [1.0] * STEPS, fast), none, int8]))
    alone = "\n".join(change_section([adaptive]))
    assert "ours, adaptive" in alone and "best fixed" not in alone and "MISSED" not in alone, (
        "with nothing to compare it with"
    )
    kept = [{"model": "mlp", "method": key, "left": left} for key, left in ((NONE.key, 0.0), ("ours-int8", 0.2))]
    text = "\n".join(change_section([adaptive, none, int8], kept))
    admissible = sum(spent(adaptive)) / sum(spent(none))
    assert (
        f"{ratio:.3f} of the best, met (1.10); of those that leave 0.1 at most: {admissible:.3f} of the best, met" in text
    )
    assert "| ours, int8 | 150.0 | 250.0 | 150.0 | 550.0 | 1.57 | 0.200 |" in text
    cells = list(change_cells(["mlp"]))
    assert {cell.method for cell in cells} == {*METHODS} - {ALONE.key} and len({*cells}) == len(cells)


def test_cc19_what_codecs_leave_of_the_gradients_of_a_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """bf16 next to nothing; sign what it leaves of any gradient; and more rank, or bits, less."""
    monkeypatch.setattr(kept_module, "STEPS", 40)
    monkeypatch.setattr(kept_module, "EVERY", 20)
    cells = {cell.method: cell for cell in kept_cells(["mlp"])}
    assert {*cells} == {key for key, method in METHODS.items() if method.ours and not method.reacts}
    left = {key: measure_kept(cells[f"ours-{key}"], None)["left"] for key in ("none", "bf16", "int4", "sign", "powersgd")}
    assert left["none"] == 0.0 < left["bf16"] < left["int4"] < left["powersgd"] < left["sign"] < 1.0
    assert left["bf16"] < 1e-2 and left["sign"] > 0.3


def test_cc8_the_limit_is_that_of_a_ring() -> None:
    assert least_seconds(2, 4, 100) == pytest.approx(4 * 2**20 * 8 / 1e8)
    assert least_seconds(4, 8, 1000) == pytest.approx(1.5 * 8 * 2**20 * 8 / 1e9)


def test_cc8_an_exchange_lasts_from_the_last_to_begin_to_the_last_to_end() -> None:
    assert duration([[1.0, 5.0], [2.5, 4.0]]) == 2.5


def test_records_are_kept_and_what_failed_is_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "links.jsonl"
    done, failed = (Cell("time", "mlp", "4x1", rate, FP32.key, 0) for rate in ("100", "10"))
    first = Records(path, keep=True)
    assert done not in first
    first.add(time_record("100", FP32.key, 0.7))
    first.add(failed.key | {"error": "rank 0: it ended by itself"})
    again = Records(path, keep=True)
    assert done in again
    assert failed not in again
    assert len(again.of("time")) == len(again.failed()) == 1
    again.add(time_record("10", FP32.key, 7.0))
    assert failed in Records(path, keep=True)
    assert len(Records(path, keep=True).of("time")) == 2
    assert len(path.read_text().splitlines()) == 3
    assert done not in Records(path, keep=False)


def test_cc27_the_page_has_a_row_for_every_cell_and_says_which_failed(tmp_path: Path) -> None:
    path = tmp_path / "links.jsonl"
    steps = {**PEER_STEPS, "torch_powersgd": (0.05,) * 4, "ours_adaptive": (0.04,) * 4, "alone": (0.02,)}
    lines = [
        time_record(rate, key.replace("_", "-"), value, claimed=1010.0 if key.startswith("ours") else None)
        for key, row in steps.items()
        for rate, value in zip(RATES, row, strict=False)
    ]
    lines += [accuracy_record(ADAPTIVE.key, *CURVE), accuracy_record(FP32.key, *CURVE)]
    lines.append(Cell("time", "mlp", "2x1", "10", FP32.key, 0).key | {"error": "rank 1: it ended by itself"})
    lines.append(Cell("limit", "bucket", "4x1", "100", "gloo", 8).key | {"seconds": [1.1, 1.2, 1.3], "command": "limit"})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = page(Records(path, keep=True), "4x1")
    for rate in RATES:
        for key in (*PEERS, ADAPTIVE.key):
            label = METHODS[key].label
            label = f"**{label}**" if key == ADAPTIVE.key else label
            assert text.count(f"\n| {rate} | {label} | 1 |") == 1
    assert "1 (+1.0%)" in text
    assert "| ours, adaptive | 100 | torch PowerSGD hook, rank 4 | 0.800 | 1.000 | met |" in text
    assert "| ours, adaptive | unshaped | 0.1000 | 95.00 % | +0.00 | 30 |" in text
    assert "at every speed: ours, adaptive." in text
    assert "\ntime\nlearn\nlimit\n" in text
    assert "links-4x1.png" in text
    assert "links-2x1.png" not in text
    assert "time mlp 2x1 10 ddp-fp32 0: rank 1: it ended by itself" in text
    assert f"| 4 | 8 | 100 | 1006.6 | 1200.0 | {1.2 / 1.00663296:.3f} | – | – |" in text


def test_names_in_the_picture_do_not_cover_each_other() -> None:
    heights = {"a": 2.0, "b": 1.0, "c": 1.1, "d": 1.15}
    found = spread(heights, 0.2)
    assert found["b"] == 1.0 and found["c"] == pytest.approx(1.2) and found["d"] == pytest.approx(1.4) and found["a"] == 2.0


def test_the_picture_goes_from_slow_links_to_fast_ones(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    found = table(**PEER_STEPS, ours_adaptive=(0.04, 0.05, 0.06, 0.1), ours_int8=(0.05, 0.06, 0.2, 1.0))
    milliseconds = pytest.approx([100.0, 60.0, 50.0, 40.0])
    assert [mbit for mbit, _ in points(found, ADAPTIVE.key)] == [10.0, 100.0, 1000.0, UNSHAPED_AT]
    assert [each for _, each in points(found, ADAPTIVE.key)] == milliseconds
    for layout in LAYOUTS:
        draw({"MLP": found, "transformer": found}, layout, tmp_path / f"{layout}.png")
        assert (tmp_path / f"{layout}.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_says_which_contests_were_timed_with_another_state_of_the_source(tmp_path: Path) -> None:
    path = tmp_path / "links.jsonl"
    both = [time_record(rate, FP32.key, 0.7) | {"commit": name} for rate, name in (("100", "abc1234"), ("10", "def5678+"))]
    path.write_text("".join(json.dumps(line) + "\n" for line in both))
    text = page(Records(path, keep=True), "4x1")
    assert "- `abc1234`: 4x1 100\n- `def5678+`: 4x1 10\n" in text
    path.write_text("".join(json.dumps(line | {"commit": "abc1234"}) + "\n" for line in both))
    assert "abc1234" not in page(Records(path, keep=True), "4x1")
