"""A safetensors file of rows of bytes, written one after the other while the next ones are made.

Such a file begins with a header that says where everything lies. Room for it is left, and it is written last. What was
written meanwhile goes to the disk in the background, so that the sync at the end has little left to do.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

FLUSH_BYTES = 32 << 20
"""After so many it is said to the disk that it may write them."""

ALIGNMENT = 64
"""Of the first row in the file."""

LONGEST_HEADER = 100_000_000
"""That readers of such files accept."""

_LENGTH = 8
_FURTHEST = 10**15
"""Bytes that no file has."""


def room(metadata: Mapping[str, str], keys: list[str]) -> int:
    """Bytes that the header of these rows takes, however long they are. Raises ValueError where no reader would take it."""
    needed = len(_header(metadata, dict.fromkeys(keys, (_FURTHEST, 2 * _FURTHEST))))
    found = needed + -(needed + _LENGTH) % ALIGNMENT
    if found > LONGEST_HEADER:
        raise ValueError(f"{len(keys)} chunks need a list of {needed} bytes, more than {LONGEST_HEADER}")
    return found


class BlobFile:
    """A new file, open inside `with`; methods raise OSError. Without `finish` it is none that can be read."""

    def __init__(self, path: Path, header_bytes: int, *, flushes: bool = False) -> None:
        """`header_bytes`: of `room`. `flushes`: it will be synced at the end."""
        self._room = header_bytes
        self._places: dict[str, tuple[int, int]] = {}
        self._end = self._flushed = 0
        self._file = path.open("xb")
        self._file.seek(_LENGTH + header_bytes)
        self._flusher = _Flusher(self._file.fileno()) if flushes else None

    def add(self, key: str, row: bytes) -> None:
        """The next one."""
        self._file.write(row)
        self._places[key] = self._end, self._end + len(row)
        self._end += len(row)
        if self._flusher is not None and self._end - self._flushed >= FLUSH_BYTES:
            self._file.flush()
            self._flusher.start()
            self._flushed = self._end

    def finish(self, metadata: Mapping[str, str]) -> None:
        """The header. Equal rows and metadata give equal bytes."""
        text = _header(metadata, self._places)
        if len(text) > self._room:
            raise AssertionError(f"a header of {len(text)} bytes in a room of {self._room}")
        self._file.seek(0)
        self._file.write(self._room.to_bytes(_LENGTH, "little") + text.ljust(self._room))
        self._file.flush()
        if self._flusher is not None:
            self._flusher.end()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if self._flusher is not None:
                self._flusher.end()
        except OSError:
            if error is None:
                raise
        finally:
            self._file.close()


class _Flusher:
    """A thread that has what is in a file written to the disk, as often as it is asked to."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._wanted = threading.Event()
        self._is_dirty = self._is_over = False
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._run, name="checkpoint-flusher", daemon=True)
        self._thread.start()

    def start(self) -> None:
        self._is_dirty = True
        self._wanted.set()

    def end(self) -> None:
        """Raises OSError where the disk has refused: whoever syncs the file afterwards may not be told again."""
        self._is_over = True
        self._wanted.set()
        self._thread.join()
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _run(self) -> None:
        while True:
            self._wanted.wait()
            self._wanted.clear()
            is_over = self._is_over  # before: then what was asked for until then is done
            if self._is_dirty:
                self._is_dirty = False
                try:
                    os.fdatasync(self._descriptor)
                except OSError as error:
                    self._error = error
                    return
            if is_over:
                return


def _header(metadata: Mapping[str, str], places: Mapping[str, tuple[int, int]]) -> bytes:
    listed = {
        key: {"dtype": "U8", "shape": [end - start], "data_offsets": [start, end]} for key, (start, end) in places.items()
    }
    content = {"__metadata__": dict(sorted(metadata.items())), **listed}
    return json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
