"""The lab (CC-26): what its cables carry, what it counts, and that nothing of it is left."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest

from benchmarks.lab import Lab, LabError, Traffic, can_run, namespaces, what_can_be_shaped
from benchmarks.lab.cable import BURST
from benchmarks.lab.ranks import start, wait_for
from benchmarks.lab.tools import run
from benchmarks.system import environment

PATIENCE = 30.0
"""Seconds after which something that must happen counts as never."""


@pytest.fixture
def machine() -> None:
    """Skips where no lab can be made, and says why."""
    if reason := can_run():
        pytest.skip(reason)


def eventually(what: str, holds: Callable[[], bool]) -> None:
    """Wait until `holds()`; fail when it never does."""
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.02)


def is_gone(pid: int) -> bool:
    """Whether nothing runs under this pid: a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def namespaces_of(pid: int) -> list[str]:
    return [name for name in namespaces.existing() if name.startswith(f"quantarion-lab-{pid}-")]


ALL_REDUCE = textwrap.dedent(
    """
    import os, sys, torch, torch.distributed as dist
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    values = torch.full((int(sys.argv[1]),), float(dist.get_rank() + 1))
    for _ in range(int(sys.argv[2])):
        dist.all_reduce(values)
    assert values[-1] == 3 * 2 ** (int(sys.argv[2]) - 1)
    sys.stdout.flush()
    os._exit(0)
    """
)


@pytest.mark.root
def test_cc26_an_all_reduce_sends_what_the_ring_formula_says(machine: None) -> None:
    world, elements, rounds = 2, 1_000_000, 5
    with Lab(hosts=world, rate_mbit=500) as lab:
        ranks = start(lab, [sys.executable, "-c", ALL_REDUCE, str(elements), str(rounds)])
        assert wait_for(ranks) == 0
        traffic = lab.traffic()
        assert lab.bytes_sent() == [each.sent_bytes for each in traffic]
    ring = rounds * 2 * (world - 1) / world * elements * 4
    for each in traffic:
        assert ring <= each.sent_payload <= 1.05 * ring
        assert each.sent_payload < each.sent_bytes < 1.10 * each.sent_payload  # headers and acknowledgements


STREAM = textwrap.dedent(
    """
    import os, socket, sys
    if len(sys.argv) == 1:  # take in whatever comes, from everybody
        import threading
        server = socket.create_server(("", 5000))
        print("listening", flush=True)
        def take(connection):
            while connection.recv(1 << 16):
                pass
        while True:
            threading.Thread(target=take, args=[server.accept()[0]], daemon=True).start()
    connection = socket.create_connection((sys.argv[1], 5000))
    block = bytes(1 << 16)
    connection.sendall(block)
    print("sending", flush=True)
    while True:
        connection.sendall(block)
    """
)


