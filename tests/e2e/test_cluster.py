"""Jobs on a Ray cluster that runs already: `--address`, `ray job submit`, and what a cluster can refuse.

One head on loopback serves the module. It has addresses, ports and a folder of its own, and is ended by its process
ids: `ray stop` would take along every other Ray on the machine.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestrator import status
from orchestrator.records import read_events, read_steps
from tests.e2e.gang import Gang, is_alive, kill, quantarion, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

NODE, SECOND_NODE = "127.0.0.101", "127.0.0.102"
SMALL = ("--set", "hosts.max=1", "--set", "ranks_per_host=1", "--set", "spares_per_host=0")
TWO_EPOCHS = ("--set", "phases.fp32_epochs=2")  # 40 steps


@dataclass(frozen=True)
class Cluster:
    """A head that answers."""

    address: str  # of its GCS
    dashboard: str
    environment: dict[str, str]
    folder: Path

    def start_node(self, address: str, cpus: int) -> subprocess.Popen[bytes]:
        """Another node, as a pod starts it. It is ended with the head."""
        options = {
            "address": self.address,
            "node-ip-address": address,
            "dashboard-agent-listen-port": 0,
            "min-worker-port": 0,
            "max-worker-port": 0,
            "num-cpus": cpus,
            "object-store-memory": 80 * 2**20,
        }
        return _ray_start(options, self.environment, self.folder / "node.out")


@pytest.fixture(scope="module")
def cluster(child_environment: dict[str, str]) -> Iterator[Cluster]:
    folder = Path(tempfile.mkdtemp(prefix="quantarion-e2e-", dir="/tmp"))  # Ray puts sockets under it
    commands = folder / "bin"
    commands.mkdir()
    (commands / "quantarion").write_text(f'#!/bin/sh\nexec {sys.executable} -m orchestrator "$@"\n')
    (commands / "quantarion").chmod(0o755)
    places = os.pathsep.join([str(Path(sys.executable).parent), str(commands), child_environment["PATH"]])
    environment = {**child_environment, "RAY_AUTH_MODE": "disabled", "PATH": places}
    port, dashboard, client = _free_ports(3)
    options = {
        "node-ip-address": NODE,
        "port": port,
        "dashboard-host": "127.0.0.1",
        "dashboard-port": dashboard,
        "dashboard-agent-listen-port": 0,
        "ray-client-server-port": client,
        "min-worker-port": 0,
        "max-worker-port": 0,
        "num-cpus": 4,
        "object-store-memory": 80 * 2**20,
        "temp-dir": folder / "ray",
    }
    head = _ray_start(options, environment, folder / "head.out", "--head", "--disable-usage-stats")
    try:
        url = f"http://127.0.0.1:{dashboard}"
        wait_for("the dashboard's job server", lambda: _answers(f"{url}/api/version"), alive=lambda: head.poll() is None)
        yield Cluster(f"{NODE}:{port}", url, environment, folder)
    finally:
        _end(head, folder)


@pytest.fixture(scope="module")
def on_cluster(start: Callable[..., Gang], cluster: Cluster) -> Callable[..., Gang]:
    """`on_cluster(job, *arguments, name=…)`: like `start`, with `--address`."""

    def begin(job: Path, *arguments: object, name: str) -> Gang:
        return start(job, "--address", cluster.address, *arguments, name=name, environment=cluster.environment)

    return begin


def test_two_jobs_share_a_cluster(on_cluster: Callable[..., Gang], paced_job: Path) -> None:
    """One is stopped by a command while the other trains to its end."""
    first = on_cluster(paced_job, *SMALL, name="first")
    second = on_cluster(paced_job, *SMALL, "--set", "phases.fp32_epochs=30", name="second")
    first.until_step(3)
    second.until_step(3)
    assert first.process.poll() is None
    stopped = first.command("stop", "first", "--storage", first.storage)
    assert (stopped.returncode, first.end()) == (0, 130), stopped.stdout + first.describe()
    assert f"first has ended at step {first.last_step()}" in stopped.stdout
    assert first.events("checkpoint")[-1]["step"] == first.last_step()
    assert second.end() == 0, second.describe()
    assert second.last_step() == 600
    for gang in (first, second):
        assert gang.left_over() == []
        assert gang.command("audit", gang.folder).returncode == 0


def test_a_name_is_taken_on_the_whole_cluster(
    on_cluster: Callable[..., Gang], start: Callable[..., Gang], cluster: Cluster, paced_job: Path, tmp_path: Path
) -> None:
    """Also where the other job's folder lies elsewhere, so that only the cluster knows of it."""
    first = on_cluster(paced_job, *SMALL, name="taken")
    first.until_step(3)
    address = ("--address", cluster.address)
    second = start(paced_job, *address, *SMALL, name="taken", storage=tmp_path, environment=cluster.environment)
    assert second.end() == 8
    assert "quantarion: a job named taken runs on this cluster already" in second.output
    assert "Traceback" not in second.output
    first.until_more(3)
    first.signal(signal.SIGTERM)
    assert first.end() == 130, first.describe()
    assert first.left_over() == []


