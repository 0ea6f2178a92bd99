"""The coordinator's memory in the job's storage: incarnation, journal, fence, address (EP-12).

The incarnation is taken by creating a file exclusively, so of two coordinators one gets the higher number and the other's
directives are stale. Everything is small and replaced atomically or appended.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workers.identity import NO_GENERATION, Generation
from workers.paths import DISTRUSTED


@dataclass
class Remembered:
    """What a restarted coordinator knows from its predecessor."""

    generation: Generation = NO_GENERATION
    formed: bool = False
    launch: float = 0.0
    stopping: bool = False  # somebody asked for the end
    requeue: str = ""  # why it ends, where it is to be started again
    hosts: dict[str, dict[str, Any]] = field(default_factory=dict)  # host -> address, node_id, group, leaving
    members: dict[str, int] = field(default_factory=dict)  # of the last generation: worker -> rank
    voters: dict[str, str] = field(
        default_factory=dict
    )  # of those members whose host is not dead for certain: worker -> host
    hung: list[tuple[float, str]] = field(default_factory=list)  # when a host was the culprit of a hang
    names: dict[str, str] = field(default_factory=dict)  # of all nodes that were ever taken: node_id -> host
    drained: set[str] = field(default_factory=set)  # hosts that are not to be taken again
    notices: dict[str, dict[str, Any]] = field(default_factory=dict)  # host -> that it will be taken away (`Notice`)
    hosts_max: int = 0  # as an operator has scaled the job; 0: nobody has
    save: int = 0  # after this step a checkpoint was asked for that does not lie on disk yet; 0: nobody has asked
    sound: int = 0  # the last step after which all members were seen to hold the same bytes
    rolling_back: int | None = None  # to a checkpoint of that step or before; it has not come to its end
    software: dict[str, str] = field(default_factory=dict)  # that all hosts are to have (`workers.installed`)
    probed: dict[str, str] = field(default_factory=dict)  # address -> group, as the probe has found it


class Journal:
    """One incarnation's journal in `<job>/control/`.

    `launch` (Unix seconds) tells the starts of a job apart: only a coordinator of the same start takes over hosts.
    """

    def __init__(self, job_folder: Path, launch: float) -> None:
        self.launch = launch
        self.folder = job_folder / "control"
        self._job_folder = job_folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self.incarnation = self._take_incarnation()
        self.remembered = self._read()
        self._fd = os.open(self.folder / "journal.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def _take_incarnation(self) -> int:
        taken = [int(p.name.removeprefix("incarnation-")) for p in self.folder.glob("incarnation-*")]
        number = max(taken, default=0)
        while True:
            number += 1
            try:
                os.close(os.open(self.folder / f"incarnation-{number}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            except FileExistsError:
                continue
            return number

    @property
    def deposed(self) -> bool:
        """True where a later incarnation exists: this one must not act any more."""
        return (self.folder / f"incarnation-{self.incarnation + 1}").exists()

    def _read(self) -> Remembered:
        remembered = Remembered()
        with contextlib.suppress(FileNotFoundError):
            for line in (self.folder / "journal.jsonl").read_bytes().splitlines():
                try:
                    entry = json.loads(line)
                except ValueError:
                    continue  # torn by a crash: what it announced was not done
                _replay(remembered, entry)
        if remembered.launch != self.launch:
            return Remembered(launch=self.launch, generation=remembered.generation)
        return remembered

    def begin(self) -> bool:
        """Put this incarnation on record; True where it goes on from a predecessor of the same start."""
        took_over = bool(self.remembered.hosts)
        self.write({"entry": "started", "incarnation": self.incarnation, "launch": self.launch})
        return took_over

    def write(self, entry: dict[str, Any]) -> None:
        """Append one entry before it is acted on."""
        os.write(self._fd, (json.dumps(entry) + "\n").encode())

    def fence(self, generation: Generation) -> None:
        """From now on nothing of an older generation may publish (GM-6)."""
        replace_json(self.folder / "fence.json", {"incarnation": generation.incarnation, "counter": generation.counter})

    def distrust(self, after: int) -> None:
        """Checkpoints of later steps than `after` are wrong, for ranks that look for one in a later start too."""
        replace_json(self.folder / DISTRUSTED, {"after": after})

    def trust(self) -> None:
        """They are out of the way."""
        with contextlib.suppress(OSError):
            (self.folder / DISTRUSTED).unlink(missing_ok=True)

    def announce(self, address: str, started: float, server_name: str = "") -> None:
        """Tell agents and commands where this incarnation listens, and for which name its certificate is, if it has one."""
        content = {"incarnation": self.incarnation, "address": address, "pid": os.getpid(), "started": started}
        replace_json(self._job_folder / "coordinator.json", {**content, **({"tls": server_name} if server_name else {})})


def _replay(remembered: Remembered, entry: dict[str, Any]) -> None:
    match entry.get("entry"):
        case "started":
            if entry["launch"] != remembered.launch:
                remembered.launch = float(entry["launch"])
                remembered.hosts.clear()
                remembered.members.clear()
                remembered.voters.clear()
                remembered.hung.clear()
                remembered.probed.clear()
                remembered.names.clear()
                remembered.software.clear()
                remembered.drained.clear()
                remembered.notices.clear()
                remembered.hosts_max = 0
                remembered.save = 0
                remembered.sound = 0
                remembered.rolling_back = None
                remembered.stopping, remembered.requeue = False, ""
                remembered.formed = False
        case "software":
            remembered.software = {str(what): str(value) for what, value in entry["software"].items()}
        case "generation":
            remembered.generation = Generation(*entry["generation"])
            remembered.members = {str(m["worker"]): int(m["rank"]) for m in entry["members"]}
            remembered.voters = {str(m["worker"]): str(m["host"]) for m in entry["members"]}
            remembered.formed = True
        case "host_lost" if entry["certain"]:
            remembered.voters = {w: host for w, host in remembered.voters.items() if host != entry["host"]}
        case "hang":
            hosts = dict.fromkeys(str(culprit["host"]) for culprit in entry["culprits"])
            remembered.hung += [(float(entry["t"]), host) for host in hosts]
        case "stopping":
            remembered.stopping, remembered.requeue = True, entry["reason"] if entry.get("requeue") else ""
        case "host":
            remembered.hosts[entry["host"]] = {k: v for k, v in entry.items() if k != "entry"}
            remembered.names[str(entry["node_id"])] = entry["host"]
            remembered.notices.pop(entry["host"], None)  # it was not to be taken before that was over
        case "drained":
            remembered.drained.add(entry["host"])
        case "notice":
            remembered.notices[entry["host"]] = {key: value for key, value in entry.items() if key != "entry"}
        case "notice_withdrawn":
            remembered.notices.pop(entry["host"], None)
        case "readmitted":
            remembered.drained.discard(entry["host"])
        case "scaled":
            remembered.hosts_max = int(entry["hosts"])
        case "save":
            remembered.save = int(entry["step"])
        case "saved":
            remembered.save = 0
        case "sound":
            remembered.sound = int(entry["step"])
        case "rolls_back":
            remembered.rolling_back = int(entry["at_most"])
        case "rolled_back":
            remembered.rolling_back = None
        case "probed":
            remembered.probed = dict(entry["by_address"])
            for host, group in entry["groups"].items():
                if host in remembered.hosts:
                    remembered.hosts[host]["group"] = group
        case "host_leaves":
            if entry["host"] in remembered.hosts:
                remembered.hosts[entry["host"]]["leaving"] = entry["reason"]
        case "host_dropped":
            remembered.hosts.pop(entry["host"], None)


def replace_json(path: Path, content: dict[str, Any]) -> None:
    """Write a small file so that readers see the old or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(content))
    temporary.replace(path)
