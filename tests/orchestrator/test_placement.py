"""EP-13: one STRICT_PACK placement group per host, and the sentence of a waiting job."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from orchestrator import placement, rayenv
from orchestrator.embedded import HEAD_ADDRESS, EmbeddedCluster


@pytest.mark.parametrize(
    ("hosts_min", "found", "sentence"),
    [
        (3, 1, "waiting for 2 more hosts with 4 free CPUs, one for each rank: 1 of hosts.min 3 found"),
        (1, 0, "waiting for 1 more host with 4 free CPUs, one for each rank: 0 of hosts.min 1 found"),
    ],
)
def test_ep13_the_waiting_message_says_what_is_missing(hosts_min: int, found: int, sentence: str) -> None:
    assert placement.missing(hosts_min, found, 4) == sentence


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedCluster]:
    with EmbeddedCluster(2, 3, tmp_path_factory.mktemp("placement")) as running:
        rayenv.connect(running.address, "quantarion-placement", node_address=HEAD_ADDRESS)
        yield running


def addresses(cpus: int) -> list[str]:
    return [slot.address for slot in placement.free_hosts(cpus)]


def eventually_free(cpus: int, expected: list[str]) -> None:
    """Ray's view of free resources follows with a delay."""
    deadline = time.monotonic() + 60
    while addresses(cpus) != expected:
        assert time.monotonic() < deadline, f"free: {addresses(cpus)}, expected: {expected}"
        time.sleep(0.02)


@pytest.mark.ray
def test_ep13_a_host_is_reserved_whole_on_the_node_asked_for_and_given_back(cluster: EmbeddedCluster) -> None:
    from ray.util import placement_group_table

    eventually_free(3, ["127.0.0.2", "127.0.0.3"])  # never the head
    first, second = placement.free_hosts(3)
    assert placement.free_hosts(3, used={first.node_id}) == [second]
    assert placement.free_hosts(4) == []
    group = placement.reserve(second, 3, "quantarion-placement-host-1")
    assert placement.wait_ready(group, 60)
    table = placement_group_table(group)
    assert table["strategy"] == "STRICT_PACK"
    assert set(table["bundles_to_node_id"].values()) == {second.node_id}
    assert list(table["bundles"].values()) == [{"CPU": 1.0}] * 3
    eventually_free(3, ["127.0.0.2"])
    placement.release(group)
    eventually_free(3, ["127.0.0.2", "127.0.0.3"])
    placement.release(group)  # once more does no harm


@pytest.mark.ray
def test_ep13_a_host_that_is_taken_is_not_given_and_can_be_let_go(cluster: EmbeddedCluster) -> None:
    eventually_free(3, ["127.0.0.2", "127.0.0.3"])
    slot = placement.free_hosts(3)[0]
    group = placement.reserve(slot, 3, "quantarion-placement-host-2")
    assert placement.wait_ready(group, 60)
    late = placement.reserve(slot, 3, "quantarion-placement-host-3")
    assert not placement.wait_ready(late, 0.5)
    placement.release(late)
    placement.release(group)
    eventually_free(3, ["127.0.0.2", "127.0.0.3"])


@pytest.mark.ray
def test_ep13_the_group_of_a_dead_host_does_not_move_to_another(cluster: EmbeddedCluster) -> None:
    from ray.util import placement_group_table

    eventually_free(3, ["127.0.0.2", "127.0.0.3"])
    slot = placement.free_hosts(3)[0]
    group = placement.reserve(slot, 3, "quantarion-placement-host-4")
    assert placement.wait_ready(group, 60)
    os.kill(cluster.hosts()[0].raylet_pid, signal.SIGKILL)
    eventually_free(3, ["127.0.0.3"])
    deadline = time.monotonic() + 60
    while (state := placement_group_table(group)["state"]) == "CREATED":
        assert time.monotonic() < deadline, "Ray has not noticed the death"
        time.sleep(0.02)
    assert state in ("RESCHEDULING", "PENDING")
    assert addresses(3) == ["127.0.0.3"]
    placement.release(group)
    while len(cluster.hosts()) < 2:
        assert time.monotonic() < deadline, "the host has not come back"
        cluster.revive()
        time.sleep(0.02)
    eventually_free(3, ["127.0.0.2", "127.0.0.3"])


@pytest.mark.ray
def test_gm33_the_autoscaler_is_asked_for_hosts_and_the_request_is_taken_back(cluster: EmbeddedCluster) -> None:
    from ray._private.ray_constants import AUTOSCALER_RESOURCE_REQUEST_CHANNEL
    from ray.experimental.internal_kv import _internal_kv_get

    def requested() -> object:
        return json.loads(_internal_kv_get(AUTOSCALER_RESOURCE_REQUEST_CHANNEL))

    placement.request_hosts(2, 3)
    assert requested() == [{"CPU": 3.0}, {"CPU": 3.0}]
    placement.request_hosts(0, 3)
    assert requested() == []


@pytest.mark.ray
def test_gm38_a_node_that_ray_drains_is_not_offered_and_said_to_go_until_its_deadline(cluster: EmbeddedCluster) -> None:
    """It ends by itself once nothing runs there any more."""
    from ray._private.worker import global_worker
    from ray.core.generated import autoscaler_pb2

    worker: Any = global_worker
    reasons: Any = autoscaler_pb2
    eventually_free(3, ["127.0.0.2", "127.0.0.3"])
    slot = placement.free_hosts(3)[1]
    group = placement.reserve(slot, 2, "quantarion-placement-host-5")
    assert placement.wait_ready(group, 60) and placement.draining_nodes() == {}
    eventually_free(1, ["127.0.0.2", "127.0.0.3"])
    until = int(time.time()) + 600.0
    drained, refusal = worker.gcs_client.drain_node(
        slot.node_id, reasons.DRAIN_NODE_REASON_PREEMPTION, "pre-empted", int(1000 * until)
    )
    assert drained, refusal
    deadline = time.monotonic() + 60
    while not (draining := placement.draining_nodes()):
        assert time.monotonic() < deadline, "Ray does not say that it drains a node"
        time.sleep(0.02)
    assert draining == {slot.node_id: until}
    assert addresses(1) == ["127.0.0.2"]
    placement.release(group)
    while placement.draining_nodes() or addresses(3) != ["127.0.0.2", "127.0.0.3"]:
        assert time.monotonic() < deadline, "the node has not ended, or another one has not begun"
        cluster.revive()
        time.sleep(0.02)
