"""CC-1 and CC-2 without processes: the arithmetic of the memory, and ranks that take turns in this one."""

from __future__ import annotations

import itertools
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from workers.collectives.exchange import Abandoned, ExchangeError
from workers.collectives.shared import HostExchange, HostMemory, Layout, ReduceScatter, cut
from workers.collectives.shared import host as host_module
from workers.collectives.shared import operation as operation_module
from workers.collectives.shared.memory import GIVEN, LINE_BYTES, SUMMED, TAKEN, WHAT, Region, fence, generation_of, sequence
from workers.identity import Generation
from workers.memory_file import MemoryShortage

LAYOUT = Layout(1000, 2, (300, 1000))
NUMBERS = itertools.count()
OVER = object()


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    path = Path("/dev/shm", f"quantarion-test-{next(NUMBERS)}-{np.random.SeedSequence().entropy}")
    yield path
    shutil.rmtree(path)


class Ranks:
    """The ranks of a host, all in this process."""

    def __init__(self, folder: Path, world: int, layout: Layout = LAYOUT) -> None:
        self.memories = [HostMemory(folder / f"{next(NUMBERS)}.memory", layout) for _ in range(world)]
        self.paths = [memory.path for memory in self.memories]

    def enter(self, counter: int, members: list[int] | None = None) -> list[HostExchange]:
        members = list(range(len(self.paths))) if members is None else members
        paths = [self.paths[member] for member in members]
        return [HostExchange(self.memories[member], paths, Generation(1, counter)) for member in members]

    def remove(self) -> None:
        for memory in self.memories:
            memory.remove()


@pytest.fixture
def ranks(folder: Path) -> Iterator[Callable[[int], Ranks]]:
    made: list[Ranks] = []

    def make(world: int) -> Ranks:
        made.append(Ranks(folder, world))
        return made[-1]

    yield make
    for each in made:
        each.remove()


def buckets(world: int, elements: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(elements, generator=generator) * 10.0**rank for rank in range(world)]


def in_rank_order(parts: list[torch.Tensor], largest: bool = False) -> torch.Tensor:
    total = parts[0].clone()
    for part in parts[1:]:
        total = torch.maximum(total, part) if largest else total + part
    return total


def settle(exchanges: list[HostExchange]) -> None:
    while True in [exchange.progress() for exchange in exchanges]:
        pass


def never() -> bool:
    return False


# ---------------------------------------------------------------------- arithmetic


