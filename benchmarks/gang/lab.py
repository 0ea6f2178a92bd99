"""A gang whose hosts are network namespaces with cables of their own (CC-26): agents and workers of a host run in its
namespace, the coordinator at the switch. A cut cable cuts a host off from everybody.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Self

from benchmarks.gang.gang import Gang
from benchmarks.lab import Lab

AT_SWITCH = ("coordinator", "observer", "drain", "readmit", "stop")
"""Kinds of processes that run there."""


@dataclass
class LabGang(Gang):
    """`lab` has at least as many hosts as the gang; what is not used at first may replace one."""

    lab: Lab = field(kw_only=True)
    out_of_reach: set[str] = field(default_factory=set)  # addresses of hosts whose cables are cut

    def start(self, *, resume: bool = False) -> Self:
        self._switch_address = self.lab.stand_at_switch()
        super().start(resume=resume)
        self._ask(do="fork", kind="observer")
        return self

    @property
    def addresses(self) -> list[str]:
        return [host.address for host in self.lab.hosts]

    def settings(self) -> dict[str, Any]:
        namespaces = {host.address: host.namespace for host in self.lab.hosts}
        return {
            "address": self._switch_address,
            "namespaces": namespaces | dict.fromkeys(AT_SWITCH, self.lab.switch),
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

    def operate(self, command: str, host: str = "") -> None:
        """What `quantarion drain`, `readmit` or `stop` asks of the coordinator; its answer lies in `logs/COMMAND.out`."""
        self._ask(do="fork", kind=command, host=host)