def test_more_ranks_than_the_cluster_has(on_cluster: Callable[..., Gang], paced_job: Path) -> None:
    gang = on_cluster(paced_job, "--set", "ranks_per_host=16", "--set", "hosts.wait=3", name="large")
    assert gang.end() == 7, gang.describe()
    message = "waiting for 1 more host with 16 free CPUs, one for each rank: 0 of hosts.min 1 found"
    assert gang.events("waiting")[0]["message"] == message
    assert f"quantarion: {message}; gave up after 3 s (hosts.wait)" in gang.output
    assert "Traceback" not in gang.output
    assert gang.left_over() == []


def test_data_that_is_missing_or_damaged(on_cluster: Callable[..., Gang], tmp_path: Path) -> None:
    job = tmp_path / "digits.yaml"
    job.write_text(f"name: digits\ntask: {{data: {{source: mnist, folder: {tmp_path / 'mnist'}}}}}\n")
    missing = on_cluster(job, *SMALL, name="missing")
    assert missing.end() == 3, missing.describe()
    (tmp_path / "mnist").mkdir()
    for name in ("train-images", "train-labels", "t10k-images", "t10k-labels"):
        dimensions = 3 if "images" in name else 1
        (tmp_path / "mnist" / f"{name}-idx{dimensions}-ubyte").write_bytes(b"\0\0\x08\x03 torn")
    damaged = on_cluster(job, *SMALL, name="damaged")
    assert damaged.end() == 3, damaged.describe()
    for gang in (missing, damaged):
        sentence = gang.output.splitlines()[-1]
        assert sentence.startswith("quantarion: ") and str(tmp_path / "mnist") in sentence
        assert "Traceback" not in gang.output
        assert gang.left_over() == []


def test_a_checkpoint_of_another_model(on_cluster: Callable[..., Gang], paced_job: Path, tmp_path: Path) -> None:
    first = on_cluster(paced_job, *SMALL, *TWO_EPOCHS, name="model")
    assert first.end() == 0, first.describe()
    other = tmp_path / "other.py"
    paced = paced_job.with_suffix(".py").read_text()
    assert "nn.Linear(FEATURES, 64)" in paced
    other.write_text(paced.replace("64", "65"))
    before = {name: (first.folder / name).read_text() for name in ("job.json", "report.json", "result.json")}
    second = on_cluster(paced_job, *SMALL, "--resume", "--set", f"task.script={other}", name="model")
    assert second.end() == 5, second.describe()
    assert {name: (first.folder / name).read_text() for name in before} == before
    sentence = second.output.splitlines()[-1]
    assert sentence.startswith("quantarion: step-40-gen-1.1: the checkpoint is of another model: its tensor ")
    assert "Traceback" not in second.output
    assert second.left_over() == []


