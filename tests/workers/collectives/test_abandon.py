"""CC-7, CC-10, EP-6: a step that is abandoned anywhere, by anybody, changes nothing; what was applied and what is owed is
what was given.

Each step's gradients are known, so the invariant is that of float64: per step, applied + owed after − owed before − given.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Size, Tensor

import workers.engine
from tests.workers.collectives.abandoned import Member, Outcome, Ranks
from tests.workers.collectives.gangs import each_over
from tests.workers.collectives.letters import Cut
from workers.collectives.buckets import BucketPlan, plan_buckets
from workers.collectives.exchange import INSIDE
from workers.collectives.reducer import BACK, BACK_AGAIN, OUT, OUT_AGAIN
from workers.compression import shards
from workers.compression.choice import NONE, Choice, Plan
from workers.compression.config import CompressionConfig
from workers.compression.gradients import GradientCompression
from workers.compression.setup import compression_of

SHAPES = {"a": (30, 50), "b": (30,), "c": (40, 30), "d": (40,)}
CODECS = ("none", "bf16", "fp16", "int8", "int4", "sign", "topk 0.05", "threshold 0.05", "powersgd 2", "powersgd-int8 2")
WITHOUT_LOSS = {"none"}
ROUNDED = 2e-6
"""What float32 may lose of a step's largest gradient; the least that a codec owes, fp16, is a hundred times that."""

NUM_BUCKETS = 2
TAIL = Cut(OUT, NUM_BUCKETS)
"""The last that is sent: everybody's scalars."""

GROUPINGS = [{0: "a", 1: "a", 2: "b"}, {0: "a", 1: "b", 2: "b"}, {0: "a", 1: "b", 2: "c"}]
"""Groups of hosts, from generation to generation."""

Make = Callable[[BucketPlan], GradientCompression]


@pytest.fixture(autouse=True)
def two_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    small = partial(plan_buckets, first_bytes=5000, bucket_bytes=8000)
    monkeypatch.setattr(workers.engine, "plan_buckets", small)
    assert len(small([(name, Size(shape)) for name, shape in SHAPES.items()], tail=5).sizes) == NUM_BUCKETS


def always(text: str) -> Make:
    return lambda plan: GradientCompression(plan, lambda step: (Choice.parse(text),) * len(plan.sizes), seed=3)


