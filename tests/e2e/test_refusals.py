"""Bad input that is refused before anything starts: one sentence, the documented exit code, nothing left behind."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.gang import quantarion

Run = Callable[..., "subprocess.CompletedProcess[str]"]

JOB = "name: bad\nhosts: {max: 1}\n"


@pytest.fixture
def job(tmp_path: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(JOB)
    return path


@pytest.fixture
def run(tmp_path: Path, child_environment: dict[str, str]) -> Run:
    """`run("train", …)` in a folder of its own."""

    def command(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        return quantarion(*arguments, environment={**child_environment, **environment}, cwd=tmp_path)

    return command


def refused(ended: subprocess.CompletedProcess[str], exit_code: int, *words: str) -> None:
    """The last line is one sentence with these words; nothing before it is a traceback."""
    assert ended.returncode == exit_code, ended.stdout
    *before, sentence = ended.stdout.splitlines()
    assert sentence.startswith("quantarion: "), ended.stdout
    assert not any(line.startswith(("Traceback", "quantarion: ")) for line in before), ended.stdout
    for word in words:
        assert word in sentence


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name: [bad", ("not valid YAML", ":1:")),
        ("- a\n- b\n", ("not keys",)),
        ("name: bad\nhots: {max: 2}\n", ("hots", "hosts")),
        ("name: bad\nhosts: {max: many}\n", ("hosts.max", "many")),
        ("name: bad\nhosts: {min: 3, max: 2}\n", ("hosts.min", "hosts.max")),
        ("name: bad\ntask: {script: nowhere.py}\n", ("nowhere.py",)),
    ],
)
def test_a_wrong_jobspec(run: Run, job: Path, text: str, words: tuple[str, ...]) -> None:
    job.write_text(text)
    refused(run("train", job), 2, str(job), *words)


def test_an_unreadable_jobspec(run: Run, tmp_path: Path) -> None:
    refused(run("train", tmp_path / "nothing.yaml"), 2, "no such file")
    refused(run("train", tmp_path), 2, "cannot be read")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    refused(run("train", tmp_path / "binary.yaml"), 2, "is not text")


def test_a_wrong_setting(run: Run, job: Path) -> None:
    refused(run("train", job, "--set", "hosts.max=0"), 2, "--set hosts.max=0")
    refused(run("train", job, "--set", "hosts.max"), 2, "key=value")
    refused(run("train", job, "--exact"), 2, "--resume --exact")


def test_a_storage_that_cannot_be_written(run: Run, job: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    refused(run("train", job, "--set", f"storage={tmp_path / 'file'}"), 4, str(tmp_path / "file"), "--set storage=")


def test_a_resume_from_nothing(run: Run, job: Path, tmp_path: Path) -> None:
    refused(run("train", job, "--resume"), 5, "nothing to resume from", "without --resume")
    assert not (tmp_path / "runs").exists()


def test_a_resume_from_damaged_checkpoints(run: Run, job: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "runs" / "bad" / "checkpoints" / "step-10-gen-1.1"
    damaged.mkdir(parents=True)
    (damaged / "manifest.json").write_text('{"format": ')
    refused(run("train", job, "--resume"), 5, "1 damaged", "step-10-gen-1.1")


def test_an_address_without_ray(run: Run, job: Path, tmp_path: Path, deaf: str) -> None:
    """An earlier run of the name stays as it was."""
    storage = ("--set", f"storage={tmp_path / 'runs'}")
    earlier = tmp_path / "runs" / "bad" / "report.json"
    earlier.parent.mkdir(parents=True)
    earlier.write_text("{}")
    refused(run("train", job, "--address", "127.0.0.1:1", *storage), 6, "127.0.0.1:1", "ray start --head")
    refused(run("train", job, "--address", deaf, *storage, RAY_AUTH_MODE="disabled"), 6, deaf, "does not answer as Ray")
    refused(run("train", job, "--address", "nonsense", *storage), 6, "nonsense")
    assert list((tmp_path / "runs").rglob("*")) == [earlier.parent, earlier]


def test_a_cluster_needs_shared_storage(run: Run, job: Path) -> None:
    refused(run("train", job, "--address", "127.0.0.1:1"), 2, "absolute path", "--set storage=")


def test_ray_is_not_installed(run: Run, job: Path, tmp_path: Path, child_environment: dict[str, str]) -> None:
    shadow = tmp_path / "shadow"
    shadow.mkdir()
    (shadow / "ray.py").write_text("raise ImportError('No module named ray')\n")
    path = f"{shadow}:{child_environment['PYTHONPATH']}"
    refused(run("train", job, PYTHONPATH=path), 6, "Ray cannot be loaded", "pip install 'ray[default]'")


def test_a_report_that_is_a_folder(run: Run, job: Path, tmp_path: Path) -> None:
    refused(run("train", job, "--report", tmp_path), 2, f"--report {tmp_path} is a folder")


def test_commands_about_no_job(run: Run) -> None:
    for command in ("status", "stop"):
        refused(run(command, "nothing"), 2, "There is no job 'nothing'")
    refused(run("audit", "runs/nothing"), 3, "no steps.jsonl")


@pytest.fixture
def deaf() -> Iterator[str]:
    """The address of something that accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"
