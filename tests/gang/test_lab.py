"""CC-4, CC-7, EP-7, EP-11: gangs on hosts with network namespaces and shaped cables, broken in the middle of exchanges.

`Gang.check` asserts that digests of equal states are equal, and that every sample counted once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.lab import Lab, can_run
from orchestrator import status
from orchestrator.governor.events import Observed
from orchestrator.governor.log import told
from orchestrator.governor.readings import Observation
from orchestrator.records import read_steps
from tests.codecs import CODECS
from tests.gang.harness import IMPATIENT, STEPS_PER_EPOCH
from tests.gang.lab import LabGang

pytestmark = [pytest.mark.root, pytest.mark.timeout(400)]

StartGang = Callable[..., LabGang]

OUT_SECONDS, SCHEDULING_SECONDS = 0.5, 0.5
"""CC-7; and a machine with fewer cores than processes lets whoever is to relay or to answer wait for a core: three times,
behind ten others that have some milliseconds each."""


WINDOW, PAUSE = 20, 100
"""CC-18, CC-21: steps from decision to decision, and between two changes of a bucket."""


@pytest.fixture
def lab_gang(zygote: str, tmp_path: Path) -> Iterator[StartGang]:
    """Start a gang in a lab: `lab_gang(hosts=4, rate=100, ...)`, with the fields of `Gang`; `machines` for more hosts."""
    if reason := can_run():
        pytest.skip(reason)
    started: list[LabGang] = []

    def start(rate: float | None = None, machines: int | None = None, **settings: Any) -> LabGang:
        lab = Lab(machines or settings.get("hosts", 2), rate)
        lab.__enter__()
        started.append(LabGang(zygote, tmp_path / str(len(started)), lab=lab, **settings))
        started[-1].start()
        return started[-1]

    yield start
    for each in started:
        try:
            each.clear()
        finally:
            each.lab.__exit__(None, None, None)


def survivors_are_out_in_time(gang: LabGang, ranks: int) -> None:
    """So many answers of members to directives, each in time: from when PREPARE leaves the coordinator to its answer."""
    found = gang.answers()
    print("PREPARE to PREPARED, seconds:", gang.times())
    assert len(found) >= ranks
    assert max(answer.seconds for answer in found) <= OUT_SECONDS + SCHEDULING_SECONDS, gang.times()


@pytest.mark.parametrize("codec", ["none", "int8"])
def test_cc4_two_hosts_with_cables(codec: str, lab_gang: StartGang) -> None:
    g = lab_gang(codec=codec, spares=0, epochs=5)
    g.hurry()
    g.check()
    coordinator = status.read_coordinator(g.folder)
    assert coordinator is not None and coordinator.server_name == "coordinator.gang"  # it is not on loopback


@pytest.mark.long
@pytest.mark.parametrize("codec", CODECS)
def test_cc4_four_hosts_of_two_ranks_have_the_same_bits_after_200_steps(codec: str, lab_gang: StartGang) -> None:
    epochs = 25
    assert epochs * STEPS_PER_EPOCH == 200
    g = lab_gang(hosts=4, rate=1000, codec=codec, spares=0, epochs=epochs)
    g.hurry()
    g.check()
    assert len(g.events("generation")) == 1
    assert sum(each.sent_payload for each in g.lab.traffic()) > 0


def slow(gang_of: StartGang, codec: str, **settings: Any) -> LabGang:
    """Four hosts whose cables are so slow that a rank is in an exchange most of the time."""
    return gang_of(hosts=4, rate=1, codec=codec, ranks_per_host=1, spares=1, epochs=10, **settings)


@pytest.mark.parametrize("codec", ["int8"])
def test_cc7_a_kill_in_the_middle_of_an_exchange(codec: str, lab_gang: StartGang) -> None:
    kill(codec, lab_gang)


@pytest.mark.long
@pytest.mark.parametrize("codec", CODECS)
def test_cc7_a_kill_in_the_middle_of_an_exchange_every_codec(codec: str, lab_gang: StartGang) -> None:
    kill(codec, lab_gang)


def kill(codec: str, lab_gang: StartGang) -> None:
    g = slow(lab_gang, codec, faults=("in_exchange@rank=2,step=20,bucket=1=kill",))
    g.wait_for_faults()
    g.wait_until_whole()
    g.check()
    survivors_are_out_in_time(g, 3)


@pytest.mark.long
@pytest.mark.parametrize("codec", CODECS)
def test_cc7_a_stop_in_the_middle_of_an_exchange(codec: str, lab_gang: StartGang) -> None:
    """Its agent kills it when its time to answer is over."""
    g = slow(lab_gang, codec, faults=("in_exchange@rank=1,step=20,bucket=0=stop",), limits=IMPATIENT)
    g.wait_for_faults()
    g.wait_until_whole()
    g.check()
    survivors_are_out_in_time(g, 3)


@pytest.mark.long
@pytest.mark.parametrize("codec", CODECS)
def test_cc7_a_cut_cable_in_the_middle_of_an_exchange(codec: str, lab_gang: StartGang) -> None:
    cut(codec, lab_gang)


def test_cc7_a_cut_cable(lab_gang: StartGang) -> None:
    cut("int8", lab_gang)


def cut(codec: str, lab_gang: StartGang) -> None:
    """The host is lost as a whole, the others go on, and another machine takes its place. When the cable is mended, who was
    cut off is told to go; nobody notices."""
    g = slow(lab_gang, codec, machines=5, hosts_min=1, agent_grace=2.0, limits=IMPATIENT)
    g.wait_for_step(20)
    cable = g.cable_of(3)
    g.cut(cable, nodes=[index for index in range(5) if index != cable])
    g.wait_for("the loss of the host", lambda: g.events("host_lost"))
    g.wait_until_whole()
    g.mend(cable)
    g.wait_for_step(g.step() + 8)
    g.end_unreachable(cable)
    g.check()
    survivors_are_out_in_time(g, 3)


@pytest.mark.long
def test_cc21_the_plan_follows_a_link_that_slows_down_and_recovers(lab_gang: StartGang) -> None:
    """1000, 10, 1000 Mbit/s under a model of a million parameters. When the link has collapsed the plan sends a fraction,
    within a window; when it is fast again another one follows after the pause, or none that does worse than `none`."""
    g = lab_gang(hosts=2, rate=1000, ranks_per_host=1, spares=0, epochs=80, policy="adaptive", wide=True)
    g.hurry()
    g.wait_for_step(150)
    g.lab.set_rate(10)
    slow_from = g.step()
    g.wait_for_step(slow_from + 60)
    g.lab.set_rate(1000)
    fast_from = g.step()
    g.check()
    changes = g.events("compression")
    fell = [c for c in changes if slow_from <= c["step"] <= slow_from + WINDOW and c["reason"] == "collapse"]
    assert sum(c["to_bytes"] for c in fell) < sum(c["from_bytes"] for c in fell) / 4
    last = max(c["step"] for c in changes if c["step"] <= fast_from)
    rose = [c for c in changes if fast_from < c["step"] <= max(last + PAUSE, fast_from) + 3 * WINDOW]
    plan = next(p for p in g.events("compression_plan") if p["step"] >= fast_from + PAUSE + 3 * WINDOW)
    assert rose or plan["exposed"] <= plan["exposed_none"]
    seconds = {step["step"]: step["step_seconds"] for step in read_steps(g.folder)}
    print(f"slow from {slow_from}, fast from {fast_from}; {sorted({(c['step'], c['reason']) for c in changes})}")
    print([(step, round(seconds[step], 2)) for step in range(slow_from - 5, slow_from + 25)])


@pytest.mark.long
@pytest.mark.parametrize("codec", ["none", "int8"])
def test_gm30_the_host_with_the_slow_cable_is_who_all_its_peers_find_slow(codec: str, lab_gang: StartGang) -> None:
    """In a ring, and where all hosts exchange with all; by what agents read of the sockets of ranks."""
    g = lab_gang(
        hosts=4, rate=400, ranks_per_host=1, spares=0, epochs=20, codec=codec, wide=True, governor={"evaluation": 6.0}
    )
    g.hurry()
    g.wait_for_step(3)
    slow = str(g.members()[2]["host"])
    g.lab.set_rate(20, g.cable_of(2))
    cut_at = g.step()

    def windows() -> list[dict[str, Observation]]:
        """Those of the time with the slow cable in which all hosts were seen."""
        with (g.folder / "governor.jsonl").open() as log:
            events = [event for _, event, _ in told(log) if isinstance(event, Observed) and event.steps > cut_at]
        found = [dict(event.observations) for event in events[1:]]
        return [each for each in found if len(each) == 4 and all(seen.throughput for seen in each.values())]

    seen = g.wait_for("a window with all links", windows)[-1]
    g.lab.set_rate(None)
    rates = {host: each.throughput or 0.0 for host, each in seen.items()}
    print(codec, {host: round(rate / 1e6, 1) for host, rate in rates.items()}, "MB/s; slow is", slow)
    others = [rate for host, rate in rates.items() if host != slow]
    assert rates[slow] < 20e6 / 8 * 1.5 and min(others) > 2 * rates[slow]
    g.check()


@pytest.mark.long
def test_gm8_where_cables_are_full_no_host_is_late(lab_gang: StartGang) -> None:
    """Gradients take all that the cables carry; beats go over the same ones, on connections of their own."""
    rate, seconds = 10, 20.0
    g = lab_gang(hosts=4, rate=rate, ranks_per_host=1, spares=0, epochs=20, codec="none", wide=True)
    g.wait_for_step(2)
    before = [each.sent_payload for each in g.lab.traffic()]
    time.sleep(seconds)
    sent = [after.sent_payload - least for after, least in zip(g.lab.traffic(), before, strict=True)]
    g.lab.set_rate(None)
    print("share of the cables that gradients took:", [round(8 * each / (rate * 1e6 * seconds), 2) for each in sent])
    assert max(sent) > 0.7 * rate * 1e6 / 8 * seconds
    assert [kind for kind in ("agent_lost", "host_lost", "evidence", "hang") if g.events(kind)] == []
    assert [event for event in g.events("verdict") if event["act"] != "relieve"] == []  # the machine itself is busy
    g.hurry()
    g.check()
