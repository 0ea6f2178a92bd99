"""GM-21: what a host has left, by the control groups that it is in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import pytest

from workers import resources
from workers.resources import Resources, disk_share, folders, memberships, memory_shares, quotas, read_resources

UNLIMITED = str(2**63 - 4096)
VERSION_1 = "9:name=systemd:/a\n4:memory:/pods/p1\n2:cpuacct,cpu:/pods/p1\n0::/\n"
VERSION_2 = "0::/kubepods.slice/p1.slice\n"


def read(files: Mapping[str, str]) -> resources.Read:
    return files.get


def test_gm21_each_controller_of_version_1_has_a_path_and_version_2_has_one() -> None:
    assert memberships(VERSION_1) == {
        "name=systemd": "/a",
        "memory": "/pods/p1",
        "cpuacct": "/pods/p1",
        "cpu": "/pods/p1",
        "": "/",
    }
    assert memberships(VERSION_2) == {"": "/kubepods.slice/p1.slice"}
    assert memberships("0::/odd:name\n") == {"": "/odd:name"}


def test_gm21_limits_above_the_own_group_count_too() -> None:
    assert folders(memberships(VERSION_2), "memory") == ["kubepods.slice/p1.slice", "kubepods.slice", "."]
    assert folders(memberships(VERSION_1), "memory") == ["memory/pods/p1", "memory/pods", "memory", "."]
    assert folders({}, "memory") == []


def test_gm21_of_a_path_outside_of_what_can_be_seen_only_the_top_is_there() -> None:
    assert folders(memberships("0::/../../other\n"), "cpu") == ["."]
    assert folders(memberships("3:cpu:/..\n"), "cpu") == ["cpu"]


def test_gm21_memory_of_version_2_is_without_what_can_be_dropped() -> None:
    files = {
        "kubepods.slice/p1.slice/memory.max": "1000",
        "kubepods.slice/p1.slice/memory.current": "900",
        "kubepods.slice/p1.slice/memory.stat": "anon 500\ninactive_file 300\nactive_file 100",
        "kubepods.slice/memory.max": "max",
        "kubepods.slice/memory.current": "5000",
        "./memory.max": "4000",
        "./memory.current": "1000",
    }
    assert list(memory_shares(memberships(VERSION_2), read(files))) == [0.6, 0.25]


def test_gm21_memory_of_version_1() -> None:
    files = {
        "memory/pods/p1/memory.limit_in_bytes": "2000",
        "memory/pods/p1/memory.usage_in_bytes": "1900",
        "memory/pods/p1/memory.stat": "cache 400\ntotal_inactive_file 500",
        "memory/memory.limit_in_bytes": UNLIMITED,
        "memory/memory.usage_in_bytes": "123456",
    }
    own, top = memory_shares(memberships(VERSION_1), read(files))
    assert own == 0.7 and 0 < top < 1e-12


def test_gm21_in_a_container_of_version_1_the_path_is_that_outside_and_the_top_is_the_own_group() -> None:
    files = {"memory/memory.limit_in_bytes": "100", "memory/memory.usage_in_bytes": "50"}
    assert list(memory_shares(memberships(VERSION_1), read(files))) == [0.5]


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"./memory.max": "1000"},
        {"./memory.max": "", "./memory.current": "7"},
        {"./memory.max": "0", "./memory.current": "7"},
        {"./memory.max": "many", "./memory.current": "7"},
    ],
)
def test_gm21_what_is_missing_or_cannot_be_read_gives_nothing(files: dict[str, str]) -> None:
    assert list(memory_shares({"": "/"}, read(files))) == [] and list(quotas({"": "/"}, read(files))) == []


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"kubepods.slice/p1.slice/cpu.max": "150000 100000", "kubepods.slice/cpu.max": "max 100000"}, [1.5]),
        ({"kubepods.slice/p1.slice/cpu.max": "max 100000", "./cpu.max": "800000 100000"}, [8.0]),
        ({"kubepods.slice/cpu.max": "50000 0"}, []),
    ],
)
def test_gm21_a_quota_of_version_2_is_so_many_cores(files: dict[str, str], cores: list[float]) -> None:
    assert list(quotas(memberships(VERSION_2), read(files))) == cores


def test_gm21_a_quota_of_version_1_is_so_many_cores() -> None:
    files = {
        "cpu/pods/p1/cpu.cfs_quota_us": "200000",
        "cpu/pods/p1/cpu.cfs_period_us": "100000",
        "cpu/pods/cpu.cfs_quota_us": "-1",
        "cpu/pods/cpu.cfs_period_us": "100000",
    }
    assert list(quotas(memberships(VERSION_1), read(files))) == [2.0]


def test_gm21_this_host_has_memory_a_disk_and_processors(tmp_path: Path) -> None:
    found = read_resources([tmp_path])
    for share in (found.memory, found.disk):
        assert share is not None and 0 < share <= 1.5
    assert found.load is not None and found.load >= 0
    assert found.cpu is not None and 0 <= found.cpu <= 1


def test_gm21_of_several_disks_the_fullest_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shares = {"storage": 0.3, "runtime": 0.8, "none": None}
    monkeypatch.setattr(resources, "disk_share", lambda path: shares[path.name])
    assert read_resources([tmp_path / name for name in shares]).disk == 0.8
    assert read_resources([tmp_path / "none"]).disk is None


def test_gm21_a_disk_that_is_not_there_is_not_known(tmp_path: Path) -> None:
    assert disk_share(tmp_path / "missing") is None


def test_gm21_a_quota_counts_as_cores_for_the_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources.os, "getloadavg", lambda: (3.0, 0.0, 0.0))
    monkeypatch.setattr(resources.os, "sched_getaffinity", lambda _: range(4))
    monkeypatch.setattr(resources, "CONTROL_GROUPS", tmp_path)
    monkeypatch.setattr(resources, "MEMBERSHIPS", tmp_path / "cgroup")
    assert read_resources([]).load == 0.75
    (tmp_path / "cgroup").write_text("0::/p1\n")
    (tmp_path / "p1").mkdir()
    (tmp_path / "p1" / "cpu.max").write_text("200000 100000\n")
    (tmp_path / "p1" / "memory.max").write_text("1000\n")
    (tmp_path / "p1" / "memory.current").write_text("100000\n")
    found = read_resources([])
    assert (found.load, found.memory, found.disk) == (1.5, 100.0, None)


def test_gm21_a_number_that_cannot_be_is_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources.psutil, "cpu_percent", lambda: -0.1)
    monkeypatch.setattr(resources.os, "getloadavg", lambda: (math.nan, 0.0, 0.0))
    monkeypatch.setattr(resources, "disk_share", lambda path: math.inf)
    found = read_resources([tmp_path])
    assert (found.disk, found.load, found.cpu) == (None, None, None) and found.memory is not None


def test_gm21_a_membership_that_makes_no_sense_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "MEMBERSHIPS", tmp_path / "cgroup")
    (tmp_path / "cgroup").write_text("no group\n")
    found = read_resources([])
    assert found.load is not None and math.isfinite(found.load)


def test_gm21_nothing_is_known_at_first() -> None:
    assert set(Resources()) == {None}
