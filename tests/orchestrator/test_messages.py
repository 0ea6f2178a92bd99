"""GM-6: what an agent may say, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
from quantarion.v1 import control_pb2 as pb

from orchestrator.messages import MOST_BYTES, Known, Reason, Refusal, check
from orchestrator.violations import EVIDENCE_AT, TELL_SECONDS, WINDOW_SECONDS, Violations
from workers.identity import Generation

WORKERS = {"w1": "host-1", "w2": "host-2"}
KNOWN = Known(WORKERS.get, newest=Generation(2, 5), configured=Generation(2, 4))
NOW, NEXT, LATER = (pb.Generation(incarnation=2, counter=counter) for counter in (4, 5, 6))


def refused(message: pb.AgentMessage, *, first: bool = False) -> Reason | None:
    found = check("host-1", message, KNOWN, first=first)
    return None if found is None else found.reason


def beat(**progress: Any) -> pb.AgentMessage:
    return pb.AgentMessage(beat=pb.Beat(progress=[pb.Progress(**{"worker": "w1", "state": "training", **progress})]))


def sensed(**sensors: Any) -> pb.AgentMessage:
    return pb.AgentMessage(beat=pb.Beat(**sensors))


def report(worker: str = "w1", **body: Any) -> pb.AgentMessage:
    return pb.AgentMessage(report=pb.RankReport(worker=worker, **body))


def note(kind: str, json: str, worker: str = "w1") -> pb.AgentMessage:
    return report(worker, note=pb.Note(kind=kind, json=json))


def up(**changes: Any) -> pb.WorkerUp:
    return pb.WorkerUp(**{"worker": "w9", "phase": "idle", "rank": -1, **changes})


def hello(*workers: pb.WorkerUp, exits: tuple[str, ...] = ()) -> pb.AgentMessage:
    left = [pb.WorkerExit(worker=worker) for worker in exits]
    return pb.AgentMessage(hello=pb.HostHello(host="host-1", workers=workers, exits=left))


TAKEN = {
    "a beat without ranks": sensed(temperature=math.nan),
    "a beat with all": sensed(temperature=41.5, memory=0.0, disk=1.0, load=900.0, cpu=1.0),
    "of the last generation": beat(generation=NEXT, step=7, step_seconds=0.0),
    "what a rank has not measured": beat(work=math.nan, loss=math.nan, cosine=math.nan, norm=math.nan, compared=math.nan),
    "a loss that is not finite": beat(loss=math.inf, norm=math.inf),
    "a worker that nobody knows, in a beat": beat(worker="w7"),
    "links": pb.AgentMessage(beat=pb.Beat(links=[pb.LinkUse(address="10.0.0.2", segments=2**63, seconds=1e12)])),
    "a new worker": pb.AgentMessage(worker_up=up()),
    "an exit of one that nobody knows": pb.AgentMessage(worker_exit=pb.WorkerExit(worker="w7", status=-9)),
    "an answer to a round": report(prepared=pb.Prepared(generation=NEXT)),
    "running": report(running=pb.Running(generation=NOW, how="caught_up", seconds=0.3)),
    "what a process has written that has ended": report("w7", published=pb.Published(path="p", step=3, seconds=1.0)),
    "why a process has failed that has ended": report("w7", failed=pb.Failed(error="x", exit_code=3)),
    "what a process has said that has ended": note("residual_lost", "{}", worker="w7"),
    "a digest": report(digest=pb.StateDigest(digest=bytes(16))),
    "wrong sums": report(wrong_sums=pb.WrongSums(generation=NOW, step=100, right=50, owners=[-1, 3])),
    "a plan": note("plan", '{"total_steps": 120}'),
    "a note of a script": note("Anything at all!", '{"t": 1, "loss": NaN}'),
    "an error in an apply": note("apply_failed", "RuntimeError: it is no JSON"),
    "a step that was not finite": note("non_finite", '{"step": 4, "again": false}'),
    "a notice": pb.AgentMessage(draining=pb.Draining(reason="SIGTERM", age=1.0, deadline=30.0)),
    "where ranks stand": pb.AgentMessage(stacks=pb.Stacks(stacks=[pb.Stack(worker="w1", frames=["task.py:3 load"])])),
    "a test of the host": pb.AgentMessage(host_tested=pb.HostTested(failures=["bad"], seconds=1.0)),
    "a probe that has failed": pb.AgentMessage(measured_link=pb.MeasuredLink(error="x", sent=math.nan)),
}


@pytest.mark.parametrize("message", TAKEN.values(), ids=TAKEN.keys())
def test_what_agents_say_is_taken(message: pb.AgentMessage) -> None:
    assert check("host-1", message, KNOWN) is None


def test_a_hello_with_workers_and_exits_is_taken_first() -> None:
    own = up(worker="w1", phase="training", rank=3, generation=NOW, promised=NEXT)
    assert refused(hello(own, up(), exits=("w1", "w7")), first=True) is None


OVER, UNDER = [math.nan, math.inf, -1.0], [math.inf, -math.inf]

REFUSED: list[tuple[pb.AgentMessage, Reason]] = [
    (pb.AgentMessage(), Reason.MALFORMED),
    (hello(), Reason.OUT_OF_TURN),
    *(
        (sensed(**{sensor: value}), Reason.IMPOSSIBLE_NUMBER)
        for sensor in ("memory", "disk", "load", "cpu")
        for value in OVER
    ),
    *((sensed(temperature=value), Reason.IMPOSSIBLE_NUMBER) for value in UNDER),
    *((beat(step_seconds=value), Reason.IMPOSSIBLE_NUMBER) for value in OVER),
    *((beat(**{name: value}), Reason.IMPOSSIBLE_NUMBER) for name in ("work", "compared") for value in (math.inf, -1.0)),
    *((beat(cosine=value), Reason.IMPOSSIBLE_NUMBER) for value in (1.1, -1.1, math.inf)),
    (beat(norm=-0.5), Reason.IMPOSSIBLE_NUMBER),
    *((pb.AgentMessage(draining=pb.Draining(age=value)), Reason.IMPOSSIBLE_NUMBER) for value in OVER),
    *((pb.AgentMessage(draining=pb.Draining(deadline=value)), Reason.IMPOSSIBLE_NUMBER) for value in OVER),
    (pb.AgentMessage(stacks=pb.Stacks(stacks=[pb.Stack(worker="w2")])), Reason.FOREIGN_WORKER),
    (beat(step=2**63), Reason.IMPOSSIBLE_NUMBER),
    (beat(generation=LATER), Reason.FUTURE_GENERATION),
    (beat(state="dancing"), Reason.MALFORMED),
    (beat(worker="w2"), Reason.FOREIGN_WORKER),
    (pb.AgentMessage(beat=pb.Beat(links=[pb.LinkUse(seconds=-1.0)])), Reason.IMPOSSIBLE_NUMBER),
    (pb.AgentMessage(beat=pb.Beat(links=[pb.LinkUse(address="a" * 200)])), Reason.MALFORMED),
    (pb.AgentMessage(worker_up=up(worker="w2")), Reason.FOREIGN_WORKER),
    (pb.AgentMessage(worker_up=up(worker="")), Reason.MALFORMED),
    (pb.AgentMessage(worker_up=up(worker="w" * 129)), Reason.MALFORMED),
    (pb.AgentMessage(worker_up=up(phase="")), Reason.MALFORMED),
    (pb.AgentMessage(worker_up=up(rank=-2)), Reason.IMPOSSIBLE_NUMBER),
    (pb.AgentMessage(worker_up=up(promised=LATER)), Reason.FUTURE_GENERATION),
    (pb.AgentMessage(worker_up=up(state=pb.StateId(generation=pb.Generation(incarnation=3)))), Reason.FUTURE_GENERATION),
    (pb.AgentMessage(worker_exit=pb.WorkerExit(worker="w2")), Reason.FOREIGN_WORKER),
    (pb.AgentMessage(host_tested=pb.HostTested(seconds=math.nan)), Reason.IMPOSSIBLE_NUMBER),
    (pb.AgentMessage(probe_port=pb.ProbePort(port=65536)), Reason.IMPOSSIBLE_NUMBER),
    (pb.AgentMessage(measured_link=pb.MeasuredLink(sent=math.inf)), Reason.IMPOSSIBLE_NUMBER),
    (report("w1"), Reason.MALFORMED),
    (report("w2", running=pb.Running(generation=NOW, how="healed")), Reason.FOREIGN_WORKER),
    (report("w2", published=pb.Published()), Reason.FOREIGN_WORKER),
    (report("w7", running=pb.Running(generation=NOW, how="healed")), Reason.UNKNOWN_WORKER),
    (note("apply_failed", "x", worker="w7"), Reason.UNKNOWN_WORKER),
    (note("join_failed", "{}", worker="w7"), Reason.UNKNOWN_WORKER),
    (report(prepared=pb.Prepared(generation=NOW)), Reason.STALE_GENERATION),
    (report(prepared=pb.Prepared(generation=LATER)), Reason.FUTURE_GENERATION),
    (report(prepared=pb.Prepared(generation=NEXT, state=pb.StateId(step=2**60))), Reason.IMPOSSIBLE_NUMBER),
    (report(ready=pb.Ready(state=pb.StateId(generation=LATER))), Reason.FUTURE_GENERATION),
    (report(running=pb.Running(generation=NOW, how="")), Reason.MALFORMED),
    (report(running=pb.Running(generation=NOW, how="healed", seconds=-1.0)), Reason.IMPOSSIBLE_NUMBER),
    (report(exchange_failed=pb.ExchangeFailed(generation=LATER)), Reason.FUTURE_GENERATION),
    (report(published=pb.Published(seconds=math.nan)), Reason.IMPOSSIBLE_NUMBER),
    (report(failed=pb.Failed(exit_code=0)), Reason.IMPOSSIBLE_NUMBER),
    (report(failed=pb.Failed(exit_code=256)), Reason.IMPOSSIBLE_NUMBER),
    (report(finished=pb.Finished(state=pb.StateId(generation=LATER))), Reason.FUTURE_GENERATION),
    (report(digest=pb.StateDigest(digest=bytes(15))), Reason.MALFORMED),
    (report(wrong_sums=pb.WrongSums(generation=LATER)), Reason.FUTURE_GENERATION),
    (report(wrong_sums=pb.WrongSums(generation=NOW, step=2**60)), Reason.IMPOSSIBLE_NUMBER),
    (report(wrong_sums=pb.WrongSums(generation=NOW, step=50, right=51)), Reason.IMPOSSIBLE_NUMBER),
    (report(wrong_sums=pb.WrongSums(generation=NOW, step=50, owners=[-2])), Reason.IMPOSSIBLE_NUMBER),
    (report("w7", wrong_sums=pb.WrongSums(generation=NOW)), Reason.UNKNOWN_WORKER),
    *((note("phase", text), Reason.MALFORMED) for text in ("", "{", "[]", "3", "[" * 100_000, '{"a":' * 5000)),
    (note("", "{}"), Reason.MALFORMED),
    *(
        (note(kind, text), Reason.MALFORMED)
        for kind in ("finite_again", "resumed")
        for text in ("{}", '{"step": "4"}', '{"step": -1}', '{"step": 1e400}', '{"step": true}', '{"step": 1.0}')
    ),
    (note("plan", f'{{"total_steps": {2**64}}}'), Reason.MALFORMED),
    (note("non_finite", '{"step": 4}'), Reason.MALFORMED),
]


@pytest.mark.parametrize(("message", "reason"), REFUSED, ids=[str(number) for number in range(len(REFUSED))])
def test_gm6_what_cannot_be_is_refused_by_name(message: pb.AgentMessage, reason: Reason) -> None:
    assert refused(message) is reason


def test_gm6_a_stream_begins_with_one_hello() -> None:
    assert refused(beat(), first=True) is Reason.OUT_OF_TURN
    assert refused(hello(up(worker="w2")), first=True) is Reason.FOREIGN_WORKER
    assert refused(hello(exits=("w2",)), first=True) is Reason.FOREIGN_WORKER
    assert refused(hello(up(phase="?")), first=True) is Reason.MALFORMED


def test_gm6_a_message_has_a_size_that_it_can_have() -> None:
    text = "x" * MOST_BYTES
    assert refused(note("phase", f'{{"a": "{text}"}}')) is Reason.OVERSIZED
    assert refused(note("phase", f'{{"a": "{text[: MOST_BYTES // 2]}"}}')) is None


def test_what_happens_to_hosts_that_are_well_does_not_count_against_them() -> None:
    assert {reason for reason in Reason if not Refusal(reason, "").counts} == {
        Reason.UNKNOWN_WORKER,
        Reason.STALE_GENERATION,
    }


# ---------------------------------------------------------------- how often

FOREIGN, BROKEN = Refusal(Reason.FOREIGN_WORKER, "speaks for w2"), Refusal(Reason.MALFORMED, "is no JSON")


def test_refused_messages_are_told_once_a_minute_for_each_reason_with_their_number() -> None:
    violations = Violations()
    told = {"host": "a", "reason": "foreign_worker", "message": "speaks for w2", "count": 1}
    assert violations.add("a", FOREIGN, 0.0) == told
    assert [violations.add("a", FOREIGN, float(second)) for second in range(1, 4)] == [None] * 3
    assert violations.add("a", BROKEN, 4.0) == {**told, "reason": "malformed", "message": "is no JSON"}
    assert violations.add("b", FOREIGN, 5.0) == {**told, "host": "b"}
    assert violations.add("a", FOREIGN, TELL_SECONDS) == {**told, "count": 4}


def test_protocol_violation_ten_within_a_minute_are_evidence_once() -> None:
    violations = Violations()
    every = (WINDOW_SECONDS - 1.0) / (EVIDENCE_AT - 1)
    verdicts = []
    for number in range(2 * EVIDENCE_AT):
        violations.add("a", FOREIGN if number % 2 else BROKEN, number * every)
        verdicts.append(violations.is_evidence("a"))
    assert verdicts == ([False] * (EVIDENCE_AT - 1) + [True]) * 2
    assert not violations.is_evidence("a") and not violations.is_evidence("b")


def test_protocol_violation_now_and_then_is_no_evidence() -> None:
    violations = Violations()
    for number in range(100):
        violations.add("a", FOREIGN, number * 1.01 * WINDOW_SECONDS / (EVIDENCE_AT - 1))
        assert not violations.is_evidence("a")
