"""What the policy was told and what it said, one JSON object to a line, and the same verdicts out of it again (GM-10).

The first line has what verdicts depend on beside events: the configuration, how many hosts the job wants, its seed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TextIO

from pydantic import ValidationError

from orchestrator.governor.config import GovernorConfig
from orchestrator.governor.events import Event, as_dict, from_dict
from orchestrator.governor.policy import decide
from orchestrator.governor.state import GovernorState
from orchestrator.governor.verdicts import Verdict

FORMAT = 1


class LogError(ValueError):
    """A log that cannot be replayed: one sentence with the number of the line."""


def line(plain: dict[str, Any]) -> str:
    """The same bytes for the same values."""
    return json.dumps(plain, separators=(",", ":"), sort_keys=True, allow_nan=False)


class Governor:
    """The policy and its log: whatever it is told, and says, is written before anybody acts on it."""

    def __init__(self, config: GovernorConfig, target: int, log: TextIO, seed: int = 0) -> None:
        self.config, self.state, self._log = config, GovernorState(target, seed), log
        head = {"governor": FORMAT, "config": config.model_dump(mode="json"), "target": target, "seed": seed}
        log.write(line(head) + "\n")

    def tell(self, event: Event) -> list[Verdict]:
        """What follows from it."""
        self.state, verdicts = decide(self.state, event, self.config)
        self._log.writelines(f"{line(each)}\n" for each in (as_dict(event), *(v.record() for v in verdicts)))
        self._log.flush()
        return verdicts


@dataclass(frozen=True)
class Replay:
    """How many there were; `difference` is the first verdict that is not the one in the log: its line, what stands there
    and what came out, each empty where there is none."""

    events: int
    verdicts: int
    difference: tuple[int, str, str] | None


def replay(lines: Iterable[str]) -> Replay:
    """Raises LogError where a line is no part of a governor's log. A crash may have cut it short anywhere: a last line
    without its end is left out, and verdicts on the last event may be missing."""
    numbered = enumerate(lines, 1)
    config, state = _head(next(numbered, (1, "")))
    expected: list[str] = []
    events = same = 0
    for number, text in numbered:
        if not text.endswith("\n"):
            break  # torn: what it announced was not done
        plain = _plain(number, text)
        if "event" in plain:
            if expected:
                return Replay(events, same, (number, "", expected[0]))
            state, verdicts = decide(state, _event(number, plain), config)
            expected = [line(verdict.record()) for verdict in verdicts]
            events += 1
        elif not expected or text.rstrip("\n") != expected[0]:
            return Replay(events, same, (number, text.rstrip("\n"), expected[0] if expected else ""))
        else:
            expected.pop(0)
            same += 1
    return Replay(events, same, None)


def told(lines: Iterable[str]) -> Iterator[tuple[GovernorState, Event, GovernorConfig]]:
    """The events of a log, each with the state before it. Raises LogError as `replay`; verdicts are not looked at."""
    numbered = enumerate(lines, 1)
    config, state = _head(next(numbered, (1, "")))
    for number, text in numbered:
        if not text.endswith("\n"):
            return
        plain = _plain(number, text)
        if "event" in plain:
            event = _event(number, plain)
            yield state, event, config
            state, _ = decide(state, event, config)


def _head(first: tuple[int, str]) -> tuple[GovernorConfig, GovernorState]:
    plain = _plain(*first)
    if plain.get("governor") != FORMAT:
        raise LogError(
            f'line 1 is not the head of a governor\'s log of format {FORMAT}: it has to have "governor": {FORMAT}'
        )
    try:
        config = GovernorConfig.model_validate_json(json.dumps(plain["config"]))
        return config, GovernorState(int(plain["target"]), int(plain["seed"]))
    except (KeyError, TypeError, ValidationError) as error:
        raise LogError(f"line 1 has a configuration that this version cannot read: {error}") from None


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
