"""The exchange of gradients as a communication hook of DistributedDataParallel, for any script of torchrun (CC-25).

import workers.comm
state = workers.comm.CommState()
model.register_comm_hook(state, workers.comm.hook)
"""

from workers.comm.hook import hook
from workers.comm.state import CommState

__all__ = ["CommState", "hook"]
