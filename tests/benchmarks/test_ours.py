"""Our side of the benchmarks: its JobSpec is valid, and its script trains."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gate import open_gate, take_block
from benchmarks.peers import ddp, ours
from benchmarks.system import System, environment
from orchestrator import jobspec

SYSTEMS = [*ours.systems(4), ours.gated("mlp5m", 2)]


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.key)
def test_the_job_is_valid_and_one_micro_batch_per_step(system: System, tmp_path: Path) -> None:
    *_, path = system.command(tmp_path)
    spec = jobspec.load(Path(path), [])
    assert spec.ranks_per_host in (2, 4)
    assert spec.micro_batch == spec.global_batch == 256
    assert (spec.hosts.min, spec.hosts.max) == (1, 1)


@pytest.mark.parametrize("side", ["ours", "ddp"])
def test_both_sides_of_the_overhead_train_the_blocks_they_are_told_to(side: str, tmp_path: Path) -> None:
    for block, steps in enumerate((3, 2, 0)):
        open_gate(tmp_path, block, steps)
    command = ddp.system("mlp", 1).command(tmp_path)
    if side == "ours":
        ours.gated("mlp", 1).command(tmp_path)
        command = [sys.executable, str(tmp_path / "script.py")]  # alone, without a gang
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    blocks = [take_block(tmp_path, block) for block in range(3)]
    assert [None if seconds is None else len(seconds) for seconds in blocks] == [3, 2, None]
