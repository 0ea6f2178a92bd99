"""CC-9: the group of a host, by the JobSpec and by the labels of its Ray node."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from quantarion.v1 import control_pb2 as pb

from orchestrator import membership as ms
from orchestrator.directives import Directives
from orchestrator.jobspec import JobSpec, load
from orchestrator.placement import HostSlot
from orchestrator.topology import LABELS, TopologyConfig, complaints, told_group
from tests.orchestrator.test_jobspec import refused
from workers.collectives.exchange import Place
from workers.identity import GENESIS, Generation
from workers.rank import Rank

ZONES = {"topology.kubernetes.io/zone": "zone-1", "ray.io/availability-zone": "zone-2"}
SLOT = HostSlot("10.0.0.1", "ab12", frozenset({"node-1", "machine-1"}), ZONES)


def config(**keys: object) -> TopologyConfig:
    return TopologyConfig.model_validate(keys)


@pytest.mark.parametrize("name", ["10.0.0.1", "ab12", "node-1", "machine-1"])
def test_cc9_the_jobspec_comes_before_the_labels_by_any_name_of_the_host(name: str) -> None:
    assert told_group(SLOT, config(groups={"site-a": ["10.0.0.9"], "site-b": ["10.0.0.8", name]})) == "site-b"
    assert told_group(SLOT, config(groups={"site-a": ["10.0.0.9"]})) == "zone-1"


def test_cc9_of_the_known_labels_the_first_that_the_node_has_counts() -> None:
    assert LABELS[0] == "quantarion.io/group"
    assert told_group(HostSlot("a", "b", labels={LABELS[0]: "ours", **ZONES}), config()) == "ours"
    assert told_group(SLOT, config()) == "zone-1"
    assert told_group(HostSlot("a", "b", labels={LABELS[1]: "", LABELS[2]: "zone-2"}), config()) == "zone-2"
    assert told_group(HostSlot("a", "b", labels={"ray.io/node-id": "b"}), config()) == ""


def test_cc9_a_label_of_ones_own_counts_alone() -> None:
    assert told_group(SLOT, config(label="ray.io/availability-zone")) == "zone-2"
    assert told_group(SLOT, config(label="rack")) == ""
    assert told_group(SLOT, config(label="")) == ""


def test_cc9_names_without_a_host_are_told_in_one_sentence() -> None:
    topology = config(groups={"a": ["10.0.0.1", "10.0.0.7"], "b": ["node-8"]})
    (sentence,) = complaints([SLOT, HostSlot("10.0.0.2", "cd")], topology)
    assert sentence.startswith("topology.groups names 10.0.0.7, node-8, which no host of the job has")
    assert complaints([SLOT], config(groups={"a": ["10.0.0.1"]})) == complaints([], config()) == []


def test_cc9_a_host_in_two_groups_by_two_names_is_told() -> None:
    topology = config(groups={"b": ["10.0.0.1"], "a": ["machine-1"]})
    (sentence,) = complaints([SLOT], topology)
    assert sentence.startswith("topology.groups has the host 10.0.0.1 in b and, by another of its names, in a; b counts")
    assert told_group(SLOT, topology) == "b"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "{a: [h], b: [g, h]}",
            "topology.groups has the host h in a and in b, but a host is in one group; remove",
        ),
        ("{'no site': [h]}", "topology.groups has a group 'no site', but a group's name is at most 63 letters, digits, "),
        ("{'': [h]}", "topology.groups has a group '', but a group's name is at most 63 letters"),
        (
            "{a: h}",
            "topology.groups.a is 'h', but must be the names of groups, each with a list of texts, the hosts in it",
        ),
        ("{a: h}", 'write for example topology.groups: {"site-a": ["10.0.0.1", "10.0.0.2"], "site-b": ["10.1.0.1"]}'),
        ("{a: [3]}", "topology.groups.a.0 is 3, but must be the names of groups, each with a list of texts"),
        ("[h]", "topology.groups is ['h'], but must be the names of groups, each with a list of texts"),
    ],
)
def test_cc9_what_cannot_be_meant_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    assert sentence in refused(tmp_path, f"name: a\ntopology: {{groups: {text}}}")


def test_cc9_the_group_goes_with_the_member_to_its_rank() -> None:
    member = ms.MemberPlan("w", 0, "host-1", "10.0.0.1:9", GENESIS, True, True, group="site")
    plan = ms.Plan(Generation(1, 1), (member,), GENESIS, 0, True, False)
    configure = pb.Configure.FromString(Directives("10.0.0.1:1").make(ms.SendConfigure("w", plan)).configure)
    rank = SimpleNamespace(worker="w", _note_state=lambda: None)
    Rank._seat(rank, configure, configure.members[0])  # type: ignore[arg-type]
    assert rank.topology.places == (Place(0, "host-1", "10.0.0.1", "site"),)


def test_cc9_groups_can_be_set_on_the_command_line(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text("name: a")
    spec = load(job, ["topology.groups.site-a=[10.0.0.1, n]", "topology.label=rack"])
    assert spec.topology == TopologyConfig(groups={"site-a": ["10.0.0.1", "n"]}, label="rack")
    assert JobSpec(name="a").topology == TopologyConfig()
    same = [f"topology.groups={text}" for text in ("{a: [h]}", "{b: [h]}")]
    assert load(job, same).topology.groups == {"b": ["h"]}
