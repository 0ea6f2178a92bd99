"""MNIST's own files: four IDX arrays in a folder, plain or gzipped."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from workers.errors import DataError

TRAIN = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
TEST = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_UNSIGNED_BYTE = 8


def read_mnist(folder: Path, names: tuple[str, str]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images [N, height * width] and labels [N] of the two files `names` in `folder`.

    Raises:
        DataError: a file is missing or damaged, or the two do not fit together.
    """
    images, labels = (read_idx(folder, name, ndim) for name, ndim in zip(names, (3, 1), strict=True))
    if len(images) != len(labels):
        raise DataError(f"{folder} holds {len(images)} images but {len(labels)} labels in {' and '.join(names)}")
    if len(images) == 0:
        raise DataError(f"{folder / names[0]} holds no images")
    if labels.max() > 9:
        raise DataError(f"{folder / names[1]} is damaged: it has the label {labels.max()}, where digits go from 0 to 9")
    return images.reshape(len(images), -1), labels


def read_idx(folder: Path, name: str, ndim: int) -> NDArray[np.uint8]:
    """The array of unsigned bytes with `ndim` dimensions in the file `name`, or `name`.gz, of `folder`.

    The format: two zero bytes, the type, the number of dimensions, each dimension as a big-endian 32-bit integer,
    then the data, last dimension fastest (Y. LeCun, "The MNIST database of handwritten digits").

    Raises:
        DataError: the file is missing or damaged.
    """
    path = present(folder, name)
    if path is None:
        raise DataError(
            f"{folder} holds neither {name} nor {name}.gz; point task.data.folder at a folder with MNIST's four IDX"
            " files, or set task.data.download to true"
        )
    content = _content(path)
    header = 4 + 4 * ndim
    if len(content) < header or content[:4] != bytes((0, 0, _UNSIGNED_BYTE, ndim)):
        raise DataError(f"{path} is no IDX file of bytes in {ndim} dimensions; fetch it again")
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", ndim, 4))
    expected = header + int(np.prod(shape, dtype=object))
    if len(content) != expected:
        raise DataError(f"{path} is damaged: it has {len(content)} bytes instead of {expected}; fetch it again")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def present(folder: Path, name: str) -> Path | None:
    """The file `name` of `folder`, plain before gzipped, or None."""
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _content(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if path.suffix == ".gz" else content
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is damaged and cannot be unpacked ({error}); fetch it again") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
