from quantarion.v1 import control_pb2 as _control_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class StatusRequest(_message.Message):
    __slots__ = ("driver",)
    DRIVER_FIELD_NUMBER: _ClassVar[int]
    driver: bool
    def __init__(self, driver: _Optional[bool] = ...) -> None: ...

class RankStatus(_message.Message):
    __slots__ = ("rank", "host", "pid", "state", "step", "worker")
    RANK_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    WORKER_FIELD_NUMBER: _ClassVar[int]
    rank: int
    host: str
    pid: int
    state: str
    step: int
    worker: str
    def __init__(self, rank: _Optional[int] = ..., host: _Optional[str] = ..., pid: _Optional[int] = ..., state: _Optional[str] = ..., step: _Optional[int] = ..., worker: _Optional[str] = ...) -> None: ...

class HostStatus(_message.Message):
    __slots__ = ("host", "address", "state", "agent_pid", "group", "standing", "score", "reason", "trust", "evictions", "returns_at", "excluded", "through", "memory", "disk", "load", "cpu", "short_of")
    HOST_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    AGENT_PID_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    STANDING_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    TRUST_FIELD_NUMBER: _ClassVar[int]
    EVICTIONS_FIELD_NUMBER: _ClassVar[int]
    RETURNS_AT_FIELD_NUMBER: _ClassVar[int]
    EXCLUDED_FIELD_NUMBER: _ClassVar[int]
    THROUGH_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    DISK_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    CPU_FIELD_NUMBER: _ClassVar[int]
    SHORT_OF_FIELD_NUMBER: _ClassVar[int]
    host: str
    address: str
    state: str
    agent_pid: int
    group: str
    standing: str
    score: float
    reason: str
    trust: float
    evictions: int
    returns_at: float
    excluded: bool
    through: str
    memory: float
    disk: float
    load: float
    cpu: float
    short_of: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, host: _Optional[str] = ..., address: _Optional[str] = ..., state: _Optional[str] = ..., agent_pid: _Optional[int] = ..., group: _Optional[str] = ..., standing: _Optional[str] = ..., score: _Optional[float] = ..., reason: _Optional[str] = ..., trust: _Optional[float] = ..., evictions: _Optional[int] = ..., returns_at: _Optional[float] = ..., excluded: _Optional[bool] = ..., through: _Optional[str] = ..., memory: _Optional[float] = ..., disk: _Optional[float] = ..., load: _Optional[float] = ..., cpu: _Optional[float] = ..., short_of: _Optional[_Iterable[str]] = ...) -> None: ...

class StatusReply(_message.Message):
    __slots__ = ("job", "phase", "step", "total_steps", "generation", "ranks", "hosts", "message", "exit_code", "coordinator_pid", "discarded", "phi", "lockstep", "out_of_phase")
    JOB_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    TOTAL_STEPS_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    RANKS_FIELD_NUMBER: _ClassVar[int]
    HOSTS_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    EXIT_CODE_FIELD_NUMBER: _ClassVar[int]
    COORDINATOR_PID_FIELD_NUMBER: _ClassVar[int]
    DISCARDED_FIELD_NUMBER: _ClassVar[int]
    PHI_FIELD_NUMBER: _ClassVar[int]
    LOCKSTEP_FIELD_NUMBER: _ClassVar[int]
    OUT_OF_PHASE_FIELD_NUMBER: _ClassVar[int]
    job: str
    phase: str
    step: int
    total_steps: int
    generation: _control_pb2.Generation
    ranks: _containers.RepeatedCompositeFieldContainer[RankStatus]
    hosts: _containers.RepeatedCompositeFieldContainer[HostStatus]
    message: str
    exit_code: int
    coordinator_pid: int
    discarded: int
    phi: float
    lockstep: float
    out_of_phase: int
    def __init__(self, job: _Optional[str] = ..., phase: _Optional[str] = ..., step: _Optional[int] = ..., total_steps: _Optional[int] = ..., generation: _Optional[_Union[_control_pb2.Generation, _Mapping]] = ..., ranks: _Optional[_Iterable[_Union[RankStatus, _Mapping]]] = ..., hosts: _Optional[_Iterable[_Union[HostStatus, _Mapping]]] = ..., message: _Optional[str] = ..., exit_code: _Optional[int] = ..., coordinator_pid: _Optional[int] = ..., discarded: _Optional[int] = ..., phi: _Optional[float] = ..., lockstep: _Optional[float] = ..., out_of_phase: _Optional[int] = ...) -> None: ...

class StopRequest(_message.Message):
    __slots__ = ("reason", "now")
    REASON_FIELD_NUMBER: _ClassVar[int]
    NOW_FIELD_NUMBER: _ClassVar[int]
    reason: str
    now: bool
    def __init__(self, reason: _Optional[str] = ..., now: _Optional[bool] = ...) -> None: ...

class StopReply(_message.Message):
    __slots__ = ("accepted", "message")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    accepted: bool
    message: str
    def __init__(self, accepted: _Optional[bool] = ..., message: _Optional[str] = ...) -> None: ...

class HostRequest(_message.Message):
    __slots__ = ("host", "reason", "generation")
    HOST_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    host: str
    reason: str
    generation: _control_pb2.Generation
    def __init__(self, host: _Optional[str] = ..., reason: _Optional[str] = ..., generation: _Optional[_Union[_control_pb2.Generation, _Mapping]] = ...) -> None: ...

class ScaleRequest(_message.Message):
    __slots__ = ("hosts", "generation")
    HOSTS_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    hosts: int
    generation: _control_pb2.Generation
    def __init__(self, hosts: _Optional[int] = ..., generation: _Optional[_Union[_control_pb2.Generation, _Mapping]] = ...) -> None: ...

class CheckpointRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class OperatorReply(_message.Message):
    __slots__ = ("accepted", "message", "guard", "step")
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    GUARD_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    accepted: bool
    message: str
    guard: str
    step: int
    def __init__(self, accepted: _Optional[bool] = ..., message: _Optional[str] = ..., guard: _Optional[str] = ..., step: _Optional[int] = ...) -> None: ...

class WatchRequest(_message.Message):
    __slots__ = ("from_now",)
    FROM_NOW_FIELD_NUMBER: _ClassVar[int]
    from_now: bool
    def __init__(self, from_now: _Optional[bool] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("json",)
    JSON_FIELD_NUMBER: _ClassVar[int]
    json: str
    def __init__(self, json: _Optional[str] = ...) -> None: ...
