"""What the end-to-end tests share: real command lines, a gang that is put away whatever happens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.gang import Gang

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def paced_job() -> Path:
    """A JobSpec that trains until it is stopped."""
    return HERE / "paced.yaml"


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The storage of a module's jobs."""
    return tmp_path_factory.mktemp("storage")


@pytest.fixture(scope="module")
def start(storage: Path, project: Path, child_environment: dict[str, str]) -> Iterator[Callable[..., Gang]]:
    """`start(job, *arguments, name=…)`: a Gang, put away at the end of the module."""
    gangs: list[Gang] = []

    def begin(job: Path, *arguments: object, name: str, **more: Any) -> Gang:
        values = {"storage": storage, "environment": child_environment, "cwd": project, **more}
        gangs.append(Gang(job, *arguments, name=name, **values))
        return gangs[-1]

    yield begin
    for gang in gangs:
        gang.put_away()