def test_a_task_that_raises_shows_its_traceback(on_cluster: Callable[..., Gang], paced_job: Path, tmp_path: Path) -> None:
    """And leaves the run before it where it was."""
    good = on_cluster(paced_job, *SMALL, *TWO_EPOCHS, name="wrong")
    assert good.end() == 0, good.describe()
    report = (good.folder / "report.json").read_text()
    script = tmp_path / "wrong.py"
    script.write_text("def deep():\n    raise LookupError('no such column')\ndeep()\n")
    gang = on_cluster(paced_job, *SMALL, "--set", f"task.script={script}", name="wrong")
    assert gang.end() == 1, gang.describe()
    assert "in deep" in gang.output
    assert gang.output.splitlines()[-1] == "quantarion: LookupError: no such column"
    assert gang.left_over() == []
    assert (good.folder / "report.json").read_text() == report
    assert (good.folder.with_name("wrong.1") / "traceback.txt").exists()
    assert f"the logs of this one are in {good.folder}.1" in gang.output


def test_ray_job_submit_runs_stops_and_logs(cluster: Cluster, paced_job: Path, tmp_path: Path) -> None:
    """As docs/cluster.md shows it: the job's files travel with `--working-dir`, its folder lies on storage."""
    files, storage = tmp_path / "files", tmp_path / "storage"
    files.mkdir()
    shutil.copy(paced_job.with_suffix(".py"), files / "paced.py")
    job = paced_job.read_text().replace("tests/e2e/paced.py", "paced.py")
    (files / "job.yaml").write_text(job)
    train = ["quantarion", "train", "job.yaml", "--set", f"storage={storage}", "--set", "hosts.max=1"]
    options = ["--working-dir", files, "--submission-id", "submitted", "--no-wait"]
    _ray_job(cluster, tmp_path, "submit", *options, "--", *train)
    folder = storage / "paced"

    def trains() -> bool:
        return len(read_steps(folder)) > 10

    try:
        wait_for("ten steps", trains, alive=lambda: _state(cluster) in ("PENDING", "RUNNING"))
    except AssertionError as error:
        raise AssertionError(f"{error}\n{_ray_job(cluster, tmp_path, 'logs', 'submitted')}") from None
    wait_for("two ranks and a spare", lambda: len((status.fetch(folder) or {"ranks": []})["ranks"]) == 3)
    state = status.fetch(folder)
    assert state is not None
    pids = [rank["pid"] for rank in state["ranks"]]
    _ray_job(cluster, tmp_path, "stop", "submitted")
    wait_for("the end of what it ran", lambda: not any(map(is_alive, pids)))
    saved = [event for event in read_events(folder) if event["kind"] == "checkpoint"]
    assert saved[-1]["step"] == read_steps(folder)[-1]["step"]
    logs = _ray_job(cluster, tmp_path, "logs", "submitted")
    assert f"job paced: starting, folder {folder}" in logs
    assert "stopping: " in logs and "step " in logs and "Traceback" not in logs
    audited = quantarion("audit", folder, environment=cluster.environment, cwd=tmp_path)
    assert audited.returncode == 0, audited.stdout


def test_doctor_ends_the_actors_of_a_dead_driver(
    on_cluster: Callable[..., Gang], cluster: Cluster, paced_job: Path
) -> None:
    gang = on_cluster(paced_job, *SMALL, name="orphan")
    living = on_cluster(paced_job, *SMALL, name="living")
    for each in (gang, living):
        each.until_step(3)
    kill([gang.process.pid])
    gang.process.wait()
    wait_for("Ray's word that the driver is dead", lambda: "orphan" in _swept(gang, cluster))
    wait_for("the end of what it ran", lambda: not gang.left_over())
    living.until_more(3)
    living.signal(signal.SIGINT)
    assert living.end() == 130, living.describe()