def changing(plan: BucketPlan) -> GradientCompression:
    """Another codec for each bucket, and every two steps others."""
    texts = ["int8", "topk 0.05", "none", "powersgd 2", "sign", "none", "none", "int4", "powersgd-int8 1"]

    def policy(step: int) -> Plan:
        return tuple(Choice.parse(texts[(step // 2 + bucket) % len(texts)]) for bucket in range(len(plan.sizes)))

    return GradientCompression(plan, policy, seed=3)


def gradients(step: int, rank: int) -> dict[str, Tensor]:
    noise = torch.Generator().manual_seed(1000 * step + rank)
    return {name: torch.randn(*shape, generator=noise) for name, shape in SHAPES.items()}


class Account:
    """What was given, applied, is owed, and was lost, of one gang."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks, self.number = ranks, 0
        self.partial = self.none = 0

    def step(
        self, cuts: dict[int, Cut] | None = None, completing: list[int] | None = None, poisoned: int | None = None
    ) -> Outcome:
        """An attempt at the next step, with unequal shares; the gradients of each attempt are others."""
        self.number += 1
        each = [gradients(self.number, member.number) for member in self.ranks.members]
        if poisoned is not None:
            each[poisoned]["c"][3, 4] = math.nan
        samples = [3 + (self.number + member.number) % 4 for member in self.ranks.members]
        return self.ranks.step(each, samples, cuts, completing or [])

    def run(self, steps: int) -> None:
        """Steps in which nothing happens."""
        for _ in range(steps):
            before = self.ranks.owed()
            outcome = self.step()
            assert outcome.commits.keys() == {member.number for member in self.ranks.members}
            self.settle(outcome, before, self.ranks.owed())

    def settle(self, outcome: Outcome, before: Tensor, after: Tensor) -> None:
        """CC-10 of one committed step."""
        difference = outcome.applied(self.ranks.members) + after - before - outcome.given
        assert float(difference.abs().max()) <= ROUNDED * self.most(before), float(difference.abs().max())
        assert len(self.ranks.states()) == 1
        assert len(self.ranks.digests()) == 1

    def most(self, before: Tensor) -> float:
        return 4.0 + float(before.abs().max())

    def recover(self, outcome: Outcome, survivors: list[Member]) -> Member | None:
        """A new generation of the survivors, from the highest state among them; who has it already."""
        donor = next((m for m in survivors if m.number in outcome.commits), None)
        self.ranks.enter(survivors, donor=donor)
        self.partial += donor is not None and len(outcome.commits) < len(survivors)
        self.none += donor is None
        return donor


@pytest.fixture
def gang(tmp_path: Path) -> Iterator[Callable[..., Account]]:
    def start(make: Make, shape: list[int], groups: dict[int, str] | None = None) -> Account:
        ranks = Ranks(tmp_path, SHAPES, make, groups)
        ranks.enter([ranks.make(host) for host, count in enumerate(shape) for _ in range(count)])
        return Account(ranks)

    yield start


@pytest.fixture(autouse=True)
def factors_go_by_their_owners(monkeypatch: pytest.MonkeyPatch) -> None:
    """However small they are."""
    monkeypatch.setattr(shards, "DIRECT_BYTES", 0)


def who_completes(cut: Cut, last: int, members: list[Member]) -> list[int]:
    """Nobody gets all sums before the last thing that the one who is cut off, the first, would have sent has come."""
    topology = members[0].exchange.topology
    group = topology.group if len(topology.groups) > 1 else ()
    if cut == TAIL:
        return [member.number for member in members[1:]]  # only the end is missing
    if cut.phase == last:  # sums of other groups, if there are such, do not get to its own
        return [m.number for i, m in enumerate(members) if m.host != members[0].host and i not in group]
    if cut.phase == INSIDE + last:  # its host's mate needs its shard
        return [member.number for member in members if member.host != members[0].host]
    return []


@pytest.mark.parametrize(("choice", "shape", "groups"), each_over(CODECS, ([2, 2], None), ([2, 1, 2], GROUPINGS[0])))
def test_cc7_a_step_abandoned_at_any_point_loses_nothing(
    choice: str, shape: list[int], groups: dict[int, str] | None, gang: Callable[..., Account]
) -> None:
    low_rank = choice.startswith("powersgd")
    account = gang(always(choice), shape, groups)
    account.run(3)
    if choice == "none" and not groups:
        cut_everywhere(account, OUT, NUM_BUCKETS)  # rings
    else:
        points = (8 if low_rank else 4) * (2 if groups else 1)
        cut_everywhere(account, BACK_AGAIN if low_rank else BACK, points)
    assert (float(account.ranks.owed().abs().max()) > 100 * ROUNDED) == (choice not in WITHOUT_LOSS)


def test_cc7_low_rank_that_goes_from_everybody_to_everybody_loses_nothing(
    gang: Callable[..., Account], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "DIRECT_BYTES", 1 << 20)
    account = gang(always("powersgd-int8 2"), [2, 2])
    account.run(3)
    cut_everywhere(account, OUT_AGAIN, 4)


def cut_everywhere(account: Account, last: int, of_buckets: int) -> None:
    """One rank is cut off at each point of each bucket's way in turn; who completes the step applies it,
    and the others take it over from there; where nobody completes it, it has never been."""
    first = account.ranks.members[0].number
    operations = account.ranks.members[0].exchange.operations
    points = [Cut(phase, number) for phase, count in operations.items() for number in range(count)]
    assert len(points) == of_buckets + 1 and TAIL in points
    for cut in points:
        members, before, states = account.ranks.members, account.ranks.owed(), account.ranks.states()
        digests = account.ranks.digests()
        completing = who_completes(cut, last, members)
        outcome = account.step({first: cut}, completing)
        assert sorted(outcome.commits) == sorted(completing), cut
        account.recover(outcome, members)
        after = account.ranks.owed()
        if completing:
            account.settle(outcome, before, after)
        else:
            assert torch.equal(after, before), cut
            assert account.ranks.digests() == digests and account.ranks.states() == states
        account.run(2)
    assert account.partial
    assert bool(account.none) == (last != OUT)  # of rings all others have the sum


@pytest.mark.parametrize(("choice", "groups"), each_over([*CODECS, "changing"], (None,), (GROUPINGS[0],)))
def test_cc7_cc10_cc12_over_a_hundred_attempts_with_incidents(
    choice: str, groups: dict[int, str] | None, gang: Callable[..., Account]
) -> None:
    """Steps broken off at random places on some ranks, kills in the middle of a step and just after it, joins and drains on
    changing hosts in changing groups. A dead rank's residual is lost, and nothing else: neither more nor less."""
    chance = random.Random(choice)
    account = gang(changing if choice == "changing" else always(choice), [2, 1, 2], groups)
    for _ in range(100):
        kind = chance.choice(["calm", "calm", "calm", "cut", "cut", "kill", "alone", "change"])
        if kind == "change" or len(account.ranks.members) < 4:
            join(account, chance)
        elif kind == "calm":
            account.run(1)
        elif kind == "alone":
            kill_the_only_one_that_committed(account)
        else:
            break_off(account, chance, kill=kind == "kill")
    account.run(2)
    assert account.partial > 5 and account.none > 5


def ends(one: Member) -> list[Cut]:
    """Each the last operation of a bucket for this member, after which nothing is sent for it."""
    topology = one.exchange.topology
    several = len(topology.groups) > 1
    inside = INSIDE if several and len({topology.places[m].host for m in topology.group}) > 1 else 0
    low_rank = [choice.is_low_rank for choice in one.plan]
    found = [Cut(inside + BACK_AGAIN, index) for index in range(sum(low_rank))]
    sharded = [choice for bucket, choice in enumerate(one.plan) if not goes_in_ring(one, bucket)]
    found += [Cut(inside + BACK, index) for index, choice in enumerate(sharded) if not choice.is_low_rank]
    return found or [TAIL]


def goes_in_ring(one: Member, bucket: int) -> bool:
    """Everybody else in the ring has the sum without anything more from this member."""
    return bool(one.exchange.topology.lane) and one.plan[bucket] == NONE


def may_die(member: Member, members: list[Member]) -> bool:
    """There are two hosts without it: on one alone hardly anything is sent."""
    return len({each.host for each in members if each is not member}) > 1


def break_off(account: Account, chance: random.Random, *, kill: bool) -> None:
    """Some do not come to the end of the step, the others do or do not; one of the former may die of it."""
    ranks = account.ranks
    members, before = ranks.members, ranks.owed()
    before_each = {member.number: member.owed() for member in members}
    late = chance.sample(members, chance.randrange(1, len(members)))
    kill = kill and may_die(late[0], members)
    kind = chance.choice(["start", "end", "tail"])
    if kind == "start":
        bucket = chance.randrange(NUM_BUCKETS)
        where = {late[0].number: Cut(OUT, bucket)}
        elsewhere = [m.number for m in members if m.host != late[0].host]
        completing = elsewhere if goes_in_ring(late[0], bucket) else []
    elif kind == "end":
        where = {m.number: chance.choice(ends(m)) for m in late}
        completing = [m.number for m in members if m.host not in {each.host for each in late}]
    else:
        where, completing = {m.number: TAIL for m in late}, [m.number for m in members if m not in late]
    outcome = account.step(where, completing)
    dead = [late[0]] if kill else []
    survivors = [member for member in members if member not in dead]
    donor = account.recover(outcome, survivors)
    if donor is None:
        assert torch.equal(ranks.owed(), sum_of(before_each, survivors))
        return
    lost = sum((post_mortem(member, outcome) for member in dead), torch.zeros_like(before))
    account.settle(outcome, before, ranks.owed() + lost)


def post_mortem(member: Member, outcome: Outcome) -> Tensor:
    """What the dead rank would have owed, had it known that the step was committed."""
    if member.number not in outcome.commits:
        commit = next(iter(outcome.commits.values()))
        member.machine.healed = True
        member.engine.replay(commit)
    return member.owed()


def kill_the_only_one_that_committed(account: Account) -> None:
    """EP-10: nobody ever learns that there was such a step."""
    ranks = account.ranks
    members = ranks.members
    before_each, digests = {member.number: member.owed() for member in members}, ranks.digests()
    alone = next(member for member in members if may_die(member, members))
    where = {m.number: TAIL for m in members if m is not alone}
    outcome = account.step(where, [alone.number])
    assert outcome.commits.keys() == {alone.number}
    survivors = [member for member in members if member is not alone]
    account.recover(Outcome(), survivors)
    assert torch.equal(ranks.owed(), sum_of(before_each, survivors))
    assert ranks.digests() == digests


def sum_of(each: dict[int, Tensor], members: list[Member]) -> Tensor:
    return torch.stack([each[member.number] for member in members]).sum(0)


def join(account: Account, chance: random.Random) -> None:
    """A new rank takes the state over and owes nothing; what others owe stays. Of six one leaves, and what it owes is a
    survivor's from then on."""
    ranks = account.ranks
    before, joiner = ranks.owed(), ranks.make(chance.randrange(3))
    joiner.machine.lost_state()
    staying = list(ranks.members)
    if len(staying) > 5:
        leaver = staying.pop(chance.randrange(len(staying)))
        chance.choice(staying).compression.memory.absorb(leaver.compression.memory.state_dict())
    if ranks.groups:
        ranks.groups = chance.choice(GROUPINGS)
    if len({member.host for member in staying}) == 1:
        joiner.host = 1 - staying[0].host % 2
    ranks.enter([*staying, joiner], donor=chance.choice(staying))
    assert torch.allclose(ranks.owed(), before, rtol=0.0, atol=ROUNDED * account.most(before))
    assert not bool(joiner.owed().any())


def test_ep11_a_rank_that_was_away_pays_what_it_owes_when_it_is_back(gang: Callable[..., Account]) -> None:
    """It comes back unhealed and is given commits, not the state as a whole: what it owed before it left is still owed,
    and is sent although nothing is compressed any more."""

    def policy(plan: BucketPlan) -> GradientCompression:
        return GradientCompression(plan, lambda step: (Choice.parse("int8" if step < 5 else "none"),) * len(plan.sizes))

    account = gang(policy, [1, 1, 1])
    account.run(4)
    ranks = account.ranks
    away, *others = ranks.members
    before = away.owed()
    assert bool(before.any())
    ranks.enter(others)
    others[0].engine.recent.find_offer(others[0].machine.state)  # somebody copies from it: it keeps its commits
    account.run(3)
    assert not bool(ranks.owed().any())
    away.machine.healed = False
    ranks.enter([away, *others], donor=others[0])
    assert torch.equal(away.owed(), before)
    account.run(1)
    assert not bool(away.owed().any())


@pytest.mark.parametrize("choice", ["int8", "topk 0.05", "powersgd 2"])
def test_cc11_a_step_that_is_skipped_and_abandoned_on_some_changes_no_residual(
    choice: str, gang: Callable[..., Account]
) -> None:
    """The gradient of one rank is not finite; those that did not come to the end of the step hear of it from the others."""
    account = gang(always(choice), [2, 2])
    account.run(2)
    ranks = account.ranks
    first, *others = ranks.members
    for poisoned in range(4):
        each = [member.owed() for member in ranks.members]
        parameters = [p.clone() for p in first.model.parameters()]
        outcome = account.step({first.number: TAIL}, [m.number for m in others], poisoned)
        account.recover(outcome, ranks.members)
        assert [commit.meta.get("skipped") for commit in outcome.commits.values()] == [True] * 3
        assert all(torch.equal(m.owed(), before) for m, before in zip(ranks.members, each, strict=True))
        assert all(torch.equal(p, before) for p, before in zip(first.model.parameters(), parameters, strict=True))
        account.run(1)


@pytest.mark.parametrize("cut", [Cut(BACK, 0), TAIL], ids=["in_the_middle", "at_the_end"])
@pytest.mark.parametrize("choice", ["int8", "topk 0.05", "powersgd 2"])
def test_ep6_what_was_pending_when_a_rank_went_away_is_forgotten(
    choice: str, cut: Cut, gang: Callable[..., Account]
) -> None:
    """The others compute the step again without it, and it gets that commit when it is back: what it had sent is void."""
    account = gang(always(choice), [1, 1, 1])
    account.run(2)
    ranks = account.ranks
    away, *others = ranks.members
    before = away.owed()
    outcome = account.step({member.number: cut for member in ranks.members})
    assert not outcome.commits
    ranks.enter(others)
    others[0].engine.recent.find_offer(others[0].machine.state)  # somebody copies from it: it keeps its commits
    account.run(2)
    away.machine.healed = False
    ranks.enter([away, *others], donor=others[0])
    assert torch.equal(away.owed(), before)
    account.run(2)


def test_cc20_the_adaptive_plan_survives_abandoned_steps(gang: Callable[..., Account]) -> None:
    """Measures are each rank's own, and decisions are replicated: digests contain them, and agree whoever abandons when."""
    config = CompressionConfig(policy="adaptive", every=5)
    account = gang(partial(compression_of, config=config, planned_steps=100, seed=3), [2, 2])
    first, mate, *others = [member.number for member in account.ranks.members]
    decided = 0
    for number in range(60):
        before = account.ranks.owed()
        # the tail, and what was measured behind it where a decision is due
        cut = Cut(OUT, NUM_BUCKETS + (number % 5 == 4)) if number % 2 else None
        outcome = account.step({first: cut}, [mate, *others]) if cut else account.step()
        if cut:
            account.recover(outcome, account.ranks.members)
        account.settle(outcome, before, account.ranks.owed())
        decided += len(account.ranks.members[-1].engine.decisions)
    assert decided
    assert math.isfinite(float(account.ranks.owed().abs().max()))
