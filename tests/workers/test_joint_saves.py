"""CK-4: which states the ranks save together. Ranks without processes: their votes are added up by hand."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from workers import joint_saves
from workers.checkpoint import CheckpointError, Published, StorageError
from workers.checkpoint.background import Outcome
from workers.checkpoint.errors import StaleWriter
from workers.checkpoint.joint import HandedIn, Joint
from workers.config import CheckpointConfig
from workers.joint_saves import PATIENCE, JointSaves
from workers.votes import Votes

PUBLISHED = Published(Path("step-1"), 1, 1, 0.0)


class Ranks:
    """Of one generation, and what each of them saves."""

    def __init__(self, number: int = 3, **config: object) -> None:
        self.busy = [False] * number
        self.saves = [
            JointSaves(CheckpointConfig(**config), lambda rank=rank: self.busy[rank])  # type: ignore[arg-type, misc]
            for rank in range(number)
        ]
        self.parts: list[Joint] = []
        self.heard: list[Callable[[str, Outcome], bool]] = []
        self.step = 0
        self.begin_generation()

    def begin_generation(self) -> list[bool]:
        owed = [saves.begin_generation(leads=rank == 0) for rank, saves in enumerate(self.saves)]
        for saves in self.saves:
            saves.writers = len(self.saves)
        return owed

    def commit(self, asked: bool = False, attempts: int = 1) -> str | None:
        """The tier in which all save the state after the next step; what they save is under way."""
        self.step += 1
        for _ in range(attempts):
            votes = [saves.vote(asked and rank == 0) for rank, saves in enumerate(self.saves)]
        total = Votes(*map(sum, zip(*votes, strict=True)))
        tiers = {saves.decide(self.step, total) for saves in self.saves}
        assert tiers == {saves.decide(self.step, total) for saves in self.saves}  # however often they are asked
        (tier,) = tiers
        if total.alone:
            for saves in self.saves:
                saves.writers = 1
        if tier is not None and self.saves[0].writers > 1:
            assert not any(self.busy)
            self.busy = [True] * len(self.saves)
            self.parts = [Joint(rank, [[] for _ in self.saves], lambda: True) for rank in range(len(self.saves))]
            self.heard = [saves.begun(part) for saves, part in zip(self.saves, self.parts, strict=True)]
        return tier

    def end(self, rank: int, outcome: Outcome, tier: str = "exact") -> None:
        self.heard[rank](tier, outcome)
        self.busy[rank] = False

    def end_well(self) -> None:
        for rank in range(len(self.saves)):
            self.end(rank, HandedIn(Path("step-1"), 1, 0.0) if rank else PUBLISHED)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds of the monotonic clock."""
    now = [100.0]
    monkeypatch.setattr(joint_saves.time, "monotonic", lambda: now[0])
    return now


def test_ck4_all_save_what_is_due_and_nothing_while_a_writer_is_busy() -> None:
    """The first state after that stands for those that were left out; the exact tier for the other."""
    ranks = Ranks(every=2, tier="qins", exact_every=3)
    assert [ranks.commit() for _ in range(2)] == [None, "qins"]
    ranks.end(0, PUBLISHED)
    ranks.end(2, HandedIn(Path("step-2"), 1, 0.0))
    assert [ranks.commit() for _ in range(4)] == [None] * 4  # rank 1 is slow
    ranks.end(1, HandedIn(Path("step-2"), 1, 0.0))
    assert [ranks.commit() for _ in range(2)] == ["exact", None]
    ranks.end_well()
    assert [ranks.commit() for _ in range(2)] == ["qins", None]  # step 8 was left out
    ranks.end_well()
    assert ranks.commit() == "qins"


@pytest.mark.parametrize("seed", range(20))
def test_ck4_whatever_happens_all_decide_the_same(seed: int, clock: list[float]) -> None:
    """`commit` asserts it, and that nobody's writer is busy then; what is due is saved in the end."""
    chance = random.Random(seed)
    ranks = Ranks(chance.randint(2, 6), every=chance.randint(1, 5), tier=chance.choice(["exact", "qins"]))
    saved = 0
    for _ in range(400):
        clock[0] += chance.random()
        saved += ranks.commit(asked=chance.random() < 0.1, attempts=chance.randint(1, 3)) is not None
        for rank, busy in enumerate(ranks.busy):
            if busy and chance.random() < 0.3:
                fails = chance.random() < 0.1
                well: Outcome = HandedIn(Path("x"), 1, 0.0) if rank else PUBLISHED
                ranks.end(rank, StorageError("the disk is full") if fails else well)
        if chance.random() < 0.02:
            ranks.busy = [False] * len(ranks.busy)
            ranks.begin_generation()
        if ranks.saves[0].writers == 1:
            ranks.busy = [False] * len(ranks.busy)
            ranks.begin_generation()
    assert saved > 10


