"""What `quantarion train` makes of a pass, or of none (GM-40)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Literal

from orchestrator.errors import ExitCode, UserError, likewise
from orchestrator.jobspec import JobSpec
from orchestrator.preflight.hosts import Host
from orchestrator.preflight.passes import Passes, subject

OPTIONS_OF_TRAIN = {"--resume": 0, "--exact": 0, "--report": 1}
"""That `quantarion preflight` has not, with the words that follow each."""


def asked(spec: JobSpec, *, cluster: bool) -> Literal["off", "advise", "require"]:
    """What the JobSpec asks for, or what is usual."""
    return spec.preflight or ("advise" if cluster else "off")


def admit(
    spec: JobSpec,
    hosts: Callable[[JobSpec], Sequence[Host]],
    *,
    cluster: bool,
    note: Callable[[str], None],
    clock: Callable[[], float] = time.time,
) -> None:
    """Let a job start, with a word in `note` where it has no valid pass.

    Raises:
        UserError: exit code 93; it asks for one.
    """
    wish = asked(spec, cluster=cluster)
    if wish == "off":
        return
    objection = Passes(spec.storage).objection(subject(spec, hosts(spec)), clock())
    if not objection:
        return
    command = likewise("preflight", less=OPTIONS_OF_TRAIN)
    if wish == "advise":
        note(f"these hosts have no valid pre-flight pass for this job: {objection}; to test them: {command}")
        return
    raise UserError(
        f"preflight is require, but these hosts have no valid pass: {objection}; run {command}", ExitCode.PREFLIGHT
    )
