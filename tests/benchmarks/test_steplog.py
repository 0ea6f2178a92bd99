"""The log of commits, and the gate that lets two gangs train in turns."""

from __future__ import annotations

import os
import threading
from multiprocessing import get_context
from pathlib import Path

from benchmarks.gate import Gate, open_gate, take_block
from benchmarks.steplog import LOG_NAME, Commit, LogTail, StepLog

PROCESSES = 4
LINES = 200


def _write(folder: Path, rank: int) -> None:
    log = StepLog(folder)
    for step in range(LINES):
        log.commit(begun=1.0, rank=rank, world=PROCESSES, step=step)


def test_lines_of_many_processes_stay_whole(tmp_path: Path) -> None:
    context = get_context("spawn")
    writers = [context.Process(target=_write, args=(tmp_path, rank)) for rank in range(PROCESSES)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    commits = LogTail(tmp_path).poll()
    assert sorted((c.rank, c.step) for c in commits) == [(r, s) for r in range(PROCESSES) for s in range(LINES)]
    assert {c.pid for c in commits} == {writer.pid for writer in writers}


def test_tail_gives_each_line_once_and_waits_for_the_end_of_one(tmp_path: Path) -> None:
    tail = LogTail(tmp_path)
    assert tail.poll() == []
    log = StepLog(tmp_path)
    log.commit(begun=1.0, rank=0, world=1, step=1)
    with (tmp_path / LOG_NAME).open("ab") as file:
        file.write(b'{"t": 2.0, "begun": 1.0, "pid": 5, ')
    assert [c.step for c in tail.poll()] == [1]
    with (tmp_path / LOG_NAME).open("ab") as file:
        file.write(b'"rank": 1, "world": 2, "step": 2}\n')
    assert tail.poll() == [Commit(2.0, 1.0, 5, 1, 2, 2)]
    assert tail.poll() == []


def test_gate_runs_the_steps_of_each_block_and_ends(tmp_path: Path) -> None:
    steps = 0

    def gang() -> None:
        nonlocal steps
        gate = Gate(tmp_path, rank=0)
        while gate.wait():
            steps += 1
            gate.committed()

    thread = threading.Thread(target=gang)
    for block, length in enumerate((3, 2, 0)):
        open_gate(tmp_path, block, length)
    thread.start()
    thread.join()
    assert steps == 5
    blocks = [take_block(tmp_path, block) for block in range(3)]
    assert [None if seconds is None else len(seconds) for seconds in blocks] == [3, 2, None]


def test_only_rank_0_answers(tmp_path: Path) -> None:
    open_gate(tmp_path, 0, 1)
    gate = Gate(tmp_path, rank=1)
    assert gate.wait()
    gate.committed()
    assert take_block(tmp_path, 0) is None
    assert os.listdir(tmp_path) == ["go-0"]
