"""Ray inside this process: hosts on loopback, their return, and that nothing is ever left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator import rayenv, reaper, sweep
from orchestrator.embedded import HEAD_ADDRESS, EmbeddedCluster
from orchestrator.errors import ExitCode, UserError
from workers.readable import wait_readable

pytestmark = pytest.mark.ray

DRIVER = """
import sys
from pathlib import Path
from orchestrator import rayenv
from orchestrator.embedded import HEAD_ADDRESS, EmbeddedCluster
cluster = EmbeddedCluster(1, 2, Path(sys.argv[1]), left_behind=[Path(sys.argv[1], "memory")])
cluster.start()
rayenv.connect(cluster.address, "quantarion-second", node_address=HEAD_ADDRESS)
print(cluster.address, cluster._temp, cluster._guardian.pid, flush=True)
sys.stdin.read()
"""


def eventually(condition: Callable[[], object], what: str) -> None:
    """Ray and the kernel tell nobody when: look until it holds."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, f"never came: {what}"
        time.sleep(0.02)


def own_processes() -> list[reaper.Marked]:
    driver = reaper.identity(os.getpid())
    return [each for each in reaper.marked() if each.driver == driver]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedCluster]:
    with EmbeddedCluster(2, 3, tmp_path_factory.mktemp("first")) as running:
        rayenv.connect(running.address, "quantarion-first", node_address=HEAD_ADDRESS)
        yield running
    assert own_processes() == []


def test_each_host_is_a_ray_node_with_an_address_of_its_own(cluster: EmbeddedCluster) -> None:
    import ray

    hosts = cluster.hosts()
    assert [host.address for host in hosts] == ["127.0.0.2", "127.0.0.3"]
    nodes = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
    assert len(nodes) == 3
    assert [nodes[host.node_id]["NodeManagerAddress"] for host in hosts] == [host.address for host in hosts]
    assert [nodes[host.node_id]["Resources"]["CPU"] for host in hosts] == [3.0, 3.0]
    head = next(node for node in nodes.values() if node["NodeManagerAddress"] == HEAD_ADDRESS)
    assert "CPU" not in head["Resources"]
    assert cluster.failure() is None


def test_work_runs_on_hosts_only_and_carries_the_marks(cluster: EmbeddedCluster) -> None:
    import ray

    @ray.remote(num_cpus=3)
    def where() -> tuple[str, int]:
        return ray.get_runtime_context().get_node_id(), os.getpid()

    places = ray.get([where.remote() for _ in range(2)])
    assert {node for node, _ in places} <= {host.node_id for host in cluster.hosts()}
    assert {pid for _, pid in places} <= {each.pid for each in own_processes()}


