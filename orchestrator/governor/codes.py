"""What may be said against a host, a group of hosts or the job, and how much weight it has (GM-12, section 7)."""

from __future__ import annotations

from enum import IntEnum, StrEnum


class Scope(StrEnum):
    NODE = "node"
    GROUP = "group"
    JOB = "job"


class Weight(IntEnum):
    """Of evidence, the lightest first. The heaviest verdict on a target is acted on, and all reasons are kept."""

    ADVISORY = 0
    """It informs, or something is done to relieve the host; nobody is removed for it."""
    NOISY = 1
    """A measurement that chance and load move too: it takes two, some time apart."""
    NOISY_GROUP = 2
    HIGH = 3
    """It does not happen to a host that is well: acted on in the same tick."""
    JOB = 4


class Code(StrEnum):
    """Reasons, as they stand in verdicts, logs and tests."""

    PROC_EXIT = "PROC_EXIT"
    HEARTBEAT_DEAD = "HEARTBEAT_DEAD"
    HANG_CULPRIT = "HANG_CULPRIT"
    DEVICE_LOST = "DEVICE_LOST"
    HOST_TEST_FAILED = "HOST_TEST_FAILED"
    NONFINITE_HOST = "NONFINITE_HOST"
    PROTOCOL_VIOLATION = "PROTOCOL_VIOLATION"
    OPERATOR_EVICT = "OPERATOR_EVICT"
    SDC_DIGEST = "SDC_DIGEST"
    REDUCE_CHECK = "REDUCE_CHECK"

    STRAGGLER = "STRAGGLER"
    SLOWDOWN = "SLOWDOWN"
    GRAD_DIRECTION = "GRAD_DIRECTION"
    GRAD_NORM = "GRAD_NORM"
    LOSS_OUTLIER = "LOSS_OUTLIER"
    NET_SLOW = "NET_SLOW"
    NET_LOSS = "NET_LOSS"
    THERMAL = "THERMAL"

    GROUP_LINK = "GROUP_LINK"
    GROUP_CORRELATED = "GROUP_CORRELATED"
    GROUP_LEADER_LOST = "GROUP_LEADER_LOST"

    THROUGHPUT_UNDERRUN = "THROUGHPUT_UNDERRUN"
    RESOURCE_MEMORY = "RESOURCE_MEMORY"
    RESOURCE_DISK = "RESOURCE_DISK"
    RESOURCE_LOAD = "RESOURCE_LOAD"
    TELEMETRY_GAP = "TELEMETRY_GAP"
    JOIN_MISMATCH = "JOIN_MISMATCH"

    NONFINITE_JOB = "NONFINITE_JOB"
    DIGEST_SPLIT = "DIGEST_SPLIT"
    LOSS_SPIKE = "LOSS_SPIKE"
    QUORUM_LOST = "QUORUM_LOST"
    MIN_HOSTS = "MIN_HOSTS"
    MASS_FAILURE = "MASS_FAILURE"
    TOPOLOGY_SPLIT = "TOPOLOGY_SPLIT"

    DRAIN = "DRAIN"

    @property
    def scope(self) -> Scope:
        return _SCOPES.get(self, Scope.NODE)

    @property
    def weight(self) -> Weight:
        return _WEIGHTS.get(self, Weight.HIGH)

    @property
    def needs_rollback(self) -> bool:
        """What it tells of may be in steps that are committed."""
        return self in (Code.SDC_DIGEST, Code.REDUCE_CHECK)


NOISY = (
    Code.STRAGGLER,
    Code.SLOWDOWN,
    Code.GRAD_DIRECTION,
    Code.GRAD_NORM,
    Code.LOSS_OUTLIER,
    Code.NET_SLOW,
    Code.NET_LOSS,
    Code.THERMAL,
)
RESOURCES = (Code.RESOURCE_MEMORY, Code.RESOURCE_DISK, Code.RESOURCE_LOAD)
RELIEVED = (*RESOURCES, Code.THERMAL)
"""What something is done about as soon as it is seen (GM-21). Heat counts against a host, too, if it lasts."""

_OF_GROUPS = (Code.GROUP_LINK, Code.GROUP_CORRELATED, Code.GROUP_LEADER_LOST)
_OF_THE_JOB = (
    Code.NONFINITE_JOB,
    Code.DIGEST_SPLIT,
    Code.LOSS_SPIKE,
    Code.QUORUM_LOST,
    Code.MIN_HOSTS,
    Code.MASS_FAILURE,
    Code.TOPOLOGY_SPLIT,
)

_SCOPES = (
    dict.fromkeys(_OF_GROUPS, Scope.GROUP) | dict.fromkeys(_OF_THE_JOB, Scope.JOB) | {Code.THROUGHPUT_UNDERRUN: Scope.JOB}
)
_WEIGHTS = (
    dict.fromkeys(NOISY, Weight.NOISY)
    | dict.fromkeys((Code.GROUP_LINK, Code.GROUP_CORRELATED), Weight.NOISY_GROUP)
    | dict.fromkeys(_OF_THE_JOB, Weight.JOB)
    | dict.fromkeys(
        (*RESOURCES, Code.THROUGHPUT_UNDERRUN, Code.TELEMETRY_GAP, Code.JOIN_MISMATCH, Code.DRAIN), Weight.ADVISORY
    )
)
