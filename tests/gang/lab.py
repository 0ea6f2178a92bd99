"""A gang of the tests in a lab (`benchmarks.gang.lab`), and how long its ranks take to be out of an exchange."""

from __future__ import annotations

import json
import os
import signal
from collections import defaultdict
from dataclasses import dataclass

from benchmarks.gang import lab
from benchmarks.gang.gang import read_json_lines
from orchestrator.records import Record
from tests.gang.harness import Gang


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
class LabGang(lab.LabGang, Gang):
    """A gang of the tests on hosts with cables."""

    def cable_of(self, rank: int) -> int:
        """The host of the lab that this rank runs on."""
        process = next(c for c in self.processes("worker") if c.pid == self.members()[rank]["pid"])
        return self.addresses.index(process.address)

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
