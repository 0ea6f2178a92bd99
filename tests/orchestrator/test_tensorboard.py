"""TensorBoard files hold what `steps.jsonl` holds."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator.errors import UserError
from orchestrator.records import Record
from orchestrator.tensorboard import SCALARS, TensorBoardExport, export


def step(number: int, generation: tuple[int, int] = (1, 1), accuracy: float | None = None) -> Record:
    return {
        "t": 1_790_000_000.0 + number,
        "step": number,
        "generation": list(generation),
        "loss": 2.0 / number,
        "accuracy": accuracy,
        "lr_current": 0.5,
        "ranks": 4,
        "training_rate": 1024.0,
    }


def write(folder: Path, *records: Record) -> None:
    with (folder / "steps.jsonl").open("a") as file:
        file.write("".join(json.dumps(record) + "\n" for record in records))


def scalars(path: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, value) of every series in the event files under `path`, read by TensorBoard itself."""
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    tensor_util = pytest.importorskip("tensorboard.util.tensor_util")
    accumulator = loader.EventAccumulator(str(path), size_guidance={loader.TENSORS: 0})
    accumulator.Reload()
    return {
        tag: [(e.step, float(tensor_util.make_ndarray(e.tensor_proto))) for e in accumulator.Tensors(tag)]
        for tag in accumulator.Tags()["tensors"]
    }


def test_export_writes_the_surviving_line(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    write(tmp_path, step(1), step(2), step(2, (1, 2), accuracy=0.75))
    path = export(tmp_path)
    assert path == tmp_path / "tensorboard"
    found = scalars(path)
    assert set(found) == set(SCALARS)
    assert found["train/loss"] == [(1, 2.0), (2, 1.0)]
    assert found["eval/accuracy"] == [(2, 0.75)]
    assert found["train/learning_rate"] == [(1, 0.5), (2, 0.5)]
    assert found["world/ranks"] == [(1, 4.0), (2, 4.0)]
    assert found["train/samples_per_second"] == [(1, 1024.0), (2, 1024.0)]


def test_updates_write_only_what_is_new(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    with TensorBoardExport(tmp_path) as board:
        assert board.update() == 0  # no step yet
        write(tmp_path, step(1), step(2))
        assert board.update() == 2
        assert board.update() == 0
        write(tmp_path, step(1), step(3))  # a successor wrote step 1 again
        assert board.update() == 1
    assert [number for number, _ in scalars(board.path)["train/loss"]] == [1, 2, 3]


def test_null_and_infinite_values_are_left_out(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    write(tmp_path, {**step(1), "loss": float("inf"), "training_rate": None}, step(2))
    found = scalars(export(tmp_path))
    assert [number for number, _ in found["train/loss"]] == [2]
    assert [number for number, _ in found["train/samples_per_second"]] == [2]


def test_tensorboard_is_loaded_only_to_write(child_environment: dict[str, str]) -> None:
    program = "import sys, orchestrator.tensorboard; sys.exit('tensorboard' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], env=child_environment).returncode == 0


def test_without_tensorboard_one_sentence_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "tensorboard"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(UserError, match=r"install it with: pip install 'quantarion\[tensorboard\]', or write"):
        TensorBoardExport(tmp_path)
    assert not (tmp_path / "tensorboard").exists()
