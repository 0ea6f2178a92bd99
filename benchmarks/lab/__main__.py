"""Runs a command on every host of a lab.

    python -m benchmarks.lab --hosts 4 --rate 100 -- python train.py

Each process gets the variables torchrun would set (RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, GROUP_RANK,
MASTER_ADDR, MASTER_PORT), GLOO_SOCKET_IFNAME, and its host's HOST_ADDRESS. When one fails the others are ended. Then
each host's bytes are printed: sent and received with headers, and the payload that TCP carried. The exit code is the
command's: 0, or that of the first process to fail (128 + the signal that ended it); 2 when the lab cannot be made.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Sequence

from benchmarks.lab.cable import Traffic
from benchmarks.lab.lab import Lab, what_can_be_shaped
from benchmarks.lab.ranks import start, wait_for
from benchmarks.lab.tools import LabError
from benchmarks.system import exit_on_signals


class Meter:
    """Samples the cables, for the mean rate and that of the busiest second."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._samples: list[tuple[float, list[Traffic]]] = []

    def sample(self) -> None:
        """Read every counter now."""
        self._samples.append((time.monotonic(), self._lab.traffic()))

    def table(self) -> str:
        """One line for each host: kB, and Mbit/s sent, over all samples and over the busiest second."""
        lines = ["host     address    sent kB  payload kB  received kB   Mbit/s  busiest"]
        for host in self._lab.hosts:
            moments = [(seconds, traffic[host.index].sent_bytes) for seconds, traffic in self._samples]
            rates = [_mbit(*pair) for pair in itertools.pairwise(moments) if pair[1][0] - pair[0][0] > 0.9]
            mean = _mbit(moments[0], moments[-1])
            total = self._samples[-1][1][host.index]
            lines.append(
                f"{host.index:>4} {host.address:>11} {total.sent_bytes / 1e3:>10.1f} {total.sent_payload / 1e3:>11.1f} "
                f"{total.received_bytes / 1e3:>12.1f} {mean:>8.2f} {max(rates, default=mean):>8.2f}"
            )
        return "\n".join(lines)


def _mbit(first: tuple[float, int], last: tuple[float, int]) -> float:
    return (last[1] - first[1]) * 8e-6 / (last[0] - first[0])


def _intention(hosts: int, rate: float | None) -> str:
    """What the lab is, and what this kernel cannot do."""
    links = "unshaped links" if rate is None else f"links of {rate:g} Mbit/s (tbf)"
    delay = "" if what_can_be_shaped()["netem"] else "; this kernel has no netem, which delay and loss would need"
    return f"lab: {hosts} hosts, {links}{delay}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, run, print the table; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.lab", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hosts", type=int, default=2, help="network namespaces on one switch (2)")
    parser.add_argument("--rate", type=float, help="Mbit/s of every link, each way; unshaped if not given")
    parser.add_argument("--ranks-per-host", type=int, default=1, help="processes on each host (1)")
    parser.add_argument("command", nargs="+", metavar="COMMAND", help="after --")
    options = parser.parse_args(arguments)
    if options.ranks_per_host < 1:
        parser.error(f"--ranks-per-host: {options.ranks_per_host} starts nothing; give 1 or more")
    exit_on_signals()
    try:
        with Lab(options.hosts, options.rate) as lab:
            print(_intention(options.hosts, options.rate), file=sys.stderr, flush=True)
            meter = Meter(lab)
            meter.sample()
            code = wait_for(start(lab, options.command, options.ranks_per_host), meter.sample)
            meter.sample()
            print(meter.table())
            return code
    except LabError as error:
        print(f"benchmarks.lab: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
