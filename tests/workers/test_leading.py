"""Agents that lead others, and agents that follow, over real gRPC (GM-4, GM-18)."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from quantarion.v1 import control_pb2 as pb
from quantarion.v1 import operator_pb2_grpc as rpc

from orchestrator.certificates import Certificates
from orchestrator.peers import server_name
from workers import tls
from workers.leading import Leading
from workers.uplink import NOWHERE, Uplink

JOB = "demo"
PATIENCE_SECONDS = 60.0


class Coordinator(rpc.ControlServicer):
    """Welcomes everybody; `said` is what has come, by the host whose stream it came by, `outboxes` what goes out."""

    def __init__(self) -> None:
        self.said: list[tuple[str, pb.AgentMessage]] = []
        self.outboxes: dict[str, asyncio.Queue[pb.CoordinatorMessage | None]] = {}
        self.refuses: set[str] = set()  # hosts that come by a leader

    async def Attach(self, request_iterator: Any, context: Any) -> AsyncIterator[pb.CoordinatorMessage]:
        first = await anext(request_iterator)
        host, outbox = first.hello.host, asyncio.Queue[pb.CoordinatorMessage | None]()
        self.outboxes[host] = outbox
        self.said.append((host, first))
        outbox.put_nowait(pb.CoordinatorMessage(welcome=pb.Welcome(incarnation=1)))
        reading = asyncio.create_task(self._read(host, request_iterator))
        try:
            while (message := await outbox.get()) is not None:
                yield message
        finally:
            reading.cancel()
            self.said.append((host, pb.AgentMessage(host_away=pb.HostAway())))

    async def _read(self, host: str, messages: Any) -> None:
        async for message in messages:
            self.said.append((host, message))
            for each in message.gathered.messages:
                if each.HasField("hello"):
                    answer = pb.CoordinatorMessage(host=each.host, welcome=pb.Welcome(incarnation=1))
                    if each.host in self.refuses:
                        answer = pb.CoordinatorMessage(host=each.host, refused=pb.Refused(reason="it is not wanted"))
                    self.outboxes[host].put_nowait(answer)

    def kinds(self, through: str, host: str = "") -> list[str]:
        """What has come of `host` by the stream of `through`, without heartbeats."""
        found = [message for by, message in self.said if by == through]
        if host:
            found = [each for message in found for each in message.gathered.messages if each.host == host]
        return [kind for each in found if (kind := str(each.WhichOneof("body"))) not in ("beat", "seen", "gathered")]

    def beats(self, through: str, host: str, kind: str = "beat") -> int:
        gathered = [message.gathered.messages for by, message in self.said if by == through]
        return sum(each.host == host and each.HasField(kind) for messages in gathered for each in messages)


@dataclass
class Agent:
    """What an agent has of its uplink and of leading; `heard` is what it was told."""

    host: str
    folder: Path
    workers: list[str] = field(default_factory=list)
    heard: list[pb.CoordinatorMessage] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.stopped = asyncio.Event()
        self.uplink = Uplink(
            self.host,
            self.folder,
            hello=lambda: pb.HostHello(host=self.host, workers=[pb.WorkerUp(worker=each) for each in self.workers]),
            beat=lambda: pb.Beat(time=time.time()),
            begins=lambda: self.leading.let_go(),
            obey=self.obey,
            ends=lambda: self.leading.let_go(),
        )
        self.leading = Leading(self.host, "127.0.0.1", self.folder, self.uplink.tell, lambda: self.uplink.is_open)
        self.tasks = [asyncio.create_task(self.uplink.run(self.stopped))]

    def obey(self, message: pb.CoordinatorMessage) -> None:
        if self.leading.hand_on(message):
            return
        self.heard.append(message)
        if message.HasField("lead"):
            self.tasks.append(asyncio.create_task(self.leading.lead(message.lead)))
        elif message.HasField("follow"):
            self.uplink.follow(message.follow)

    async def stop(self) -> None:
        self.stopped.set()
        await asyncio.gather(*self.tasks)
        await self.leading.close()


async def until(what: Callable[[], Any]) -> Any:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not (found := what()):
            await asyncio.sleep(0.005)
    return found


@dataclass
class World:
    """A coordinator and the agents of hosts."""

    folder: Path
    coordinator: Coordinator
    agents: dict[str, Agent] = field(default_factory=dict)
    terms: int = 0
    secured: bool = False

    async def appoint(self, host: str, *hosts: str, observed: tuple[str, ...] = ()) -> pb.Way:
        """Where it lets these in."""
        self.terms += 1
        lead = pb.Lead(term=self.terms, hosts=hosts, observed=observed, job=JOB if self.secured else "")
        self.coordinator.outboxes[host].put_nowait(pb.CoordinatorMessage(lead=lead))

        def answer() -> pb.Leads | None:
            said = (message.leads for by, message in self.coordinator.said if by == host and message.HasField("leads"))
            return next((leads for leads in said if leads.term == self.terms), None)

        leads = await until(answer)
        name = tls.leader_name(JOB, host) if self.secured else ""
        return pb.Way(address=f"127.0.0.1:{leads.port}", server_name=name)

    def order(self, host: str, *, leader: pb.Way | None = None, observer: pb.Way | None = None, by: str = "") -> None:
        self.terms += 1
        follow = pb.Follow(term=self.terms, leader=leader, observer=observer)
        message = pb.CoordinatorMessage(follow=follow, host=host if by else "")
        self.coordinator.outboxes[by or host].put_nowait(message)


@asynccontextmanager
async def world(folder: Path, *hosts: str, secured: bool = False) -> AsyncIterator[World]:
    """They have attached by streams of their own; `host-N` has the worker `wN`."""
    server, coordinator = grpc.aio.server(), Coordinator()
    rpc.add_ControlServicer_to_server(coordinator, server)
    if secured:
        certificates = Certificates(folder, JOB)
        certificates.keep(hosts, time.time())
        pair = tls.split((certificates.folder / tls.COORDINATOR).read_bytes())
        trusted = (certificates.folder / tls.TRUSTED).read_bytes()
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair], trusted, require_client_auth=True))
    else:
        port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    announced = {"address": f"127.0.0.1:{port}", "tls": server_name(JOB) if secured else ""}
    (folder / "coordinator.json").write_text(json.dumps(announced))
    found = World(folder, coordinator, secured=secured)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(server.stop, None)
        for host in hosts:
            agent = found.agents[host] = Agent(host, folder, [f"w{host[5:]}"])
            stack.push_async_callback(agent.stop)
            await until(lambda host=host: host in coordinator.outboxes)  # type: ignore[misc]
        yield found


def run(folder: Path, scenario: Callable[[World], Awaitable[None]], *hosts: str, secured: bool = False) -> None:
    (folder / JOB).mkdir()

    async def main() -> None:
        async with world(folder / JOB, *hosts, secured=secured) as found:
            await scenario(found)

    asyncio.run(main())


@pytest.mark.parametrize("secured", [False, True])
def test_gm4_a_host_goes_through_its_leader_without_a_gap(tmp_path: Path, secured: bool) -> None:
    async def scenario(job: World) -> None:
        way = await job.appoint("host-1", "host-2")
        job.order("host-2", leader=way)
        await until(lambda: job.coordinator.kinds("host-1", "host-2") == ["hello"])
        await until(lambda: job.coordinator.beats("host-1", "host-2") > 1)
        await until(lambda: job.coordinator.kinds("host-2")[-1] == "host_away")  # its own stream, when the other stood
        assert job.agents["host-2"].uplink.is_open
        job.agents["host-2"].uplink.tell(pb.AgentMessage(worker_up=pb.WorkerUp(worker="w22")))
        await until(lambda: job.coordinator.kinds("host-1", "host-2") == ["hello", "worker_up"])

    run(tmp_path, scenario, "host-1", "host-2", secured=secured)


def test_gm4_orders_reach_the_host_that_they_are_for_and_directives_its_ranks(tmp_path: Path) -> None:
    async def scenario(job: World) -> None:
        way = await job.appoint("host-1", "host-2", "host-3")
        for host in ("host-2", "host-3"):
            job.order(host, leader=way)
            await until(lambda host=host: job.coordinator.kinds("host-1", host))  # type: ignore[misc]
        out = job.coordinator.outboxes["host-1"]
        job.agents["host-3"].uplink.tell(pb.AgentMessage(worker_up=pb.WorkerUp(worker="w33")))
        await until(lambda: job.coordinator.kinds("host-1", "host-3") == ["hello", "worker_up"])
        out.put_nowait(pb.CoordinatorMessage(host="host-2", kill=pb.Kill(worker="w2")))
        directive = pb.Directive(workers=["w1", "w3", "w33", "w9"], exit=pb.Exit(reason="enough"))
        out.put_nowait(pb.CoordinatorMessage(directive=directive))

        def told(host: str) -> list[pb.CoordinatorMessage]:
            return [each for each in job.agents[host].heard if each.WhichOneof("body") in ("kill", "directive")]

        await until(lambda: told("host-1") and told("host-2") and told("host-3"))
        assert [each.kill.worker for each in told("host-2")] == ["w2"] and not told("host-2")[0].host
        (for_3,) = told("host-3")
        assert list(for_3.directive.workers) == ["w3", "w33"] and for_3.directive.exit.reason == "enough"

    run(tmp_path, scenario, "host-1", "host-2", "host-3")


def test_gm4_where_its_leader_is_gone_a_host_attaches_by_itself(tmp_path: Path) -> None:
    async def scenario(job: World) -> None:
        way = await job.appoint("host-1", "host-2")
        job.order("host-2", leader=way)
        await until(lambda: job.coordinator.beats("host-1", "host-2"))
        streams = job.coordinator.kinds("host-2").count("hello")
        await job.agents["host-1"].stop()
        await until(lambda: job.coordinator.kinds("host-2").count("hello") == streams + 1)
        await until(lambda: job.agents["host-2"].uplink.is_open)

    run(tmp_path, scenario, "host-1", "host-2")


def test_gm4_where_a_leader_loses_the_coordinator_its_hosts_do_not_wait_for_it(tmp_path: Path) -> None:
    async def scenario(job: World) -> None:
        way = await job.appoint("host-1", "host-2")
        job.order("host-2", leader=way)
        await until(lambda: job.coordinator.beats("host-1", "host-2"))
        streams = job.coordinator.kinds("host-2").count("hello")
        job.coordinator.outboxes["host-1"].put_nowait(None)
        await until(lambda: job.coordinator.kinds("host-2").count("hello") == streams + 1)

    run(tmp_path, scenario, "host-1", "host-2")


def test_gm4_while_a_leader_cannot_be_reached_the_stream_that_there_is_goes_on(tmp_path: Path) -> None:
    async def scenario(job: World) -> None:
        uplink = job.agents["host-1"].uplink
        job.order("host-1", leader=pb.Way(address="127.0.0.1:1"))
        await until(lambda: uplink._leader != NOWHERE)
        uplink.tell(pb.AgentMessage(leads=pb.Leads(term=77)))
        await until(lambda: "leads" in job.coordinator.kinds("host-1"))
        await until(lambda: uplink._leader == NOWHERE)
        uplink.tell(pb.AgentMessage(leads=pb.Leads(term=78)))
        await until(lambda: job.coordinator.kinds("host-1") == ["hello", "leads", "leads"])

    run(tmp_path, scenario, "host-1")


def test_gm4_a_host_that_nobody_has_said_is_led_here_is_not_let_in(tmp_path: Path) -> None:
    async def scenario(job: World) -> None:
        way = await job.appoint("host-1", "host-3")
        job.order("host-2", leader=way)
        await until(lambda: job.coordinator.kinds("host-2").count("hello") == 2)
        assert job.coordinator.kinds("host-1", "host-2") == []

    run(tmp_path, scenario, "host-1", "host-2")


def test_gm4_a_host_that_the_coordinator_refuses_does_not_cost_its_leader_the_way(tmp_path: Path) -> None:
    async def scenario(job: World) -> None:
        way = await job.appoint("host-1", "host-2", "host-3")
        job.order("host-3", leader=way)
        await until(lambda: job.coordinator.beats("host-1", "host-3"))
        job.coordinator.refuses.add("host-2")
        job.order("host-2", leader=way)
        await until(lambda: job.coordinator.kinds("host-2").count("hello") == 2)
        beats = job.coordinator.beats("host-1", "host-3")
        await until(lambda: job.coordinator.beats("host-1", "host-3") > beats + 1)
        assert job.coordinator.kinds("host-1").count("hello") == 1

    run(tmp_path, scenario, "host-1", "host-2", "host-3")


@pytest.mark.parametrize("secured", [False, True])
def test_gm4_who_is_led_speaks_for_its_own_host_alone(tmp_path: Path, secured: bool) -> None:
    async def scenario(job: World) -> None:
        way = await job.appoint("host-1", "host-2", "host-3")
        job.order("host-2", leader=way)
        await until(lambda: job.coordinator.beats("host-1", "host-2"))
        job.agents["host-2"].uplink.tell(pb.AgentMessage(hello=pb.HostHello(host="host-3")))
        await until(lambda: "host_away" in job.coordinator.kinds("host-1", "host-2"))
        assert job.coordinator.kinds("host-1", "host-2").count("hello") == 1
        assert job.coordinator.kinds("host-1", "host-3") == []

    run(tmp_path, scenario, "host-1", "host-2", "host-3", secured=secured)


def test_gm4_a_leader_that_has_no_way_itself_lets_nobody_in(tmp_path: Path) -> None:
    async def scenario(job: World) -> None:
        way = await job.appoint("host-1", "host-2")
        announced = json.loads((job.folder / "coordinator.json").read_text())
        (job.folder / "coordinator.json").unlink()
        job.coordinator.outboxes["host-1"].put_nowait(None)
        await until(lambda: not job.agents["host-1"].uplink.is_open)
        job.order("host-2", leader=way)
        (job.folder / "coordinator.json.later").write_text(json.dumps(announced))
        await until(lambda: job.coordinator.kinds("host-2")[-1] == "host_away")
        (job.folder / "coordinator.json.later").rename(job.folder / "coordinator.json")
        await until(lambda: job.coordinator.kinds("host-2").count("hello") == 2)
        assert job.coordinator.kinds("host-1", "host-2") == []

    run(tmp_path, scenario, "host-1", "host-2")


def test_gm18_a_leader_shows_the_certificate_that_it_has_by_now(tmp_path: Path) -> None:
    async def scenario(job: World) -> None:
        way = await job.appoint("host-1", "host-2", "host-3")
        Certificates(job.folder, JOB).rotate(time.time(), authority=True, at_once=True)
        job.order("host-2", leader=way)
        await until(lambda: job.coordinator.beats("host-1", "host-2"))

    run(tmp_path, scenario, "host-1", "host-2", secured=True)


def test_gm4_a_leader_lets_nobody_in_with_the_certificate_of_another(tmp_path: Path) -> None:
    async def scenario(job: World) -> None:
        way = await job.appoint("host-1", "host-2")
        credentials = tls.channel_credentials(tls.tls_folder(job.folder), tls.agent_file("host-3"))
        hello = pb.AgentMessage(hello=pb.HostHello(host="host-2"))
        for own, name in ((credentials, way.server_name), (grpc.ssl_channel_credentials(b""), way.server_name)):
            async with grpc.aio.secure_channel(way.address, own, tls.server_is(name)) as channel:
                call = rpc.ControlStub(channel).Attach(iter([hello]), timeout=30.0)
                with pytest.raises(grpc.aio.AioRpcError) as refusal:
                    await call.read()
            expected = grpc.StatusCode.PERMISSION_DENIED if own is credentials else grpc.StatusCode.UNAVAILABLE
            assert refusal.value.code() is expected
        assert job.coordinator.kinds("host-1", "host-2") == []

    run(tmp_path, scenario, "host-1", "host-2", "host-3", secured=True)


def test_gm4_an_earlier_order_that_comes_late_is_nothing(tmp_path: Path) -> None:
    async def scenario(job: World) -> None:
        way = await job.appoint("host-1", "host-2")
        job.terms += 10
        job.order("host-2", leader=way)
        await until(lambda: job.coordinator.beats("host-1", "host-2"))
        job.terms -= 5
        job.order("host-2", by="host-1")
        job.coordinator.outboxes["host-1"].put_nowait(pb.CoordinatorMessage(host="host-2", kill=pb.Kill(worker="w2")))
        await until(lambda: any(each.HasField("kill") for each in job.agents["host-2"].heard))
        beats = job.coordinator.beats("host-1", "host-2")
        await until(lambda: job.coordinator.beats("host-1", "host-2") > beats + 1)

    run(tmp_path, scenario, "host-1", "host-2")


@pytest.mark.parametrize("secured", [False, True])
def test_gm18_heartbeats_go_a_second_way_and_nothing_else(tmp_path: Path, secured: bool) -> None:
    async def scenario(job: World) -> None:
        way = await job.appoint("host-1", observed=("host-2",))
        job.order("host-2", observer=way)
        await until(lambda: job.coordinator.beats("host-1", "host-2", "seen") > 1)
        assert job.coordinator.kinds("host-1", "host-2") == []
        assert job.coordinator.kinds("host-2").count("host_away") == 0
        job.order("host-2")
        await until(lambda: not job.agents["host-1"].leading._followers)

    run(tmp_path, scenario, "host-1", "host-2", secured=secured)


def test_gm18_who_cannot_reach_the_coordinator_is_led_to_it_by_who_hears_it(tmp_path: Path) -> None:
    async def scenario(job: World) -> None:
        way = await job.appoint("host-1", "host-2", observed=("host-2",))
        job.order("host-2", observer=way)
        await until(lambda: job.coordinator.beats("host-1", "host-2", "seen"))
        (job.folder / "coordinator.json").write_text(json.dumps({"address": "127.0.0.1:1", "tls": ""}))
        job.coordinator.outboxes["host-2"].put_nowait(None)
        await until(lambda: not job.agents["host-2"].uplink.is_open or job.coordinator.kinds("host-2")[-1] == "host_away")
        job.order("host-2", leader=way, observer=way, by="host-1")
        await until(lambda: job.coordinator.kinds("host-1", "host-2") == ["hello"])
        await until(lambda: job.coordinator.beats("host-1", "host-2") > 1)

    run(tmp_path, scenario, "host-1", "host-2")
