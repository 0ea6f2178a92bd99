"""Removes what a dead job left: processes, runtime folders, half-written checkpoints, actors. Touches nothing alive.

A thing is swept only on evidence: a process whose driver is gone, a folder that no process has open or mapped, a
temporary checkpoint of a job that is over. Where there is only silence, as from a coordinator on another machine,
things must also be old.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from orchestrator import rayenv, reaper, status
from workers.paths import runtime_roots

YOUNG_SECONDS = 60.0
"""Folders younger than this are left: their owner may just be starting."""

SILENT_SECONDS = 3600.0
"""Temporary checkpoints of a silent job elsewhere are left until they are older than this."""

_NAMESPACES = rayenv.namespace("")


def sweep(storage: Path) -> list[str]:
    """Sweep this machine and `storage`; a line for each thing removed."""
    return [*orphans(), *runtime_folders(), *checkpoints(storage)]


def orphans() -> list[str]:
    """End marked processes of this user whose driver is gone."""
    folders: dict[int, str] = {}

    def dead(each: reaper.Marked) -> bool:
        if reaper.is_alive(each.driver):
            return False
        folders[each.pid] = each.folder
        return True

    return [f"ended process {pid}, left by a dead run of {folders[pid]}" for pid in reaper.kill(dead)]


def runtime_folders(roots: Iterable[Path] | None = None) -> list[str]:
    """Remove folders with sockets, pages, shared memory and Ray's files, under `roots`, that no process uses."""
    roots = _runtime_roots() if roots is None else roots
    candidates = [each for root in roots for each in _folders_in(root) if _age(each) > YOUNG_SECONDS]
    if not candidates:
        return []
    used = open_paths()
    return [
        f"removed {folder}"
        for folder in candidates
        if not any(Path(path).is_relative_to(folder) for path in used) and _remove(folder)
    ]


def checkpoints(storage: Path) -> list[str]:
    """Remove half-written checkpoints (`.tmp-*`) of jobs that are over."""
    removed = []
    for hidden in sorted(storage.glob("*/checkpoints/.tmp-*")):
        folder = hidden.parent.parent
        if _is_over(folder, _age(hidden)) and _remove(hidden):
            removed.append(f"removed {hidden}, a checkpoint whose writer died")
    return removed


def cluster(address: str) -> list[str]:
    """Remove detached actors and placement groups of jobs without a living driver from the Ray cluster at `address`.

    Raises:
        UserError: exit code 6; the cluster does not answer.
    """
    rayenv.connect(address, "quantarion.doctor")
    try:
        return list(_cluster_leftovers())
    finally:
        rayenv.disconnect()


def job_alive(folder: Path) -> bool:
    """True where the coordinator of the job in `folder` answers, or processes of it with a living driver are here."""
    if status.fetch(folder) is not None:
        return True
    resolved = folder.resolve()
    return any(Path(each.folder).resolve() == resolved and reaper.is_alive(each.driver) for each in reaper.marked())


def open_paths() -> set[str]:
    """Paths of all files that processes have open or mapped, and of all Unix sockets, as far as this user may see."""
    paths: set[str] = set()
    namespaces: set[str] = set()
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        with suppress(OSError):
            paths.update(_last_field(process / "maps"))
        with suppress(OSError):
            for entry in (process / "fd").iterdir():
                with suppress(OSError):
                    paths.add(os.readlink(entry))
        with suppress(OSError):
            network = os.readlink(process / "ns" / "net")
            if network not in namespaces:
                namespaces.add(network)
                paths.update(_last_field(process / "net" / "unix"))
    return {path for path in paths if path.startswith("/")}


def _last_field(table: Path) -> Iterator[str]:
    for line in table.read_text(errors="surrogateescape").splitlines():
        start = line.find("/")
        if start >= 0:
            yield line[start:].removesuffix(" (deleted)")


def _runtime_roots() -> list[Path]:
    bases = (tempfile.gettempdir(), "/tmp")  # where the embedded cluster has its files
    return sorted({*runtime_roots(), *(Path(base, f"quantarion-{os.getuid()}") for base in bases)})


def _folders_in(root: Path) -> list[Path]:
    with suppress(OSError):
        found = [each for each in root.iterdir() if each.is_dir() and not each.is_symlink()]
        return sorted(each for each in found if each.stat().st_uid == os.getuid())
    return []


def _is_over(folder: Path, age: float) -> bool:
    if job_alive(folder):
        return False
    if status.ended(folder) is not None:
        return True
    coordinator = status.read_coordinator(folder)
    here = coordinator is not None and coordinator.address.startswith("127.")  # then its processes were all here
    return here or age > SILENT_SECONDS


def _age(folder: Path) -> float:
    """Seconds since anything in the folder's two upper levels changed."""
    newest = 0.0
    with suppress(OSError):
        newest = folder.lstat().st_mtime
        for entry in folder.iterdir():
            with suppress(OSError):
                newest = max(newest, entry.lstat().st_mtime)
    return time.time() - newest


def _remove(folder: Path) -> bool:
    shutil.rmtree(folder, ignore_errors=True)
    return not folder.exists()


def _cluster_leftovers() -> Iterator[str]:
    import ray
    from ray._private.state import state
    from ray._raylet import PlacementGroupID
    from ray.core.generated import gcs_pb2
    from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

    table: Any = gcs_pb2  # made by protoc, without types
    jobs = [table.JobTableData.FromString(job) for job in state._connect_and_get_accessor().get_job_table()]
    living = {job.config.ray_namespace for job in jobs if not job.is_dead}
    for actor in ray.util.list_named_actors(all_namespaces=True):
        name, namespace = actor["name"], actor["namespace"]
        if namespace.startswith(_NAMESPACES) and namespace not in living:
            with suppress(ValueError):  # it ended by itself
                ray.kill(ray.get_actor(name, namespace), no_restart=True)
                yield f"ended actor {name} of {namespace}"
    for group in placement_group_table().values():
        namespace, marker, _ = str(group["name"]).rpartition("-host-")
        if marker and group["state"] != "REMOVED" and namespace.startswith(_NAMESPACES) and namespace not in living:
            remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(group["placement_group_id"])))
            yield f"removed placement group {group['name']} and what ran in it"
