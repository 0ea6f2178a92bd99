"""What DDP calls for each bucket. DDP compares its annotations with types, so this file must not make them strings."""

import torch
import torch.distributed as dist
from torch.futures import Future

from workers.comm.ready import ready
from workers.comm.state import CommState


def hook(state: CommState, bucket: dist.GradBucket) -> Future[torch.Tensor]:
    """For `DistributedDataParallel.register_comm_hook`: the mean of a bucket's gradients over all ranks.

    `backward` raises what goes wrong, as a RuntimeError that says it: where a rank is lost, or the model cannot be served.
    """
    return state.reduce(ready(bucket.index(), bucket.is_last(), bucket.buffer(), tuple(bucket.parameters())))
