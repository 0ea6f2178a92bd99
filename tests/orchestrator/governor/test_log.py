"""GM-10: the same verdicts, byte for byte, out of a log."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.governor.codes import Code, Scope, Weight
from orchestrator.governor.config import GovernorConfig, Mode, Pools
from orchestrator.governor.events import (
    Asked,
    Beat,
    Event,
    Evidence,
    Fenced,
    HostTested,
    Joined,
    Late,
    Left,
    Observed,
    Tick,
    Wish,
    as_dict,
    from_dict,
)
from orchestrator.governor.log import Governor, LogError, Outset, line, replay
from tests.orchestrator.governor.fleet import normal

ENFORCED = GovernorConfig(noisy=Mode.ENFORCE)
CERTAIN = [code for code in Code if code.weight is Weight.HIGH and code.scope is Scope.NODE]
HOSTS = [f"h{i}" for i in range(8)]


def history(seed: int, events: int = 120) -> Iterator[Event]:
    """Anything in any order, at times that jump."""
    chance = random.Random(seed)
    now = 0.0
    for host in HOSTS:
        yield Joined(now, host, f"g{chance.randrange(2)}", first=True)
    for number in range(events):
        now += chance.choice([-5.0, 0.0, 0.5, 10.0, 10.0, 100.0])
        host = chance.choice([*HOSTS, "stranger"])
        observations = {h: normal(chance) for h in HOSTS if chance.random() < 0.9}
        if host in observations and chance.random() < 0.5:
            observations[host] = type(observations[host])(temperature=99.0, busy=0.05)
        anything: list[Event] = [
            Observed(now, observations, number),
            Observed(now, observations, number, ({host: normal(chance) for host in observations}, {})),
            Evidence(now, host, chance.choice(CERTAIN)),
            Late(now, host),
            Beat(now, host),
            Fenced(now, host),
            HostTested(now, host, passed=chance.random() < 0.7),
            Left(now, host),
            Joined(now, host, "g0", first=False),
            Asked(now, host, chance.choice(list(Wish))),
            Tick(now),
        ]
        yield chance.choice(anything)


def log_of(seed: int) -> list[str]:
    log = io.StringIO()
    governor = Governor(Outset(ENFORCED, 8, seed=seed), log)
    for event in history(seed):
        governor.tell(event)
    return log.getvalue().splitlines(keepends=True)


@settings(max_examples=20)
@given(st.integers(0, 1 << 30))
def test_gm10_a_replay_says_the_same_byte_for_byte(seed: int) -> None:
    lines = log_of(seed)
    found = replay(lines)
    assert found.difference is None
    assert found.events == 128
    assert found.events + found.verdicts + 1 == len(lines)


def test_gm10_the_histories_have_verdicts() -> None:
    assert sum(replay(log_of(seed)).verdicts for seed in range(10)) > 50


@given(st.integers(0, 1 << 30))
def test_gm10_events_come_out_of_the_log_as_they_went_in(seed: int) -> None:
    import json

    for event in history(seed, 30):
        assert from_dict(json.loads(line(as_dict(event)))) == event


def test_gm10_an_altered_verdict_is_found() -> None:
    lines = log_of(4)
    number = next(i for i, text in enumerate(lines) if '"act":"evict"' in text)
    altered = [*lines]
    altered[number] = altered[number].replace('"act":"evict"', '"act":"inform"')
    found = replay(altered)
    assert found.difference is not None
    assert found.difference[0] == number + 1
    missing = replay([*lines[:number], *lines[number + 1 :]])
    assert missing.difference is not None
    twice = replay([*lines[: number + 1], lines[number], *lines[number + 1 :]])
    assert twice.difference is not None


def test_gm10_a_log_that_a_crash_has_cut_is_replayed_as_far_as_it_goes() -> None:
    text = "".join(log_of(4))
    chance = random.Random(1)
    head = text.index("\n") + 1
    for _ in range(30):
        assert replay(io.StringIO(text[: chance.randrange(head, len(text))])).difference is None


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "line 1 is no JSON object"),
        (["{}\n"], "line 1 is not the head"),
        (['{"governor":1,"config":{"apart":-1},"target":1,"seed":0}\n'], "configuration that this version cannot read"),
        ([log_of(1)[0], "[]\n"], "line 2 is no JSON object"),
        ([log_of(1)[0], '{"event":"party"}\n'], "line 2: 'party' is no event of the governor"),
        ([log_of(1)[0], '{"event":"tick"}\n'], "line 2: a tick event of the governor cannot be read"),
    ],
)
def test_a_log_that_is_none_is_refused(lines: list[str], message: str) -> None:
    with pytest.raises(LogError, match=message):
        replay(lines)


def test_the_command_says_what_came_out(tmp_path: Path) -> None:
    log = tmp_path / "governor.jsonl"
    lines = log_of(4)
    log.write_text("".join(lines))
    found = CliRunner().invoke(app, ["governor", "replay", str(log)])
    assert found.exit_code == 0
    assert found.output.startswith("128 events, ")
    number = next(i for i, text in enumerate(lines) if '"act"' in text)
    log.write_text("".join([*lines[:number], *lines[number + 1 :]]))
    calibrated = CliRunner().invoke(app, ["governor", "calibrate", str(log)])
    assert calibrated.exit_code == 0
    assert "THERMAL" in calibrated.output
    refused = CliRunner().invoke(app, ["governor", "replay", str(log)])
    assert refused.exit_code != 0
    missing = CliRunner().invoke(app, ["governor", "replay", str(tmp_path / "none")])
    assert missing.exit_code != 0


def test_gm40_pools_of_single_steps_are_replayed_and_other_logs_are_as_they_were(tmp_path: Path) -> None:
    chance, log = random.Random(1), tmp_path / "governor.jsonl"
    governor = Governor.open(log, Outset(GovernorConfig(noisy=Mode.ENFORCE, pool=Pools.STEPS), 4))
    for host in HOSTS[:4]:
        governor.tell(Joined(0.0, host, "", first=True))
    said = []
    for number in range(1, 16):
        seen = {host: normal(chance) for host in HOSTS[:4]}
        if number > 10:
            seen["h1"] = replace(seen["h1"], busy=0.05)
        singles = tuple({host: normal(chance) for host in HOSTS[:4]} for _ in range(4))
        said += governor.tell(Observed(2.0 * number, seen, number, singles))
    assert {verdict.target for verdict in said} == {"h1"}
    with log.open() as lines:
        found = replay(lines)
    assert found.difference is None and found.verdicts == len(said) > 0
    assert "singles" not in line(as_dict(Observed(1.0, seen, 1)))
