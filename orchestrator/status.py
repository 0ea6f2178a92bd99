"""`quantarion status`: how far a job is. Asks the coordinator's gRPC port, else reads the job's folder.

It imports neither Ray nor torch, and every question to the network ends after half a second.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import grpc
from quantarion.v1 import operator_pb2 as pb
from quantarion.v1 import operator_pb2_grpc as rpc

from orchestrator.errors import ExitCode, UserError
from orchestrator.records import EVENT_KEYS, EVENTS, STEP_KEYS, STEPS, Record, generation_of, parse_line, read_object
from workers import tls

ASK_SECONDS = 0.5
LINK_SECONDS = 60.0
"""For which one connection is used."""

SENSORS = ("memory", "disk", "load", "cpu")
"""Of a host: shares that are used, load per core, share of the time of all cores."""

_TAIL_BYTES = 1 << 18
_ENDED = ("finished", "failed")
_WELL = (ExitCode.DONE, ExitCode.STOPPED)
_NOT_VERIFIED = "It has trained to the end, but its integer model is not verified; report.json says which condition failed."
_PHASES = {  # kind of an event -> phase
    "job_started": "starting",
    "waiting": "waiting",
    "generation": "training",
    "running": "training",
    "stopping": "stopping",
}


class NoCredentials(ValueError):
    """The coordinator wants to see a certificate, and the operator's cannot be read here."""


@dataclass(frozen=True)
class Coordinator:
    """What `coordinator.json` says."""

    address: str  # host:port of its gRPC server
    pid: int
    incarnation: int
    folder: Path  # of its job
    server_name: str = ""  # that its certificate is for; empty: it speaks without TLS


def show(job: str | None, storage: Path, as_json: bool) -> int:
    """Print the state of `job`, or a line for each job in `storage`; the exit code.

    Raises:
        UserError: exit code 2, no such job; 4, the storage cannot be read.
    """
    if job is None:
        states = _all(storage)
        if as_json:
            _print(json.dumps(states, indent=2))
        else:
            _print("\n".join(map(line, states)) if states else f"No job has run in {storage}.")
        return ExitCode.DONE
    state = read(find(job, storage))
    _print(json.dumps(state, indent=2) if as_json else "\n".join([line(state), *_details(state)]))
    return ExitCode.DONE


def find(job: str, storage: Path) -> Path:
    """The folder of `job`.

    Raises:
        UserError: exit code 2, there is none; 4, the storage cannot be read.
    """
    folder = storage / job
    if _is_job(folder):
        return folder
    known = ", ".join(each.name for each in _folders(storage)) or "none"
    raise UserError(f"There is no job '{job}' in {storage.resolve()} (there: {known}); write its name, or --storage")


def read(folder: Path) -> Record:
    """The state of the job in `folder`: its coordinator's answer, else what was last written."""
    return fetch(folder) or last_known(folder)


def fetch(folder: Path, timeout: float = ASK_SECONDS, *, driver: bool = False) -> Record | None:
    """As `Link.fetch`, for someone who asks once."""
    with closing(Link(folder)) as link:
        return link.fetch(timeout, driver=driver)


