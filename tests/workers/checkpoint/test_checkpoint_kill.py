"""CK-5, section 4: kill -9 at any moment of a write leaves the previous checkpoint or the new one, always whole."""

from __future__ import annotations

import importlib.util
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

import workers.checkpoint
from workers.checkpoint import list_checkpoints, load, newest_valid, prune, save
from workers.checkpoint.catalog import check
from workers.state import digest

SCRIPT = Path(__file__).with_name("writer_process.py")


def script_module() -> object:
    spec = importlib.util.spec_from_file_location("writer_process", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("kills", [20, pytest.param(200, marks=pytest.mark.long)])
def test_ck5_kill_9_at_random_moments_of_a_write(kills: int, tmp_path: Path) -> None:
    """CK-5: what was reported as published stays; nothing half-written is ever visible."""
    root, chance, writing = tmp_path / "checkpoints", random.Random(kills), script_module()
    save(writing.state_of(1), root, job="kill", step=1, generation=(1, 1), lineage=1, world=1, fence=lambda: True)  # type: ignore[attr-defined]
    repository = Path(workers.checkpoint.__file__).parents[2]
    path = os.pathsep.join([str(repository), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(SCRIPT), str(root)]
    published, cut_short = 1, 0
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        for _ in range(kills):
            print(chance.uniform(0.001, 0.08), file=process.stdin, flush=True)
            while (line := process.stdout.readline().split()) != ["ended"]:
                published = int(line[1])
            cut_short += sum(entry.name.startswith(".tmp-") for entry in root.iterdir())
            entries = [check(entry) for entry in list_checkpoints(root)]
            assert [entry.reason for entry in entries if not entry.valid] == []
            newest = newest_valid(root)
            assert newest is not None and newest.step in (published, published + 1)
            assert digest(load(newest.path)) == digest(writing.state_of(newest.step))  # type: ignore[attr-defined]
            published = newest.step
            prune(root, 1, lambda: True)
            make_stale(root)
        process.stdin.close()
    assert cut_short > 0, "no kill hit a write"


def make_stale(root: Path) -> None:
    """Age what killed writers left, so that the next writer sweeps it."""
    for hidden in root.glob(".tmp-*"):
        for path in (*hidden.iterdir(), hidden):
            os.utime(path, (1e9, 1e9))
