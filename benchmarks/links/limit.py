"""CC-8: the uncompressed exchange of one bucket against what the links allow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.links.cells import RATES, Cell, Record
from benchmarks.links.gang import Gang, Hosts
from benchmarks.links.methods import NONE

HOSTS = ("2x1", "4x1")
SPEEDS = ("100", "1000")
MEBIBYTES = (4, 8, 16)
WAYS = {"gloo": "gloo's ring", NONE.key: "ours"}
BOUND = 1.10
EXCHANGES = 8
WARM_UP = 2


@dataclass(frozen=True)
class LimitCell(Cell):
    """An exchange of a float32 bucket; `number` is its MiB."""

    @property
    def hosts(self) -> int:
        return int(self.layout[0])


def limit_cells() -> Iterator[LimitCell]:
    """Both ways of a case follow each other."""
    for layout in HOSTS:
        for rate in SPEEDS:
            for mebibytes in MEBIBYTES:
                for way in WAYS:
                    yield LimitCell("limit", "bucket", layout, rate, way, mebibytes)


def least_seconds(hosts: int, mebibytes: float, rate_mbit: float) -> float:
    """2(H-1)/H · n·b / bandwidth: what a host sends in an all-reduce, by a link that carries payload only."""
    return 2 * (hosts - 1) / hosts * mebibytes * 2**20 * 8 / (rate_mbit * 1e6)


def duration(moments: Sequence[Sequence[float]]) -> float:
    """From when the last rank began, without which nothing can end, until the last one had the result: [begun, ended]."""
    return max(ended for _, ended in moments) - max(begun for begun, _ in moments)


def measure_limit(hosts: Hosts, cell: LimitCell) -> Record:
    """Seconds of each exchange. Raises CellFailed."""
    hosts.lab.set_rate(RATES[cell.rate])
    message = {"mebibytes": cell.number, "method": cell.method, "settings": dict(NONE.settings)}
    with hosts.start(cell.hosts, 1, message) as gang:
        _exchange(gang, WARM_UP)
        before = hosts.traffic(cell.hosts)
        seconds = _exchange(gang, EXCHANGES)
        after = hosts.traffic(cell.hosts)
        gang.ask({"close": True})
    sent = [b.sent_payload - a.sent_payload for a, b in zip(before, after, strict=True)]
    return {"seconds": seconds, "payload": sum(sent) / len(sent) / EXCHANGES}


def _exchange(gang: Gang, count: int) -> list[float]:
    of_ranks = [answer["moments"] for answer in gang.ask({"steps": count})]
    return [duration(moments) for moments in zip(*of_ranks, strict=True)]
