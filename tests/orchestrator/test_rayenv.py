"""Connecting to a cluster that is not there, is something else, or refuses: one sentence, exit code 6, bounded time."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator import rayenv
from orchestrator.errors import ExitCode, UserError
from tests.orchestrator.fake_operator import FakeOperator, served

BLOCK_RAY = "import sys; sys.modules['ray'] = None\n"
CONNECT = """
import sys
from orchestrator import rayenv
from orchestrator.errors import UserError
try:
    rayenv.connect(sys.argv[1], "quantarion-test", timeout=5.0)
except UserError as error:
    print(error.exit_code, error)
"""


@pytest.fixture
def closed() -> Iterator[str]:
    """An address where nothing listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture
def silent() -> Iterator[str]:
    """An address that accepts connections and never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def refusal(address: str, timeout: float = 15.0) -> str:
    with pytest.raises(UserError) as caught:
        rayenv.connect(address, "quantarion-test", timeout=timeout)
    assert caught.value.exit_code == ExitCode.RAY
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_nothing_listens(closed: str) -> None:
    assert refusal(closed).startswith(f"No Ray cluster answers at {closed} (Connection refused); start one")


def test_something_listens_and_is_silent(silent: str) -> None:
    assert f"What listens at {silent} does not answer as Ray" in refusal(silent, timeout=1.0)


def test_something_listens_and_is_not_ray() -> None:
    from quantarion.v1 import operator_pb2

    with served(FakeOperator(operator_pb2.StatusReply())) as address:
        assert f"What listens at {address} does not answer as Ray" in refusal(address)


def test_a_name_that_is_no_host() -> None:
    assert "No Ray cluster answers at no-such-host.invalid:6379" in refusal("no-such-host.invalid:6379")


@pytest.mark.parametrize(
    "address", ["head", "head:", ":6379", "head:port", "head:70000", "http://head:8265", "ray://head:1"]
)
def test_what_is_no_address(address: str) -> None:
    assert f"'{address}' is not HOST:PORT" in refusal(address)


@pytest.mark.parametrize(
    ("address", "environment", "expected"),
    [
        (None, {}, None),
        ("a:1", {"RAY_ADDRESS": "b:2"}, "a:1"),
        (None, {"RAY_ADDRESS": "b:2", "RAY_JOB_ID": "x"}, "b:2"),  # inside `ray job submit`
        (None, {"RAY_JOB_ID": "x"}, "auto"),
        (None, {"RAY_ADDRESS": ""}, None),
    ],
)
def test_which_cluster(address: str | None, environment: dict[str, str], expected: str | None) -> None:
    assert rayenv.cluster_address(address, environment) == expected


def run(code: str, address: str, environment: dict[str, str]) -> str:
    command = [sys.executable, "-c", code, address]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
    return done.stdout


def test_ray_is_not_installed(child_environment: dict[str, str]) -> None:
    shown = run(BLOCK_RAY + CONNECT, "127.0.0.1:1", child_environment)
    assert shown.startswith("6 Ray cannot be loaded")
    assert "pip install 'ray[default]'" in shown


def test_token_mode_without_a_token(silent: str, child_environment: dict[str, str], tmp_path: Path) -> None:
    bare = {name: value for name, value in child_environment.items() if not name.startswith("RAY_")}
    shown = run(CONNECT, silent, bare | {"RAY_AUTH_MODE": "token", "HOME": str(tmp_path)})
    assert shown.startswith("6 RAY_AUTH_MODE is token, but no token is found; set RAY_AUTH_TOKEN_PATH")
    assert shown.count("\n") == 1


@pytest.mark.parametrize(("token", "mode"), [(True, "token"), (False, "disabled")])
def test_the_mode_is_explicit_and_follows_the_token(
    child_environment: dict[str, str], tmp_path: Path, token: bool, mode: str
) -> None:
    if token:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text("secret")
    bare = {name: value for name, value in child_environment.items() if not name.startswith("RAY_")}
    code = "import os; from orchestrator import rayenv; rayenv.prepare(embedded=False); print(os.environ['RAY_AUTH_MODE'])"
    assert run(code, "", bare | {"HOME": str(tmp_path)}) == f"{mode}\n"


def test_an_embedded_cluster_has_a_token_of_its_own(child_environment: dict[str, str]) -> None:
    bare = {name: value for name, value in child_environment.items() if not name.startswith("RAY_")}
    code = "import os; from orchestrator import rayenv; rayenv.prepare(embedded=True); print(os.environ['RAY_AUTH_TOKEN'])"
    tokens = {run(code, "", bare) for _ in range(2)}
    assert len(tokens) == 2
    assert all(len(token.strip()) == 64 for token in tokens)


def test_ray_imported_too_early_is_a_bug(child_environment: dict[str, str]) -> None:
    bare = {name: value for name, value in child_environment.items() if not name.startswith("RAY_")}
    code = (
        "import ray\nfrom orchestrator import rayenv\ntry: rayenv.prepare(embedded=True)\n"
        "except RuntimeError as error: print(error)"
    )
    assert "RAY_AUTH_MODE" in run(code, "", bare)


def test_errors_become_one_line() -> None:
    error = RuntimeError(
        "Version mismatch: The cluster was started with:\n    Ray: 2.1\nThis process:\n    Ray: 2.60\n\nHint"
    )
    assert rayenv.one_line(error) == "Version mismatch: The cluster was started with: Ray: 2.1 This process: Ray: 2.60"
    assert rayenv.one_line(TimeoutError()) == "TimeoutError"
    assert os.linesep not in rayenv.one_line(ValueError("x\n" * 500))
