"""What the policy was told and what it said, one JSON object to a line, and the same verdicts out of it again (GM-10).

A head has what verdicts depend on beside events: the configuration, how many hosts the job wants, its seed. Each launch of
the job begins with one, and with a state that knows nobody.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TextIO

from pydantic import ValidationError

from orchestrator.governor.config import GovernorConfig
from orchestrator.governor.events import Event, as_dict, from_dict
from orchestrator.governor.policy import decide
from orchestrator.governor.state import GovernorState
from orchestrator.governor.verdicts import Verdict

logger = logging.getLogger("quantarion.governor")

FORMAT = 1
HEAD = '{"config":'
"""What the first line of a launch begins with: keys are sorted."""


class LogError(ValueError):
    """A log that cannot be replayed: one sentence with the number of the line."""


def line(plain: dict[str, Any]) -> str:
    """The same bytes for the same values."""
    return json.dumps(plain, separators=(",", ":"), sort_keys=True, allow_nan=False)


@dataclass(frozen=True)
class Outset:
    """What verdicts depend on beside events.

    Attributes:
        target: how many hosts the job wants; `least`: with fewer nothing is trained.
        launch: Unix seconds; tells the starts of a job apart.
    """

    config: GovernorConfig
    target: int
    least: int = 1
    seed: int = 0
    launch: float = 0.0

    @property
    def head(self) -> str:
        values = {"target": self.target, "least": self.least, "seed": self.seed, "launch": self.launch}
        return line({"governor": FORMAT, "config": self.config.model_dump(mode="json"), **values})

    @property
    def state(self) -> GovernorState:
        return GovernorState(self.target, self.seed, self.least)


class LogFile:
    """Appends whole lines. Where the disk is full, what could not be written waits for the next time; nobody else does."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._waiting = b""

    def write(self, text: str) -> None:
        self._waiting += text.encode()
        try:
            while self._waiting:
                done = os.write(self._file, self._waiting)
                self._waiting = self._waiting[done:]
        except OSError as error:
            logger.error("%s cannot be written: %s", self._path, error.strerror)


class Governor:
    """The policy and its log: whatever it is told, and says, is written before anybody acts on it."""

    def __init__(self, outset: Outset, log: TextIO | LogFile) -> None:
        self.config, self.state, self._log = outset.config, outset.state, log
        self._write(outset.head)

    @classmethod
    def open(cls, path: Path, outset: Outset) -> Self:
        """Goes on where the log of the same launch ends, so that trust and evictions outlive a coordinator; else a new
        part of it begins. Raises LogError where it is no log, OSError."""
        lines = list[str]()
        with contextlib.suppress(FileNotFoundError):
            text = path.read_bytes()
            whole = text[: text.rfind(b"\n") + 1]
            if whole != text:
                os.truncate(path, len(whole))  # torn by a crash: nobody has acted on it
            lines = whole.decode().splitlines(keepends=True)
        last = max((number for number, each in enumerate(lines) if each.startswith(HEAD)), default=0)
        reading = _Reading()
        for number, each in enumerate(lines[last:], last + 1):
            reading.take(number, each, checked=False)
        log = LogFile(path)
        if reading.head != outset.head:
            return cls(outset, log)
        governor = cls.__new__(cls)
        governor.config, governor.state, governor._log = outset.config, reading.state, log
        if reading.expected:
            governor._write(*reading.expected)
        return governor

    @classmethod
    def open_or_anew(cls, path: Path, outset: Outset) -> Self:
        """`open`; a file that is no log is put aside, so that it keeps no job from going on."""
        try:
            return cls.open(path, outset)
        except (LogError, UnicodeDecodeError) as error:
            aside = path.with_name(f"{path.name}.damaged-{time.time_ns()}")
            logger.error("%s is not a governor's log (%s); it is %s now", path, error, aside.name)
            path.rename(aside)
            return cls.open(path, outset)

    def tell(self, event: Event) -> list[Verdict]:
        """What follows from it."""
        self.state, verdicts = decide(self.state, event, self.config)
        self._write(line(as_dict(event)), *(line(verdict.record()) for verdict in verdicts))
        return verdicts

    def _write(self, *lines: str) -> None:
        self._log.write("".join(f"{each}\n" for each in lines))


