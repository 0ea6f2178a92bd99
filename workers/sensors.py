"""What the sensors of a host say (GM-21)."""

from __future__ import annotations

import math

import psutil


def hottest() -> float:
    """Of all temperature sensors, in degrees Celsius; NaN where there are none, as in most containers."""
    try:
        found = psutil.sensors_temperatures()
    except (AttributeError, OSError, ValueError):  # not on this system; a sensor that cannot be read
        return math.nan
    return max((entry.current for entries in found.values() for entry in entries), default=math.nan)