@pytest.mark.parametrize("wrong", [{"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "no"}])
def test_no_stranger_gets_in(cluster: EmbeddedCluster, child_environment: dict[str, str], wrong: dict[str, str]) -> None:
    """Ray listens on all interfaces, so it asks for the token that only this process's children know."""
    code = f"""
from orchestrator import rayenv
from orchestrator.errors import UserError
try:
    rayenv.connect({cluster.address!r}, "quantarion-stranger")
except UserError as error:
    print(error.exit_code, error)
"""
    stranger = {name: value for name, value in child_environment.items() if not name.startswith("RAY_")} | wrong
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=stranger, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.startswith(f"6 The Ray cluster at {cluster.address} asks for another token;")
    assert done.stderr == ""


def test_a_killed_host_takes_its_processes_along_and_comes_back(cluster: EmbeddedCluster) -> None:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    class Rank:
        def pid(self) -> int:
            return os.getpid()

    first, second = cluster.hosts()
    ranks = [
        ray.remote(Rank)
        .options(scheduling_strategy=NodeAffinitySchedulingStrategy(host.node_id, soft=False), lifetime="detached")
        .remote()
        for host in (first, second)
    ]
    on_first, on_second = ray.get([rank.pid.remote() for rank in ranks])  # type: ignore[attr-defined]
    pidfd = os.pidfd_open(on_first)
    os.kill(first.raylet_pid, signal.SIGKILL)
    eventually(lambda: first not in cluster.hosts(), "the death of the raylet")
    assert cluster.revive() == [first.address]
    assert cluster.revive() == []  # it is under way
    assert wait_readable(pidfd, 60), "a rank outlived its host"
    os.close(pidfd)
    eventually(lambda: cluster.revive() == [] and len(cluster.hosts()) == 2, "the new raylet")
    back = cluster.hosts()[0]
    assert back.address == first.address and back.node_id != first.node_id
    assert cluster.hosts()[1] == second
    assert reaper.identity(on_second) is not None
    eventually(lambda: back.node_id in [node["NodeID"] for node in ray.nodes() if node["Alive"]], "the node in Ray")
    eventually(lambda: first.node_id in [node["NodeID"] for node in ray.nodes() if not node["Alive"]], "the old one dead")
    assert cluster.failure() is None


def test_ep12_two_clusters_at_once_and_kill_9_of_a_driver_leaves_nothing_of_it(
    cluster: EmbeddedCluster, child_environment: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "memory").mkdir()
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tmp_path)],
        env=child_environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert driver.stdout is not None
        address, temp, guardian = driver.stdout.readline().split()
        assert address != cluster.address
        assert len(cluster.hosts()) == 2
        theirs = [each for each in reaper.marked() if each.folder == str(tmp_path)]
        assert len(theirs) >= 7  # GCS; twice a raylet and its two agents
        pidfds = [os.pidfd_open(each) for each in [*(each.pid for each in theirs), int(guardian)]]
        assert sweep.job_alive(tmp_path)
    finally:
        driver.kill()
        driver.wait()
    for pidfd in pidfds:
        assert wait_readable(pidfd, 60), "a process outlived its driver"
        os.close(pidfd)
    assert not Path(temp).exists() and not (tmp_path / "memory").exists()
    assert not sweep.job_alive(tmp_path)
    assert len(cluster.hosts()) == 2 and cluster.failure() is None


LEAVES_BEHIND = """
import os, sys, ray
from orchestrator import placement, rayenv
rayenv.connect(sys.argv[1], "quantarion-gone", node_address=sys.argv[2])
class Actor:
    def pid(self):
        return os.getpid()
options = {"lifetime": "detached", "num_cpus": 0}
named = ray.remote(Actor).options(name="coordinator", **options).remote()
group = placement.reserve(placement.free_hosts(1)[0], 1, "quantarion-gone-host-1")
assert placement.wait_ready(group, 60)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
unnamed = ray.remote(Actor).options(scheduling_strategy=PlacementGroupSchedulingStrategy(group), **options).remote()
print(*ray.get([named.pid.remote(), unnamed.pid.remote()]), flush=True)
"""
SWEEP = "import sys; from orchestrator import sweep; print(*sweep.cluster(sys.argv[1]), sep='\\n')"


def test_ep12_the_sweep_of_a_cluster_removes_a_dead_jobs_actors_and_groups_and_nobody_elses(
    cluster: EmbeddedCluster, child_environment: dict[str, str]
) -> None:
    import ray

    class Keeper:
        def pid(self) -> int:
            return os.getpid()

    mine = ray.remote(Keeper).options(name="coordinator", lifetime="detached", num_cpus=0).remote()
    kept = ray.get(mine.pid.remote())  # type: ignore[attr-defined]

    def run(code: str) -> str:
        command = [sys.executable, "-c", code, cluster.address, HEAD_ADDRESS]
        done = subprocess.run(command, env=child_environment, capture_output=True, text=True, check=True, timeout=120)
        return done.stdout

    pidfds = [os.pidfd_open(int(pid)) for pid in run(LEAVES_BEHIND).split()]
    swept = run(SWEEP).splitlines()
    assert swept == [
        "ended actor coordinator of quantarion-gone",
        "removed placement group quantarion-gone-host-1 and what ran in it",
    ]
    for pidfd in pidfds:
        assert wait_readable(pidfd, 60), "an actor outlived the sweep"
        os.close(pidfd)
    assert run(SWEEP).strip() == ""
    assert ray.get(mine.pid.remote()) == kept  # type: ignore[attr-defined]
    ray.kill(mine)  # type: ignore[arg-type]


def test_an_interrupted_start_leaves_nothing(child_environment: dict[str, str], tmp_path: Path, project: Path) -> None:
    """Ctrl-C while hosts are starting: `start` cleans up and passes the interrupt on."""
    code = """
import os, signal, sys
from pathlib import Path
from orchestrator import embedded, reaper
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job begins by ignoring it
class Interrupted(embedded.EmbeddedCluster):
    def _start_host(self, slot):
        os.kill(os.getpid(), signal.SIGINT)
        super()._start_host(slot)
cluster = Interrupted(1, 1, Path(sys.argv[1]))
try:
    cluster.start()
except KeyboardInterrupt:
    driver = reaper.identity(os.getpid())
    assert not [each for each in reaper.marked() if each.driver == driver]
    assert cluster._temp is None and cluster._guardian is None
    print("clean")
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, env=child_environment, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == "clean\n"


def test_a_start_that_fails_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(self: EmbeddedCluster) -> None:
        raise RuntimeError("the GCS fell over\nTraceback: a long one")

    monkeypatch.setattr(EmbeddedCluster, "_start_head", broken)
    broken_cluster = EmbeddedCluster(1, 1, tmp_path)
    monkeypatch.setattr(rayenv, "disconnect", lambda: None)
    monkeypatch.setattr(reaper, "kill", lambda select: [])  # another cluster of this process may be alive
    monkeypatch.setattr(reaper, "Guardian", lambda folders: None)
    with pytest.raises(UserError) as refusal:
        broken_cluster.start()
    assert refusal.value.exit_code == ExitCode.RAY
    assert str(refusal.value) == "Ray does not start on this machine: the GCS fell over"


@pytest.mark.parametrize("hosts", [0, 201])
def test_hosts_that_one_machine_cannot_carry_are_refused(hosts: int, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"hosts.max: {hosts}"):
        EmbeddedCluster(hosts, 1, tmp_path)
