"""GM-18: what an agent reads of a rank without asking it."""

from __future__ import annotations

import math
from contextlib import closing
from pathlib import Path

from workers.identity import Generation
from workers.page import Page, Signals
from workers.protocol import RankState


def test_the_agent_reads_what_the_rank_has_written(tmp_path: Path) -> None:
    with closing(Page(tmp_path / "w", create=True)) as rank, closing(Page(tmp_path / "w")) as agent:
        assert all(math.isnan(value) for value in agent.signals) and (agent.owed, agent.busy) == (0.0, False)
        rank.set_step(7, 0.25)
        rank.set_state(RankState.TRAINING, Generation(2, 5))
        rank.set_owed(0.125)
        rank.set_busy(True)
        rank.set_signals(Signals(work=0.5, loss=-2.0, norm=1e300))
        rank.count_micro_batch()
        rank.count_exchange()
        for _ in range(3):
            rank.count_poll()
        rank.count_collective()
        rank.set_thread(4711)
        progress = agent.progress()
        assert (progress.step, progress.longest_step) == (7, 0.25)
        assert (progress.generation, progress.state) == (Generation(2, 5), RankState.TRAINING)
        assert (progress.micro_batch, progress.exchanges) == (1, 1)
        assert (progress.polls, progress.collectives, agent.thread) == (3, 1, 4711)
        rank.forget_collectives()
        assert agent.progress().collectives == 0
        assert (agent.owed, agent.busy) == (0.125, True)
        found = agent.signals
        assert (found.work, found.loss, found.norm) == (0.5, -2.0, 1e300) and math.isnan(found.cosine)


def test_each_side_writes_words_of_its_own(tmp_path: Path) -> None:
    with closing(Page(tmp_path / "w", create=True)) as rank, closing(Page(tmp_path / "w")) as agent:
        rank.set_signals(Signals(1.0, 2.0, 3.0, 4.0, 5.0))
        rank.set_owed(5.0)
        agent.ring()
        assert rank.bell == 1 and rank.signals == Signals(1.0, 2.0, 3.0, 4.0, 5.0) and rank.owed == 5.0
