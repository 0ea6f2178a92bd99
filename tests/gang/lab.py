"""A gang whose hosts are network namespaces with cables of their own (CC-26): agents and workers of a host run in its
namespace, the coordinator at the switch. A cut cable cuts a host off from everybody.
"""

from __future__ import annotations

import json
import os
import signal
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.lab import Lab
from orchestrator.records import Record
from tests.gang.harness import Gang, read_json_lines


@dataclass(frozen=True)
class Answer:
    """Of one rank to one PREPARE that allowed no more step."""

    worker: str
    generation: tuple[int, int]
    asked: float  # seconds of the coordinator's clock
    answered: float

    @property
    def seconds(self) -> float:
        return self.answered - self.asked


@dataclass
class LabGang(Gang):
    """`lab` has at least as many hosts as the gang; what is not used at first may replace one."""

    lab: Lab = field(kw_only=True)
    out_of_reach: set[str] = field(default_factory=set)  # addresses of hosts whose cables are cut

    def start(self, *, resume: bool = False) -> Gang:
        self._switch_address = self.lab.stand_at_switch()
        super().start(resume=resume)
        self._ask(do="fork", kind="observer")
        return self

    @property
    def addresses(self) -> list[str]:
        return [host.address for host in self.lab.hosts]

    def settings(self) -> dict[str, Any]:
        namespaces = {host.address: host.namespace for host in self.lab.hosts}
        at_switch = dict.fromkeys(("coordinator", "observer"), self.lab.switch)
        return {
            "address": self._switch_address,
            "namespaces": namespaces | at_switch,
            "out_of_reach": sorted(self.out_of_reach),
        }

    def status(self) -> dict[str, Any] | None:
        try:
            state: dict[str, Any] | None = json.loads((self.folder / "status.json").read_text())
        except FileNotFoundError:
            return None
        return state

    def clear(self) -> None:
        (self.folder / "status.json").unlink(missing_ok=True)  # from now on nobody answers
        super().clear()

    # ------------------------------------------------------------------ cables

    def cable_of(self, rank: int) -> int:
        """The host of the lab that this rank runs on."""
        process = next(c for c in self.processes("worker") if c.pid == self.members()[rank]["pid"])
        return self.addresses.index(process.address)

    def cut(self, cable: int, *, nodes: Iterable[int]) -> None:
        """Nobody reaches this host from now on, who removes hosts neither; `nodes` are the machines there are else."""
        self.out_of_reach.add(self.addresses[cable])
        self.set_nodes([self.addresses[index] for index in nodes])
        self.lab.cut(cable)

    def mend(self, cable: int) -> None:
        self.lab.mend(cable)

    def remove(self, host: str) -> None:
        """Everything on a host dies at once; its cable and its address stay."""
        self._ask(do="remove", host=host)

    def end_unreachable(self, cable: int) -> None:
        """What the host's own Ray would do when it has found out that it is no part of the cluster any more."""
        address = self.addresses[cable]
        for host in {c.host for c in self.processes() if c.address == address}:
            self._ask(do="remove", host=host)
        self.out_of_reach.discard(address)

    def stop_rank(self, rank: int) -> int:
        """SIGSTOP; its pid."""
        pid = int(self.members()[rank]["pid"])
        os.kill(pid, signal.SIGSTOP)
        return pid

    # ------------------------------------------------------------------ what happened

    def answers(self) -> list[Answer]:
        """To every PREPARE that was to be obeyed at once, of ranks in a running generation, in the order of the answers."""
        asked: dict[tuple[str, tuple[int, int]], float] = {}
        found = []
        trained = self._trained()
        for line in read_json_lines(self.folder / "answers.jsonl"):
            generation = (int(line["generation"][0]), int(line["generation"][1]))
            key = str(line["worker"]), generation
            if line["what"] == "asked":
                if not line["at_step"]:
                    asked.setdefault(key, float(line["t"]))
            elif key in asked and any(before < generation for before in trained[key[0]]):
                found.append(Answer(*key, asked.pop(key), float(line["t"])))
        return found

    def _trained(self) -> dict[str, list[tuple[int, int]]]:
        """By worker: the generations that it was running in."""
        workers: dict[tuple[tuple[int, int], int], str] = {}
        for made in self.events("generation"):
            for member in made["members"]:
                workers[_pair(made), int(member["rank"])] = str(member["worker"])
        found: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for running in self.events("running"):
            found[workers[_pair(running), int(running["rank"])]].append(_pair(running))
        return found

    def times(self) -> str:
        """One line for a person: how long ranks took to be out."""
        return json.dumps([round(answer.seconds, 3) for answer in self.answers()])


def _pair(event: Record) -> tuple[int, int]:
    return int(event["generation"][0]), int(event["generation"][1])
