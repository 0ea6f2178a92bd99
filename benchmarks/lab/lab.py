"""A lab from its first namespace to its last: made whole or not at all, and taken down whatever happened."""

from __future__ import annotations

import contextlib
import functools
import signal
import threading
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Self

from benchmarks.lab import namespaces
from benchmarks.lab.cable import BRIDGE, Cable, Traffic, make_bridge, read_traffic, shapes
from benchmarks.lab.host import Host
from benchmarks.lab.tools import LabError, missing, run

MOST_HOSTS = 254
SWITCH_ADDRESS = "10.77.0.254"
FATAL = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Lab:
    """`hosts` hosts on one switch, every cable carrying `rate_mbit` Mbit/s each way (None: unshaped).

    with Lab(hosts=4, rate_mbit=100) as lab:
        ranks = [host.popen(["python", "train.py"], env={"MASTER_ADDR": lab.hosts[0].address}) for host in lab.hosts]
        lab.set_rate(10)
        lab.cut(3)

    Entering first removes what labs of dead processes have left. Leaving kills everything that runs on the hosts and
    removes them. Python leaves the block on an exception and on Ctrl-C; for SIGTERM and SIGHUP call
    `benchmarks.system.exit_on_signals()` first. Rates and cables are those of `benchmarks.lab.cable`.

    Raises:
        LabError: the machine cannot run the lab (`can_run` says why), or a number makes no sense.
    """

    def __init__(self, hosts: int, rate_mbit: float | None = None) -> None:
        if not 1 <= hosts <= MOST_HOSTS:
            raise LabError(f"a lab of {hosts} hosts cannot be made: give 1 to {MOST_HOSTS}")
        self._count, self._rate = hosts, rate_mbit
        self._prefix = namespaces.new_prefix()
        self._switch = f"{self._prefix}switch"
        self.hosts: list[Host] = []

    def __enter__(self) -> Self:
        if reason := missing():
            raise LabError(reason)
        namespaces.sweep()
        try:
            namespaces.create(self._switch)
            make_bridge(self._switch)
            for index in range(self._count):
                self.hosts.append(self._make_host(index))
            self.set_rate(self._rate)
        except BaseException:
            self._take_down()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._take_down()

    def _make_host(self, index: int) -> Host:
        namespace, address = f"{self._prefix}{index}", f"10.77.0.{index + 1}"
        namespaces.create(namespace)
        return Host(index, address, namespace, Cable(namespace, self._switch, f"port{index}", address))

    def _take_down(self) -> None:
        with _held_back(FATAL):
            for host in self.hosts:
                host.end()
            namespaces.remove(namespaces.existing(self._prefix))

    @property
    def switch(self) -> str:
        """The namespace that the hosts' cables lead to."""
        return self._switch

    def stand_at_switch(self) -> str:
        """Give the switch an address in the hosts' network, and return it: whoever runs there has no cable of its own, and
        reaches every host whose cable is not cut."""
        if len(self.hosts) == MOST_HOSTS:
            raise LabError(f"a lab of {MOST_HOSTS} hosts has no address left for its switch")
        run(f"ip -n {self._switch} address add {SWITCH_ADDRESS}/24 dev {BRIDGE}")
        return SWITCH_ADDRESS

    def set_rate(self, rate_mbit: float | None, host: int | None = None) -> None:
        """From now on the cable of `host` (None: every cable) carries `rate_mbit` Mbit/s each way (None: unshaped)."""
        for each in self.hosts if host is None else [self.hosts[host]]:
            each.cable.shape(rate_mbit)

    def cut(self, host: int) -> None:
        """Pull the cable of a host."""
        self.hosts[host].cable.cut()

    def mend(self, host: int) -> None:
        """Plug the cable of a host in again."""
        self.hosts[host].cable.mend()

    def traffic(self) -> list[Traffic]:
        """What went over each host's cable since the lab began."""
        return read_traffic(self._switch, [f"port{host.index}" for host in self.hosts])

    def bytes_sent(self) -> list[int]:
        """Bytes each host put on its cable since the lab began, headers included."""
        return [each.sent_bytes for each in self.traffic()]


@contextlib.contextmanager
def _held_back(numbers: Sequence[signal.Signals]) -> Iterator[None]:
    """A second Ctrl-C must not interrupt the clean-up: it is delivered afterwards.

    Handlers, not a signal mask: a mask is one thread's, and any other thread would take the signal. Python runs
    handlers in the main thread only, so elsewhere there is nothing to hold back.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {number: signal.signal(number, lambda number, frame: came.append(number)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for each in came[:1]:
            signal.raise_signal(each)


@functools.cache
def can_run() -> str | None:
    """None when a lab of one host could be made and shaped here; otherwise the sentence that says why not."""
    try:
        with Lab(hosts=1, rate_mbit=100):
            return None
    except LabError as error:
        return str(error)


def what_can_be_shaped() -> dict[str, bool]:
    """Queueing disciplines of this kernel: `tbf` shapes rates, which the lab needs; `netem` would shape delay and loss."""
    if reason := missing():
        raise LabError(reason)
    namespace = f"{namespaces.new_prefix()}trial"
    try:
        namespaces.create(namespace)
        return shapes(namespace)
    finally:
        with _held_back(FATAL):
            namespaces.remove(namespaces.existing(namespace))
