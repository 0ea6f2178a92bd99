"""One host of the lab: its address, its cable, and the processes that run on it."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from benchmarks.lab.cable import DEVICE, Cable
from benchmarks.system import environment

Output = IO[bytes] | int | None


class Host:
    """Made by `Lab`. `address` is its IPv4 address, `namespace` the name that `ip netns` knows it by."""

    def __init__(self, index: int, address: str, namespace: str, cable: Cable) -> None:
        self.index, self.address, self.namespace, self.cable = index, address, namespace, cable
        self._started: list[subprocess.Popen[bytes]] = []

    def popen(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdout: Output = None,
        stderr: Output = None,
    ) -> subprocess.Popen[bytes]:
        """Start a command on this host; `pid` is its own, whatever it starts dies with the lab.

        Its environment is that of every benchmark (`benchmarks.system.environment`) with `GLOO_SOCKET_IFNAME`,
        `HOST_ADDRESS` and `env`. It leads a session of its own, so Ctrl-C reaches the lab only. It is killed when the
        thread that started it ends (PR_SET_PDEATHSIG), so even `kill -9` of the lab takes it along. Its /sys is the
        host's (`ip netns exec`): the interfaces are there, this machine's cgroups are not.
        """
        words = ["setpriv", "--pdeathsig", "KILL", "ip", "netns", "exec", self.namespace, *command]
        started = subprocess.Popen(
            words,
            env=environment({"GLOO_SOCKET_IFNAME": DEVICE, "HOST_ADDRESS": self.address, **(env or {})}),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )
        self._started.append(started)
        return started

    def end(self) -> None:
        """Kill and reap what `popen` started, also what has not reached its namespace yet."""
        for process in self._started:
            process.kill()
            process.wait()
