"""Which samples a rank computes in a step, as the JobSpec and the present members decide it (EP-1, EP-2)."""

from __future__ import annotations

from typing import NamedTuple

from workers.collectives.ordered import SumOrder
from workers.config import TrainingConfig
from workers.data import sampler


class Seat(NamedTuple):
    """Which of `world` members a rank is, and which attempt at the step this is."""

    world: int
    rank: int
    attempt: int


class Share(NamedTuple):
    """The micro-batches of one rank, and the order in which those of all ranks are added up, where there is to be one."""

    micro_batches: list[sampler.Ids]
    order: SumOrder | None = None


class BatchPlan:
    """The batches of a job over a data set of `num_samples`."""

    def __init__(self, config: TrainingConfig, num_samples: int) -> None:
        self._config, self.num_samples = config, num_samples
        self.steps_per_epoch = sampler.steps_per_epoch(num_samples, config.global_batch)

    def position(self, step: int) -> tuple[int, int]:
        """(epoch, batch inside the epoch), both from 0, of step `step`, from 1."""
        return sampler.position(step - 1, self.steps_per_epoch)

    def batch(self, step: int) -> sampler.Ids:
        """The samples of a step."""
        return sampler.batch(self._config.seed, *self.position(step), self.num_samples, self._config.global_batch)

    def share(self, step: int, seat: Seat) -> Share:
        """What a rank computes of it.

        Where the job is reproducible, the batch is cut into micro-batches before it is shared out, so they are the same
        for any members.
        """
        ids, micro_batch = self.batch(step), self._config.micro_batch
        if not self._config.reproducible:
            return Share(sampler.micro_batches(sampler.share(ids, *seat), micro_batch))
        leaves = sampler.micro_batches(ids, micro_batch)
        shares = (sampler.piece(len(leaves), seat.world, rank, seat.attempt) for rank in range(seat.world))
        order = SumOrder(tuple(shares), seat.rank)
        return Share([leaves[leaf] for leaf in order.mine], order)
