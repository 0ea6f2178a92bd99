"""What the sensors of a host say (GM-21)."""

from __future__ import annotations

import math
import time

import psutil

EVERY_SECONDS = 5.0
"""Sensors are read; beats are sent far more often than anything becomes hot."""


class Thermometer:
    """Remembers what it has read last."""

    def __init__(self) -> None:
        self._read_at, self._degrees = -math.inf, math.nan

    def read(self) -> float:
        """`hottest`, not older than `EVERY_SECONDS`."""
        now = time.monotonic()
        if now - self._read_at >= EVERY_SECONDS:
            self._read_at, self._degrees = now, hottest()
        return self._degrees


def hottest() -> float:
    """Of all temperature sensors, in degrees Celsius; NaN where there are none, as in most containers."""
    try:
        found = psutil.sensors_temperatures()
    except (AttributeError, OSError, ValueError):  # not on this system; a sensor that cannot be read
        return math.nan
    return max((entry.current for entries in found.values() for entry in entries), default=math.nan)
