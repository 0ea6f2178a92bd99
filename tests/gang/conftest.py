"""One zygote for the session, and gangs that leave nothing behind however a test ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator import rayenv

rayenv.prepare(embedded=True)  # Ray reads how it authenticates when it is imported

from benchmarks.gang.start import start_zygote  # noqa: E402
from tests.gang.harness import Gang  # noqa: E402

BUCKET_BYTES = 2048
"""A step of the model of these tests has several."""


@pytest.fixture(scope="session")
def zygote(child_environment: dict[str, str]) -> Iterator[str]:
    """The path of the socket of the process that forks all others."""
    with start_zygote(child_environment, bucket_bytes=BUCKET_BYTES) as path:
        yield path


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
