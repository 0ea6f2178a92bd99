"""What a simulated fleet is: how many hosts, in which groups, on how many streams, and which process simulates which."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

from orchestrator.governor.groups import MOST_HOSTS, sizes


@dataclass(frozen=True)
class Node:
    """A simulated host. `number` and `group` are counted from 0."""

    number: int
    group: int

    @property
    def host(self) -> str:
        return f"host-{self.number + 1}"

    @property
    def node_id(self) -> str:
        return f"node-{self.number + 1}"

    @property
    def address(self) -> str:
        """Nobody connects to it."""
        number = self.number + 1
        return f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"

    @property
    def group_name(self) -> str:
        return f"g{self.group:03}"


@dataclass(frozen=True)
class Settings:
    """Of one run; `fleet.json` in the job's folder.

    Attributes:
        leaders: the first host of each group has a stream, which carries the group; otherwise each host has one.
        most: hosts of a group at most (GM-1).
        generators: processes that simulate hosts; a group is in one of them.
        step_seconds: that a step of the simulated training takes.
        evaluation: `governor.evaluation`, in seconds; `apart`: `governor.apart`.
        sockets: folder in which the processes meet; short, as paths of sockets are.
    """

    hosts: int
    sockets: str
    leaders: bool = False
    most: int = MOST_HOSTS
    generators: int = 1
    seed: int = 1
    step_seconds: float = 0.1
    evaluation: float = 10.0
    apart: float = 20.0

    @classmethod
    def read(cls, folder: Path) -> Self:
        return cls(**json.loads((folder / "fleet.json").read_text()))

    def write(self, folder: Path) -> None:
        (folder / "fleet.json").write_text(json.dumps(asdict(self), indent=2) + "\n")

    @cached_property
    def nodes(self) -> list[Node]:
        """All hosts, group after group."""
        groups = [group for group, size in enumerate(sizes(self.hosts, self.most)) for _ in range(size)]
        return [Node(number, group) for number, group in enumerate(groups)]

    @cached_property
    def by_host(self) -> dict[str, Node]:
        return {node.host: node for node in self.nodes}

    def generator(self, node: Node) -> int:
        """The process that simulates it."""
        return node.group % self.generators

    def simulated_by(self, generator: int) -> list[Node]:
        return [node for node in self.nodes if self.generator(node) == generator]

    def streams(self, nodes: list[Node]) -> list[list[Node]]:
        """The hosts of each stream; the first one is the one whose stream it is."""
        if not self.leaders:
            return [[node] for node in nodes]
        groups: dict[int, list[Node]] = {}
        for node in nodes:
            groups.setdefault(node.group, []).append(node)
        return list(groups.values())

    @property
    def num_streams(self) -> int:
        return len(self.streams(self.nodes))