def stream(lab: Lab, senders: list[int], receiver: int) -> None:
    """Send without end, and return when everybody has begun."""
    for index, arguments in [(receiver, []), *((sender, [lab.hosts[receiver].address]) for sender in senders)]:
        process = lab.hosts[index].popen([sys.executable, "-c", STREAM, *arguments], stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() in (b"listening\n", b"sending\n")


class Window:
    """What goes over the cables in a stretch of time, and at most how long that was."""

    def __init__(self, lab: Lab, seconds: float = 0.4) -> None:
        begun = time.monotonic()
        before = lab.traffic()
        time.sleep(seconds)  # a measurement, not a wait for something
        after = lab.traffic()
        self.seconds = time.monotonic() - begun
        self.sent = [b.sent_bytes - a.sent_bytes for a, b in zip(before, after, strict=True)]
        self.received = [b.received_bytes - a.received_bytes for a, b in zip(before, after, strict=True)]

    def most(self, mbit: float) -> float:
        """The bytes a link of this rate carries in the window: its burst once, and 2 % for the clock."""
        return 1.02 * mbit * 1e6 / 8 * self.seconds + BURST


@pytest.mark.root
def test_cc26_a_shaped_link_carries_no_more_than_its_rate_either_way(machine: None) -> None:
    with Lab(hosts=3, rate_mbit=20) as lab:
        stream(lab, senders=[0, 1], receiver=2)
        stream(lab, senders=[0], receiver=1)
        window = Window(lab, seconds=1.0)
        assert 0 < window.received[2] <= window.most(20)  # from two hosts
        assert 0 < window.sent[0] <= window.most(20)  # to two hosts


@pytest.mark.root
def test_cc26_the_rate_changes_in_mid_run(machine: None) -> None:
    with Lab(hosts=2) as lab:
        stream(lab, senders=[0], receiver=1)
        assert Window(lab).sent[0] > Window(lab).most(50)
        lab.set_rate(10)
        slow = Window(lab)
        assert 0 < slow.sent[0] <= slow.most(10)
        lab.set_rate(None)
        eventually("it is fast again", lambda: (window := Window(lab)).sent[0] > window.most(50))
        lab.set_rate(20, host=0)
        slow = Window(lab)
        assert 0 < slow.sent[0] <= slow.most(20)


@pytest.mark.root
def test_cc26_a_cut_cable_carries_nothing_and_a_mended_one_goes_on(machine: None) -> None:
    with Lab(hosts=3, rate_mbit=50) as lab:
        stream(lab, senders=[0], receiver=1)
        stream(lab, senders=[0], receiver=2)
        lab.cut(1)
        cut = Window(lab)
        assert (cut.sent[1], cut.received[1]) == (0, 0)
        assert cut.received[2] > 0  # the others do not notice
        lab.mend(1)
        at = lab.traffic()[1].received_bytes
        eventually("the same connection goes on", lambda: lab.traffic()[1].received_bytes > at + 200_000)
        mended = Window(lab)
        assert mended.sent[0] <= mended.most(50)


DAEMON = textwrap.dedent(
    """
    import os, signal
    os.write(1, b"command %d\\n" % os.getpid())
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.write(1, b"daemon %d\\n" % os.getpid())
            signal.pause()
        os._exit(0)
    signal.pause()
    """
)


class Pids:
    """Of `DAEMON` on each of `hosts` hosts: the commands', and those that have left their session and their parent."""

    def __init__(self, output: IO[bytes] | None, hosts: int) -> None:
        assert output is not None
        lines = [output.readline().split() for _ in range(2 * hosts)]
        self.commands = [int(pid) for kind, pid in lines if kind == b"command"]
        self.daemons = [int(pid) for kind, pid in lines if kind == b"daemon"]
        assert len(self.commands) == len(self.daemons) == hosts

    def are_gone(self) -> bool:
        return all(map(is_gone, self.commands + self.daemons))


@pytest.mark.root
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_cc26_nothing_is_left_after_an_exception(machine: None, error: type[BaseException]) -> None:
    with pytest.raises(error), Lab(hosts=2, rate_mbit=10) as lab:
        command = lab.hosts[1].popen([sys.executable, "-c", DAEMON], stdout=subprocess.PIPE)
        pids = Pids(command.stdout, hosts=1)
        assert pids.commands == [command.pid]
        assert {*pids.commands, *pids.daemons} <= set(namespaces.processes(lab.hosts[1].namespace))
        assert len(namespaces_of(os.getpid())) == 3
        raise error
    assert pids.are_gone()
    assert namespaces_of(os.getpid()) == []


@pytest.mark.root
def test_cc26_nothing_is_left_of_a_lab_that_was_not_finished(machine: None, monkeypatch: pytest.MonkeyPatch) -> None:
    create = namespaces.create
    made: list[str] = []

    def stop_at_the_last(name: str) -> None:
        if len(made) == 2:
            raise KeyboardInterrupt
        create(name)
        made.append(name)

    monkeypatch.setattr(namespaces, "create", stop_at_the_last)
    with pytest.raises(KeyboardInterrupt), Lab(hosts=2):
        pytest.fail("entered without its last host")
    assert len(made) == 2
    assert namespaces_of(os.getpid()) == []


@pytest.fixture
def hears_ctrl_c() -> Iterator[None]:
    """Children of a background job ignore SIGINT; those of this test must not."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def command_line(*arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """`python -m benchmarks.lab` in a process group of its own, as a shell starts it; ended on the way out."""
    words = [sys.executable, "-m", "benchmarks.lab", *arguments]
    lab = subprocess.Popen(words, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, process_group=0)
    with lab:
        try:
            yield lab
        finally:
            lab.terminate()


@pytest.mark.root
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_cc26_nothing_is_left_when_the_command_line_is_stopped(
    machine: None, hears_ctrl_c: None, number: signal.Signals
) -> None:
    with command_line("--hosts", "2", "--rate", "10", "--", sys.executable, "-c", DAEMON) as lab:
        pids = Pids(lab.stdout, hosts=2)
        assert len(namespaces_of(lab.pid)) == 3
        os.killpg(lab.pid, number)  # the whole group, as a terminal does
        assert lab.wait(PATIENCE) == 128 + number
    assert pids.are_gone()
    assert namespaces_of(lab.pid) == []


@pytest.mark.root
def test_cc26_an_impatient_ctrl_c_does_not_interrupt_the_cleaning(machine: None, hears_ctrl_c: None) -> None:
    released = threading.Event()
    threading.Thread(target=released.wait).start()  # a signal may arrive in any thread

    def end_under_ctrl_c(end: Callable[[], None]) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        end()

    with pytest.raises(KeyboardInterrupt), Lab(hosts=2) as lab:
        for host in lab.hosts:
            host.end = functools.partial(end_under_ctrl_c, host.end)  # type: ignore[method-assign]
    released.set()
    assert namespaces_of(os.getpid()) == []


def test_cc26_ctrl_c_does_not_reach_the_commands_that_clean_up() -> None:
    assert int(run("cat /proc/self/stat").split()[4]) != os.getpgrp()


@pytest.mark.root
def test_cc26_half_a_namespace_is_removed_too(machine: None) -> None:
    name = "quantarion-lab-1-1-0-switch"
    with Lab(hosts=1):
        subprocess.run(["ip", "netns", "add", name], check=True)
        subprocess.run(["umount", f"/run/netns/{name}"], check=True)
        assert name in namespaces.existing()
        assert namespaces.sweep() == [name]
        assert namespaces.existing(name) == []


@pytest.mark.root
def test_cc26_the_next_lab_removes_what_a_kill_9_has_left_and_only_that(machine: None) -> None:
    with Lab(hosts=1) as neighbour:
        with command_line("--hosts", "2", "--", sys.executable, "-c", DAEMON) as killed:
            pids = Pids(killed.stdout, hosts=2)
            killed.kill()
            eventually("the commands die with the lab", lambda: all(map(is_gone, pids.commands)))
            killed.wait(PATIENCE)
            assert not any(map(is_gone, pids.daemons))
            assert len(namespaces_of(killed.pid)) == 3
            with Lab(hosts=1):
                assert pids.are_gone()
                assert namespaces_of(killed.pid) == []
                assert len(namespaces_of(os.getpid())) == 4
        assert len(neighbour.bytes_sent()) == 1
    assert namespaces_of(os.getpid()) == []


def test_cc26_a_name_is_of_the_process_that_made_it_not_of_the_next_with_its_pid() -> None:
    prefix, pid, start_of_this = "quantarion-lab", os.getpid(), namespaces.new_prefix().split("-")[3]
    assert namespaces.maker_lives(f"{prefix}-{pid}-{start_of_this}-0-switch")
    assert not namespaces.maker_lives(f"{prefix}-{pid}-{int(start_of_this) - 1}-0-switch")
    with subprocess.Popen(["true"]) as other:
        other.wait()
    assert not namespaces.maker_lives(f"{prefix}-{other.pid}-{start_of_this}-0-3")


OF_THE_RANK = ["RANK", "LOCAL_RANK", "GROUP_RANK", "HOST_ADDRESS"]
OF_ALL = ["WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GLOO_SOCKET_IFNAME"]


@pytest.mark.root
def test_cc26_the_command_runs_on_every_host_with_the_variables_of_torchrun(machine: None) -> None:
    echo = "echo " + " ".join(f"${name}" for name in OF_THE_RANK + OF_ALL)  # one write: all share the pipe
    with command_line("--hosts", "2", "--ranks-per-host", "2", "--", "sh", "-c", echo) as lab:
        output, errors = lab.communicate(timeout=PATIENCE)
    assert lab.returncode == 0
    lines = output.decode().splitlines()
    of_all = "4 2 2 10.77.0.1 29500 eth0"
    assert sorted(lines[:4]) == [
        f"0 0 0 10.77.0.1 {of_all}",
        f"1 1 0 10.77.0.1 {of_all}",
        f"2 0 1 10.77.0.2 {of_all}",
        f"3 1 1 10.77.0.2 {of_all}",
    ]
    assert [line.split()[:2] for line in lines[-2:]] == [["0", "10.77.0.1"], ["1", "10.77.0.2"]]
    assert b"2 hosts, unshaped" in errors


@pytest.mark.root
@pytest.mark.parametrize(("end", "code"), [("exit 7", 7), ("kill -9 $$", 137)])
def test_cc26_the_first_failure_ends_the_others_and_is_the_exit_code(machine: None, end: str, code: int) -> None:
    command = f'if [ "$RANK" = 1 ]; then {end}; else sleep 1000; fi'
    with command_line("--hosts", "2", "--", "sh", "-c", command) as lab:
        assert lab.wait(PATIENCE) == code


@pytest.mark.root
def test_cc26_says_what_this_kernel_can_shape(machine: None) -> None:
    able = what_can_be_shaped()
    assert able["tbf"] is True
    assert set(able) == {"tbf", "netem"}


def test_cc26_the_lab_says_in_a_sentence_why_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    refusals = {
        "the lab needs the network namespaces of Linux; this is Darwin": (platform, "system", lambda: "Darwin"),
        "the lab needs `ip`: install the package iproute2": (shutil, "which", lambda program: None),
        "the lab makes network namespaces and needs root: run it with sudo": (os, "geteuid", lambda: 1000),
    }
    for sentence, (module, name, value) in refusals.items():
        with monkeypatch.context() as patch, pytest.raises(LabError) as refused:
            patch.setattr(platform, "system", lambda: "Linux")
            patch.setattr(shutil, "which", lambda program: program)
            patch.setattr(module, name, value)
            Lab(hosts=1).__enter__()
        assert str(refused.value) == sentence


def test_cc26_the_command_line_refuses_without_a_traceback() -> None:
    with command_line("--hosts", "0", "--", "true") as refused:
        output, errors = refused.communicate(timeout=PATIENCE)
    assert (refused.returncode, output) == (2, b"")
    assert errors == b"benchmarks.lab: a lab of 0 hosts cannot be made: give 1 to 254\n"


@pytest.mark.root
@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_cc26_a_rate_that_makes_no_sense_is_refused(machine: None, rate: float) -> None:
    with Lab(hosts=1, rate_mbit=10) as lab, pytest.raises(LabError, match="cannot be shaped: give"):
        lab.set_rate(rate)
    with pytest.raises(LabError, match="cannot be shaped: give"), Lab(hosts=1, rate_mbit=rate):
        pytest.fail("entered")
    assert namespaces_of(os.getpid()) == []


def test_cc26_the_payload_is_what_the_packets_carry() -> None:
    assert Traffic(sent_bytes=1514 + 66, sent_packets=2, received_bytes=0, received_packets=0).sent_payload == 1448
