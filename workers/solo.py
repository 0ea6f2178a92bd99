"""A rank on its own: what a script's Job takes when no gang started it (`python script.py`)."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

from workers.collectives.exchange import FlatExchange, Place, Topology
from workers.faults import Faults
from workers.identity import GENESIS, Generation
from workers.page import Signals
from workers.protocol import RankMachine, RankState


class _NoPage:
    def count_micro_batch(self) -> None: ...
    def count_exchange(self) -> None: ...
    def count_collective(self) -> None: ...
    def set_busy(self, busy: bool) -> None: ...
    def set_owed(self, owed: float) -> None: ...
    def set_signals(self, signals: Signals) -> None: ...


class _NoLink:
    def send(self, report: Any) -> None: ...


class SoloRank:
    """The same surface as `workers.rank.Rank`, for a world of one that never changes."""

    number = index = 0
    world = 1
    attempt = 0
    shares: tuple[int, ...] = ()
    first_step = 1
    longest_step = 1.0
    worker = f"solo{os.getpid()}"

    def __init__(self) -> None:
        self.machine = RankMachine(
            state=GENESIS, previous=GENESIS, generation=Generation(1, 1), promised=Generation(1, 1), healed=True
        )
        self.machine.phase = RankState.TRAINING
        self.faults = Faults([], Path(), dict)
        self.folder = Path(tempfile.mkdtemp(prefix="quantarion-solo-"))
        self.page, self.link = _NoPage(), _NoLink()
        self.engine: Any = None
        self.topology = Topology((Place(0, "solo", "127.0.0.1"),), 0)
        self.exchange_in_use = FlatExchange(self.topology)

        self.hosts = ((0,),)
        self.host_exchange = None

    def serve(self, engine: Any, owner: Any) -> None:
        self.engine = engine
        owner.entered()

    def must_stop(self) -> bool:
        return False

    def ensure_training(self) -> None: ...
    def post(self, report: Any) -> None: ...
    def committed(self, seconds: float) -> None: ...
    def finish(self) -> None: ...

    def exchange_failed(self, error: str) -> None:
        raise RuntimeError(error)

    def apply_failed(self, error: str) -> None:
        raise RuntimeError(error)
