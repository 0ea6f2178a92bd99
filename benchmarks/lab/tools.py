"""Calls `ip` and `tc`, and says in one sentence what they refused."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess

PROGRAMS = {"ip": "iproute2", "tc": "iproute2", "setpriv": "util-linux"}


class LabError(Exception):
    """The lab cannot be made or changed; one sentence for the user."""


def run(command: str) -> str:
    """The output of a command of plain words, which Ctrl-C does not reach.

    Raises:
        LabError: it failed; with its complaint.
    """
    done = subprocess.run(
        command.split(), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, process_group=0
    )
    if done.returncode != 0:
        complaint = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise LabError(f"the lab's command `{shlex.join(done.args)}` failed: {complaint}")
    return done.stdout


def missing() -> str | None:
    """What this machine lacks before a namespace is even tried, and what to do; None when nothing."""
    if platform.system() != "Linux":
        return f"the lab needs the network namespaces of Linux; this is {platform.system()}"
    for program, package in PROGRAMS.items():
        if shutil.which(program) is None:
            return f"the lab needs `{program}`: install the package {package}"
    if os.geteuid() != 0:
        return "the lab makes network namespaces and needs root: run it with sudo"
    return None
