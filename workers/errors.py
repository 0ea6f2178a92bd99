"""Errors that a user can cause inside a worker; each message is one sentence that says what, where, what to do."""

from __future__ import annotations


class DataError(Exception):
    """Data is missing or damaged. The launcher maps it to exit code 3."""


class TaskError(Exception):
    """What a user wrote lets the task not start, or go wrong; the launcher ends with `exit_code`."""

    def __init__(self, message: str, exit_code: int = 2) -> None:
        super().__init__(message)
        self.exit_code = exit_code
