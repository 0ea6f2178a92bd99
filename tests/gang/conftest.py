"""One zygote for the session, and gangs that leave nothing behind however a test ends."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator import rayenv

rayenv.prepare(embedded=True)  # Ray reads how it authenticates when it is imported

from tests.gang.harness import Gang  # noqa: E402


@pytest.fixture(scope="session")
def zygote(child_environment: dict[str, str], project: Path) -> Iterator[str]:
    """The path of the socket of the process that forks all others."""
    single = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory(prefix="gang-") as folder:
        path = f"{folder}/zygote"
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.gang.zygote", path],
            env={**child_environment, **single},
            cwd=project,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        with process:
            assert process.stdin is not None and process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield path
            process.stdin.close()


@pytest.fixture
def gang(zygote: str, tmp_path: Path) -> Iterator[Callable[..., Gang]]:
    """Start a gang: `gang(faults=(...), ...)`, with the fields of `Gang`."""
    started: list[Gang] = []

    def start(**settings: Any) -> Gang:
        started.append(Gang(zygote, tmp_path / str(len(started)), **settings))
        return started[-1].start()

    yield start
    for each in started:
        each.clear()


@pytest.fixture(scope="session")
def quiet(zygote: str, tmp_path_factory: pytest.TempPathFactory) -> Gang:
    """A run in which nothing has happened, at its end."""
    return run_quietly(Gang(zygote, tmp_path_factory.mktemp("quiet")))


@pytest.fixture(scope="session")
def undisturbed(quiet: Gang) -> str:
    """The digest at the end of a run in which nothing happens."""
    return quiet.check_digests()


@pytest.fixture(scope="session")
def bits_of_one_host(zygote: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest at the end of a reproducible run of half the ranks in which nothing happens."""
    gang = Gang(zygote, tmp_path_factory.mktemp("one-host"), hosts=1, reproducible=True)
    return run_quietly(gang).check_digests()


def run_quietly(gang: Gang) -> Gang:
    gang.start()
    try:
        gang.check()
    finally:
        gang.clear()
    assert len(gang.events("generation")) == 1
    return gang
