"""The two gauges of a running job: shown, and never a reason to act on a host (GM-24, GM-25)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from orchestrator.governor.codes import Code
from orchestrator.governor.gauges import Lockstep, lockstep, phi_topology
from workers.identity import Generation

MOST_HOSTS = 1000
"""In several groups, of which phi is computed: about a second. A single group is a complete graph of any size."""

Say = Callable[[str, dict[str, object]], None]


class Gauges:
    """Of one job.

    Args:
        say: takes a kind and fields for events.jsonl; in any thread.
    """

    def __init__(self, say: Say) -> None:
        self._say = say
        self._thread = ThreadPoolExecutor(1, "gauges")
        self.phi: float | None = None
        self.lockstep: Lockstep | None = None

    def generation(self, generation: Generation, groups: Mapping[str, str]) -> None:
        """One begins, of these hosts, each with its group. What phi is then is on record soon."""
        self.phi = self.lockstep = None
        sizes = list(Counter(groups.values()).values())
        if len(sizes) <= 1 or len(groups) <= MOST_HOSTS:
            self._thread.submit(self._gauge, generation, sizes)

    def window(self, busy: Iterable[float | None], samples: float, period: float) -> None:
        """One has ended.

        Args:
            busy: of each host, seconds per sample until its arrival at the reduce; None where it is not known.
            samples: of a rank in a step, as steps are shared out equally.
            period: seconds of a step.
        """
        self.lockstep = lockstep([each * samples for each in busy if each is not None], period)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _gauge(self, generation: Generation, sizes: Sequence[int]) -> None:
        self.phi = phi_of_groups(sizes)
        fields: dict[str, object] = {"generation": list(generation), "phi": self.phi}
        if self.phi == 1.0:  # no sums could come of it: so it is not what members have connected
            fields["code"] = Code.TOPOLOGY_SPLIT.value
        self._say("links", fields)


def phi_of_groups(sizes: Sequence[int]) -> float | None:
    """GM-25, of the links that hosts in groups of these sizes exchange gradients over; None for a single host."""
    if len(sizes) <= 1:
        return 2.0 if sum(sizes) > 1 else None
    return phi_topology(sum(sizes), links(sizes))


def links(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Between hosts, numbered group by group: inside of a group all with all; between groups those whose shards overlap,
    where each group is cut into as many as it has hosts (`workers.collectives.levels`)."""
    begins = [sum(sizes[:index]) for index in range(len(sizes))]
    found = [
        (begin + one, begin + other)
        for begin, size in zip(begins, sizes, strict=True)
        for one in range(size)
        for other in range(one + 1, size)
    ]
    for left in range(len(sizes)):
        for right in range(left + 1, len(sizes)):
            found += [
                (begins[left] + one, begins[right] + other)
                for one in range(sizes[left])
                for other in range(one * sizes[right] // sizes[left], -(-(one + 1) * sizes[right] // sizes[left]))
            ]
    return found
