"""GM-18, GM-21: an agent tells what its sensors say, and does not wait for one that hangs."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from quantarion.v1 import control_pb2 as pb

from workers import host_sensors
from workers.host_sensors import STALE_SECONDS, HostSensors
from workers.resources import Resources
from workers.sockets import Use


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def told(sensors: HostSensors) -> pb.Beat:
    beat = pb.Beat(time=1.0)
    sensors.tell(beat)
    return beat


def test_gm21_what_is_not_known_is_absent_from_a_beat() -> None:
    sensors = HostSensors(lambda: Resources(memory=0.5, load=0.0), dict)
    assert told(sensors) == pb.Beat(time=1.0)
    sensors.look()
    beat = told(sensors)
    assert (beat.memory, beat.load, beat.time) == (0.5, 0.0, 1.0)
    assert [beat.HasField(name) for name in ("memory", "disk", "load", "cpu")] == [True, False, True, False]


def test_gm21_what_was_read_long_ago_tells_nothing() -> None:
    clock = Clock()
    sensors = HostSensors(lambda: Resources(disk=0.9), dict, clock)
    sensors.look()
    clock.now += STALE_SECONDS
    assert told(sensors).disk == 0.9
    clock.now += 0.1
    assert not told(sensors).HasField("disk")


def test_what_ranks_have_sent_is_told_once_after_each_look() -> None:
    sensors = HostSensors(Resources, lambda: {"10.0.0.2": Use(30, 2, 4000, 1_500_000)})
    for _ in range(2):
        sensors.look()
        told_once = pb.LinkUse(address="10.0.0.2", segments=30, retransmitted=2, bytes=4000, seconds=1.5)
        assert list(told(sensors).links) == [told_once] and list(told(sensors).links) == []


@pytest.fixture
def running(monkeypatch: pytest.MonkeyPatch) -> Callable[..., HostSensors]:
    """Sensors that are read on and on, until the test is over."""
    monkeypatch.setattr(host_sensors, "EVERY_SECONDS", 0.0)

    def start(read: Callable[[], Resources]) -> HostSensors:
        sensors = HostSensors(read, dict)
        sensors.start()
        return sensors

    return start


def test_gm18_a_sensor_that_hangs_keeps_nobody_waiting(running: Callable[..., HostSensors]) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def hang() -> Resources:
        begun.set()
        assert go_on.wait(60.0)
        return Resources()

    sensors = running(hang)
    assert begun.wait(60.0)
    assert told(sensors) == pb.Beat(time=1.0)
    sensors.stop()
    go_on.set()


def test_gm18_a_sensor_that_raises_is_read_again(running: Callable[..., HostSensors]) -> None:
    looks, read_again = iter([ValueError("broken"), ValueError("broken")]), threading.Event()

    def read() -> Resources:
        if (error := next(looks, None)) is not None:
            raise error
        read_again.set()
        return Resources(memory=0.25)

    sensors = running(read)
    assert read_again.wait(60.0)
    sensors.stop()
