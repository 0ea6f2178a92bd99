"""What a job tells of itself, read as it is written: who is in it, where it stands, and whether it can be harmed again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from orchestrator.records import EVENT_KEYS, EVENTS, STEP_KEYS, STEPS, Generation, Record, Tail, generation_of

JOURNAL = Path("control", "journal.jsonl")


class Watch:
    """Of the job in `folder`; call `look` often.

    Attributes:
        events, steps: all so far, in the order of writing; steps that no longer count among them.
        members: rank to {rank, host, pid, worker}, of the last generation.
        sound: the last step after which all members were seen to hold the same.
        ended: the event that the job ended with.
    """

    def __init__(self, folder: Path) -> None:
        self._events = Tail(folder / EVENTS, EVENT_KEYS)
        self._steps = Tail(folder / STEPS, STEP_KEYS)
        self._journal = Tail(folder / JOURNAL, frozenset({"entry"}))
        self.events: list[Record] = []
        self.steps: list[Record] = []
        self.members: dict[int, Record] = {}
        self.generation: Generation = (0, 0)
        self.addresses: dict[str, str] = {}  # by host
        self.checkpoints: list[int] = []  # their steps
        self.sound = 0
        self.ended: Record | None = None
        self._differed_at = 0
        self._agreed_since = False

    def look(self) -> list[Record]:
        """Read on; the new events."""
        new = self._events.read()
        for event in new:
            self._take(event)
        self.events += new
        self.steps += self._steps.read()
        for entry in self._journal.read():
            if entry["entry"] == "sound":
                self.sound = int(entry["step"])
                self._agreed_since = self._agreed_since or self.sound >= self._differed_at
        return new

    def _take(self, event: Record) -> None:
        match event["kind"]:
            case "host_up":
                self.addresses[str(event["host"])] = str(event["address"])
            case "generation":
                self.generation = generation_of(event)
                self.members = {int(member["rank"]): member for member in event["members"]}
            case "checkpoint":
                self.checkpoints.append(int(event["step"]))
            case "digests_differ":
                self._differed_at, self._agreed_since = int(event["step"]), False
            case "finished" | "failed":
                self.ended = event

    # ------------------------------------------------------------------ where it stands

    @property
    def step(self) -> int:
        """Of the newest line."""
        return int(self.steps[-1]["step"]) if self.steps else 0

    @property
    def ranks(self) -> int:
        """In the newest step."""
        return int(self.steps[-1]["ranks"]) if self.steps else 0

    @property
    def rate(self) -> float | None:
        """Steps per second, over the newest ones."""
        recent = self.steps[-10:]
        seconds = float(recent[-1]["t"]) - float(recent[0]["t"]) if recent else 0.0
        return (len(recent) - 1) / seconds if seconds > 0 else None

    def host_at(self, address: str) -> str | None:
        """The name of the machine with this address, once it has been a host."""
        return next((host for host, known in self.addresses.items() if known == address), None)

    def ranks_on(self, host: str) -> list[int]:
        """Members of the last generation, in the order of their numbers."""
        return sorted(rank for rank, member in self.members.items() if member["host"] == host)

    @property
    def hosts(self) -> set[str]:
        """Of the last generation."""
        return {str(member["host"]) for member in self.members.values()}

    def flipped(self) -> None:
        """A bit was flipped: what was agreed before tells nothing any more."""
        self._differed_at, self._agreed_since = 0, False

    def cannot_go_back(self) -> str | None:
        """Why another flipped bit could not be told from the last one, or undone; None where it could be."""
        if not any(step <= self.sound for step in self.checkpoints):
            return "there is no checkpoint yet that all ranks are known to agree on"
        return None if self._agreed_since else "the ranks have not agreed again since the last flipped bit"

    def since(self, number: int, wanted: Callable[[Record], bool]) -> Record | None:
        """The first event from the `number`-th on that is wanted."""
        return next((event for event in self.events[number:] if wanted(event)), None)


def read_limits(path: Path) -> list[Record]:
    """What the coordinator had learned when, {t, dead, hang} in seconds (`benchmarks.gang.gang.LIMITS`)."""
    try:
        return [json.loads(line) for line in path.read_text().splitlines()]
    except FileNotFoundError:
        return []
