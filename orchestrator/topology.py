"""Which hosts have fast links between them: groups by the JobSpec, else by the labels of Ray's nodes (CC-9)."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Annotated, Self

from pydantic import Field, model_validator

from orchestrator.placement import HostSlot
from workers.settings import Config

LABELS = ("quantarion.io/group", "topology.kubernetes.io/zone", "ray.io/availability-zone")
"""Ours; Kubernetes', where somebody hands it on to `ray start --labels`; Ray's own, from RAY_NODE_ZONE."""

_GROUP = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")


class TopologyConfig(Config):
    """Where the groups of hosts come from."""

    groups: dict[str, list[Annotated[str, Field(min_length=1)]]] = Field(
        default={},
        description="The hosts of each group, by address, Ray node id or node name; they need not be there yet.",
        examples=[{"site-a": ["10.0.0.1", "10.0.0.2"], "site-b": ["10.1.0.1"]}],
        json_schema_extra={"expectation": "the names of groups, each with a list of texts, the hosts in it"},
    )
    label: str | None = Field(
        None,
        description="Label of Ray's nodes whose value is the name of a host's group; null takes the first that a node has "
        f"of {', '.join(f'`{label}`' for label in LABELS)}; an empty text takes none.",
        examples=[LABELS[1]],
    )
    probe: bool = Field(
        False,
        description="Measure the links between the hosts before the first step, in at most 5 seconds. Hosts that have no "
        "group by then are put into groups, if links inside them are at least 4 times as fast as links between them.",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        owner: dict[str, str] = {}
        for group, names in self.groups.items():
            if not _GROUP.fullmatch(group):
                raise ValueError(
                    f"topology.groups has a group {group!r}, but a group's name is at most 63 letters, digits, '-', '_' "
                    "and '.', with a letter or digit at both ends; write for example site-a"
                )
            for name in names:
                if owner.setdefault(name, group) != group:
                    raise ValueError(
                        f"topology.groups has the host {name} in {owner[name]} and in {group}, but a host is in one group; "
                        "remove it from one of them"
                    )
        return self


def told_group(slot: HostSlot, config: TopologyConfig) -> str:
    """A host's group by the JobSpec, else by its labels; '' where neither says one."""
    for group, names in config.groups.items():
        if not slot.names.isdisjoint(names):
            return group
    keys = LABELS if config.label is None else (config.label,)
    return next((slot.labels[key] for key in keys if slot.labels.get(key)), "")


def complaints(slots: Collection[HostSlot], config: TopologyConfig) -> list[str]:
    """What is odd about `topology.groups` now that the job has these hosts: a sentence for each."""
    found = []
    for slot in sorted(slots):
        groups = [group for group, names in config.groups.items() if not slot.names.isdisjoint(names)]
        if len(groups) > 1:
            others = " and ".join(groups[1:])
            found.append(
                f"topology.groups has the host {slot.address} in {groups[0]} and, by another of its names, in {others}; "
                f"{groups[0]} counts"
            )
    known = frozenset[str]().union(*(slot.names for slot in slots))
    unknown = [name for names in config.groups.values() for name in names if name not in known]
    if unknown:
        found.append(
            f"topology.groups names {', '.join(unknown)}, which no host of the job has as its address, Ray node id or node "
            "name; it counts if one with that name joins later"
        )
    return found
