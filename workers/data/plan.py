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
    together: tuple[int, ...] = ()
    """The members whose gradients are summed in each inner step, this one among them; () where it takes those alone."""
    shares: tuple[int, ...] = ()
    """Of all members, to each other; () where they are equal."""


class Share(NamedTuple):
    """What one rank computes of a step."""

    batches: list[list[sampler.Ids]]
    """Its micro-batches of each inner batch; of the one batch, where gradients are summed in every step."""
    samples: list[int]
    """Of each of these batches: the samples whose mean gradient is taken, over all ranks that take the step together."""
    order: SumOrder | None = None
    """In which the micro-batches of all ranks are added up, where there is to be one."""

    @property
    def micro_batches(self) -> list[sampler.Ids]:
        """In the order of reading."""
        return [ids for batch in self.batches for ids in batch]


class BatchPlan:
    """The batches of a job over a data set of `num_samples`.

    With `sync.every: h` a step is a round of h batches that are trained alone, and its batch all of their samples. A round
    lies in one epoch, so that the last one of an epoch may have fewer batches.
    """

    def __init__(self, config: TrainingConfig, num_samples: int) -> None:
        self._config, self.num_samples = config, num_samples
        self._samples_per_step = config.global_batch * config.sync.every
        self.steps_per_epoch = sampler.steps_per_epoch(num_samples, self._samples_per_step)

    def position(self, step: int) -> tuple[int, int]:
        """(epoch, batch inside the epoch), both from 0, of step `step`, from 1."""
        return sampler.position(step - 1, self.steps_per_epoch)

    def batch(self, step: int) -> sampler.Ids:
        """The samples of a step."""
        return sampler.batch(self._config.seed, *self.position(step), self.num_samples, self._samples_per_step)

    def share(self, step: int, seat: Seat) -> Share:
        """What a rank computes of it.

        Where the job is reproducible, the batch is cut into micro-batches before it is shared out, so they are the same
        for any members.
        """
        ids, micro_batch = self.batch(step), self._config.micro_batch
        if not self._config.reproducible:
            return self._shared_out(ids, seat)
        leaves = sampler.micro_batches(ids, micro_batch)
        shares = (sampler.piece(len(leaves), seat.world, rank, seat.attempt, seat.shares) for rank in range(seat.world))
        order = SumOrder(tuple(shares), seat.rank)
        return Share([[leaves[leaf] for leaf in order.mine]], [len(ids)], order)

    def _shared_out(self, ids: sampler.Ids, seat: Seat) -> Share:
        config, batches, samples = self._config, [], []
        for start in range(0, len(ids), config.global_batch):
            batch = ids[start : start + config.global_batch]

            def part(rank: int, batch: sampler.Ids = batch) -> sampler.Ids:
                return sampler.share(batch, seat.world, rank, seat.attempt, seat.shares)

            batches.append(sampler.micro_batches(part(seat.rank), config.micro_batch))
            together = seat.together or (seat.rank,)
            samples.append(sum(len(part(rank)) for rank in together) if config.sync.merges else len(batch))
        return Share(batches, samples)
