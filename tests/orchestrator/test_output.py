"""The lines that a job's task prints, followed from one lowest rank to the next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.output import LINES_AT_ONCE, TaskOutput, clean


def member(rank: int, worker: str) -> dict[str, Any]:
    return {"rank": rank, "worker": worker}


def append(folder: Path, worker: str, text: str) -> None:
    (folder / "logs").mkdir(exist_ok=True)
    with (folder / "logs" / f"{worker}.out").open("a") as file:
        file.write(text)


def test_it_reads_the_lowest_rank_only(tmp_path: Path) -> None:
    output = TaskOutput(tmp_path)
    assert output.read() == []
    output.follow([member(3, "c"), member(1, "b"), member(2, "a")])
    assert output.read() == []
    append(tmp_path, "a", "other\n")
    append(tmp_path, "b", "one\n\ntwo\nthr")
    assert output.read() == ["rank 1: one", "rank 1: two"]
    append(tmp_path, "b", "ee")
    assert output.read() == []
    assert output.read(to_the_end=True) == ["rank 1: three"]
    assert output.read(to_the_end=True) == []


def test_a_survivor_goes_on_where_the_dead_rank_was(tmp_path: Path) -> None:
    output = TaskOutput(tmp_path)
    output.follow([member(0, "a"), member(1, "b")])
    append(tmp_path, "a", "start\nepoch 1\n")
    append(tmp_path, "b", "start\nepoch 1\nepoch 2\n")
    assert output.read() == ["rank 0: start", "rank 0: epoch 1"]
    output.follow([member(1, "b")])
    assert output.read() == ["rank 1: epoch 2"]
    append(tmp_path, "c", "start\n")
    append(tmp_path, "b", "epoch 3\n")
    assert output.read() == ["rank 1: epoch 3"]
    output.follow([member(0, "c"), member(1, "b")])
    assert output.read() == []
    append(tmp_path, "c", "epoch 4\n")
    assert output.read() == ["rank 0: epoch 4"]


def test_of_a_flood_the_last_lines_are_told(tmp_path: Path) -> None:
    output = TaskOutput(tmp_path)
    output.follow([member(0, "a")])
    append(tmp_path, "a", "".join(f"{number}\n" for number in range(1, 1001)))
    lines = output.read()
    assert lines[0] == f"rank 0: ({1000 - LINES_AT_ONCE} more lines in {tmp_path / 'logs' / 'a.out'})"
    assert lines[1:] == [f"rank 0: {number}" for number in range(1001 - LINES_AT_ONCE, 1001)]


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b"  10%|#  |\r 100%|###|", " 100%|###|"),
        (b"\x1b[1;31mred\x1b[0m", "red"),
        (b"a\tb\x07\r", "a       b"),
        (b"\xff caf\xc3\xa9", "� café"),
        (b"x" * 600, "x" * 500 + "…"),
        (b"   ", ""),
    ],
)
def test_a_line_is_what_a_terminal_would_leave_of_it(line: bytes, text: str) -> None:
    assert clean(line) == text
