"""The committed code of the protocol buffers is what the sources say, and `proto` stays a free name."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from quantarion.v1 import control_pb2, operator_pb2, operator_pb2_grpc
from setuptools import Distribution


@pytest.fixture(scope="module")
def generator(project: Path) -> ModuleType:
    pytest.importorskip("grpc_tools", reason="the compiler of protocol buffers comes with the extra `test`")
    spec = importlib.util.spec_from_file_location("generate", project / "proto" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def contents(generator: ModuleType, folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in generator.generated_files(folder)}


def test_generating_again_gives_the_committed_files(generator: ModuleType, tmp_path: Path) -> None:
    written = generator.generate(tmp_path)
    assert len(written) >= 5
    assert contents(generator, tmp_path) == contents(generator, generator.GENERATED)


def test_generating_removes_what_has_no_source_any_more(generator: ModuleType, tmp_path: Path) -> None:
    stale = tmp_path / "quantarion" / "v1" / "forgotten_pb2.py"
    stale.parent.mkdir(parents=True)
    stale.touch()
    assert stale not in generator.generate(tmp_path)
    assert not stale.exists()


def test_a_message_survives_the_wire() -> None:
    generation = control_pb2.Generation(incarnation=2, counter=5)
    sent = operator_pb2.StatusReply(job="demo", step=7, generation=generation)
    assert operator_pb2.StatusReply.FromString(sent.SerializeToString()) == sent
    assert callable(operator_pb2_grpc.OperatorStub)


def test_proto_does_not_resolve_to_our_folder(project: Path, tmp_path: Path) -> None:
    """proto-plus, which Ray brings, owns the import name."""
    code = "import importlib.util as util; print(util.find_spec('proto'))"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert result.stdout == "None\n" or "name='proto'" in result.stdout
    assert str(project / "proto") not in result.stdout


def test_the_package_ships_quantarion_v1_and_no_proto(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    distribution = Distribution()
    distribution.parse_config_files(["pyproject.toml"])
    distribution.set_defaults()
    packages = set(distribution.packages or [])
    assert {"orchestrator", "workers", "workers.collectives", "quantarion.v1"} <= packages
    assert {name.split(".")[0] for name in packages} == {"orchestrator", "workers", "quantarion"}
