"""GM-5: ranks are names that workers keep; and what is known of hosts and workers stays consistent."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.roster import HostView, Role, Roster, Rules, WorkerView


def roster(hosts: int, workers_per_host: int = 1) -> Roster:
    found = Roster(Rules(hosts_min=1, hosts_max=hosts, ranks_per_host=workers_per_host, spares_per_host=0))
    for number in range(hosts):
        host = f"host-{number}"
        found.hosts[host] = HostView(host, host)
        for place in range(workers_per_host):
            found.add(WorkerView(f"{host}-{place}", host, 1, host))
    return found


def ranks(found: Roster) -> dict[str, int | None]:
    return {worker.worker: worker.rank for worker in found.workers.values()}


def test_gm5_the_first_members_take_ranks_from_zero_in_the_order_of_the_ring() -> None:
    found = roster(2, 2)
    ring = found.seat(found.workers.values())
    assert [(worker.worker, worker.rank) for worker in ring] == [
        ("host-0-0", 0),
        ("host-0-1", 1),
        ("host-1-0", 2),
        ("host-1-1", 3),
    ]
    assert {worker.role for worker in ring} == {Role.MEMBER}


def test_gm5_newcomers_take_the_lowest_free_ranks_and_nobody_is_renumbered() -> None:
    found = roster(5)
    found.seat(found.workers.values())
    for gone in ("host-0-0", "host-3-0"):
        found.remove(gone)
    for place in range(3):
        found.add(WorkerView(f"new-{place}", "host-4", 1, "host-4"))
    found.seat(found.workers.values())
    assert ranks(found) == {"host-1-0": 1, "host-2-0": 2, "host-4-0": 4, "new-0": 0, "new-1": 3, "new-2": 5}


@given(st.lists(st.integers(0, 40), unique=True), st.integers(0, 20))
def test_gm5_free_ranks_are_those_that_nobody_has_the_lowest_first(taken: list[int], wanted: int) -> None:
    found = roster(1, len(taken))
    for worker, rank in zip(found.workers.values(), taken, strict=True):
        worker.rank = rank
    free = found.free_ranks()
    first = [next(free) for _ in range(wanted)]
    assert first == sorted(set(range(len(taken) + wanted)) - set(taken))[:wanted]


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9))))
def test_workers_of_a_host_are_those_that_it_has(changes: list[tuple[bool, int]]) -> None:
    found = roster(3, 0)
    for adds, number in changes:
        name, host = f"w{number}", f"host-{number % 3}"
        if not adds:
            known = found.workers.get(name)
            assert found.remove(name) is known
        elif name not in found.workers:
            found.add(WorkerView(name, host, 1, host))
    for host in found.hosts:
        assert found.on(host) == [worker for worker in found.workers.values() if worker.host == host]
