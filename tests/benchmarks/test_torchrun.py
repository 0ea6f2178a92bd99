"""The benchmark of a plain script of torchrun: its page, its command line, and a run in the lab."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import torchrun
from benchmarks.lab import can_run
from benchmarks.torchrun import Run, main, page


def runs() -> list[Run]:
    times = {"ddp-fp16": 0.2, "ours": 0.05}
    return [
        Run(100.0, method, number, [seconds * (1 + number)] * 4, 0.5 + number / 4, 1000.0 * (1 + number))
        for method, seconds in times.items()
        for number in (0, 1)
    ]


def test_cc25_the_page_compares_with_ddp_fp16_over_all_rounds() -> None:
    rows = [
        line.split(" | ")
        for line in page(runs(), 2, 1, 120, "python -m benchmarks.torchrun").splitlines()
        if line[:3] == "| 1"
    ]
    half, ours = rows
    assert half[:5] == ["| 100", "DDP fp16 hook", "8", "300.0", "400.0"]
    assert half[5] == "1.00"
    assert ours[:4] == ["| 100", "**ours, two lines**", "8", "75.0"]
    assert ours[5:] == ["0.25", "2", "62.5% |"]


def test_a_page_without_ddp_fp16_has_no_ratio() -> None:
    text = page([run for run in runs() if run.method == "ours"], 2, 1, 120, "command")
    assert "| – |" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--methods", "ours,mpi"], "there is no 'mpi'; choose from ddp-fp32, ddp-fp16, torch-powersgd, ours"),
        (["--steps", "10", "--settle", "9"], "9 leaves too few of 10 steps"),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.root
def test_cc25_torchrun_on_two_hosts(tmp_path: Path) -> None:
    if reason := can_run():
        pytest.skip(reason)
    words = ["--methods", "ours", "--rates", "1000", "--steps", "8", "--settle", "4", "--rounds", "1"]
    files = ["--out", str(tmp_path / "out.json"), "--page", str(tmp_path / "page.md")]
    assert main([*words, *files]) == 0
    (found,) = json.loads((tmp_path / "out.json").read_text())
    assert len(found["seconds"]) == 4
    assert found["payload"] > 1_000_000
    assert torchrun.LABELS["ours"] in (tmp_path / "page.md").read_text()