def test_ck7_what_failed_is_tried_again_with_a_newer_state_after_a_pause(clock: list[float]) -> None:
    """Whoever it was that failed; the others are told not to wait."""
    ranks = Ranks(every=100)
    assert ranks.commit(asked=True) == "exact"
    ranks.end(2, StorageError("the disk is full"))
    assert ranks.commit() is None and all(part._given_up.is_set() for part in ranks.parts)
    ranks.end(1, StaleWriter("given up"))
    ranks.end(0, CheckpointError("a rank could not write its part"))
    assert ranks.commit() is None
    clock[0] += 1.0
    assert ranks.commit() == "exact" and not any(part._given_up.is_set() for part in ranks.parts)
    ranks.end_well()
    clock[0] += 100.0
    assert [ranks.commit() for _ in range(5)] == [None] * 5


def test_ck7_pauses_grow_and_then_the_first_of_the_ring_saves_by_itself(clock: list[float]) -> None:
    ranks = Ranks(every=0, tier="qins")
    assert ranks.commit(asked=True) == "exact"
    for failure in range(PATIENCE):
        ranks.end(1, CheckpointError("broken"))
        ranks.end(2, HandedIn(Path("step-1"), 1, 0.0))
        ranks.end(0, CheckpointError("the share of writer 1 did not come"))
        ranks.commit()
        if failure + 1 < PATIENCE:
            clock[0] += 2.0**failure - 0.1
            assert ranks.commit() is None
            clock[0] += 0.2
            assert ranks.commit() == "exact"
    assert {saves.writers for saves in ranks.saves} == {1}
    ranks.begin_generation()
    assert ranks.commit(asked=True) == "exact"


def test_ck5_what_was_there_already_keeps_nobody_waiting() -> None:
    ranks = Ranks(every=1)
    assert ranks.commit() == "exact"
    ranks.end(0, Published(Path("step-1"), 1, 1, 0.0, new=False))
    assert ranks.commit() is None and ranks.parts[1]._given_up.is_set()


def test_ck4_a_generation_begins_without_what_was_due_in_the_one_before() -> None:
    """What somebody has asked for is told, so that it is asked for again."""
    ranks = Ranks(every=0)
    assert ranks.commit(asked=True) == "exact"
    assert ranks.commit(asked=True) is None  # the writers are busy
    assert ranks.begin_generation() == [True, True, True]
    ranks.busy = [False] * 3
    assert ranks.commit() is None
    assert ranks.begin_generation() == [False, False, False]


def test_ck7_a_writer_that_hangs_costs_the_others_their_shares_and_no_more(clock: list[float]) -> None:
    ranks = Ranks(every=1)
    assert ranks.commit() == "exact"
    ranks.end(0, CheckpointError("the share of writer 1 has not come"))
    ranks.end(2, HandedIn(Path("step-1"), 1, 0.0))
    assert ranks.commit() is None and ranks.commit() is None
    clock[0] += joint_saves.LONGEST_WAIT + 1
    assert ranks.commit() == "exact" and {saves.writers for saves in ranks.saves} == {1}


def test_ck7_a_failure_of_the_qins_tier_does_not_take_the_place_of_one_of_the_exact_tier(clock: list[float]) -> None:
    ranks = Ranks(every=2, tier="qins", exact_every=100)
    assert ranks.commit(asked=True) == "exact"
    for rank in range(3):
        ranks.end(rank, StorageError("the disk is full"))
    assert ranks.commit() == "qins"
    for rank in range(3):
        ranks.end(rank, StorageError("the disk is full"), "qins")
    assert ranks.commit(asked=True) is None  # not before the pause is over
    clock[0] += 10
    assert ranks.commit() == "exact"


def test_ck7_what_is_heard_of_an_earlier_generation_counts_for_nothing(clock: list[float]) -> None:
    ranks = Ranks(every=0)
    assert ranks.commit(asked=True) == "exact"
    ranks.begin_generation()
    assert [heard("exact", StorageError("the disk is full")) for heard in ranks.heard] == [False] * 3
    ranks.busy = [False] * 3
    clock[0] += 100
    assert ranks.commit() is None


def test_ck4_a_vote_of_a_step_that_was_discarded_is_given_again() -> None:
    ranks = Ranks(every=100)
    assert ranks.commit() is None
    ranks.saves[1]._failed = True
    votes = [saves.vote(False) for saves in ranks.saves]
    assert [vote.failed for vote in votes] == [0.0, 1.0, 0.0]
    assert ranks.commit() is None and not ranks.saves[1]._failed
