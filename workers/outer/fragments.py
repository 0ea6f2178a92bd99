"""When which part of a round's differences goes out (CC-24).

Streaming DiLoCo (Douillard et al., 2025) sends the model in fragments while training goes on. Here a fragment is some
buckets of the plan; it is sent some inner steps before the round ends, and the exchange hides behind those.
"""

from __future__ import annotations

from workers.outer.config import SyncConfig


class Fragments:
    """Of a plan with `num_buckets`; there are no more fragments than buckets.

    The first of F fragments goes `sync.staleness` inner steps before the end of the round, the others evenly after it, the
    last one a F-th of those steps before the end; none before the first inner step.
    """

    def __init__(self, config: SyncConfig, num_buckets: int) -> None:
        self._staleness, self._number = config.staleness, min(config.fragments, num_buckets)
        self._ends = [round(num_buckets * (i + 1) / self._number) for i in range(self._number)]

    def due(self, inner_step: int, inner_steps: int) -> int:
        """How many buckets, of those that are first in the plan, are on their way after `inner_step` of `inner_steps`."""
        found = 0
        for index, end in enumerate(self._ends):
            before = -(-self._staleness * (self._number - index) // self._number)
            if inner_step >= max(1, inner_steps - before):
                found = end
        return found
