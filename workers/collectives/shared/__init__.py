"""The exchange among the ranks of one host, through memory that they share (CC-2)."""

from workers.collectives.shared.host import HostExchange, Patience
from workers.collectives.shared.members import by_memory, enter, sharing_hosts
from workers.collectives.shared.memory import HostMemory, Layout
from workers.collectives.shared.operation import ReduceScatter, cut

__all__ = [
    "HostExchange",
    "HostMemory",
    "Layout",
    "Patience",
    "ReduceScatter",
    "by_memory",
    "cut",
    "enter",
    "sharing_hosts",
]
