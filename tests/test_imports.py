"""The rooms and what they may import (docs/architecture.md, "Rooms")."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def modules(room: str) -> list[str]:
    files = sorted((ROOT / room).rglob("*.py"))
    names = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files]
    return [name.removesuffix(".__init__") for name in names if not name.endswith(".__main__")]


def imported(file: Path) -> Iterator[str]:
    """Every module that `file` imports, at any depth of its code."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize("name", [*modules("orchestrator"), *modules("workers"), "quantarion.v1.operator_pb2_grpc"])
def test_every_module_can_be_imported(name: str) -> None:
    assert importlib.import_module(name).__name__ == name


def test_the_rooms_are_not_empty() -> None:
    assert {"orchestrator.jobspec", "workers.config"} <= {*modules("orchestrator"), *modules("workers")}


def test_workers_never_import_the_orchestrator() -> None:
    assert [
        (str(file.relative_to(ROOT)), name)
        for file in sorted((ROOT / "workers").rglob("*.py"))
        for name in imported(file)
        if name.split(".")[0] == "orchestrator"
    ] == []


def test_the_membership_machine_is_pure() -> None:
    """EP-19's model checking drives it without a clock, a socket or Ray."""
    allowed = {"__future__", "collections", "collections.abc", "dataclasses", "enum", "math", "typing", "hashlib"}
    rooms = ("actions", "governor.codes", "governor.guards", "hangs", "incidents", "pace", "quorum", "roster", "staffing")
    ours = {*(f"orchestrator.{room}" for room in rooms), "workers.identity", "workers.protocol"}
    for name in ("orchestrator.membership", *sorted(ours)):
        found = imported(ROOT / (name.replace(".", "/") + ".py"))
        assert {module for module in found if module not in ours} <= allowed


@pytest.mark.parametrize("module", [f"orchestrator.{name}" for name in ("cli", "jobspec", "status", "stop")])
def test_the_quick_commands_load_neither_torch_nor_ray(module: str, child_environment: dict[str, str]) -> None:
    code = f"import sys, {module}; print(sorted({{'torch', 'ray'}} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], env=child_environment, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
