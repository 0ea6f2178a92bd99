"""The exchange among the ranks of one host, through memory that they share (CC-2)."""

from workers.collectives.shared.host import HostExchange
from workers.collectives.shared.memory import HostMemory, Layout, MemoryShortage, memory_folder, memory_path
from workers.collectives.shared.operation import ReduceScatter, cut

__all__ = [
    "HostExchange",
    "HostMemory",
    "Layout",
    "MemoryShortage",
    "ReduceScatter",
    "cut",
    "memory_folder",
    "memory_path",
]