@given(st.integers(0, 5000), st.integers(1, 9), st.lists(st.integers(0, 5000), max_size=5))
def test_cc2_the_parts_of_a_file_do_not_overlap(elements: int, slots: int, staging: list[int]) -> None:
    layout = Layout(elements, slots, tuple(staging))
    kinds = (GIVEN, SUMMED, TAKEN)
    words = [layout.word(slot, kind) for slot in range(len(layout.sizes)) for kind in kinds]
    lines = [word * 8 // LINE_BYTES for word in words]
    assert len(set(lines)) == len(lines) == 3 * (slots + len(staging))
    assert 0 not in lines  # where the layout's name is
    assert all(word * 8 % LINE_BYTES == 0 for word in words)
    assert (layout.word(0, WHAT) - layout.word(0, GIVEN)) * 8 < LINE_BYTES
    assert (max(lines) + 1) * LINE_BYTES <= layout.starts[0]
    assert all(start % 4096 == 0 for start in layout.starts)
    for (start, end), size in zip(itertools.pairwise(layout.starts), layout.sizes, strict=True):
        assert 0 <= end - start - 4 * size < 4096
    assert layout.nbytes == layout.starts[-1]


@given(st.integers(0, 100_000), st.integers(1, 17))
def test_cc1_shards_cover_a_bucket_and_are_even_and_aligned(elements: int, world: int) -> None:
    edges = cut(elements, world)
    sizes = [end - start for start, end in itertools.pairwise(edges)]
    assert (edges[0], edges[-1], len(sizes)) == (0, elements, world)
    assert min(sizes) >= 0
    assert all(edge % 64 == 0 or edge == elements for edge in edges)
    assert max(sizes) - min(sizes) <= 128
    assert max(sizes) <= -(-elements // (64 * world)) * 64


@given(*[st.tuples(st.integers(0, 2**12 - 1), st.integers(0, 2**20 - 1), st.integers(0, 2**32 - 1))] * 2)
def test_cc2_sequence_words_order_generations_and_operations(one: tuple[int, ...], two: tuple[int, ...]) -> None:
    words = [sequence(Generation(*each[:2]), each[2]) for each in (one, two)]
    assert (words[0] < words[1]) == (one < two)
    assert (generation_of(words[0]) < generation_of(words[1])) == (one[:2] < two[:2])
    assert max(words) < 2**64


@pytest.mark.parametrize("beyond", [(2**12, 0, 0), (0, 2**20, 0), (0, 0, 2**32)])
def test_cc2_a_number_that_has_no_word_is_refused(beyond: tuple[int, int, int]) -> None:
    with pytest.raises(OverflowError, match="has no sequence word"):
        sequence(Generation(*beyond[:2]), beyond[2])


# ---------------------------------------------------------------------- the file


def test_cc2_too_small_a_dev_shm_is_one_sentence(folder: Path) -> None:
    with pytest.raises(MemoryShortage) as caught:
        HostMemory(folder / "huge.memory", Layout(2**44, 1))
    assert str(caught.value).startswith("/dev/shm has ")
    assert "each rank of a host needs 67108864.0 MiB there" in str(caught.value)
    assert "--shm-size" in str(caught.value)
    assert not (folder / "huge.memory").exists()


def test_cc2_room_that_others_took_meanwhile_is_the_same_sentence(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(folder.parent)
    answers = iter([usage._replace(free=2**60), usage])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: next(answers))
    with pytest.raises(MemoryShortage, match=r"^/dev/shm has [\d.]+ MiB free and each rank"):
        HostMemory(folder / "huge.memory", Layout(2**44, 1))  # more than the file system, which the kernel sees at once
    assert next(answers, None) is None
    assert not (folder / "huge.memory").exists()


def test_cc2_every_page_of_the_file_is_reserved(ranks: Callable[[int], Ranks]) -> None:
    (path,) = ranks(1).paths
    assert path.stat().st_blocks * 512 >= LAYOUT.nbytes == path.stat().st_size
    assert path.stat().st_mode & 0o777 == 0o600


def test_cc2_only_its_own_process_can_write_to_a_file(ranks: Callable[[int], Ranks]) -> None:
    two = ranks(2)
    peer = two.enter(1)[0].regions[1]
    with pytest.raises(TypeError, match="read-only"):
        peer.words[LAYOUT.word(0, GIVEN)] = 1
    for slot in peer.slots:
        with pytest.raises(ValueError, match="read-only"):
            slot[0] = 1.0
    lines = Path("/proc/self/maps").read_text().splitlines()
    assert sorted(line.split()[1] for line in lines if line.endswith(str(two.paths[1]))) == ["r--s", "rw-s"]


def test_cc2_memory_of_other_buckets_or_of_nobody_is_refused(folder: Path, ranks: Callable[[int], Ranks]) -> None:
    one, other = ranks(1), HostMemory(folder / "other.memory", Layout(1000, 2, (1000, 300)))
    with pytest.raises(ExchangeError, match="is laid out for other buckets"):
        HostExchange(one.memories[0], [one.paths[0], other.path], Generation(1, 1))
    with pytest.raises(ExchangeError, match="and this rank's layout"):
        Region(other.path, Layout(1000, 3))
    other.remove()
    with pytest.raises(ExchangeError, match="a rank of this host is gone"):
        HostExchange(one.memories[0], [one.paths[0], other.path], Generation(1, 1))
    assert HostExchange(one.memories[0], one.paths, Generation(1, 1)).world == 1  # nothing was entered before


def test_cc2_a_generation_is_entered_once(ranks: Callable[[int], Ranks]) -> None:
    two = ranks(2)
    two.enter(5)
    for counter in (5, 4):
        with pytest.raises(ValueError, match=f"has been in generation 1.{counter} or a later one"):
            two.enter(counter)


# ---------------------------------------------------------------------- the exchange


@given(st.data(), st.integers(1, 4), st.lists(st.integers(0, 1000), min_size=1, max_size=9), st.integers(1, 6))
def test_cc2_any_interleaving_gives_the_sum_in_rank_order_everywhere(
    folder: Path, data: st.DataObject, world: int, sizes: list[int], in_flight: int
) -> None:
    """More operations than slots, lent and copied buckets, sums and maxima; ranks get on in any order."""
    gang = Ranks(folder, world)
    exchanges = gang.enter(1)
    lent = [data.draw(st.booleans()) and size <= 300 for size in sizes]
    largest = [data.draw(st.booleans()) for _ in sizes]
    given_ = [buckets(world, size, seed) for seed, size in enumerate(sizes)]
    results: list[list[torch.Tensor]] = [[] for _ in range(world)]

    def program(rank: int) -> Iterator[None]:
        exchange, flying = exchanges[rank], list[tuple[ReduceScatter, torch.Tensor]]()
        for number in range(len(sizes)):
            while len(flying) == in_flight or (lent[number] and flying):
                yield from finish(exchange, *flying.pop(0))
            bucket = given_[number][rank].clone()
            if lent[number]:
                while (memory := lent_by(exchange)) is None:
                    yield
                bucket = memory[: len(bucket)].copy_(bucket)
            operation = exchange.reduce_scatter(bucket, largest=largest[number])
            operation.all_gather()
            flying.append((operation, bucket))
        for each in flying:
            yield from finish(exchange, *each)

    def lent_by(exchange: HostExchange) -> torch.Tensor | None:
        try:
            return exchange.lend(0, lambda: True)
        except Abandoned:
            return None

    def finish(exchange: HostExchange, operation: ReduceScatter, bucket: torch.Tensor) -> Iterator[None]:
        while not operation.done:
            exchange.progress()
            yield
        results[exchange.index].append(bucket.clone())

    running = {rank: program(rank) for rank in range(world)}
    for turn in itertools.count():
        if not running:
            break
        assert turn < 2000, "nobody gets on"
        rank = data.draw(st.sampled_from(sorted(running))) if turn < 60 else sorted(running)[turn % len(running)]
        if next(running[rank], OVER) is OVER:
            del running[rank]
    gang.remove()
    for number, parts in enumerate(given_):
        expected = in_rank_order(parts, largest[number])
        for rank in range(world):
            assert torch.equal(results[rank][number], expected)


def test_cc1_the_shard_goes_between_hosts_and_comes_back_to_all(ranks: Callable[[int], Ranks]) -> None:
    exchanges, given_ = ranks(3).enter(1), buckets(3, 777)
    copies = [bucket.clone() for bucket in given_]
    cuts = (0, 500, 500, 777)  # a shard map made for hosts of other sizes
    operations = [e.reduce_scatter(bucket, cuts=cuts) for e, bucket in zip(exchanges, copies, strict=True)]
    settle(exchanges)
    assert all(torch.equal(copy, bucket) for copy, bucket in zip(copies, given_, strict=True))
    expected = in_rank_order(given_)
    for operation, (start, end) in zip(operations, itertools.pairwise(cuts), strict=True):
        operation.wait(never)
        assert torch.equal(operation.shard, expected[start:end])
        operation.shard.mul_(-2)
    pending = [operation.all_gather() for operation in operations]
    settle(exchanges)
    for each, copy in zip(pending, copies, strict=True):
        each.wait(never)
        assert torch.equal(copy, expected * -2)


def test_cc2_a_lent_bucket_is_summed_where_it_lies(ranks: Callable[[int], Ranks]) -> None:
    exchanges, given_ = ranks(2).enter(1), buckets(2, 1000)
    lent = [exchange.lend(1, never).copy_(bucket) for exchange, bucket in zip(exchanges, given_, strict=True)]
    operations = [exchange.all_reduce(bucket) for exchange, bucket in zip(exchanges, lent, strict=True)]
    settle(exchanges[:1])
    with pytest.raises(RuntimeError, match=r"ask for it with lend\(\)"):
        exchanges[0].all_reduce(lent[0])  # rank 1 has not looked at our shard of the sum yet
    with pytest.raises(Abandoned):
        exchanges[0].lend(1, lambda: True)
    settle(exchanges)
    for operation, bucket, exchange in zip(operations, lent, exchanges, strict=True):
        operation.wait(never)
        assert torch.equal(bucket, in_rank_order(given_))
        assert bucket.data_ptr() == exchange.lend(1, never).data_ptr()


def test_cc5_ranks_that_issue_different_operations_hear_of_it(ranks: Callable[[int], Ranks]) -> None:
    first, second = ranks(2).enter(1)
    first.all_reduce(torch.ones(100))
    with pytest.raises(ExchangeError, match="operation 1 of local rank 1 is another one on local rank 0"):
        second.all_reduce(torch.ones(100), largest=True)


@pytest.mark.parametrize("bucket", [torch.ones(5, dtype=torch.float64), torch.ones(2, 2), torch.ones(9)[::2]])
def test_cc2_what_is_no_bucket_is_refused(ranks: Callable[[int], Ranks], bucket: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"a bucket is float32 \[n\] and contiguous"):
        ranks(2).enter(1)[0].all_reduce(bucket)


@pytest.mark.parametrize("cuts", [(0, 5), (0, 6, 5, 10), (1, 5, 10), (0, 5, 11), (0, 7, 5)])
def test_cc1_shards_that_do_not_cut_the_bucket_are_refused(ranks: Callable[[int], Ranks], cuts: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="does not cut 10 elements into 2 shards"):
        ranks(2).enter(1)[0].reduce_scatter(torch.ones(10), cuts=cuts)


def test_cc2_a_bucket_larger_than_the_slots_is_refused(ranks: Callable[[int], Ranks]) -> None:
    with pytest.raises(ValueError, match="1001 elements does not fit a slot of 1000"):
        ranks(2).enter(1)[0].all_reduce(torch.ones(1001))
    alone = torch.ones(1001)
    ranks(1).enter(1)[0].all_reduce(alone).wait(never)
    assert torch.equal(alone, torch.ones(1001))


def test_cc2_a_wait_gives_its_core_away_and_leaves_at_the_bell(
    ranks: Callable[[int], Ranks], monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[float] = []
    monkeypatch.setattr(host_module.time, "sleep", events.append)
    monkeypatch.setattr(host_module.os, "sched_yield", lambda: events.append(0.0))
    bucket = torch.arange(10.0)
    pending = ranks(2).enter(1)[0].all_reduce(bucket)
    with pytest.raises(Abandoned):
        pending.wait(lambda: len(events) == 2000)
    assert events == sorted(events), "first it yields, then it sleeps longer and longer"
    assert events.count(0.0) == host_module.YIELDS
    assert events[host_module.YIELDS] == 20e-6
    assert events[-1] == 200e-6
    assert torch.equal(bucket, torch.arange(10.0))


# ---------------------------------------------------------------------- generations


def test_cc2_a_word_of_an_older_generation_satisfies_nobody(ranks: Callable[[int], Ranks]) -> None:
    three = ranks(3)
    old = three.enter(1)
    for exchange in old:
        exchange.all_reduce(torch.full((100,), 1e30))  # given by all, so every word is there
    new = [HostExchange(three.memories[rank], three.paths, Generation(1, 2)) for rank in (0, 1)]
    results = [torch.ones(100) for _ in new]
    pending = [exchange.all_reduce(bucket) for exchange, bucket in zip(new, results, strict=True)]
    settle(new)
    for each in pending:
        with pytest.raises(Abandoned):
            each.wait(lambda: True)
    assert all(torch.equal(bucket, torch.ones(100)) for bucket in results)
    with pytest.raises(ExchangeError, match=r"local rank 0 has left generation 1\.1 for a later one"):
        old[2].progress()


@pytest.mark.parametrize("moment", ["sum", "gather"])
def test_cc2_who_reads_while_a_peer_goes_on_without_it_does_not_finish(
    ranks: Callable[[int], Ranks], monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """The peer's data are overwritten after its word was seen and before they are read."""
    two = ranks(2)
    first, second = two.enter(1)
    stale = torch.ones(640)
    first.all_reduce(torch.ones(640))
    if moment == "gather":
        second.all_reduce(stale)
        first.progress()
    overwritten: list[HostExchange] = []

    def go_on() -> None:
        if not overwritten:
            (alone,) = two.enter(2, [0])
            alone.memory.own.slots[0][:] = 1e30
            overwritten.append(alone)

    if moment == "sum":
        monkeypatch.setattr(operation_module, "add_up", lambda *arguments: go_on())
        with pytest.raises(ExchangeError, match=r"local rank 0 has left generation 1\.1"):
            second.reduce_scatter(stale)  # or a third rank that stayed behind could take what is no sum
    else:
        monkeypatch.setattr(operation_module, "fence", go_on)
        with pytest.raises(ExchangeError, match=r"local rank 0 has left generation 1\.1"):
            second.progress()
    assert overwritten


def test_threads_of_one_process_do_not_meet_in_a_fence() -> None:
    """As ranks that are threads do, or a rank and the thread of its communication hook: with one lock for all, a thread
    took what another had just released, which then had nothing to release or waited for ever."""
    raised: list[Exception] = []

    def pass_fences() -> None:
        try:
            for _ in range(5000):
                fence()
        except RuntimeError as error:
            raised.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=pass_fences, daemon=True) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    finally:
        sys.setswitchinterval(interval)
    assert raised == [] and not any(thread.is_alive() for thread in threads)
