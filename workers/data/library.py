"""The source text of Python's own standard library, as bytes: a language-model corpus that every host has."""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from workers.errors import DataError

END_OF_FILE = b"\0"
"""Follows each file; no Python source holds it."""

OTHER_PACKAGES = ("site-packages", "dist-packages", "ensurepip")
TESTS_AND_TOOLS = ("test", "tests", "idle_test", "idlelib", "lib2to3", "distutils", "turtledemo", "__pycache__")
TABLES = ("encodings", "pydoc_data")
LEFT_OUT = frozenset((*OTHER_PACKAGES, *TESTS_AND_TOOLS, *TABLES))
"""Folders whose files are not read."""

LOCAL_FILES = ("_sysconfigdata", "sitecustomize", "usercustomize")
"""How files begin that say something about one host."""


@dataclass(frozen=True)
class LibraryText:
    """Training and held-out text, of different files, and the number of files that were there to choose from.

    `digest` is 48 bits of both texts, so a float64 holds it: ranks whose hosts have another Python see other text.
    """

    train: bytes
    held_out: bytes
    num_files: int
    digest: int


def read_library(
    limit: int = 4_000_000, seed: int = 0, held_out_every: int = 10, folder: Path | None = None
) -> LibraryText:
    """Read at most `limit` bytes of the standard library, in an order of its files that `seed` decides.

    Every `held_out_every`-th file of an order that the names alone decide is held out, and the held-out text is the same
    for every seed. The texts share the limit in that ratio; the last file of each is cut off where it is reached.

    Args:
        folder: with the library; None: of the Python that runs.

    Raises:
        DataError: there is no source text to train on, or none to hold out.
    """
    root = Path(sysconfig.get_path("stdlib")) if folder is None else folder
    names = sorted(_names(root), key=lambda name: _word(name, -1))
    held_out = names[::held_out_every]
    train = sorted(set(names).difference(held_out))
    share = limit // held_out_every
    texts = [_text(root, train, limit - share, seed), _text(root, held_out, share, 0)]
    if not all(texts):
        raise DataError(
            f"{root} holds {len(names)} source files of Python's standard library, too few to train on and to hold out;"
            " run a Python whose library is installed as *.py files"
        )
    digest = hashlib.blake2b(texts[0] + texts[1], digest_size=6).digest()
    return LibraryText(texts[0], texts[1], len(names), int.from_bytes(digest, "little"))


def _names(root: Path) -> Iterator[str]:
    """Names relative to `root`, with slashes, of the files that belong to the library proper."""
    for path in root.rglob("*.py"):
        name = path.relative_to(root)
        folders = name.parts[:-1]
        local = path.name.startswith(LOCAL_FILES) or any(part.startswith("config-") for part in folders)
        if not local and LEFT_OUT.isdisjoint(folders):
            yield name.as_posix()


def _word(name: str, seed: int) -> bytes:
    return hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()


def _text(root: Path, names: Iterable[str], limit: int, seed: int) -> bytes:
    pieces, size = [], 0
    for name in sorted(names, key=lambda name: _word(name, seed)):
        if size >= limit:
            break
        pieces.append(_content(root / name) + END_OF_FILE)
        size += len(pieces[-1])
    return b"".join(pieces)[:limit]


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes().replace(b"\r\n", b"\n")
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}); install this Python's standard library again"
        ) from error
