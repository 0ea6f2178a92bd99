"""CC-9: the groups of hosts on a real Ray cluster of raylets with labels and names of their own."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator import placement, rayenv
from orchestrator.embedded import HEAD_ADDRESS, HOST_LABEL, EmbeddedCluster
from orchestrator.topology import TopologyConfig, told_group
from tests.e2e.gang import Gang

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

FIRST, SECOND, THIRD = "127.0.0.2", "127.0.0.3", "127.0.0.4"


class Labelled(EmbeddedCluster):
    """One whose raylets have a label more, as `ray start --labels` would give it to them."""

    def _parameters(self, address: str, cpus: int, marks: dict[str, str], **more: Any) -> Any:
        if "labels" in more:
            more["labels"]["topology.kubernetes.io/zone"] = "east" if address == SECOND else "west"
            more["node_name"] = f"node-{address.rpartition('.')[2]}"
        return super()._parameters(address, cpus, marks, **more)


@pytest.fixture
def slots(tmp_path: Path) -> Iterator[dict[str, placement.HostSlot]]:
    """The hosts that such a cluster offers, by address."""
    with Labelled(2, 1, tmp_path) as running:
        rayenv.connect(running.address, "quantarion-labels", node_address=HEAD_ADDRESS)
        yield {slot.address: slot for slot in placement.free_hosts(1)}


def test_cc9_hosts_are_offered_with_the_labels_and_names_of_their_ray_nodes(slots: dict[str, placement.HostSlot]) -> None:
    def groups(**keys: Any) -> dict[str, str]:
        return {address: told_group(slot, TopologyConfig(**keys)) for address, slot in slots.items()}

    assert groups() == {FIRST: "west", SECOND: "east"}
    assert groups(label=HOST_LABEL) == {FIRST: FIRST, SECOND: SECOND}
    assert groups(label="") == {FIRST: "", SECOND: ""}
    by_name = {"a": [FIRST], "b": ["node-3"]}
    assert groups(groups=by_name) == {FIRST: "a", SECOND: "b"}
    assert groups(groups={"a": [slots[SECOND].node_id]}) == {FIRST: "west", SECOND: "a"}


@pytest.mark.long
def test_cc9_a_job_goes_by_the_jobspec_and_the_labels_and_probes_the_rest(
    start: Callable[..., Gang], paced_job: Path
) -> None:
    """Three raylets, which have all a label; one has been told another group. What the links are is on record."""
    groups = {"zone": [FIRST], "far": ["10.9.9.9"]}
    sets = ["hosts.min=3", "hosts.max=3", "ranks_per_host=1", "spares_per_host=0", "topology.probe=true"]
    sets += [f"topology.label={HOST_LABEL}", f"topology.groups={groups}"]
    gang = start(paced_job, *[part for each in sets for part in ("--set", each)], name="zones")
    gang.until_step(3)
    state = gang.status()
    assert state is not None
    expected = {FIRST: "zone", SECOND: SECOND, THIRD: THIRD}
    assert {host["address"]: host["group"] for host in state["hosts"]} == expected
    address = {host["host"]: host["address"] for host in state["hosts"]}
    (made,) = gang.events("generation")
    assert [address[member["host"]] for member in made["members"]] == [SECOND, THIRD, FIRST]
    (probe,) = gang.events("topology")
    assert probe["measured"] == 3 and probe["found"] == {} and not probe["failures"]
    explained = gang.command("explain", "topology", "zones", "--storage", gang.storage)
    assert explained.returncode == 0, explained.stdout
    assert "3 of 3 links between hosts measured" in explained.stdout and "10.9.9.9" in explained.stdout
    shown = gang.command("status", "zones", "--storage", gang.storage).stdout
    assert f"{FIRST}       healthy  group zone" in shown
    gang.signal(signal.SIGINT)
    assert gang.end() == 130, gang.describe()
    assert gang.left_over() == []
    assert "topology.groups names 10.9.9.9, which no host of the job has" in gang.output
