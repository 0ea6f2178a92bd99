"""What a user can cause is a `UserError`: one sentence and an exit code, never a traceback.

Commands that such a sentence names can be pasted into the shell that it stands in (`command`, `again`).
"""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Mapping
from enum import IntEnum
from pathlib import Path

DEFAULT_STORAGE = Path("runs")
"""Folder that holds a folder per job, where nothing else is written."""


class ExitCode(IntEnum):
    """Exit codes of `quantarion` (docs/architecture.md, "Exit codes")."""

    DONE = 0
    BUG = 1  # or the task itself raised: the traceback is printed
    USAGE = 2  # wrong command line or JobSpec
    DATA = 3  # missing or damaged
    STORAGE = 4  # a folder cannot be written or read
    RESUME = 5  # nothing to resume from, or the checkpoint does not fit
    RAY = 6  # missing, or the address does not answer
    HOSTS = 7  # fewer than `hosts.min` within `hosts.wait`
    RUNNING = 8  # a job of that name is running
    FAILED = 9  # hosts out of reach for too long, ranks that die before they train or hang on, Ray or the coordinator lost
    GATE = 10  # a gate of the recipe has failed
    REQUEUE = 75  # fewer than `hosts.min` for longer than `hosts.replace_wait`: to be started again, with --resume
    PREFLIGHT = 93  # the hosts have not passed the pre-flight gate: to start again changes nothing
    STOPPED = 130  # by Ctrl-C or `quantarion stop`, after a checkpoint


class UserError(Exception):
    """Something a user can put right. The message is one sentence: what is wrong, where, what to do instead."""

    def __init__(self, message: str, exit_code: int = ExitCode.USAGE) -> None:
        super().__init__(message)
        self.exit_code = int(exit_code)


def command(*words: object, storage: Path = DEFAULT_STORAGE) -> str:
    """`quantarion stop demo --storage /mnt/runs`; without `--storage` where it is the default one."""
    elsewhere = [] if storage.absolute() == DEFAULT_STORAGE.absolute() else ["--storage", str(storage)]
    return shlex.join([*_program(), *map(str, words), *elsewhere])


def again(*words: str) -> str:
    """The command line of this process with `words` at its end, where they do not stand in it yet."""
    given = sys.argv[1:]
    return shlex.join([*_program(), *given, *(word for word in words if word not in given)])


def likewise(name: str, *, less: Mapping[str, int]) -> str:
    """The command line of this process as that of the command `name`, less the options in `less`, each with so many words
    after it; where it is none of `quantarion train`, a sketch of one."""
    if sys.argv[1:2] != ["train"]:
        return shlex.join([*_program(), name]) + " JOB.yaml"
    kept, words = list[str](), iter(sys.argv[2:])
    for word in words:
        option, equals, _ = word.partition("=")
        if option not in less:
            kept.append(word)
        elif not equals:
            for _ in range(less[option]):
                next(words, None)
    return shlex.join([*_program(), name, *kept])


def _program() -> list[str]:
    """`quantarion`; where the shell would find another one or none, the way in which this process was called."""
    called = Path(sys.argv[0])
    ours = called if called.name == "quantarion" else Path(sys.executable).with_name("quantarion")
    found = shutil.which("quantarion")
    if found is not None and Path(found).absolute() == ours.absolute():
        return ["quantarion"]
    return [str(called)] if called.name == "quantarion" else [sys.executable, "-m", "orchestrator"]
