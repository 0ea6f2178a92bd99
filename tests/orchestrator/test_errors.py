"""Commands in messages: to be pasted into the shell that they stand in."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from orchestrator.errors import again, command, likewise


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `quantarion` outside of PATH, as in `.venv/bin`; the working folder is another one."""
    program = tmp_path / "bin" / "quantarion"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", os.defpath)
    return program


def called(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", [str(word) for word in words])


def test_the_storage_is_named_where_it_is_not_the_default(monkeypatch: pytest.MonkeyPatch, installed: Path) -> None:
    monkeypatch.setenv("PATH", str(installed.parent))
    called(monkeypatch, installed, "train", "job.yaml")
    assert command("stop", "demo") == "quantarion stop demo"
    assert command("stop", "demo", storage=Path.cwd() / "runs") == "quantarion stop demo"
    assert command("stop", "demo", "--now", storage=Path("my runs")) == "quantarion stop demo --now --storage 'my runs'"


def test_a_program_that_the_shell_does_not_find_is_named_as_it_was_called(
    monkeypatch: pytest.MonkeyPatch, installed: Path
) -> None:
    called(monkeypatch, "bin/quantarion", "train", "job.yaml")
    assert command("status") == "bin/quantarion status"
    called(monkeypatch, "/somewhere/orchestrator/__main__.py", "train", "job.yaml")
    monkeypatch.setattr(sys, "executable", "/usr/bin/python3")
    assert command("status") == "/usr/bin/python3 -m orchestrator status"
    monkeypatch.setenv("PATH", str(installed.parent))
    assert command("status") == "/usr/bin/python3 -m orchestrator status"  # that one is of another environment
    monkeypatch.setattr(sys, "executable", str(installed.with_name("python")))
    assert command("status") == "quantarion status"


def test_again_is_the_same_command_line(monkeypatch: pytest.MonkeyPatch, installed: Path) -> None:
    called(monkeypatch, "bin/quantarion", "train", "a job.yaml", "--set", "name=x")
    assert again("--resume") == "bin/quantarion train 'a job.yaml' --set name=x --resume"
    called(monkeypatch, "bin/quantarion", "train", "job.yaml", "--resume", "--exact")
    assert again("--resume") == "bin/quantarion train job.yaml --resume --exact"


def test_gm40_likewise_is_this_command_line_as_that_of_another_command(
    monkeypatch: pytest.MonkeyPatch, installed: Path
) -> None:
    less = {"--resume": 0, "--report": 1}
    called(monkeypatch, "bin/quantarion", "train", "a job.yaml", "--resume", "--report", "r.json", "--set", "name=x")
    assert likewise("preflight", less=less) == "bin/quantarion preflight 'a job.yaml' --set name=x"
    called(monkeypatch, "bin/quantarion", "train", "--report=r.json", "job.yaml", "--address", "h:1")
    assert likewise("preflight", less=less) == "bin/quantarion preflight job.yaml --address h:1"
    called(monkeypatch, "bin/quantarion", "train", "job.yaml", "--report")
    assert likewise("preflight", less=less) == "bin/quantarion preflight job.yaml"
    called(monkeypatch, "bin/quantarion", "doctor")
    assert likewise("preflight", less=less) == "bin/quantarion preflight JOB.yaml"
