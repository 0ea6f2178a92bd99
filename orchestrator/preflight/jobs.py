"""Runs one job of the gate the way `quantarion train` runs a job, and ends it once it has shown what it is for."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

from orchestrator import rayenv, status, stop
from orchestrator.errors import ExitCode, UserError
from orchestrator.folder import JobFolder
from orchestrator.jobspec import JobSpec
from orchestrator.launch import Interrupts, Site, left_behind, start_coordinator

LOOK_SECONDS = 0.5
STOP_SECONDS = 15.0
"""From the wish that a job ends to giving it up."""

SILENCE_SECONDS = 20.0
"""Without a word from the coordinator, after which there is none."""


def run(
    spec: JobSpec,
    connect: Callable[[str], Site],
    *,
    cluster: str | None,
    resume: bool,
    is_shown: Callable[[Path], bool],
    deadline: float,
    interrupts: Interrupts,
) -> int | None:
    """Its exit code, 130 where it was ended from here; None where it did not answer.

    Args:
        connect: this process to where the job of that name is to run.
        is_shown: by what lies in the job's folder, whether it may end.
        deadline: monotonic seconds after which it ends anyway.

    Raises:
        UserError: the folder or Ray cannot be used, or the cluster is lost.
    """
    with ExitStack() as stack:
        folder = stack.enter_context(JobFolder(spec, cluster=cluster, resume=resume, exact=resume))
        stack.callback(_remove, left_behind(folder))
        site = connect(spec.name)
        stack.callback(rayenv.disconnect)
        interrupts.listen()  # Ray has put its own handlers in their place
        folder.take()
        folder.keep()
        start_coordinator(folder, site)
        stack.callback(site.sweep)
        return _watch(folder.path, site, is_shown, deadline, interrupts)


def _remove(paths: list[Path]) -> None:
    for path in paths:
        shutil.rmtree(path, ignore_errors=True)


def _watch(
    folder: Path, site: Site, is_shown: Callable[[Path], bool], deadline: float, interrupts: Interrupts
) -> int | None:
    heard, ends, told, link = time.monotonic(), False, False, status.Link(folder)
    while True:
        time.sleep(LOOK_SECONDS)
        failure, answer, now = site.keep(), link.fetch(driver=True), time.monotonic()
        if answer is not None:
            heard = now
            if answer["phase"] in ("finished", "failed"):
                return int(answer["exit_code"])
        if failure is not None:
            raise UserError(failure.rstrip("."), ExitCode.FAILED)
        if now - heard > SILENCE_SECONDS or (ends and now > deadline + STOP_SECONDS):
            return None
        if not ends and (interrupts.signals or now > deadline or is_shown(folder)):
            ends, deadline = True, now
        if ends and not told:
            with suppress(UserError):  # it is away, and is asked again
                stop.ask(folder, True, "the pre-flight gate has seen enough")
                told = True
