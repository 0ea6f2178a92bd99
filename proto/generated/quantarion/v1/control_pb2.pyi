from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Generation(_message.Message):
    __slots__ = ("incarnation", "counter")
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    COUNTER_FIELD_NUMBER: _ClassVar[int]
    incarnation: int
    counter: int
    def __init__(self, incarnation: _Optional[int] = ..., counter: _Optional[int] = ...) -> None: ...

class StateId(_message.Message):
    __slots__ = ("step", "round", "generation", "lineage")
    STEP_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    LINEAGE_FIELD_NUMBER: _ClassVar[int]
    step: int
    round: int
    generation: Generation
    lineage: int
    def __init__(self, step: _Optional[int] = ..., round: _Optional[int] = ..., generation: _Optional[_Union[Generation, _Mapping]] = ..., lineage: _Optional[int] = ...) -> None: ...

class AgentMessage(_message.Message):
    __slots__ = ("hello", "beat", "worker_up", "worker_exit", "report", "probe_port", "measured_link", "host_tested", "stacks", "draining", "gathered", "host_away", "leads", "seen", "host")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    BEAT_FIELD_NUMBER: _ClassVar[int]
    WORKER_UP_FIELD_NUMBER: _ClassVar[int]
    WORKER_EXIT_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    PROBE_PORT_FIELD_NUMBER: _ClassVar[int]
    MEASURED_LINK_FIELD_NUMBER: _ClassVar[int]
    HOST_TESTED_FIELD_NUMBER: _ClassVar[int]
    STACKS_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    GATHERED_FIELD_NUMBER: _ClassVar[int]
    HOST_AWAY_FIELD_NUMBER: _ClassVar[int]
    LEADS_FIELD_NUMBER: _ClassVar[int]
    SEEN_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    hello: HostHello
    beat: Beat
    worker_up: WorkerUp
    worker_exit: WorkerExit
    report: RankReport
    probe_port: ProbePort
    measured_link: MeasuredLink
    host_tested: HostTested
    stacks: Stacks
    draining: Draining
    gathered: Gathered
    host_away: HostAway
    leads: Leads
    seen: Seen
    host: str
    def __init__(self, hello: _Optional[_Union[HostHello, _Mapping]] = ..., beat: _Optional[_Union[Beat, _Mapping]] = ..., worker_up: _Optional[_Union[WorkerUp, _Mapping]] = ..., worker_exit: _Optional[_Union[WorkerExit, _Mapping]] = ..., report: _Optional[_Union[RankReport, _Mapping]] = ..., probe_port: _Optional[_Union[ProbePort, _Mapping]] = ..., measured_link: _Optional[_Union[MeasuredLink, _Mapping]] = ..., host_tested: _Optional[_Union[HostTested, _Mapping]] = ..., stacks: _Optional[_Union[Stacks, _Mapping]] = ..., draining: _Optional[_Union[Draining, _Mapping]] = ..., gathered: _Optional[_Union[Gathered, _Mapping]] = ..., host_away: _Optional[_Union[HostAway, _Mapping]] = ..., leads: _Optional[_Union[Leads, _Mapping]] = ..., seen: _Optional[_Union[Seen, _Mapping]] = ..., host: _Optional[str] = ...) -> None: ...

class Gathered(_message.Message):
    __slots__ = ("messages",)
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    messages: _containers.RepeatedCompositeFieldContainer[AgentMessage]
    def __init__(self, messages: _Optional[_Iterable[_Union[AgentMessage, _Mapping]]] = ...) -> None: ...

