"""MNIST's own files: read from a folder, fetched from a mirror; damaged or missing, one sentence says so."""

from __future__ import annotations

import gzip
import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest

from workers.data.download import CHECKSUMS, cache_folder, fetch_mnist
from workers.data.idx import TEST, TRAIN, read_idx, read_mnist
from workers.errors import DataError


def idx_bytes(array: np.ndarray) -> bytes:
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(np.uint8).tobytes()


def write_mnist(folder: Path, num_train: int = 40, num_test: int = 20, packed: bool = True) -> None:
    """A folder like MNIST's, with small random images."""
    generator = np.random.default_rng(0)
    for names, count in ((TRAIN, num_train), (TEST, num_test)):
        images, labels = generator.integers(0, 256, (count, 28, 28)), np.arange(count) % 10
        for name, array in zip(names, (images, labels), strict=True):
            content = idx_bytes(array)
            (folder / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(content) if packed else content)


@pytest.mark.parametrize("packed", [True, False])
def test_a_folder_is_read_plain_or_packed(tmp_path: Path, packed: bool) -> None:
    write_mnist(tmp_path, packed=packed)
    images, labels = read_mnist(tmp_path, TRAIN)
    assert images.shape == (40, 784) and images.dtype == np.uint8
    assert labels.tolist() == [number % 10 for number in range(40)]
    assert np.array_equal(images.reshape(40, 28, 28), np.random.default_rng(0).integers(0, 256, (40, 28, 28)))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz; point task\.data\.folder at"):
        read_mnist(tmp_path, TRAIN)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no IDX file"),
        (b"\x00\x00\x08\x01\x00\x00\x00\x02ab", "no IDX file"),
        (idx_bytes(np.zeros((4, 3, 3)))[:-1], "has 51 bytes instead of 52"),
        (idx_bytes(np.zeros((4, 3, 3))) + b"x", "has 53 bytes instead of 52"),
        (b"\x00\x00\x08\x03" + b"\xff" * 12, "is damaged"),
    ],
)
def test_a_damaged_file_is_a_data_error(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "images").write_bytes(content)
    with pytest.raises(DataError, match=f"images.*{said}"):
        read_idx(tmp_path, "images", 3)


def test_a_damaged_packed_file_is_a_data_error(tmp_path: Path) -> None:
    whole = gzip.compress(idx_bytes(np.arange(900).reshape(100, 3, 3) % 256))
    for content in (b"no gzip", whole[: len(whole) // 2], whole[:-8] + b"12345678", b"\x1f\x8b\x08" + b"\xff" * 40):
        (tmp_path / "images.gz").write_bytes(content)
        with pytest.raises(DataError, match=r"images\.gz is damaged"):
            read_idx(tmp_path, "images", 3)


def test_images_and_labels_must_fit_together(tmp_path: Path) -> None:
    write_mnist(tmp_path, packed=False)
    (tmp_path / TRAIN[1]).write_bytes(idx_bytes(np.zeros(39)))
    with pytest.raises(DataError, match="40 images but 39 labels"):
        read_mnist(tmp_path, TRAIN)
    (tmp_path / TRAIN[1]).write_bytes(idx_bytes(np.full(40, 10)))
    with pytest.raises(DataError, match="the label 10"):
        read_mnist(tmp_path, TRAIN)
    (tmp_path / TRAIN[0]).write_bytes(idx_bytes(np.zeros((0, 28, 28))))
    (tmp_path / TRAIN[1]).write_bytes(idx_bytes(np.zeros(0)))
    with pytest.raises(DataError, match="holds no images"):
        read_mnist(tmp_path, TRAIN)


def mirror(folder: Path, name: str) -> str:
    (folder / name).mkdir()
    return (folder / name).as_uri() + "/"


def test_files_are_fetched_from_the_first_mirror_that_has_them_right(tmp_path: Path) -> None:
    broken, honest, kept = mirror(tmp_path, "broken"), mirror(tmp_path, "honest"), tmp_path / "cache" / "mnist"
    write_mnist(tmp_path / "honest")
    checksums = {
        name: hashlib.sha256(gzip.decompress((tmp_path / "honest" / f"{name}.gz").read_bytes())).hexdigest()
        for name in CHECKSUMS
    }
    (tmp_path / "broken" / f"{TRAIN[0]}.gz").write_bytes(gzip.compress(b"something else"))
    (tmp_path / "broken" / f"{TRAIN[1]}.gz").write_bytes(b"no gzip")
    fetch_mnist(kept, (broken, honest), checksums)
    assert sorted(path.name for path in kept.iterdir()) == sorted(f"{name}.gz" for name in CHECKSUMS)
    assert len(read_mnist(kept, TEST)[0]) == 20
    fetch_mnist(kept, (), checksums)  # all there: nothing is asked of a mirror


def test_without_a_mirror_one_sentence_says_what_to_do(tmp_path: Path) -> None:
    broken = mirror(tmp_path, "broken")
    (tmp_path / "broken" / f"{TRAIN[0]}.gz").write_bytes(gzip.compress(b"something else"))
    with pytest.raises(DataError, match=r"another checksum; .*nowhere.*; set task\.data\.folder"):
        fetch_mnist(tmp_path / "cache", (broken, (tmp_path / "nowhere").as_uri() + "/"))
    assert not (tmp_path / "cache").exists()


def test_a_cache_that_cannot_be_written_is_a_data_error(tmp_path: Path) -> None:
    honest = mirror(tmp_path, "honest")
    write_mnist(tmp_path / "honest")
    content = gzip.decompress((tmp_path / "honest" / f"{TRAIN[0]}.gz").read_bytes())
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot be kept in .*file/mnist.*writable folder"):
        fetch_mnist(tmp_path / "file" / "mnist", (honest,), {TRAIN[0]: hashlib.sha256(content).hexdigest()})


def test_the_cache_lies_in_the_users_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "quantarion" / "mnist"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "quantarion" / "mnist"
