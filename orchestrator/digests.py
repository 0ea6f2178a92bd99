"""Do the members hold the same bytes? What they tell of their states is compared here (GM-17)."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

from workers.identity import StateId

REMEMBERED = 16
"""States of which not all members have told a digest yet."""


@dataclass(frozen=True)
class Comparison:
    """Of one state. `deviating`: hosts that hold other bytes than the majority, in order; `split`: there is none."""

    state: StateId
    deviating: tuple[str, ...] = ()
    split: bool = False

    @property
    def unanimous(self) -> bool:
        return not self.deviating and not self.split


class Digests:
    """What ranks have told.

    Args:
        sound: the last step after which all were seen to hold the same.
    """

    def __init__(self, sound: int = 0) -> None:
        self.sound = sound
        self._told: OrderedDict[StateId, dict[str, bytes]] = OrderedDict()
        self._split_at: int | None = None

    def tell(self, worker: str, state: StateId, digest: bytes, members: Mapping[str, str]) -> Comparison | None:
        """`worker` has this digest of `state`. The comparison, once all have told theirs.

        Args:
            members: the hosts of all workers that train.
        """
        if worker not in members:
            return None
        told = self._told.setdefault(state, {})
        told[worker] = digest
        while len(self._told) > REMEMBERED:
            self._told.popitem(last=False)
        if not members.keys() <= told.keys():
            return None
        del self._told[state]
        return compare(state, {worker: told[worker] for worker in members}, members)

    def leave(self, found: Comparison) -> bool:
        """These states are left, as some differ. True where that is no accident: there was no majority before either, and
        no agreement at that step or later since."""
        again = found.split and self._split_at is not None and self.sound < self._split_at
        self._split_at = found.state.step if found.split else None
        self._told.clear()
        return again


def compare(state: StateId, digests: Mapping[str, bytes], hosts: Mapping[str, str]) -> Comparison:
    """A host whose ranks agree has one vote, one whose ranks do not has none. More than half of the votes are the truth.

    Args:
        digests: by worker.
        hosts: by worker.
    """
    if len(set(digests.values())) <= 1:
        return Comparison(state)
    by_host: dict[str, set[bytes]] = {}
    for worker, digest in digests.items():
        by_host.setdefault(hosts[worker], set()).add(digest)
    votes = Counter(next(iter(found)) for found in by_host.values() if len(found) == 1)
    truth, count = votes.most_common(1)[0] if votes else (b"", 0)
    if 2 * count <= votes.total():
        return Comparison(state, split=True)
    return Comparison(state, tuple(sorted(host for host, found in by_host.items() if found != {truth})))