@pytest.mark.long
def test_without_its_driver_a_job_saves_and_ends(on_cluster: Callable[..., Gang], paced_job: Path) -> None:
    gang = on_cluster(paced_job, *SMALL, name="alone")
    gang.until_step(3)
    kill([gang.process.pid])
    gang.process.wait()
    wait_for("its end", lambda: gang.events("finished"))
    wait_for("the end of what it ran", lambda: not gang.left_over())
    assert gang.events("stopping")[0]["reason"] == "the process that started the job is gone"
    assert gang.events("checkpoint")[-1]["step"] == gang.last_step()


def test_gm38_the_host_of_a_pod_that_is_deleted_leaves_after_the_step(
    on_cluster: Callable[..., Gang], cluster: Cluster, paced_job: Path
) -> None:
    """SIGTERM reaches `ray start --block`, the first process of the container; that ends once the host has left."""
    node = cluster.start_node(SECOND_NODE, cpus=1)
    gang = on_cluster(paced_job, *SMALL, "--set", "hosts.max=2", name="deleted")
    gang.until_full(2, 0)
    gang.until_more(20)
    node.send_signal(signal.SIGTERM)
    heard = gang.until_event("drain_notice", 0.0, source="ray")
    gang.until_event("host_left", 0.0, host=heard["host"])
    assert node.wait(60) is not None
    gang.until_full(1, 0)
    gang.until_more(20)
    (start,) = [event for event in gang.events("host_up") if event["address"] == SECOND_NODE]
    first, alone = gang.events("generation")[-2:]
    assert heard["host"] == start["host"] and 0 < heard["deadline"] - heard["heard"] <= 30.0
    assert (len(first["members"]), len(alone["members"]), alone["discarded"]) == (2, 1, first["discarded"])
    assert gang.events("host_lost") == []
    gang.signal(signal.SIGTERM)
    assert gang.end() == 130, gang.describe()
    assert gang.command("audit", gang.folder).returncode == 0 and gang.left_over() == []


def _ray_start(options: dict[str, Any], environment: dict[str, str], output: Path, *flags: str) -> subprocess.Popen[bytes]:
    named = [f"--{name}={value}" for name, value in options.items()]
    with output.open("wb") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *flags, *named],
            env=environment,
            cwd=output.parent,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _swept(gang: Gang, cluster: Cluster) -> str:
    """What doctor says that it removed from the cluster."""
    doctor = gang.command("doctor", "--storage", gang.storage, "--address", cluster.address)
    assert doctor.returncode == 0, doctor.stdout
    return "\n".join(line for line in doctor.stdout.splitlines() if "of quantarion-" in line)


def _ray_job(cluster: Cluster, cwd: Path, verb: str, *arguments: object) -> str:
    command = [sys.executable, "-m", "ray.scripts.scripts", "job", verb, "--address", cluster.dashboard]
    ended = subprocess.run(
        [*command, *map(str, arguments)],
        env={name: value for name, value in cluster.environment.items() if name != "RAY_ADDRESS"},
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout
    return ended.stdout


def _state(cluster: Cluster) -> str:
    with urllib.request.urlopen(f"{cluster.dashboard}/api/jobs/submitted") as reply:
        return str(json.load(reply)["status"])


def _answers(url: str) -> bool:
    with suppress(OSError), urllib.request.urlopen(url, timeout=5) as reply:
        return reply.status == 200
    return False


def _free_ports(count: int) -> list[int]:
    """Ports that nobody holds at the moment, on any address."""
    sockets = [socket.create_server(("", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _end(head: subprocess.Popen[bytes], folder: Path) -> None:
    """The head, all that it has started, and their files."""
    with suppress(psutil.NoSuchProcess):
        tree = psutil.Process(head.pid).children(recursive=True)
        for process in tree:
            with suppress(psutil.NoSuchProcess):
                process.kill()
    head.kill()
    head.wait()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if any(str(folder) in part for part in process.cmdline()):
                process.kill()
    shutil.rmtree(folder, ignore_errors=True)
