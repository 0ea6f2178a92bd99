"""What an agent leaves behind for the one after it (EP-14)."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import pytest
from quantarion.v1 import control_pb2 as pb

from workers import packets
from workers.agent import HostAgent
from workers.link import page_path, socket_path
from workers.page import Page

HOST, WORKER = "host-1", f"w{os.getpid()}-00000000"


def agent_in(folder: Path) -> HostAgent:
    return HostAgent(host=HOST, node_id="node", address="127.0.0.1", job_folder=folder, runtime=folder)


async def until_known(agent: HostAgent) -> None:
    while WORKER not in agent.workers:
        await asyncio.sleep(0.01)


def say_hello(folder: Path, link: socket.socket) -> None:
    """As a rank does, in this process."""
    link.connect(str(socket_path(folder, HOST)))
    packets.send(link, pb.AgentMessage(worker_up=pb.WorkerUp(worker=WORKER, pid=os.getpid())).SerializeToString())


@pytest.mark.parametrize("fails", [True, False])
def test_ep14_the_agent_after_one_that_failed_waits_for_the_ranks_that_live_on(tmp_path: Path, fails: bool) -> None:
    page = Page(page_path(tmp_path, WORKER), create=True)

    async def one_agent_after_the_other() -> None:
        agent = agent_in(tmp_path)
        running = asyncio.create_task(agent.run())
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as link:
            while not socket_path(tmp_path, HOST).exists():
                await asyncio.sleep(0.01)
            say_hello(tmp_path, link)
            await until_known(agent)
            if fails:
                running.cancel()
            else:
                agent.stop()
            await asyncio.wait([running])
        second = agent_in(tmp_path)
        before = second._left_behind()
        second._listen()
        waiting = asyncio.create_task(second._reunite(before))
        await asyncio.sleep(0.2)
        assert waiting.done() is not fails
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as link:
            say_hello(tmp_path, link)
            await until_known(second)
            await waiting
        second.stop()
        second._close()

    asyncio.run(asyncio.wait_for(one_agent_after_the_other(), 60))
    page.close()
