"""Does the faults of a storm to a gang, and undoes them."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from benchmarks.gang.zygote import Child
from benchmarks.storm.gang import StormGang, armed_fault
from benchmarks.storm.kinds import TRAITS, Kind, Target, away
from benchmarks.storm.records import Fault
from benchmarks.storm.schedule import Planned
from benchmarks.storm.starve import Starvation
from benchmarks.storm.watch import Watch
from workers.faults import arm, disarm, parse

HAPPEN_SECONDS = 10.0
"""For a rank to come to the point at which it is to harm itself, or for a coordinator to answer an operator."""

READMIT_SECONDS, READMIT_FOR_SECONDS = 3.0, 90.0
"""From one time that an operator asks for a host to the next, and when it is given up."""

LET_GO_SECONDS = 0.3
"""For a coordinator that removes a host to have read whether it can be reached."""

READMITTED = (Kind.STOP, Kind.STARVE, Kind.FLIP, Kind.NAN, Kind.DRAIN)
"""After these an operator takes the host back, where the governor or an operator keeps it out."""


@dataclass
class _Return:
    """A host that an operator wants back."""

    host: str
    since: int  # number of the first event that counts
    until: float  # seconds of the monotonic clock
    next_at: float
    must_ask: bool


class Injector:
    """Of one storm. Faults are `begin` and, after their seconds, `end`; `tick` does what comes between."""

    def __init__(self, gang: StormGang, watch: Watch, look: Callable[[], None]) -> None:
        """`look` lets the watch read on."""
        self._gang, self._watch, self._read_on = gang, watch, look
        self._folder = gang.folder / "faults"
        self._under: dict[int, Fault] = {}  # by machine: what is done to it now
        self._gone: set[int] = set()  # machines that are not there
        self._stopped: dict[int, list[int]] = {}  # by fault: pids
        self._starved: dict[int, Starvation] = {}
        self._machines: dict[int, int] = {}  # by fault
        self._full = False
        self._unsure: list[tuple[Fault, Planned, int, float]] = []  # not known to have happened; first event, deadline
        self._returns: list[_Return] = []

    # ------------------------------------------------------------------ whom it may befall

    def target(self, planned: Planned) -> Fault | str:
        """The fault with whom it befalls now, or why it cannot be done now."""
        fault = Fault.of(planned)
        living = {child.pid: child for child in self._gang.processes() if child.status is None}
        if TRAITS[planned.kind].target is Target.JOB:
            refused = self._of_the_job(fault, living)
        else:
            refused = self._of_a_host(fault, planned, living)
        return refused or fault

    def _of_the_job(self, fault: Fault, living: dict[int, Child]) -> str | None:
        if fault.kind is Kind.DISK:
            return "the disk is full already" if self._full else None
        fault.pid = next((pid for pid, child in living.items() if child.kind == "coordinator"), None)
        return None if fault.pid is not None else "no coordinator runs"

    def _of_a_host(self, fault: Fault, planned: Planned, living: dict[int, Child]) -> str | None:
        assert planned.host is not None
        watch, address = self._watch, self._gang.addresses[planned.host]
        host = watch.host_at(address)
        training = {str(m["host"]) for m in watch.members.values() if int(m["pid"]) in living}
        if host is None or host not in training:
            return f"{host or address} is not in the job"
        if planned.host in self._under:
            return f"{host} is under {self._under[planned.host].kind} still"
        away_now = {self._gang.addresses[m] for m, each in self._under.items() if away(each.kind, each.seconds)}
        left = {each for each in training if watch.addresses.get(each) not in away_now} - {host}
        if away(planned.kind, planned.seconds) and len(left) < self._gang.hosts_min:
            return f"without {host} there are {len(left)} hosts, fewer than hosts.min, which is {self._gang.hosts_min}"
        fault.host = host
        if planned.kind is Kind.AGENT:
            agents = (pid for pid, child in living.items() if (child.kind, child.host) == ("agent", host))
            fault.pid = next(agents, None)
            return None if fault.pid is not None else f"{host} has no agent"
        if planned.slot is not None:
            ranks = [rank for rank in watch.ranks_on(host) if int(watch.members[rank]["pid"]) in living]
            if planned.slot >= len(ranks):
                return f"{host} has {len(ranks)} ranks"
            fault.rank = ranks[planned.slot]
            fault.pid = int(watch.members[fault.rank]["pid"])
        return watch.cannot_go_back() if planned.kind is Kind.FLIP else None

    # ------------------------------------------------------------------ doing

    def begin(self, fault: Fault, planned: Planned) -> None:
        """Do it. Where it is not known yet whether it has happened, `tick` will tell."""
        watch, number = self._watch, len(self._watch.events)
        fault.step, fault.generation, fault.ranks = watch.step, watch.generation, watch.ranks
        if planned.host is not None and (planned.seconds or away(planned.kind, planned.seconds)):
            self._under[planned.host] = fault
            self._machines[fault.number] = planned.host
        if fault.kind in (Kind.FLIP, Kind.NAN, Kind.DRAIN):
            self._unsure.append((fault, planned, number, time.monotonic() + HAPPEN_SECONDS))
            self._set_off(fault)
            return
        fault.t = time.time()
        self._do(fault, planned)

    def _set_off(self, fault: Fault) -> None:
        if fault.kind is Kind.DRAIN:
            self._gang.operate("drain", fault.host)
        else:
            assert fault.rank is not None
            arm(self._folder, fault.number, fault.rank)

    def _do(self, fault: Fault, planned: Planned) -> None:
        gang = self._gang
        match fault.kind:
            case Kind.KILL | Kind.COORDINATOR | Kind.AGENT:
                _signal(fault.pid, signal.SIGKILL)
            case Kind.STOP:
                self._stop(fault, [fault.pid])
            case Kind.STOP_HOST:
                here = (child for child in gang.processes() if child.host == fault.host and child.status is None)
                self._stop(fault, [child.pid for child in here])
            case Kind.KILL_HOST:
                assert planned.host is not None
                self._gone.add(planned.host)
                self._offer()
                gang.remove(fault.host)
            case Kind.STARVE:
                here = (child for child in gang.processes() if child.host == fault.host and child.status is None)
                self._starved[fault.number] = Starvation(child.pid for child in here)
            case Kind.CUT:
                assert planned.host is not None
                self._gone.add(planned.host)
                gang.cut(planned.host, nodes=self._nodes)
            case Kind.SHAPE:
                assert planned.host is not None
                gang.lab.set_rate(planned.rate, planned.host)
            case Kind.DISK:
                self._full = True
                gang.disk.fill()

    def _stop(self, fault: Fault, pids: list[int | None]) -> None:
        self._stopped[fault.number] = [pid for pid in pids if pid is not None]
        for pid in self._stopped[fault.number]:
            _signal(pid, signal.SIGSTOP)

    # ------------------------------------------------------------------ undoing

    def end(self, fault: Fault) -> None:
        """Undo it, as far as it has to be undone."""
        machine = self._machines.pop(fault.number, None)
        match fault.kind:
            case Kind.STOP | Kind.STOP_HOST:
                living = {child.pid for child in self._gang.processes() if child.status is None}
                for pid in self._stopped.pop(fault.number, []):
                    if pid in living:
                        _signal(pid, signal.SIGCONT)
            case Kind.KILL_HOST if machine is not None:
                self._gone.discard(machine)
                self._offer()
            case Kind.STARVE:
                self._starved.pop(fault.number).end()
            case Kind.CUT if machine is not None:
                self._mend(fault, machine)
            case Kind.SHAPE if machine is not None:
                self._gang.lab.set_rate(None, machine)
            case Kind.DISK:
                self._gang.disk.empty()
                self._full = False
        fault.ended = time.time()
        if machine is not None:
            del self._under[machine]
        if fault.kind in READMITTED and fault.host:
            self.take_back(fault.host, must_ask=fault.kind is Kind.DRAIN)

    def _mend(self, fault: Fault, machine: int) -> None:
        """Whoever was given up meanwhile, and could not be told, ends before the machine is offered again."""
        gang = self._gang
        gang.out_of_reach.discard(gang.addresses[machine])
        self._offer()  # from now on who removes the host reaches it
        gang.mend(machine)
        time.sleep(LET_GO_SECONDS)
        self._read_on()
        if self._given_up(fault):
            gang.end_unreachable(machine)
        self._gone.discard(machine)
        self._offer()

    def _given_up(self, fault: Fault) -> bool:
        assert fault.t is not None
        ends = [event for event in self._watch.events if event["kind"] in ("host_lost", "host_left")]
        return any(event["host"] == fault.host and float(event["t"]) > fault.t for event in ends)

    def end_all(self) -> None:
        """What would outlive the job: whoever eats the CPU."""
        for starvation in self._starved.values():
            starvation.end()

    @property
    def _nodes(self) -> list[int]:
        return [machine for machine in range(len(self._gang.addresses)) if machine not in self._gone]

    def _offer(self) -> None:
        self._gang.set_nodes([self._gang.addresses[machine] for machine in self._nodes])

    # ------------------------------------------------------------------ in between

    def tick(self) -> list[Fault]:
        """Look after what is not finished; the faults of which it is known now that they have happened, or were skipped."""
        self._ask_for_returns()
        known = []
        for each in list(self._unsure):
            fault, planned, number, deadline = each
            self._look_whether(fault, planned, number)
            if fault.t is None and not fault.skipped and time.monotonic() > deadline:
                self._give_up(fault)
            if fault.t is not None or fault.skipped:
                self._unsure.remove(each)
                known.append(fault)
                if fault.skipped and (machine := self._machines.pop(fault.number, None)) is not None:
                    del self._under[machine]
        return known

    def _look_whether(self, fault: Fault, planned: Planned, number: int) -> None:
        if fault.kind is Kind.DRAIN:
            asked = self._watch.since(number, _operator("drain", fault.host))
            if asked is not None and asked["accepted"]:
                fault.t = float(asked["t"])
            elif asked is not None:
                fault.skipped = f"the coordinator refuses: {asked['guard']}"
            return
        text = armed_fault(planned)
        assert text is not None
        try:
            told = json.loads(parse(text).mark(self._folder).read_text())
        except (FileNotFoundError, ValueError):  # not yet, or not yet whole
            return
        disarm(self._folder, fault.number)
        fault.t, fault.pid, fault.rank = float(told["t"]), int(told["pid"]), int(told["rank"])
        fault.step = int(told["step"]) - (fault.kind is Kind.FLIP)  # that one falls behind the step that is committed
        fault.host = next((child.host for child in self._gang.processes("worker") if child.pid == fault.pid), fault.host)
        if fault.kind is Kind.FLIP:
            self._watch.flipped()

    def look_again(self, fault: Fault, planned: Planned) -> None:
        """Whether one that was passed over has happened after all: a rank may be about to do it when it is disarmed."""
        if armed_fault(planned) is not None and fault.skipped:
            self._look_whether(fault, planned, 0)
            if fault.t is not None:
                fault.skipped = ""

    def _give_up(self, fault: Fault) -> None:
        if fault.kind is Kind.DRAIN:
            fault.skipped = f"no coordinator has answered within {HAPPEN_SECONDS:g} s"
            return
        disarm(self._folder, fault.number)
        fault.skipped = f"rank {fault.rank} has come to no step within {HAPPEN_SECONDS:g} s"

    # ------------------------------------------------------------------ hosts that come back

    def take_back(self, host: str, *, must_ask: bool = False) -> None:
        """An operator asks for the host until it is in the job, or may be. `must_ask`: it was drained."""
        now = time.monotonic()
        number = len(self._watch.events)
        self._returns.append(_Return(host, number, now + READMIT_FOR_SECONDS, now, must_ask))

    def _ask_for_returns(self) -> None:
        now = time.monotonic()
        for each in list(self._returns):
            accepted = self._watch.since(each.since, _operator("readmit", each.host))
            may_come = accepted is not None and accepted["accepted"]
            if may_come or (each.host in self._watch.hosts and not each.must_ask) or now > each.until:
                self._returns.remove(each)
            elif now >= each.next_at:
                if accepted is not None:  # refused: what counts comes after it
                    each.since = len(self._watch.events)
                each.next_at = now + READMIT_SECONDS
                self._gang.operate("readmit", each.host)

    def take_back_all(self) -> None:
        """Whoever is not in the job now."""
        known = {each.host for each in self._returns}
        for host in self._watch.addresses:
            if host not in self._watch.hosts and host not in known:
                self.take_back(host)


def _operator(command: str, host: str) -> Callable[[dict[str, object]], bool]:
    """Whether an event says that an operator has asked for that."""
    return lambda event: event["kind"] == "operator" and (event["command"], event["host"]) == (command, host)


def _signal(pid: int | None, number: signal.Signals) -> None:
    assert pid is not None
    with suppress(ProcessLookupError):
        os.kill(pid, number)
