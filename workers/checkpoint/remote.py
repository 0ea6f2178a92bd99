"""A folder or an object of an object store, through fsspec (CK-5).

Such a store has no folders, no rename and no fsync: an object is there as a whole or not at all, and can be put on the
condition that there is none of its name yet. fsspec has drivers for many; tested is that for the S3 API.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from errno import EDQUOT, ENOSPC, ENOSYS, EROFS
from http.client import PRECONDITION_FAILED
from pathlib import Path
from tempfile import gettempdir
from typing import Any

from workers.checkpoint.errors import CheckpointError

_EXTRAS = {"s3": "s3", "s3a": "s3"}
"""Of this package, by the beginning of a URL: what brings its driver."""

_PATIENT = {"connect_timeout": 10, "read_timeout": 60, "retries": {"max_attempts": 1, "mode": "standard"}}
_HURRIED = {"connect_timeout": 5, "read_timeout": 10, "retries": {"max_attempts": 1, "mode": "standard"}}
"""Of an S3 client: seconds after which it gives up a request, which it repeats once; its driver repeats both, up to 5
times, where no answer comes."""

_LEAST_RATE = 500e3
_GRACE_SECONDS = 300.0
"""What goes up or down has so long, and a second for so many bytes: a peer that reads nothing more is not noticed else."""

_DOWNLOADS = 3
"""Attempts, as drivers do not repeat what breaks in the middle of an answer."""

_OWN_DISK = (ENOSPC, EDQUOT, EROFS)

_MODIFIED = ("LastModified", "last_modified", "mtime", "updated", "created")
"""What drivers call the time of an object."""


@dataclass(frozen=True)
class Remote:
    """A place by its URL, such as `s3://bucket/runs/my-job`; `options` are fsspec's `storage_options`.

    It has of `pathlib.Path` what places of checkpoints need. Methods that ask the store raise FileNotFoundError where there
    is nothing; another OSError, with what the store says, where it refuses or does not answer; CheckpointError where its
    driver is missing.
    """

    url: str
    options: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "url", self.url.rstrip("/"))

    def in_a_hurry(self) -> Remote:
        """The same, for a question that somebody waits for."""
        return Remote(
            self.url, {"config_kwargs": _HURRIED, **self.options} if _scheme(self.url) in _EXTRAS else self.options
        )

    def __truediv__(self, name: str) -> Remote:
        return Remote(f"{self.url}/{name}", self.options)

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        """What stands behind the last slash."""
        return self.url.rpartition("/")[2]

    @property
    def parent(self) -> Remote:
        """The folder that it is in."""
        return Remote(self.url.rpartition("/")[0], self.options)

    def with_name(self, name: str) -> Remote:
        """Beside it."""
        return self.parent / name

    def size(self) -> int:
        """Bytes of an object."""
        with self._store() as (fs, path):
            info = fs.info(path)
        if info["type"] != "file":
            raise FileNotFoundError("there is no such object")
        return int(info["size"])

    def read(self) -> bytes:
        """An object's content."""
        with self._store() as (fs, path):
            content: bytes = fs.cat_file(path)
        return content

    def download(self, target: Path) -> None:
        """An object's content into a file."""
        for attempt in range(1, _DOWNLOADS + 1):
            try:
                with self._store() as (fs, path):
                    self._in_time(fs, "get_file", int(fs.info(path)["size"]), path, str(target))
                return
            except FileNotFoundError:
                raise
            except OSError:
                if attempt == _DOWNLOADS:
                    raise

    def upload(self, source: Path) -> None:
        """A file's content as an object, in place of the one of that name."""
        with self._store() as (fs, path):
            self._in_time(fs, "put_file", source.stat().st_size, str(source), path)

    @staticmethod
    def _in_time(fs: Any, method: str, size: int, *arguments: str) -> None:
        """Call a method of fsspec's file system, which is given up when it takes far too long, if it can be."""
        if not fs.async_impl:
            getattr(fs, method)(*arguments)
            return
        from fsspec.asyn import sync

        sync(fs.loop, getattr(fs, f"_{method}"), *arguments, timeout=_GRACE_SECONDS + size / _LEAST_RATE)

    def create(self, content: bytes) -> bool:
        """An object with this content, which is smaller than a part of an upload in parts; False where there is one with
        another content already.

        Where a store cannot be asked for that, who comes at the same moment may replace it.
        """
        with self._store() as (fs, path):
            try:
                fs.pipe_file(path, content, mode="create")
            except OSError as error:
                if _is_there(error):
                    return bool(fs.cat_file(path) == content)  # the same: an answer was lost, and the request repeated
                if error.errno != ENOSYS:
                    raise
                if fs.exists(path):
                    return bool(fs.cat_file(path) == content)
                fs.pipe_file(path, content)
        return True

    def objects(self) -> dict[str, float]:
        """All that lie below, by what their URL has behind this one's; when they were written, by the store's clock in Unix
        seconds, or 0 where it does not say. Empty where there is nothing."""
        with self._store() as (fs, path):
            try:
                found: Mapping[str, Mapping[str, Any]] = fs.find(path, detail=True)
            except FileNotFoundError:
                return {}
            below = f"{fs._strip_protocol(path)}/"
        return {name.removeprefix(below): _modified(info) for name, info in found.items() if name.startswith(below)}

    def remove(self, names: Sequence[str]) -> None:
        """Objects below, by `objects`' names; those that are not there are gone already."""
        with self._store() as (fs, path):
            for name in names:
                try:
                    fs.rm_file(f"{path}/{name}")
                except FileNotFoundError:
                    continue

    @contextmanager
    def _store(self) -> Iterator[tuple[Any, str]]:
        """fsspec's file system and the path in it."""
        import fsspec  # torch brings it; its drivers take a while to load

        scheme = _scheme(self.url)
        if not scheme:
            raise CheckpointError(
                f"{self.url!r} cannot be reached: it names no bucket; write a URL such as s3://bucket/folder"
            )
        options = {"use_listings_cache": False, **self.options}
        if scheme in _EXTRAS:
            options = {"config_kwargs": _PATIENT, **options}
        try:
            fs, path = fsspec.url_to_fs(self.url, **options)
        except ImportError as error:
            advice = f"install it: pip install 'quantarion[{_EXTRAS[scheme]}]'" if scheme in _EXTRAS else str(error)
            raise CheckpointError(f"{self.url} needs a driver that is not installed; {advice}") from None
        except (ValueError, TypeError) as error:
            advice = "write a URL such as s3://bucket/folder"
            raise CheckpointError(f"{self.url} cannot be reached: {error}; {advice}") from None
        try:
            yield fs, path
        except FileNotFoundError:
            raise FileNotFoundError("there is no such object, or no such bucket") from None
        except OSError as error:
            if error.errno in _OWN_DISK:
                why = f"the disk of {gettempdir()} does not take it ({error.strerror})"
                raise OSError(f"{why}; free some space there") from error
            raise _said(error) from error
        except Exception as error:  # drivers pass on what the libraries below them raise
            raise _said(error) from error


def io_thread() -> int | None:
    """The thread of this process in which drivers talk to stores, by its number at the kernel."""
    from fsspec.asyn import get_loop, iothread

    get_loop()
    return iothread[0].native_id if iothread and iothread[0] is not None else None


def _said(error: Exception) -> OSError:
    kind = "" if isinstance(error, OSError) else f"{type(error).__name__}: "
    words = " ".join(str(error).split()) or type(error).__name__
    advice = "; give these credentials the right to read and write there" * isinstance(error, PermissionError)
    return OSError(f"the store answers: {kind}{words}{advice}")


def _is_there(error: OSError) -> bool:
    """Whether a request with the condition that there is nothing was refused for that (412)."""
    response = getattr(error.__cause__, "response", None) or {}
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return isinstance(error, FileExistsError) or status == PRECONDITION_FAILED


def _scheme(url: str) -> str:
    scheme, found, _ = url.partition("://")
    return scheme if found else ""


def _modified(info: Mapping[str, Any]) -> float:
    value = next((info[key] for key in _MODIFIED if info.get(key) is not None), 0.0)
    return value.timestamp() if isinstance(value, datetime) else float(value)
