"""What a host has left: memory, disk, processors (GM-21).

A container has what its control group allows, not what the machine has. Of both versions of control groups, and of all
groups above the own one, the limit that is nearest counts. A number that cannot be had is None.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import psutil

CONTROL_GROUPS = Path("/sys/fs/cgroup")
MEMBERSHIPS = Path("/proc/self/cgroup")
VERSION_2 = ""
"""Where version 1 names a controller, version 2 names none."""

Read = Callable[[str], str | None]
"""The text of a file below `CONTROL_GROUPS`; None where it cannot be read."""


class Resources(NamedTuple):
    """Of a host.

    Attributes:
        memory: used, as a share of the limit that is nearest.
        disk: used, as a share, where it is more: of the job's storage or of the runtime folder.
        load: average of a minute, per core; a quota of processor time counts as so many cores.
        cpu: share of the time of all the machine's cores; shown only, as 1 is normal.
    """

    memory: float | None = None
    disk: float | None = None
    load: float | None = None
    cpu: float | None = None


# ---------------------------------------------------------------- control groups, by their files


def memberships(text: str) -> dict[str, str]:
    """By controller, the path of the group that a process is in, out of its `/proc/<pid>/cgroup`."""
    found = {}
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        found.update(dict.fromkeys(controllers.split(","), path))
    return found


def folders(groups: Mapping[str, str], controller: str) -> list[str]:
    """Of the own group and all above it, relative to `CONTROL_GROUPS`, of version 1 and 2; not each need be there.

    In a container the path may be the one outside of it: then only the top is there, which is the container's own group.
    """
    found = []
    for name, top in ((controller, controller), (VERSION_2, ".")):
        if name in groups:
            path = PurePosixPath(top, groups[name].strip("/"))
            if ".." in path.parts:  # outside of what this process can see
                path = PurePosixPath(top)
            found += [str(each) for each in (path, *path.parents) if each.is_relative_to(top)]
    return found


def memory_shares(groups: Mapping[str, str], read: Read) -> Iterator[float]:
    """Of each limit that there is: how much of it is used by what cannot simply be dropped, such as files read before."""
    for folder in folders(groups, "memory"):
        for limit, used, cached in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            allowed, present = _whole(read(f"{folder}/{limit}")), _whole(read(f"{folder}/{used}"))
            if allowed and present is not None:
                dropped = _entry(read(f"{folder}/memory.stat") or "", cached)
                yield max(0, present - dropped) / allowed


def quotas(groups: Mapping[str, str], read: Read) -> Iterator[float]:
    """Cores' worth of processor time that each group allows."""
    for folder in folders(groups, "cpu"):
        quota, _, period = (read(f"{folder}/cpu.max") or "").partition(" ")
        if _whole(quota) is None:
            quota, period = read(f"{folder}/cpu.cfs_quota_us") or "", read(f"{folder}/cpu.cfs_period_us") or ""
        allowed, of = _whole(quota), _whole(period)
        if allowed is not None and allowed > 0 and of:
            yield allowed / of


def _whole(text: str | None) -> int | None:
    """None for `max` too."""
    try:
        return int(text or "")
    except ValueError:
        return None


def _entry(stat: str, name: str) -> int:
    """Of the lines `name value`; 0 where it is missing."""
    for line in stat.splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return _whole(value) or 0
    return 0


# ---------------------------------------------------------------- this host


def read_resources(paths: Iterable[Path]) -> Resources:
    """Now. `cpu` is of the time since the last call, and 0 at the first one. May hang where a file system does.

    Args:
        paths: on the disks that count.
    """
    groups = dict[str, str]()
    with suppress(OSError, ValueError):
        groups = memberships(MEMBERSHIPS.read_text())
    shares, cores = list(memory_shares(groups, _file)), [float(len(os.sched_getaffinity(0))), *quotas(groups, _file)]
    with suppress(OSError):
        machine = psutil.virtual_memory()
        shares.append((machine.total - machine.available) / machine.total)
    disks = [share for path in paths if (share := disk_share(path)) is not None]
    cpu = None
    with suppress(OSError, RuntimeError):
        cpu = psutil.cpu_percent() / 100
    found = (max(shares, default=None), max(disks, default=None), _load(min(cores)), cpu)
    return Resources(*map(_if_it_can_be, found))


def _if_it_can_be(value: float | None) -> float | None:
    """What a kernel in a container says may be nonsense, and whoever told that on would be thought broken."""
    return value if value is not None and math.isfinite(value) and value >= 0 else None


def disk_share(path: Path) -> float | None:
    """Used, of what this user may use of the disk that `path` is on; None where it cannot be told."""
    try:
        usage = psutil.disk_usage(str(path))
    except OSError:
        return None
    whole = usage.used + usage.free
    return usage.used / whole if whole else None


def _load(cores: float) -> float | None:
    try:
        return os.getloadavg()[0] / cores
    except OSError:
        return None


def _file(name: str) -> str | None:
    try:
        return (CONTROL_GROUPS / name).read_text().strip()
    except OSError:
        return None