@dataclass(frozen=True)
class Replay:
    """How many there were; `difference` is the first verdict that is not the one in the log: its line, what stands there
    and what came out, each empty where there is none."""

    events: int
    verdicts: int
    difference: tuple[int, str, str] | None


class _Reading:
    """A log, line by line: the state after what was read, and the verdicts that have to come next."""

    def __init__(self) -> None:
        self.head = ""
        self.config, self.state = GovernorConfig(), GovernorState(0)
        self.expected: list[str] = []
        self.events = self.verdicts = 0

    def take(self, number: int, text: str, *, checked: bool = True) -> tuple[int, str, str] | None:
        """A verdict that is not the one that follows, if this is one. Unless `checked`, only the events count."""
        plain = _plain(number, text)
        if "governor" in plain or not self.head:
            self.head, (self.config, self.state) = text.rstrip("\n"), _read_head(number, plain)
            self.expected = []  # of a launch that has ended
        elif "event" in plain:
            if self.expected and checked:
                return number, "", self.expected[0]
            event = _event(number, plain)
            self.state, verdicts = decide(self.state, event, self.config)
            self.expected = [line(verdict.record()) for verdict in verdicts]
            self.events += 1
        elif not self.expected or text.rstrip("\n") != self.expected[0]:
            return number, text.rstrip("\n"), self.expected[0] if self.expected else ""
        else:
            self.expected.pop(0)
            self.verdicts += 1
        return None


def replay(lines: Iterable[str]) -> Replay:
    """Raises LogError where a line is no part of a governor's log. A crash may have cut it short anywhere: a last line
    without its end is left out, and verdicts on the last event may be missing."""
    reading = _Reading()
    for number, text in _whole(lines):
        difference = reading.take(number, text)
        if difference is not None:
            return Replay(reading.events, reading.verdicts, difference)
    return Replay(reading.events, reading.verdicts, None)


def told(lines: Iterable[str]) -> Iterator[tuple[GovernorState, Event, GovernorConfig]]:
    """The events of a log, each with the state before it. Raises LogError as `replay`; verdicts are not looked at."""
    reading = _Reading()
    for number, text in _whole(lines):
        plain = _plain(number, text)
        if "event" in plain and reading.head:
            yield reading.state, _event(number, plain), reading.config
        reading.take(number, text, checked=False)


def _whole(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Numbered from 1; an empty log is a first line that is none, and a torn line the end."""
    number = 0
    for number, text in enumerate(lines, 1):
        if not text.endswith("\n"):
            break
        yield number, text
    if number == 0:
        yield 1, ""


def _read_head(number: int, plain: dict[str, Any]) -> tuple[GovernorConfig, GovernorState]:
    if plain.get("governor") != FORMAT:
        raise LogError(
            f'line {number} is not the head of a governor\'s log of format {FORMAT}: it has to have "governor": {FORMAT}'
        )
    try:
        config = GovernorConfig.model_validate_json(json.dumps(plain["config"]))
        return config, GovernorState(int(plain["target"]), int(plain["seed"]), int(plain.get("least", 1)))
    except (KeyError, TypeError, ValidationError) as error:
        raise LogError(f"line {number} has a configuration that this version cannot read: {error}") from None


def _plain(number: int, text: str) -> dict[str, Any]:
    try:
        plain = json.loads(text)
    except ValueError:
        plain = None
    if not isinstance(plain, dict):
        raise LogError(f"line {number} is no JSON object: {text[:40]!r}")
    return plain


def _event(number: int, plain: dict[str, Any]) -> Event:
    try:
        return from_dict(plain)
    except ValueError as error:
        raise LogError(f"line {number}: {error}") from None
