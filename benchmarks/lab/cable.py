"""The cable between a host and the switch: shaped both ways, counted, cut and mended."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from benchmarks.lab.tools import LabError, run

DEVICE = "eth0"
"""The host's end of its cable."""
BRIDGE = "bridge0"

BURST = 16 * 1024
BURST_UP_TO_MBIT = 125
"""A burst travels free, so it is small: 16 kB, and in proportion above this rate (128 kB at 1 Gbit/s)."""
QUEUE = 64 * 1024 * 1024
"""Bytes that may wait for the link: 16 connections whose send buffers are full (4 MiB each), so TCP sees no loss."""
UNSHAPED_MBIT = 1_000_000
"""Unshaped is a rate that nothing here reaches, because removing a tbf drops what waits in it; changing it does not."""
HEADERS = 14 + 20 + 32
"""Ethernet, IPv4, and TCP with time stamps."""


@dataclass(frozen=True)
class Traffic:
    """What went over a host's cable since the lab began, as its interface counts it.

    Where tbf cuts what TCP hands it, every packet of 1500 bytes is counted with its own headers; unshaped, up to 64 kB
    count as one packet. The payload is the same either way.
    """

    sent_bytes: int
    sent_packets: int
    received_bytes: int
    received_packets: int

    @property
    def sent_payload(self) -> int:
        """Bytes that TCP carried from the host, what it sent twice included; a bare acknowledgement counts nothing."""
        return self.sent_bytes - HEADERS * self.sent_packets


class Cable:
    """From `DEVICE` in the namespace `host` to the port `port` of the bridge in the namespace `switch`."""

    def __init__(self, host: str, switch: str, port: str, address: str) -> None:
        self._host, self._switch, self._port = host, switch, port
        run(f"ip link add name {port} netns {switch} type veth peer name {DEVICE} netns {host}")
        quiet(switch, port)
        quiet(host, DEVICE)
        run(f"ip -n {switch} link set {port} master {BRIDGE} up")
        run(f"ip -n {host} address add {address}/24 dev {DEVICE}")
        run(f"ip -n {host} link set {DEVICE} up")

    def shape(self, rate_mbit: float | None) -> None:
        """Carry at most `rate_mbit` Mbit/s each way, headers included; None: as fast as the machine can."""
        if rate_mbit is not None and not 0.1 <= rate_mbit <= 100_000:
            raise LabError(f"a rate of {rate_mbit} Mbit/s cannot be shaped: give 0.1 to 100000, or None for unshaped")
        mbit = UNSHAPED_MBIT if rate_mbit is None else rate_mbit
        burst = round(BURST * min(max(1, mbit / BURST_UP_TO_MBIT), 256))
        for namespace, device in ((self._host, DEVICE), (self._switch, self._port)):
            run(
                f"tc -n {namespace} qdisc replace dev {device} root handle 1: "
                f"tbf rate {round(mbit * 1e6)}bit burst {burst}b limit {QUEUE}b"
            )

    def cut(self) -> None:
        """Pull the cable: both ends lose their carrier, and what waits in them is lost."""
        run(f"ip -n {self._switch} link set {self._port} down")

    def mend(self) -> None:
        """Plug it in again."""
        run(f"ip -n {self._switch} link set {self._port} up")


def make_bridge(switch: str) -> None:
    """The switch without ports, in its namespace."""
    run(f"ip -n {switch} link add {BRIDGE} type bridge")
    quiet(switch, BRIDGE)
    run(f"ip -n {switch} link set {BRIDGE} up")


def quiet(namespace: str, device: str) -> None:
    """No IPv6 address, so that nothing but the hosts' own traffic is counted, and gloo has one address to choose."""
    if Path("/proc/net/if_inet6").exists():
        run(f"ip -n {namespace} link set {device} addrgenmode none")


def read_traffic(switch: str, ports: list[str]) -> list[Traffic]:
    """What each port's host has sent and received."""
    found = {link["ifname"]: link["stats64"] for link in json.loads(run(f"ip -n {switch} -s -j link show type veth"))}
    return [
        Traffic(
            sent_bytes=found[port]["rx"]["bytes"],
            sent_packets=found[port]["rx"]["packets"],
            received_bytes=found[port]["tx"]["bytes"],
            received_packets=found[port]["tx"]["packets"],
        )
        for port in ports
    ]


def shapes(namespace: str) -> dict[str, bool]:
    """What this kernel can shape, tried on the loopback of an empty namespace: `tbf` (rate), `netem` (delay, loss)."""
    trials = {"tbf": "rate 100mbit burst 16kb limit 1mb", "netem": "delay 1ms"}
    able = {}
    for kind, settings in trials.items():
        try:
            run(f"tc -n {namespace} qdisc replace dev lo root {kind} {settings}")
            able[kind] = True
        except LabError:
            able[kind] = False
    return able