class HostAway(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Leads(_message.Message):
    __slots__ = ("term", "port")
    TERM_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    term: int
    port: int
    def __init__(self, term: _Optional[int] = ..., port: _Optional[int] = ...) -> None: ...

class Seen(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class HostHello(_message.Message):
    __slots__ = ("host", "node_id", "address", "agent_pid", "workers", "exits", "heartbeats_only", "software")
    class SoftwareEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    HOST_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    AGENT_PID_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    EXITS_FIELD_NUMBER: _ClassVar[int]
    HEARTBEATS_ONLY_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    host: str
    node_id: str
    address: str
    agent_pid: int
    workers: _containers.RepeatedCompositeFieldContainer[WorkerUp]
    exits: _containers.RepeatedCompositeFieldContainer[WorkerExit]
    heartbeats_only: bool
    software: _containers.ScalarMap[str, str]
    def __init__(self, host: _Optional[str] = ..., node_id: _Optional[str] = ..., address: _Optional[str] = ..., agent_pid: _Optional[int] = ..., workers: _Optional[_Iterable[_Union[WorkerUp, _Mapping]]] = ..., exits: _Optional[_Iterable[_Union[WorkerExit, _Mapping]]] = ..., heartbeats_only: _Optional[bool] = ..., software: _Optional[_Mapping[str, str]] = ...) -> None: ...

class Beat(_message.Message):
    __slots__ = ("time", "progress", "temperature", "memory", "disk", "load", "cpu", "links")
    TIME_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    DISK_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    CPU_FIELD_NUMBER: _ClassVar[int]
    LINKS_FIELD_NUMBER: _ClassVar[int]
    time: float
    progress: _containers.RepeatedCompositeFieldContainer[Progress]
    temperature: float
    memory: float
    disk: float
    load: float
    cpu: float
    links: _containers.RepeatedCompositeFieldContainer[LinkUse]
    def __init__(self, time: _Optional[float] = ..., progress: _Optional[_Iterable[_Union[Progress, _Mapping]]] = ..., temperature: _Optional[float] = ..., memory: _Optional[float] = ..., disk: _Optional[float] = ..., load: _Optional[float] = ..., cpu: _Optional[float] = ..., links: _Optional[_Iterable[_Union[LinkUse, _Mapping]]] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("worker", "step", "generation", "micro_batch", "exchanges", "state", "step_seconds", "busy", "work", "loss", "cosine", "norm", "compared", "polls", "collectives")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    MICRO_BATCH_FIELD_NUMBER: _ClassVar[int]
    EXCHANGES_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    STEP_SECONDS_FIELD_NUMBER: _ClassVar[int]
    BUSY_FIELD_NUMBER: _ClassVar[int]
    WORK_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    COSINE_FIELD_NUMBER: _ClassVar[int]
    NORM_FIELD_NUMBER: _ClassVar[int]
    COMPARED_FIELD_NUMBER: _ClassVar[int]
    POLLS_FIELD_NUMBER: _ClassVar[int]
    COLLECTIVES_FIELD_NUMBER: _ClassVar[int]
    worker: str
    step: int
    generation: Generation
    micro_batch: int
    exchanges: int
    state: str
    step_seconds: float
    busy: bool
    work: float
    loss: float
    cosine: float
    norm: float
    compared: float
    polls: int
    collectives: int
    def __init__(self, worker: _Optional[str] = ..., step: _Optional[int] = ..., generation: _Optional[_Union[Generation, _Mapping]] = ..., micro_batch: _Optional[int] = ..., exchanges: _Optional[int] = ..., state: _Optional[str] = ..., step_seconds: _Optional[float] = ..., busy: _Optional[bool] = ..., work: _Optional[float] = ..., loss: _Optional[float] = ..., cosine: _Optional[float] = ..., norm: _Optional[float] = ..., compared: _Optional[float] = ..., polls: _Optional[int] = ..., collectives: _Optional[int] = ...) -> None: ...

class LinkUse(_message.Message):
    __slots__ = ("address", "segments", "retransmitted", "bytes", "seconds")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    SEGMENTS_FIELD_NUMBER: _ClassVar[int]
    RETRANSMITTED_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    address: str
    segments: int
    retransmitted: int
    bytes: int
    seconds: float
    def __init__(self, address: _Optional[str] = ..., segments: _Optional[int] = ..., retransmitted: _Optional[int] = ..., bytes: _Optional[int] = ..., seconds: _Optional[float] = ...) -> None: ...

class WorkerUp(_message.Message):
    __slots__ = ("worker", "pid", "peer_address", "state", "previous", "generation", "promised", "healed", "phase", "rank", "shared_memory")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    PEER_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    PROMISED_FIELD_NUMBER: _ClassVar[int]
    HEALED_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    SHARED_MEMORY_FIELD_NUMBER: _ClassVar[int]
    worker: str
    pid: int
    peer_address: str
    state: StateId
    previous: StateId
    generation: Generation
    promised: Generation
    healed: bool
    phase: str
    rank: int
    shared_memory: bool
    def __init__(self, worker: _Optional[str] = ..., pid: _Optional[int] = ..., peer_address: _Optional[str] = ..., state: _Optional[_Union[StateId, _Mapping]] = ..., previous: _Optional[_Union[StateId, _Mapping]] = ..., generation: _Optional[_Union[Generation, _Mapping]] = ..., promised: _Optional[_Union[Generation, _Mapping]] = ..., healed: _Optional[bool] = ..., phase: _Optional[str] = ..., rank: _Optional[int] = ..., shared_memory: _Optional[bool] = ...) -> None: ...

class WorkerExit(_message.Message):
    __slots__ = ("worker", "pid", "status", "unknown", "time")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    worker: str
    pid: int
    status: int
    unknown: bool
    time: float
    def __init__(self, worker: _Optional[str] = ..., pid: _Optional[int] = ..., status: _Optional[int] = ..., unknown: _Optional[bool] = ..., time: _Optional[float] = ...) -> None: ...

class RankReport(_message.Message):
    __slots__ = ("worker", "prepared", "ready", "running", "exchange_failed", "published", "finished", "failed", "note", "digest", "wrong_sums")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    PREPARED_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    EXCHANGE_FAILED_FIELD_NUMBER: _ClassVar[int]
    PUBLISHED_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    WRONG_SUMS_FIELD_NUMBER: _ClassVar[int]
    worker: str
    prepared: Prepared
    ready: Ready
    running: Running
    exchange_failed: ExchangeFailed
    published: Published
    finished: Finished
    failed: Failed
    note: Note
    digest: StateDigest
    wrong_sums: WrongSums
    def __init__(self, worker: _Optional[str] = ..., prepared: _Optional[_Union[Prepared, _Mapping]] = ..., ready: _Optional[_Union[Ready, _Mapping]] = ..., running: _Optional[_Union[Running, _Mapping]] = ..., exchange_failed: _Optional[_Union[ExchangeFailed, _Mapping]] = ..., published: _Optional[_Union[Published, _Mapping]] = ..., finished: _Optional[_Union[Finished, _Mapping]] = ..., failed: _Optional[_Union[Failed, _Mapping]] = ..., note: _Optional[_Union[Note, _Mapping]] = ..., digest: _Optional[_Union[StateDigest, _Mapping]] = ..., wrong_sums: _Optional[_Union[WrongSums, _Mapping]] = ...) -> None: ...

class WrongSums(_message.Message):
    __slots__ = ("generation", "step", "right", "owners")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    RIGHT_FIELD_NUMBER: _ClassVar[int]
    OWNERS_FIELD_NUMBER: _ClassVar[int]
    generation: Generation
    step: int
    right: int
    owners: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, generation: _Optional[_Union[Generation, _Mapping]] = ..., step: _Optional[int] = ..., right: _Optional[int] = ..., owners: _Optional[_Iterable[int]] = ...) -> None: ...

class StateDigest(_message.Message):
    __slots__ = ("state", "digest")
    STATE_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    state: StateId
    digest: bytes
    def __init__(self, state: _Optional[_Union[StateId, _Mapping]] = ..., digest: _Optional[bytes] = ...) -> None: ...

class Prepared(_message.Message):
    __slots__ = ("generation", "state", "previous", "healed", "configured")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_FIELD_NUMBER: _ClassVar[int]
    HEALED_FIELD_NUMBER: _ClassVar[int]
    CONFIGURED_FIELD_NUMBER: _ClassVar[int]
    generation: Generation
    state: StateId
    previous: StateId
    healed: bool
    configured: Generation
    def __init__(self, generation: _Optional[_Union[Generation, _Mapping]] = ..., state: _Optional[_Union[StateId, _Mapping]] = ..., previous: _Optional[_Union[StateId, _Mapping]] = ..., healed: _Optional[bool] = ..., configured: _Optional[_Union[Generation, _Mapping]] = ...) -> None: ...

class Ready(_message.Message):
    __slots__ = ("state",)
    STATE_FIELD_NUMBER: _ClassVar[int]
    state: StateId
    def __init__(self, state: _Optional[_Union[StateId, _Mapping]] = ...) -> None: ...

class Running(_message.Message):
    __slots__ = ("generation", "state", "how", "seconds", "rank")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    HOW_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    generation: Generation
    state: StateId
    how: str
    seconds: float
    rank: int
    def __init__(self, generation: _Optional[_Union[Generation, _Mapping]] = ..., state: _Optional[_Union[StateId, _Mapping]] = ..., how: _Optional[str] = ..., seconds: _Optional[float] = ..., rank: _Optional[int] = ...) -> None: ...

class ExchangeFailed(_message.Message):
    __slots__ = ("generation", "error")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    generation: Generation
    error: str
    def __init__(self, generation: _Optional[_Union[Generation, _Mapping]] = ..., error: _Optional[str] = ...) -> None: ...

class Published(_message.Message):
    __slots__ = ("path", "tier", "step", "bytes", "raw_bytes", "seconds")
    PATH_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    RAW_BYTES_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    path: str
    tier: str
    step: int
    bytes: int
    raw_bytes: int
    seconds: float
    def __init__(self, path: _Optional[str] = ..., tier: _Optional[str] = ..., step: _Optional[int] = ..., bytes: _Optional[int] = ..., raw_bytes: _Optional[int] = ..., seconds: _Optional[float] = ...) -> None: ...

class Finished(_message.Message):
    __slots__ = ("state",)
    STATE_FIELD_NUMBER: _ClassVar[int]
    state: StateId
    def __init__(self, state: _Optional[_Union[StateId, _Mapping]] = ...) -> None: ...

class Failed(_message.Message):
    __slots__ = ("error", "traceback", "exit_code", "step", "device_lost")
    ERROR_FIELD_NUMBER: _ClassVar[int]
    TRACEBACK_FIELD_NUMBER: _ClassVar[int]
    EXIT_CODE_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    DEVICE_LOST_FIELD_NUMBER: _ClassVar[int]
    error: str
    traceback: str
    exit_code: int
    step: int
    device_lost: bool
    def __init__(self, error: _Optional[str] = ..., traceback: _Optional[str] = ..., exit_code: _Optional[int] = ..., step: _Optional[int] = ..., device_lost: _Optional[bool] = ...) -> None: ...

class Note(_message.Message):
    __slots__ = ("kind", "json")
    KIND_FIELD_NUMBER: _ClassVar[int]
    JSON_FIELD_NUMBER: _ClassVar[int]
    kind: str
    json: str
    def __init__(self, kind: _Optional[str] = ..., json: _Optional[str] = ...) -> None: ...

class ProbePort(_message.Message):
    __slots__ = ("port", "error")
    PORT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    port: int
    error: str
    def __init__(self, port: _Optional[int] = ..., error: _Optional[str] = ...) -> None: ...

class MeasuredLink(_message.Message):
    __slots__ = ("peer", "round_trip", "sent", "received", "error")
    PEER_FIELD_NUMBER: _ClassVar[int]
    ROUND_TRIP_FIELD_NUMBER: _ClassVar[int]
    SENT_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    peer: str
    round_trip: float
    sent: float
    received: float
    error: str
    def __init__(self, peer: _Optional[str] = ..., round_trip: _Optional[float] = ..., sent: _Optional[float] = ..., received: _Optional[float] = ..., error: _Optional[str] = ...) -> None: ...

class HostTested(_message.Message):
    __slots__ = ("failures", "seconds", "error")
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    failures: _containers.RepeatedScalarFieldContainer[str]
    seconds: float
    error: str
    def __init__(self, failures: _Optional[_Iterable[str]] = ..., seconds: _Optional[float] = ..., error: _Optional[str] = ...) -> None: ...

class Stacks(_message.Message):
    __slots__ = ("stacks",)
    STACKS_FIELD_NUMBER: _ClassVar[int]
    stacks: _containers.RepeatedCompositeFieldContainer[Stack]
    def __init__(self, stacks: _Optional[_Iterable[_Union[Stack, _Mapping]]] = ...) -> None: ...

class Stack(_message.Message):
    __slots__ = ("worker", "frames")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    FRAMES_FIELD_NUMBER: _ClassVar[int]
    worker: str
    frames: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, worker: _Optional[str] = ..., frames: _Optional[_Iterable[str]] = ...) -> None: ...

class Draining(_message.Message):
    __slots__ = ("reason", "age", "deadline")
    REASON_FIELD_NUMBER: _ClassVar[int]
    AGE_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_FIELD_NUMBER: _ClassVar[int]
    reason: str
    age: float
    deadline: float
    def __init__(self, reason: _Optional[str] = ..., age: _Optional[float] = ..., deadline: _Optional[float] = ...) -> None: ...

class CoordinatorMessage(_message.Message):
    __slots__ = ("welcome", "directive", "kill", "probe_open", "probe_link", "probe_close", "host_test", "ask_stacks", "lead", "follow", "refused", "host")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    DIRECTIVE_FIELD_NUMBER: _ClassVar[int]
    KILL_FIELD_NUMBER: _ClassVar[int]
    PROBE_OPEN_FIELD_NUMBER: _ClassVar[int]
    PROBE_LINK_FIELD_NUMBER: _ClassVar[int]
    PROBE_CLOSE_FIELD_NUMBER: _ClassVar[int]
    HOST_TEST_FIELD_NUMBER: _ClassVar[int]
    ASK_STACKS_FIELD_NUMBER: _ClassVar[int]
    LEAD_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    directive: Directive
    kill: Kill
    probe_open: ProbeOpen
    probe_link: ProbeLink
    probe_close: ProbeClose
    host_test: HostTest
    ask_stacks: AskStacks
    lead: Lead
    follow: Follow
    refused: Refused
    host: str
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., directive: _Optional[_Union[Directive, _Mapping]] = ..., kill: _Optional[_Union[Kill, _Mapping]] = ..., probe_open: _Optional[_Union[ProbeOpen, _Mapping]] = ..., probe_link: _Optional[_Union[ProbeLink, _Mapping]] = ..., probe_close: _Optional[_Union[ProbeClose, _Mapping]] = ..., host_test: _Optional[_Union[HostTest, _Mapping]] = ..., ask_stacks: _Optional[_Union[AskStacks, _Mapping]] = ..., lead: _Optional[_Union[Lead, _Mapping]] = ..., follow: _Optional[_Union[Follow, _Mapping]] = ..., refused: _Optional[_Union[Refused, _Mapping]] = ..., host: _Optional[str] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("incarnation",)
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    incarnation: int
    def __init__(self, incarnation: _Optional[int] = ...) -> None: ...

class Lead(_message.Message):
    __slots__ = ("term", "hosts", "observed", "job")
    TERM_FIELD_NUMBER: _ClassVar[int]
    HOSTS_FIELD_NUMBER: _ClassVar[int]
    OBSERVED_FIELD_NUMBER: _ClassVar[int]
    JOB_FIELD_NUMBER: _ClassVar[int]
    term: int
    hosts: _containers.RepeatedScalarFieldContainer[str]
    observed: _containers.RepeatedScalarFieldContainer[str]
    job: str
    def __init__(self, term: _Optional[int] = ..., hosts: _Optional[_Iterable[str]] = ..., observed: _Optional[_Iterable[str]] = ..., job: _Optional[str] = ...) -> None: ...

class Follow(_message.Message):
    __slots__ = ("term", "leader", "observer")
    TERM_FIELD_NUMBER: _ClassVar[int]
    LEADER_FIELD_NUMBER: _ClassVar[int]
    OBSERVER_FIELD_NUMBER: _ClassVar[int]
    term: int
    leader: Way
    observer: Way
    def __init__(self, term: _Optional[int] = ..., leader: _Optional[_Union[Way, _Mapping]] = ..., observer: _Optional[_Union[Way, _Mapping]] = ...) -> None: ...

class Way(_message.Message):
    __slots__ = ("address", "server_name")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    SERVER_NAME_FIELD_NUMBER: _ClassVar[int]
    address: str
    server_name: str
    def __init__(self, address: _Optional[str] = ..., server_name: _Optional[str] = ...) -> None: ...

class Refused(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class Kill(_message.Message):
    __slots__ = ("worker", "reason")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    worker: str
    reason: str
    def __init__(self, worker: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class Directive(_message.Message):
    __slots__ = ("workers", "prepare", "configure", "join", "exit", "save", "relieve")
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    PREPARE_FIELD_NUMBER: _ClassVar[int]
    CONFIGURE_FIELD_NUMBER: _ClassVar[int]
    JOIN_FIELD_NUMBER: _ClassVar[int]
    EXIT_FIELD_NUMBER: _ClassVar[int]
    SAVE_FIELD_NUMBER: _ClassVar[int]
    RELIEVE_FIELD_NUMBER: _ClassVar[int]
    workers: _containers.RepeatedScalarFieldContainer[str]
    prepare: Prepare
    configure: bytes
    join: Join
    exit: Exit
    save: Save
    relieve: Relieve
    def __init__(self, workers: _Optional[_Iterable[str]] = ..., prepare: _Optional[_Union[Prepare, _Mapping]] = ..., configure: _Optional[bytes] = ..., join: _Optional[_Union[Join, _Mapping]] = ..., exit: _Optional[_Union[Exit, _Mapping]] = ..., save: _Optional[_Union[Save, _Mapping]] = ..., relieve: _Optional[_Union[Relieve, _Mapping]] = ...) -> None: ...

class Prepare(_message.Message):
    __slots__ = ("generation", "at_step", "timeout", "busy_timeout")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    AT_STEP_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    BUSY_TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    generation: Generation
    at_step: int
    timeout: float
    busy_timeout: float
    def __init__(self, generation: _Optional[_Union[Generation, _Mapping]] = ..., at_step: _Optional[int] = ..., timeout: _Optional[float] = ..., busy_timeout: _Optional[float] = ...) -> None: ...

class Member(_message.Message):
    __slots__ = ("worker", "rank", "host", "peer_address", "state", "donor", "on_line", "shared_memory", "group", "light")
    WORKER_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    PEER_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    DONOR_FIELD_NUMBER: _ClassVar[int]
    ON_LINE_FIELD_NUMBER: _ClassVar[int]
    SHARED_MEMORY_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    LIGHT_FIELD_NUMBER: _ClassVar[int]
    worker: str
    rank: int
    host: str
    peer_address: str
    state: StateId
    donor: bool
    on_line: bool
    shared_memory: bool
    group: str
    light: bool
    def __init__(self, worker: _Optional[str] = ..., rank: _Optional[int] = ..., host: _Optional[str] = ..., peer_address: _Optional[str] = ..., state: _Optional[_Union[StateId, _Mapping]] = ..., donor: _Optional[bool] = ..., on_line: _Optional[bool] = ..., shared_memory: _Optional[bool] = ..., group: _Optional[str] = ..., light: _Optional[bool] = ...) -> None: ...

class Configure(_message.Message):
    __slots__ = ("generation", "members", "store_address", "authority", "attempt", "first", "stop", "at_most")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    STORE_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    AUTHORITY_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    AT_MOST_FIELD_NUMBER: _ClassVar[int]
    generation: Generation
    members: _containers.RepeatedCompositeFieldContainer[Member]
    store_address: str
    authority: StateId
    attempt: int
    first: bool
    stop: bool
    at_most: int
    def __init__(self, generation: _Optional[_Union[Generation, _Mapping]] = ..., members: _Optional[_Iterable[_Union[Member, _Mapping]]] = ..., store_address: _Optional[str] = ..., authority: _Optional[_Union[StateId, _Mapping]] = ..., attempt: _Optional[int] = ..., first: _Optional[bool] = ..., stop: _Optional[bool] = ..., at_most: _Optional[int] = ...) -> None: ...

class Join(_message.Message):
    __slots__ = ("donors",)
    DONORS_FIELD_NUMBER: _ClassVar[int]
    donors: _containers.RepeatedCompositeFieldContainer[Member]
    def __init__(self, donors: _Optional[_Iterable[_Union[Member, _Mapping]]] = ...) -> None: ...

class Exit(_message.Message):
    __slots__ = ("reason", "heirs", "authority")
    REASON_FIELD_NUMBER: _ClassVar[int]
    HEIRS_FIELD_NUMBER: _ClassVar[int]
    AUTHORITY_FIELD_NUMBER: _ClassVar[int]
    reason: str
    heirs: _containers.RepeatedScalarFieldContainer[str]
    authority: StateId
    def __init__(self, reason: _Optional[str] = ..., heirs: _Optional[_Iterable[str]] = ..., authority: _Optional[_Union[StateId, _Mapping]] = ...) -> None: ...

class Save(_message.Message):
    __slots__ = ("step", "held")
    STEP_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    step: int
    held: bool
    def __init__(self, step: _Optional[int] = ..., held: _Optional[bool] = ...) -> None: ...

class Relieve(_message.Message):
    __slots__ = ("seconds", "above")
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    ABOVE_FIELD_NUMBER: _ClassVar[int]
    seconds: float
    above: float
    def __init__(self, seconds: _Optional[float] = ..., above: _Optional[float] = ...) -> None: ...

class ProbeOpen(_message.Message):
    __slots__ = ("token", "seconds")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    token: bytes
    seconds: float
    def __init__(self, token: _Optional[bytes] = ..., seconds: _Optional[float] = ...) -> None: ...

class ProbeLink(_message.Message):
    __slots__ = ("peer", "address", "seconds", "limit")
    PEER_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    peer: str
    address: str
    seconds: float
    limit: float
    def __init__(self, peer: _Optional[str] = ..., address: _Optional[str] = ..., seconds: _Optional[float] = ..., limit: _Optional[float] = ...) -> None: ...

class ProbeClose(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class AskStacks(_message.Message):
    __slots__ = ("workers",)
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    workers: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, workers: _Optional[_Iterable[str]] = ...) -> None: ...

class HostTest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