class Link:
    """To the coordinator of the job in `folder`, whoever that is: one connection for many questions.

    It is made anew where it has broken, for another incarnation, and after LINK_SECONDS, as certificates are replaced.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._to: Coordinator | None = None
        self._channel: grpc.Channel | None = None
        self._opened = 0.0

    def fetch(self, timeout: float = ASK_SECONDS, *, driver: bool = False) -> Record | None:
        """What it answers within `timeout` seconds; None where it does not.

        `driver`: this process started the job, so the answer tells the coordinator that it is alive.
        Keys: job, phase, step, total_steps, generation [i, c], ranks, hosts, answering, message, discarded, phi, lockstep,
        out_of_phase, exit_code.
        """
        coordinator = read_coordinator(self._folder)
        if coordinator is None:
            return None
        try:
            link = self._open(coordinator)
            reply = rpc.OperatorStub(link).Status(pb.StatusRequest(driver=driver), timeout=timeout)
        except (grpc.RpcError, ValueError):
            self.close()
            return None
        if reply.job != _name(self._folder):  # the port has gone to the coordinator of another job
            self.close()
            return None
        return _as_record(reply)

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def _open(self, coordinator: Coordinator) -> grpc.Channel:
        if self._to != coordinator or time.monotonic() - self._opened > LINK_SECONDS:
            self.close()
        if self._channel is None:
            self._channel, self._to, self._opened = channel(coordinator), coordinator, time.monotonic()
        return self._channel


def last_known(folder: Path) -> Record:
    """The state of a job whose coordinator does not answer, from the ends of its logs; keys as `fetch`."""
    last = max(tail(folder / STEPS, STEP_KEYS), key=lambda each: (generation_of(each), int(each["step"])), default=None)
    events = tail(folder / EVENTS, EVENT_KEYS)
    memberships = [each for each in events if each["kind"] == "generation"]
    newest = memberships[-1] if memberships else last
    step = int(last["step"]) if last else 0
    exit_code = ended(folder)
    phase = _last_phase(events) if exit_code is None else "finished" if exit_code in _WELL else "failed"
    message = _last_message(folder, exit_code) or _silence(folder)
    if exit_code == ExitCode.DONE and read_object(folder / "result.json").get("verified") is False:
        exit_code, message = ExitCode.GATE, _NOT_VERIFIED
    members = memberships[-1]["members"] if memberships and exit_code is None else []
    return {
        "job": _name(folder),
        "phase": phase,
        "step": step,
        "total_steps": None,
        "generation": list(generation_of(newest)) if newest else [0, 0],
        "ranks": [_member(each, step) for each in members],
        "hosts": [],
        "answering": False,
        "message": message,
        "discarded": int(memberships[-1].get("discarded") or 0) if memberships else 0,
        "phi": None,
        "lockstep": None,
        "out_of_phase": 0,
        "exit_code": exit_code,
    }


def ended(folder: Path) -> int | None:
    """The exit code of the job's last run by the coordinator's journal; None where it has not ended."""
    entries = tail(folder / "control" / "journal.jsonl", frozenset({"entry"}))
    last = next((each for each in reversed(entries) if each["entry"] in ("started", "ended")), None)
    return int(last["exit_code"]) if last and last["entry"] == "ended" else None


def recorded_end(folder: Path, after: int = 0) -> Record | None:
    """The event with which the job's last run has ended; None where the coordinator has put none on record, beyond the
    first `after` bytes of events.jsonl."""
    for event in reversed(tail(folder / EVENTS, EVENT_KEYS, after)):
        if event["kind"] in ("finished", "failed"):
            return event
        if event["kind"] == "coordinator_started":
            return None
    return None


def read_coordinator(folder: Path) -> Coordinator | None:
    """Where the coordinator of the job in `folder` is or was; None where none has started."""
    content = read_object(folder / "coordinator.json")
    try:
        pid, incarnation = int(content["pid"]), int(content["incarnation"])
        return Coordinator(str(content["address"]), pid, incarnation, folder, str(content.get("tls", "")))
    except (KeyError, TypeError, ValueError):
        return None


def channel(coordinator: Coordinator) -> grpc.Channel:
    """An unconnected channel to a coordinator; a proxy of the environment is not for it.

    Raises:
        NoCredentials: it wants to see a certificate.
    """
    options: list[tuple[str, int | str]] = [("grpc.enable_http_proxy", 0)]
    if not coordinator.server_name:
        return grpc.insecure_channel(coordinator.address, options=options)
    try:
        credentials = tls.channel_credentials(tls.tls_folder(coordinator.folder), tls.OPERATOR)
    except (OSError, tls.Damaged) as error:
        raise NoCredentials(str(error)) from None
    return grpc.secure_channel(coordinator.address, credentials, [*options, *tls.server_is(coordinator.server_name)])


def trouble(coordinator: Coordinator | None) -> str | None:
    """Why a coordinator that is silent may not have been asked at all, in one sentence: the operator's certificate."""
    if coordinator is None or not coordinator.server_name:
        return None
    from orchestrator.certificates import operators_trouble

    return operators_trouble(coordinator.folder, _name(coordinator.folder), time.time())


def tail(path: Path, required: frozenset[str], after: int = 0) -> list[Record]:
    """The whole records in the last 256 KiB of a `.jsonl` file, beyond its first `after` bytes, which are whole lines;
    empty where it does not exist."""
    try:
        with path.open("rb") as file:
            start = max(after, file.seek(0, 2) - _TAIL_BYTES)
            file.seek(start)
            lines = file.read().splitlines()
    except FileNotFoundError:
        return []
    records = (parse_line(each, required) for each in (lines[1:] if start > after else lines))
    return [record for record in records if record is not None]


