"""CC-2: whose files on /dev/shm are removed, and by whom."""

from __future__ import annotations

import asyncio
import gc
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator import sweep
from workers.agent import HostAgent
from workers.collectives.shared import HostMemory, Layout
from workers.memory_file import memory_folder, memory_path, remove_abandoned
from workers.paths import runtime_dir

RANK = """
import sys
from pathlib import Path
from workers.memory_file import new_file
new_file(Path(sys.argv[1]), 4096)
print("made", flush=True)
sys.stdin.read()
"""
LAYOUT = Layout(100, 1)


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[Path]:
    """A runtime folder of which nothing is left."""
    path = tmp_path / runtime_dir("memory", tmp_path).name
    path.mkdir()
    yield path
    shutil.rmtree(memory_folder(path), ignore_errors=True)


def make_and_die(path: Path, environment: dict[str, str]) -> None:
    """A process makes the file, and is killed."""
    with subprocess.Popen(
        [sys.executable, "-c", RANK, str(path)], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "made\n"
        remove_abandoned(path.parent)
        assert path.exists()  # as long as it lives
        process.kill()
    assert path.exists()


def test_cc2_the_file_of_a_killed_process_is_abandoned(runtime: Path, child_environment: dict[str, str]) -> None:
    folder = memory_folder(runtime)
    living = HostMemory(memory_path(folder, "w1-living"), LAYOUT)
    dead = memory_path(folder, "w2-dead")
    make_and_die(dead, child_environment)
    remove_abandoned(folder)
    assert sorted(folder.iterdir()) == [living.path]


def test_cc2_a_file_is_locked_as_long_as_it_is_mapped_where_it_was_made(runtime: Path) -> None:
    folder = memory_folder(runtime)
    memory = HostMemory(memory_path(folder, "w1-ab"), LAYOUT)
    words, path = memory.own.words, memory.path
    del memory
    gc.collect()
    remove_abandoned(folder)
    assert path.exists() and words[0] == LAYOUT.name
    del words
    gc.collect()
    remove_abandoned(folder)
    assert not path.exists()


def test_cc2_a_file_without_a_size_is_just_being_made(runtime: Path) -> None:
    folder = memory_folder(runtime)
    folder.mkdir(parents=True)
    path = memory_path(folder, "w1-ab")
    path.touch()
    remove_abandoned(folder)
    assert path.exists()


def test_cc2_a_new_agent_removes_what_the_one_before_it_has_not_seen_end(
    runtime: Path, tmp_path: Path, child_environment: dict[str, str]
) -> None:
    folder = memory_folder(runtime)
    living = HostMemory(memory_path(folder, "w1-living"), LAYOUT)
    dead = memory_path(folder, "w2-dead")
    make_and_die(dead, child_environment)

    async def serve() -> None:
        agent = HostAgent(host="host-1", node_id="n", address="127.0.0.1", job_folder=tmp_path, runtime=runtime)
        running = asyncio.create_task(agent.run())
        async with asyncio.timeout(30):
            while dead.exists():
                await asyncio.sleep(0.01)
        agent.stop()
        await running

    asyncio.run(serve())
    assert living.path.exists()


def test_cc2_the_doctor_sweeps_where_the_memory_is(runtime: Path) -> None:
    folder = memory_folder(runtime)
    assert folder.parent in sweep._runtime_roots()
    memory = HostMemory(memory_path(folder, "w1-ab"), LAYOUT)
    assert str(memory.path) in sweep.open_paths()
