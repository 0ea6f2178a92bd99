"""What a user can cause is a `UserError`: one sentence and an exit code, never a traceback."""

from __future__ import annotations

from enum import IntEnum


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
    FAILED = 9  # fewer than `hosts.min` hosts for too long
    STOPPED = 130  # by Ctrl-C or `quantarion stop`, after a checkpoint


class UserError(Exception):
    """Something a user can put right. The message is one sentence: what is wrong, where, what to do instead."""

    def __init__(self, message: str, exit_code: int = ExitCode.USAGE) -> None:
        super().__init__(message)
        self.exit_code = int(exit_code)
