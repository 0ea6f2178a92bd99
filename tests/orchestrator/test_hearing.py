"""GM-6, PROTOCOL_VIOLATION: a real coordinator that is told what cannot be, or what its clock cannot have been."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from quantarion.v1 import control_pb2 as pb
from quantarion.v1 import operator_pb2_grpc as rpc

from orchestrator.admission import Admission
from orchestrator.coordinator import Coordinator
from orchestrator.governor.codes import Code
from orchestrator.governor.hosts import HostState
from orchestrator.membership import JobPhase
from orchestrator.messages import Known, check
from orchestrator.services import SERVER_OPTIONS, ControlService
from orchestrator.streams import HostStream, Streams
from orchestrator.turned_away import Tally
from orchestrator.violations import EVIDENCE_AT
from tests.orchestrator.real_coordinator import RealCoordinator
from workers.installed import software
from workers.protocol import RankState

Scenario = Callable[[RealCoordinator], None]


def with_coordinator(folder: Path, scenario: Scenario, hosts: int = 2) -> None:
    """Run it with a gang that trains."""

    async def main() -> None:
        with RealCoordinator.opened(folder, hosts) as job:
            job.train()
            scenario(job)

    asyncio.run(main())


def test_gm6_an_agent_speaks_for_no_rank_of_another_host(tmp_path: Path) -> None:
    def scenario(job: RealCoordinator) -> None:
        before = job.membership
        for message in (
            pb.AgentMessage(worker_exit=pb.WorkerExit(worker="w2", status=-9)),
            job.report("host-2", failed=pb.Failed(error="x", exit_code=1)),
            job.report("host-2", note=pb.Note(kind="apply_failed", json="x")),
            job.beat("host-2", step=50),
            pb.AgentMessage(worker_up=pb.WorkerUp(worker="w2", phase="idle")),
        ):
            job.hear("host-1", message)
            assert job.membership == before
        (told,) = job.events("message_refused")
        assert (told["host"], told["reason"], told["count"]) == ("host-1", "foreign_worker", 1)
        assert told["message"] == "speaks for w2, which is on host-2"
        job.hear("host-2", job.beat("host-2", step=50))
        assert job.machine.pace.step == 50

    with_coordinator(tmp_path, scenario)


def test_gm6_what_nobody_can_read_keeps_the_stream_and_changes_nothing(tmp_path: Path) -> None:
    def scenario(job: RealCoordinator) -> None:
        before, events = job.membership, len(job.events("plan"))
        for text in ("", "{", "[]", '{"total_steps": null}', "[" * 100_000):
            job.hear("host-1", job.report("host-1", note=pb.Note(kind="plan", json=text)))
        assert job.membership == before and len(job.events("plan")) == events
        assert job.attached == ["host-1", "host-2"]

    with_coordinator(tmp_path, scenario)


def test_gm6_numbers_that_cannot_be_do_not_move_limits(tmp_path: Path) -> None:
    """A longest step of infinity would have everybody wait for ever."""

    def scenario(job: RealCoordinator) -> None:
        limits = job.machine.pace.answer_limit, job.machine.pace.patience
        for seconds in (math.inf, math.nan, -1.0, 1e30):
            job.hear("host-1", job.beat("host-1", step=3, step_seconds=seconds))
        assert (job.machine.pace.answer_limit, job.machine.pace.patience) == limits and job.machine.pace.step == 0
        job.hear("host-1", job.beat("host-1", step=3, step_seconds=4.0))
        assert job.machine.pace.longest_step == 4.0

    with_coordinator(tmp_path, scenario)


def test_gm18_a_beat_about_a_worker_that_nobody_knows_says_that_the_host_lives_and_leaves_no_trace(tmp_path: Path) -> None:
    def scenario(job: RealCoordinator) -> None:
        for number in range(1000):
            job.hear("host-1", job.beat("host-1", worker=f"stranger-{number}", step=9))
        assert job.reports.seen.keys() <= {"w1", "w2"} and job.machine.pace.step == 0
        assert job.events("message_refused") == [] and "host-1" in job.governing._beats

    with_coordinator(tmp_path, scenario)


def test_gm6_what_was_promised_for_an_older_generation_changes_nothing(tmp_path: Path) -> None:
    """Said again, or late: its rank would not count as running any more."""

    def scenario(job: RealCoordinator) -> None:
        old = job.report("host-1", prepared=job.prepared())
        before = job.membership
        for _ in range(2 * EVIDENCE_AT):
            job.hear("host-1", old)
        assert job.membership == before and job.machine.phase is JobPhase.TRAINING
        assert job.events("message_refused") == []  # it happens to hosts that are well
        assert job.governing.records["host-1"].state is HostState.HEALTHY

    with_coordinator(tmp_path, scenario)


def test_protocol_violation_of_a_host_evicts_it_and_no_other(tmp_path: Path) -> None:
    def scenario(job: RealCoordinator) -> None:
        for number in range(EVIDENCE_AT):
            assert job.governing.records["host-1"].state is HostState.HEALTHY
            job.hear("host-1", job.beat("host-1", step_seconds=-1.0 - number))
        assert [record.state for record in job.governing.records.values()] == [HostState.EVICTED, HostState.HEALTHY]
        (verdict,) = job.events("verdict")
        assert (verdict["target"], verdict["act"], verdict["reasons"]) == ("host-1", "evict", ["PROTOCOL_VIOLATION"])
        job.govern()
        assert job.machine.hosts["host-1"].leaving == f"host-1 is evicted: {Code.PROTOCOL_VIOLATION.value}"

    with_coordinator(tmp_path, scenario)


def test_gm35_who_alone_has_the_state_is_kept_whatever_it_says(tmp_path: Path) -> None:
    def scenario(job: RealCoordinator) -> None:
        for _ in range(3 * EVIDENCE_AT):
            job.hear("host-1", job.beat("host-1", step_seconds=-1.0))
        assert job.governing.records["host-1"].state is HostState.HEALTHY

    with_coordinator(tmp_path, scenario, hosts=1)


# ---------------------------------------------------------------- anything at all

NAMES = st.sampled_from(["w1", "w2", "w3", "", "w" * 200]) | st.text(max_size=8)
U32, U64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
NUMBERS = st.sampled_from([0.0, 0.5, 1.0, -1.0, math.nan, math.inf]) | st.floats()
GENERATIONS = st.builds(pb.Generation, incarnation=st.integers(0, 2) | U32, counter=st.integers(0, 3) | U32)
STATE_IDS = st.builds(pb.StateId, step=st.integers(0, 9) | U64, round=U32, generation=GENERATIONS, lineage=U64)
PHASES = st.sampled_from([state.value for state in RankState]) | st.text(max_size=4)
TEXTS = st.sampled_from(["{}", "[]", '{"step": 3}', '{"step": 3, "again": true}', '{"total_steps": 9}']) | st.text(
    max_size=20
)
KINDS = st.sampled_from(
    ["plan", "non_finite", "finite_again", "resumed", "apply_failed", "join_failed", "phase", "generation"]
)

UPS = st.builds(
    pb.WorkerUp,
    worker=NAMES,
    pid=U32,
    peer_address=st.text(max_size=8),
    state=STATE_IDS,
    previous=STATE_IDS,
    generation=GENERATIONS,
    promised=GENERATIONS,
    healed=st.booleans(),
    phase=PHASES,
    rank=st.integers(-3, 3) | st.integers(-(2**31), 2**31 - 1),
)
EXITS = st.builds(pb.WorkerExit, worker=NAMES, pid=U32, status=st.integers(-(2**31), 2**31 - 1), unknown=st.booleans())
PROGRESS = st.builds(
    pb.Progress,
    worker=NAMES,
    step=st.integers(0, 9) | U64,
    generation=GENERATIONS,
    micro_batch=U32,
    exchanges=U64,
    state=PHASES,
    busy=st.booleans(),
    **dict.fromkeys(("step_seconds", "work", "loss", "cosine", "norm", "compared"), NUMBERS),
)
LINKS = st.builds(pb.LinkUse, address=st.text(max_size=8), segments=U64, retransmitted=U64, bytes=U64, seconds=NUMBERS)
BEATS = st.builds(
    pb.Beat,
    time=NUMBERS,
    progress=st.lists(PROGRESS, max_size=3),
    temperature=NUMBERS,
    links=st.lists(LINKS, max_size=2),
    **dict.fromkeys(("memory", "disk", "load", "cpu"), NUMBERS | st.none()),
)
PREPARED = st.builds(
    pb.Prepared,
    generation=GENERATIONS,
    state=STATE_IDS,
    previous=STATE_IDS,
    healed=st.booleans(),
    configured=GENERATIONS,
)
RUNNING = st.builds(
    pb.Running,
    generation=GENERATIONS,
    state=STATE_IDS,
    how=st.sampled_from(["went_on", "healed", ""]),
    seconds=NUMBERS,
    rank=st.integers(-2, 5),
)
PUBLISHED = st.builds(
    pb.Published, path=st.text(max_size=8), tier=st.text(max_size=5), step=U64, bytes=U64, seconds=NUMBERS
)
FAILED = st.builds(pb.Failed, error=st.text(max_size=8), exit_code=st.integers(-2, 300), step=st.integers(0, 3) | U64)
REPORTS = st.one_of(
    *(
        st.builds(pb.RankReport, worker=NAMES, **{body: values})
        for body, values in {
            "prepared": PREPARED,
            "ready": st.builds(pb.Ready, state=STATE_IDS),
            "running": RUNNING,
            "exchange_failed": st.builds(pb.ExchangeFailed, generation=GENERATIONS, error=st.text(max_size=8)),
            "published": PUBLISHED,
            "finished": st.builds(pb.Finished, state=STATE_IDS),
            "failed": FAILED,
            "note": st.builds(pb.Note, kind=KINDS | st.text(max_size=8), json=TEXTS),
            "digest": st.builds(pb.StateDigest, state=STATE_IDS, digest=st.sampled_from([b"", bytes(16), b"x" * 16])),
        }.items()
    ),
    st.builds(pb.RankReport, worker=NAMES),
)
HELLOS = st.builds(
    pb.HostHello,
    host=st.sampled_from(["host-1", "host-2", "host-9", ""]),
    address=st.text(max_size=8),
    workers=st.lists(UPS, max_size=2),
    exits=st.lists(EXITS, max_size=2),
)
MESSAGES: st.SearchStrategy[pb.AgentMessage] = st.one_of(
    *(
        st.builds(pb.AgentMessage, **{body: values})
        for body, values in {
            "hello": HELLOS,
            "beat": BEATS,
            "worker_up": UPS,
            "worker_exit": EXITS,
            "report": REPORTS,
            "probe_port": st.builds(pb.ProbePort, port=U32, error=st.text(max_size=4)),
            "measured_link": st.builds(pb.MeasuredLink, peer=NAMES, sent=NUMBERS, received=NUMBERS, round_trip=NUMBERS),
            "host_tested": st.builds(
                pb.HostTested,
                failures=st.lists(st.text(max_size=4), max_size=2),
                seconds=NUMBERS,
                error=st.text(max_size=2),
            ),
        }.items()
    ),
    st.just(pb.AgentMessage()),
)


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.sampled_from(["host-1", "host-2"]), MESSAGES), min_size=1, max_size=EVIDENCE_AT - 1))
def test_gm6_whatever_agents_say_nothing_is_raised_and_what_is_refused_changes_nothing(
    said: list[tuple[str, pb.AgentMessage]],
) -> None:
    def scenario(job: RealCoordinator) -> None:
        for host, message in said:
            before = job.membership
            refused = check(host, message, Known.of(job.machine)) is not None
            job.hear(host, message)
            assert not refused or job.membership == before
            assert job.machine.generation <= job.machine.round_generation
            job.do(job.machine.tick(job.now()))
            job.govern()

    with tempfile.TemporaryDirectory() as folder:
        with_coordinator(Path(folder), scenario)


@settings(max_examples=100)
@given(st.lists(HELLOS, min_size=1, max_size=3))
def test_gm6_whatever_an_agent_begins_with_nothing_is_raised(hellos: list[pb.HostHello]) -> None:
    def scenario(job: RealCoordinator) -> None:
        for hello in hellos:
            before = job.membership
            if job.refuses(hello.host, pb.AgentMessage(hello=hello), first=True) is None:
                hello.software.update(software(job.folder))
                refused = job.attach(hello, HostStream(hello.host))
                assert (refused is None) == (hello.host in ("host-1", "host-2"))
            else:
                assert job.membership == before

    with tempfile.TemporaryDirectory() as folder:
        with_coordinator(Path(folder), scenario)


# ---------------------------------------------------------------- on the wire


class Ear:
    """As much of a coordinator as its service needs, for one host."""

    def __init__(self) -> None:
        self.heard: list[pb.AgentMessage] = []
        self.streams = Streams()
        self.detached = asyncio.Event()
        self.attached = asyncio.Event()

    def refuses(self, host: str, message: pb.AgentMessage, *, first: bool = False) -> str | None:
        return "says too little" if first and not message.hello.address else None

    def attach(self, hello: pb.HostHello, stream: HostStream) -> str | None:
        self.attached.set()
        self.streams.attach(hello.host, stream, 1)
        return None

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        yield

    def hear(self, host: str, message: pb.AgentMessage) -> None:
        self.heard.append(message)

    def detach(self, host: str, stream: HostStream) -> None:
        self.detached.set()


async def served(talk: Callable[[Ear, Any], Awaitable[None]]) -> None:
    """A server with the options of the coordinator's, and `talk(ear, stub)` with it."""
    ear = Ear()
    server = grpc.aio.server(options=SERVER_OPTIONS)
    rpc.add_ControlServicer_to_server(
        ControlService(cast(Coordinator, ear), Admission(None, Tally(lambda fields: None, time.time))), server
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.enable_http_proxy", 0)]) as channel:
            async with asyncio.timeout(60):
                await talk(ear, rpc.ControlStub(channel))
    finally:
        await server.stop(None)


def begin(address: str = "10.0.0.1") -> pb.AgentMessage:
    return pb.AgentMessage(hello=pb.HostHello(host="host-1", address=address))


def test_gm6_a_message_that_is_too_large_ends_its_stream_and_is_not_read() -> None:
    async def talk(ear: Ear, stub: Any) -> None:
        async def messages() -> AsyncIterator[pb.AgentMessage]:
            yield begin()
            await ear.attached.wait()
            yield pb.AgentMessage(report=pb.RankReport(note=pb.Note(json="x" * (9 << 20))))
            await asyncio.Event().wait()

        with pytest.raises(grpc.aio.AioRpcError) as ended:
            async for _ in stub.Attach(messages()):
                pass
        assert ended.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        await ear.detached.wait()
        assert ear.heard == []

    asyncio.run(served(talk))


def test_gm6_a_hello_that_is_refused_ends_its_stream_with_a_sentence() -> None:
    async def talk(ear: Ear, stub: Any) -> None:
        async def messages() -> AsyncIterator[pb.AgentMessage]:
            yield begin(address="")
            await asyncio.Event().wait()

        with pytest.raises(grpc.aio.AioRpcError) as ended:
            async for _ in stub.Attach(messages()):
                pass
        assert ended.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert ended.value.details() == "the HostHello of host-1 says too little"
        assert not ear.attached.is_set()

    asyncio.run(served(talk))


# ---------------------------------------------------------------- clocks


@pytest.mark.parametrize("ahead", [-5000.0, 5000.0])
def test_gm10_a_coordinator_whose_clock_was_set_back_goes_on_where_the_log_ends(tmp_path: Path, ahead: float) -> None:
    """Else cooldowns would last until the clock is where it was."""
    logged = time.time() + ahead

    async def main() -> None:
        with RealCoordinator.opened(tmp_path) as job:
            job.train()
            job.governing.scaled(2, logged)
        with RealCoordinator.opened(tmp_path) as again:
            assert again.journal.incarnation == 2
            assert again.governing._governor.state.time >= logged
            begun = again.now()
            assert begun >= max(logged, time.time() - 60.0)
            assert begun < max(logged, time.time()) + 60.0

    asyncio.run(main())
    last = [json.loads(line) for line in (tmp_path / "governor.jsonl").read_text().splitlines()][-1]
    assert last["event"] == "scaled"
