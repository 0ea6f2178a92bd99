"""What holds for every test."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent

# Two cores are enough for the tests only if no process spreads over all of them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

# A busy machine is no reason for a test to fail. The examples are the same in every run, so that what is tested is the
# change and not luck; HYPOTHESIS_PROFILE=search draws new ones, to look for what nobody thought of.
settings.register_profile("same", deadline=None, derandomize=True)
settings.register_profile("search", deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


ALONE = ("benchmarks", "e2e", "gang")
"""Folders of tests that break real gangs, whose processes are to have the machine for themselves."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        place = item.path.relative_to(ROOT / "tests").parts[0]
        if place in ALONE or item.get_closest_marker("ray") or item.get_closest_marker("root"):
            item.add_marker(pytest.mark.alone)
    if os.geteuid() != 0:
        for item in items:
            if item.get_closest_marker("root"):
                item.add_marker(pytest.mark.skip(reason="needs the superuser"))


@pytest.fixture(scope="session")
def project() -> Path:
    """The project's root folder."""
    return ROOT


@pytest.fixture(scope="session")
def child_environment() -> dict[str, str]:
    """The environment for a Python child process that imports this project, installed or not."""
    paths = [str(ROOT), str(ROOT / "proto" / "generated"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}
