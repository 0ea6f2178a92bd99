"""Workers that die before any agent knows them, and names of hosts."""

from __future__ import annotations

import os
import queue
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator import rayenv
from orchestrator.embedded import HEAD_ADDRESS, EmbeddedCluster
from orchestrator.hosts import NodeNames


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[EmbeddedCluster]:
    with EmbeddedCluster(1, 4, tmp_path) as running:
        rayenv.connect(running.address, "quantarion-hosts", node_address=HEAD_ADDRESS)
        yield running


@pytest.mark.ray
def test_a_worker_that_dies_before_its_hello_is_told_of(cluster: EmbeddedCluster) -> None:
    """Killed while it starts, or ended by itself; not where it was met before or its host is gone."""
    import ray

    from orchestrator.hosts import Newborn

    class Worker:
        def __init__(self, lives: bool) -> None:
            if not lives:
                os._exit(1)

        def ping(self) -> int:
            return os.getpid()

    dead: queue.Queue[str] = queue.Queue()
    newborn = Newborn(dead.put)
    actor: Any = ray.remote(Worker)
    pids: dict[str, int] = {}
    for host in ("met", "dropped", "killed"):
        worker = actor.options(num_cpus=1, max_concurrency=2).remote(lives=True)
        newborn.watch(host, worker)
        pids[host] = ray.get(worker.ping.remote())
    newborn.met("met", pids["met"])
    newborn.forget("dropped")
    for host in pids:
        os.kill(pids[host], signal.SIGKILL)
    newborn.watch("failed", actor.options(num_cpus=1).remote(lives=False))
    assert {dead.get(timeout=60), dead.get(timeout=60)} == {"killed", "failed"}
    thread = newborn._thread
    if thread is not None:
        thread.join(60)
    assert dead.empty()


def test_a_node_that_comes_back_has_the_name_that_it_had() -> None:
    names = NodeNames()
    assert [names.of(node) for node in ("a", "b", "a", "c", "b")] == ["host-1", "host-2", "host-1", "host-3", "host-2"]
    assert [names.known.get(node) for node in ("b", "d")] == ["host-2", None]
    again = NodeNames({"b": "host-2", "c": "host-3"})
    assert [again.of(node) for node in ("d", "b")] == ["host-4", "host-2"]
