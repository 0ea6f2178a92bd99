"""The host test (`workers.host_test`) on every host that the job would have, before anything else (GM-40)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable

from orchestrator.preflight.hosts import Host
from orchestrator.preflight.verdicts import Finding, failed, passed

LIMIT_SECONDS = 30.0


def here() -> str:
    """Of this machine: what is wrong with it, in a process of its own, which may crash or hang; '' where nothing is."""
    command = [sys.executable, "-m", "workers.host_test"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with tempfile.TemporaryDirectory(prefix="quantarion-") as folder:
        try:
            done = subprocess.run(
                [*command, folder], env=environment, capture_output=True, timeout=LIMIT_SECONDS, check=False
            )
            found = json.loads(done.stdout)
        except (OSError, ValueError, subprocess.TimeoutExpired) as error:
            return f"the host test could not be done: {error}"
    return "; ".join(map(str, found))


def on_cluster(hosts: Iterable[Host]) -> dict[str, str]:
    """By address, `here` of each of these hosts of the cluster that this process is connected to."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    test = ray.remote(num_cpus=0, max_retries=0)(here)
    asked = {
        host.address: test.options(scheduling_strategy=NodeAffinitySchedulingStrategy(host.node_id, soft=False)).remote()
        for host in hosts
    }
    ray.wait(list(asked.values()), num_returns=len(asked), timeout=LIMIT_SECONDS + 10)
    found = {}
    for address, answer in asked.items():
        try:
            found[address] = str(ray.get(answer, timeout=0))
        except ray.exceptions.RayError as error:
            found[address] = f"the host test could not be done: {type(error).__name__}"
    return found


def judged(found: dict[str, str]) -> Finding:
    """`found`: by host, what is wrong with it."""
    wrong = [f"{host}: {what}" for host, what in sorted(found.items()) if what]
    if wrong:
        return failed("; ".join(wrong))
    return passed(f"{len(found)} host{'' if len(found) == 1 else 's'} compute, keep and store what they should")
