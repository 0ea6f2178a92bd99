"""GM-9, section 7: the host test finds what it is for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from workers import host_test


def test_a_host_that_is_well_passes(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "workers.host_test", str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert json.loads(done.stdout) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_one_wrong_bit_in_a_product_is_found(monkeypatch: pytest.MonkeyPatch, kind: type) -> None:
    class Faulty(np.ndarray):
        def __matmul__(self, other: Any) -> Any:
            product = np.asarray(self) @ np.asarray(other)
            bits = product.view(np.uint8)
            bits[17, 40] ^= 1
            return product

    class Matrices:
        """Of numpy's, but that one multiplier of `kind` has a stuck bit."""

        def __getattr__(self, name: str) -> object:
            return getattr(np, name)

        class random:
            PCG64 = np.random.PCG64

            class Generator:
                def __init__(self, source: Any) -> None:
                    self._inner = np.random.Generator(source)

                def integers(self, low: int, high: int, shape: tuple[int, int]) -> object:
                    return Stuck(self._inner.integers(low, high, shape))

    class Stuck:
        def __init__(self, values: np.ndarray) -> None:
            self.values = values

        def astype(self, wanted: type) -> np.ndarray:
            found: Any = self.values.astype(wanted)
            return found.view(Faulty) if wanted is kind else found

        def __matmul__(self, other: Stuck) -> np.ndarray:
            return self.values @ other.values

    monkeypatch.setattr(host_test, "np", Matrices())
    found = host_test.arithmetic()
    assert len(found) == host_test.ROUNDS and all(kind.__name__ in sentence for sentence in found)


def test_memory_that_forgets_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    class Forgets(np.ndarray):
        def __setitem__(self, key: Any, value: Any) -> None:
            super().__setitem__(key, value)
            super().__setitem__(5, 0)

    class Room:
        def __getattr__(self, name: str) -> object:
            return getattr(np, name)

        def empty(self, size: int, dtype: type) -> np.ndarray:
            return np.empty(size, dtype=dtype).view(Forgets)

    monkeypatch.setattr(host_test, "np", Room())
    assert [sentence.split(" of")[0] for sentence in host_test.memory()] == ["1 words", "1 words"]


def test_a_folder_that_cannot_be_written_is_found(tmp_path: Path) -> None:
    (found,) = host_test.disk(tmp_path / "nowhere")
    assert found.endswith("cannot be written and read: No such file or directory")


def test_a_disk_that_gives_back_something_else_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_bytes", lambda self: b"something else")
    assert host_test.disk(tmp_path) == [f"a file in {tmp_path} is not what was written to it"]
    assert list(tmp_path.iterdir()) == []
