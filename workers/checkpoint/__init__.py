"""Checkpoints, lossless or in QINS, published atomically, verified when read. Format: docs/checkpoints.md."""

from workers.checkpoint.background import BackgroundWriter
from workers.checkpoint.catalog import (
    Entry,
    check,
    list_checkpoints,
    load_newest,
    newest_valid,
    put_first,
    set_aside,
)
from workers.checkpoint.errors import CheckpointError, StaleWriter, StorageError, WrongModel
from workers.checkpoint.manifest import Manifest, read_manifest
from workers.checkpoint.reader import check_fits, load, verify
from workers.checkpoint.remote import Remote
from workers.checkpoint.retention import prune
from workers.checkpoint.writer import Published, save

__all__ = [
    "BackgroundWriter",
    "CheckpointError",
    "Entry",
    "Manifest",
    "Published",
    "Remote",
    "StaleWriter",
    "StorageError",
    "WrongModel",
    "check",
    "check_fits",
    "list_checkpoints",
    "load",
    "load_newest",
    "newest_valid",
    "prune",
    "put_first",
    "read_manifest",
    "save",
    "set_aside",
    "verify",
]
