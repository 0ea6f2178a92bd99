"""Hosts on one machine with cables of a chosen speed between them (CC-26): `with Lab(hosts=4, rate_mbit=100) as lab`.

Every host is a network namespace; the switch that joins them is a bridge in a namespace of its own, so that neither
this machine's firewall nor its addresses touch the traffic. `python -m benchmarks.lab --help` runs a command on all.
"""

from benchmarks.lab.cable import Traffic
from benchmarks.lab.host import Host
from benchmarks.lab.lab import Lab, can_run, what_can_be_shaped
from benchmarks.lab.tools import LabError

__all__ = ["Host", "Lab", "LabError", "Traffic", "can_run", "what_can_be_shaped"]
