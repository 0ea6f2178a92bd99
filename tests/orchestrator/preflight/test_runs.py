"""GM-40: what a job of the gate has left in its folder."""

from __future__ import annotations

import json
import random
from pathlib import Path

from orchestrator.governor.codes import Code
from orchestrator.governor.config import GovernorConfig, Mode, Pools
from orchestrator.governor.events import Joined, Observed
from orchestrator.governor.log import Governor, Outset
from orchestrator.preflight import runs
from orchestrator.preflight.runs import Run
from tests.orchestrator.fake_operator import append
from tests.orchestrator.governor.fleet import normal, slower
from tests.orchestrator.preflight.made_up import NAMES, generation, step, windows
from workers.faults import parse

FAULT, OTHER = "in_backward@rank=3,step=5=lose", "in_exchange@rank=1,second=2=delay:0.05+-0.01"
CONFIG = GovernorConfig(noisy=Mode.ENFORCE, evaluation=2.0, apart=4.0, pool=Pools.STEPS)


def written(folder: Path) -> Path:
    """Of four hosts, whose governor has made 16 evaluations, and has removed the second in the last of them."""
    chance = random.Random(3)
    governor = Governor.open(folder / "governor.jsonl", Outset(CONFIG, 4))
    for host in NAMES:
        governor.tell(Joined(0.0, host, "", first=True))
    for number in range(1, 17):
        seen = {host: normal(chance) for host in NAMES}
        if number > 13:
            seen["host-2"] = slower(3.0)(seen["host-2"])
        singles = tuple({host: normal(chance) for host in NAMES} for _ in range(4))
        governor.tell(Observed(2.0 * number, seen, 20 * number, singles))
    append(folder / "events.jsonl", generation())
    append(folder / "steps.jsonl", step(1), step(2), {**step(2), "generation": [1, 2], "loss": 9.0})
    for name, steps in (("a.jsonl", (0, 20)), ("b.jsonl", (20,))):
        (folder / "digests").mkdir(exist_ok=True)
        append(folder / "digests" / name, *({"step": at, "rank": 0, "digest": name} for at in steps))
    parse(FAULT).mark(folder / "faults").parent.mkdir()
    parse(FAULT).mark(folder / "faults").write_text(json.dumps({"rank": 3, "step": 5}))
    return folder


def read(folder: Path, known: frozenset[str] = frozenset()) -> Run:
    return runs.read(folder, [FAULT, OTHER], exit_code=130, seconds=7.0, known=known)


def test_gm40_a_run_is_read_as_it_was_written(tmp_path: Path) -> None:
    run = read(written(tmp_path))
    assert (run.exit_code, run.seconds, run.problems) == (130, 7.0, None)
    assert [each["loss"] for each in run.steps] == [1.98, 9.0] and run.step(3) is None
    assert (run.host(1), run.host(9), Run().host(0)) == ("host-2", "", "")
    assert (run.begun(FAULT), run.begun(OTHER)) == (5, None)
    assert [line["digest"] for line in run.digests] == ["a.jsonl", "a.jsonl", "b.jsonl"]


def test_pf6_lines_of_an_earlier_run_are_left_out(tmp_path: Path) -> None:
    folder = written(tmp_path)
    before = frozenset(path.name for path in runs.digest_files(folder) if path.name == "a.jsonl")
    assert [line["digest"] for line in read(folder, before).digests] == ["b.jsonl"]


def test_pf4_evaluations_say_who_was_judged_and_who_has_alerted(tmp_path: Path) -> None:
    run = read(written(tmp_path))
    assert [(window.begun, window.steps) for window in run.windows] == [(20 * n, 20 * n + 20) for n in range(16)]
    judged = [window.judged[Code.STRAGGLER] for window in run.windows]
    assert judged == [frozenset()] * 7 + [frozenset(NAMES)] * 9  # 16 single steps in an evaluation, of 128
    alerts = [window.alerts for window in run.windows]
    assert alerts[:13] == [{}] * 13 and all(Code.STRAGGLER in found["host-2"] for found in alerts[13:])
    assert [verdict["act"] for verdict in run.verdicts] == ["suspect", "quarantine", "evict"]
    assert run.verdicts[1]["t"] == run.windows[15].time == 32.0


def test_gm40_which_evaluations_lie_between_two_steps() -> None:
    run = Run(windows=windows(10))
    assert [(window.begun, window.steps) for window in run.within(40, 120)] == [(40, 60), (60, 80), (80, 100)]
    assert run.within(41, 80) == []
    assert (run.last_before(40), run.last_before(41), run.last_before(20)) == (102.0, 104.0, None)


def test_gm40_a_job_that_has_left_nothing_is_an_empty_run(tmp_path: Path) -> None:
    run = read(tmp_path / "none")
    assert (run.steps, run.events, run.digests, run.windows, run.verdicts, run.marks) == ([], [], [], [], [], {})


def test_gm40_a_mark_that_is_being_written_and_a_log_that_is_torn_are_read_as_far_as_they_go(tmp_path: Path) -> None:
    folder = written(tmp_path)
    parse(FAULT).mark(folder / "faults").write_text('{"rank": 3, "st')
    with (folder / "governor.jsonl").open("a") as log:
        log.write('{"event":"obs')
    run = read(folder)
    assert run.begun(FAULT) is None and len(run.windows) == 16
    (folder / "governor.jsonl").write_text("no log\n")
    assert read(folder).windows == []