def line(state: Record) -> str:
    """One line about a job."""
    total = f"/{state['total_steps']}" if state["total_steps"] else ""
    training = sum(1 for rank in state["ranks"] if rank["rank"] >= 0)
    parts = [f"{state['job']}: {state['phase']}", f"step {state['step']}{total}"]
    parts.append("generation " + ".".join(map(str, state["generation"])))
    if training:
        parts.append(f"{training} rank{'s' if training > 1 else ''}")
    if not state["answering"] and state["phase"] not in _ENDED:
        parts.append("no answer")
    return ", ".join(parts)


def _as_record(reply: pb.StatusReply) -> Record:
    return {
        "job": reply.job,
        "phase": reply.phase,
        "step": reply.step,
        "total_steps": reply.total_steps or None,
        "generation": [reply.generation.incarnation, reply.generation.counter],
        "ranks": [
            {"rank": rank.rank, "host": rank.host, "pid": rank.pid, "state": rank.state, "step": rank.step}
            for rank in reply.ranks
        ],
        "hosts": [
            {
                "host": host.host,
                "address": host.address,
                "state": host.state,
                "agent_pid": host.agent_pid,
                "through": host.through,
                "group": host.group,
                "standing": host.standing,
                "score": host.score if host.HasField("score") else None,
                "reason": host.reason,
                "trust": host.trust,
                "evictions": host.evictions,
                "returns_at": host.returns_at or None,
                "excluded": host.excluded,
                **{sensor: getattr(host, sensor) if host.HasField(sensor) else None for sensor in SENSORS},
                "short_of": list(host.short_of),
            }
            for host in reply.hosts
        ],
        "answering": True,
        "message": reply.message,
        "discarded": reply.discarded,
        "phi": reply.phi if reply.HasField("phi") else None,
        "lockstep": reply.lockstep if reply.HasField("lockstep") else None,
        "out_of_phase": reply.out_of_phase,
        "exit_code": reply.exit_code if reply.phase in _ENDED else None,
    }


def _member(member: Record, step: int) -> Record:
    return {"rank": member["rank"], "host": member["host"], "pid": member["pid"], "state": "unknown", "step": step}


def _last_phase(events: list[Record]) -> str:
    return next((_PHASES[each["kind"]] for each in reversed(events) if each["kind"] in _PHASES), "starting")


def _last_message(folder: Path, exit_code: int | None) -> str:
    if exit_code is None:
        return ""
    end = recorded_end(folder) if exit_code not in _WELL else None
    return str((end and end.get("message")) or f"It ended with exit code {exit_code}.")


def _silence(folder: Path) -> str:
    coordinator = read_coordinator(folder)
    if coordinator is None:
        return "No coordinator has started yet."
    where = f"{coordinator.address} (pid {coordinator.pid})"
    return trouble(coordinator) or f"The coordinator at {where} does not answer; this is what was last written."


def _details(state: Record) -> Iterator[str]:
    for rank in state["ranks"]:
        name = f"rank {rank['rank']}" if rank["rank"] >= 0 else "idle"
        yield f"  {name:8} {rank['host']:16} pid {rank['pid']:<8} {rank['state']:10} step {rank['step']}"
    for host in state["hosts"]:
        group = f"  group {host['group']}" if host["group"] else ""
        standing = f", {host['standing']}" if host["standing"] not in ("", "healthy") else ""
        yield f"  host     {host['host']:16} {host['address']:15} {host['state']}{standing}{group}"
    gauges = [f"phi {state['phi']:.4f}"] if state["phi"] is not None else []
    gauges += [f"lockstep {state['lockstep']:.3f}"] if state["lockstep"] is not None else []
    if gauges:
        apart = f", {state['out_of_phase']} out of phase" if state["out_of_phase"] else ""
        yield f"  {', '.join(gauges)}{apart}"
    if state["message"]:
        yield f"  {state['message']}"


def _all(storage: Path) -> list[Record]:
    folders = list(_folders(storage))
    with ThreadPoolExecutor(max_workers=max(1, min(16, len(folders)))) as pool:  # a silent one costs 0.5 s
        return list(pool.map(read, folders))


def _folders(storage: Path) -> list[Path]:
    try:
        return sorted(each for each in storage.iterdir() if _is_job(each) and not each.name.startswith("."))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(
            f"The storage {storage.resolve()} cannot be read ({error.strerror}); write --storage of a readable folder",
            ExitCode.STORAGE,
        ) from None


def _is_job(folder: Path) -> bool:
    return (folder / "job.json").is_file()


def _name(folder: Path) -> str:
    """A job's name, also where its folder was moved aside."""
    return str(read_object(folder / "job.json").get("name") or folder.name)


def _print(text: str) -> None:
    sys.stdout.write(text + "\n")
