"""The command line: each command calls one function, and what a user got wrong is one line and an exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from orchestrator import cli
from orchestrator.errors import ExitCode, UserError


class Calls:
    """Stands in for a command's module and notes how it is called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, module: str, function: str, ends: int | Exception) -> None:
        self.seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self.ends = ends
        stand_in = ModuleType(f"orchestrator.{module}")
        setattr(stand_in, function, self)
        monkeypatch.setitem(sys.modules, f"orchestrator.{module}", stand_in)
        monkeypatch.setattr(f"orchestrator.{module}", stand_in, raising=False)

    def __call__(self, *positional: Any, **named: Any) -> int:
        self.seen.append((positional, named))
        if isinstance(self.ends, Exception):
            raise self.ends
        return self.ends


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """The exit code of `quantarion WORDS`."""
    monkeypatch.setattr(sys, "argv", ["quantarion", *words])
    try:
        return cli.main()
    except SystemExit as end:
        return int(end.code or 0)


def test_train_passes_everything_on(monkeypatch: pytest.MonkeyPatch, project: Path) -> None:
    launch = Calls(monkeypatch, "launch", "train", ends=9)
    demo = str(project / "examples" / "demo.yaml")
    sets = ["--set", "seed=3", "--set", "hosts.max=1"]
    assert run(monkeypatch, "train", demo, "--address", "h:1", "--resume", "--exact", *sets, "--report", "r.json") == 9
    [((spec,), named)] = launch.seen
    assert (spec.name, spec.seed, spec.hosts.max) == ("demo", 3, 1)
    assert named == {"address": "h:1", "resume": True, "exact": True, "report": Path("r.json")}


def test_train_by_default_starts_afresh_on_this_machine(
    monkeypatch: pytest.MonkeyPatch, project: Path, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    launch = Calls(monkeypatch, "launch", "train", ends=0)
    assert run(monkeypatch, "train", str(project / "examples" / "demo.yaml")) == 0
    assert launch.seen[0][1] == {"address": None, "resume": False, "exact": False, "report": None}


@pytest.mark.parametrize(
    ("module", "function", "words", "arguments"),
    [
        ("status", "show", ["status"], (None, Path("runs"), False)),
        ("status", "show", ["status", "demo", "--json", "--storage", "x"], ("demo", Path("x"), True)),
        ("stop", "stop", ["stop", "demo"], ("demo", Path("runs"), False)),
        ("stop", "stop", ["stop", "demo", "--now", "--storage", "x"], ("demo", Path("x"), True)),
        ("save_command", "checkpoint", ["checkpoint", "save", "demo"], ("demo", Path("runs"), False)),
        (
            *("save_command", "checkpoint"),
            ["checkpoint", "save", "demo", "--wait", "--storage", "x"],
            ("demo", Path("x"), True),
        ),
        ("doctor", "run", ["doctor"], (Path("runs"), True, None)),
        ("doctor", "run", ["doctor", "--no-sweep", "--storage", "x"], (Path("x"), False, None)),
        ("doctor", "run", ["doctor", "--address", "h:1"], (Path("runs"), True, "h:1")),
        ("audit", "main", ["audit", "runs/demo"], (Path("runs/demo"),)),
    ],
)
def test_each_command_calls_its_function(
    monkeypatch: pytest.MonkeyPatch, module: str, function: str, words: list[str], arguments: tuple[Any, ...]
) -> None:
    command = Calls(monkeypatch, module, function, ends=4)
    assert run(monkeypatch, *words) == 4
    assert command.seen == [(arguments, {})]


def test_a_user_error_is_one_line_and_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Calls(monkeypatch, "stop", "stop", ends=UserError("no job demo runs; write another name", ExitCode.RESUME))
    assert run(monkeypatch, "stop", "demo") == 5
    assert capsys.readouterr().err == "quantarion: no job demo runs; write another name\n"


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    Calls(monkeypatch, "stop", "stop", ends=ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError, match="a bug"):
        run(monkeypatch, "stop", "demo")


def test_a_wrong_jobspec_ends_with_2_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], project: Path
) -> None:
    launch = Calls(monkeypatch, "launch", "train", ends=0)
    demo = str(project / "examples" / "demo.yaml")
    assert run(monkeypatch, "train", demo, "--set", "hosts.wait=5m") == 2
    assert capsys.readouterr().err.startswith("quantarion: --set hosts.wait=5m: hosts.wait is '5m'")
    assert run(monkeypatch, "train", demo, "--exact") == 2
    assert "write --resume --exact" in capsys.readouterr().err
    assert launch.seen == []


@pytest.mark.parametrize("words", [["trian"], ["train"], ["status", "--jsno"], ["stop"]])
def test_a_wrong_command_line_ends_with_2(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    assert run(monkeypatch, *words) == 2


def test_schema_prints_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "schema") == 0
    assert {"name", "hosts", "global_batch"} <= set(json.loads(capsys.readouterr().out)["properties"])


def test_the_package_runs_as_a_module(child_environment: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "orchestrator", "train", "none.yaml"]
    result = subprocess.run(command, cwd=tmp_path, env=child_environment, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (2, "")
    [line] = result.stderr.splitlines()
    assert line == "quantarion: none.yaml: no such file; write the path of a JobSpec (.yaml) or of a script (.py)"


def test_the_exit_codes_are_those_of_the_docs(project: Path) -> None:
    table = (project / "docs" / "architecture.md").read_text().partition("## Exit codes")[2]
    documented = {int(line.split("|")[1]) for line in table.splitlines() if line.startswith("| ") and line[2].isdigit()}
    assert documented == set(ExitCode)


def test_gm40_preflight_passes_everything_on(monkeypatch: pytest.MonkeyPatch, project: Path) -> None:
    gate = Calls(monkeypatch, "preflight.gate", "run", ends=93)
    demo = str(project / "examples" / "demo.yaml")
    assert run(monkeypatch, "preflight", demo, "--address", "h:1", "--set", "hosts.max=1", "--json") == 93
    [((spec,), named)] = gate.seen
    assert (spec.name, spec.hosts.max) == ("demo", 1) and named == {"address": "h:1", "as_json": True}


def test_gm40_a_wrong_jobspec_is_refused_before_the_gate_begins(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], project: Path
) -> None:
    gate = Calls(monkeypatch, "preflight.gate", "run", ends=0)
    demo = str(project / "examples" / "demo.yaml")
    assert run(monkeypatch, "preflight", demo, "--set", "preflight=maybe") == 2
    assert "--set preflight=maybe: preflight is 'maybe', but must be one of off, advise, require" in capsys.readouterr().err
    assert run(monkeypatch, "preflight", "none.yaml") == 2
    assert run(monkeypatch, "preflight") == 2
    assert gate.seen == []
