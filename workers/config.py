"""The part of the JobSpec that the training itself reads; the control plane adds hosts and limits to it.

Every default stands beside its field and its description; `quantarion schema` and docs/jobspec.md are made from them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from workers import faults
from workers.compression.config import CompressionConfig
from workers.outer.config import SyncConfig
from workers.qat.config import PhasesConfig, QatConfig
from workers.settings import Config, Count, LocalPath, Name, unit
from workers.tasks.config import TaskConfig


def _known_fault(text: str) -> str:
    faults.parse(text)
    return text


FaultText = Annotated[str, AfterValidator(_known_fault)]


class OptimizerConfig(Config):
    """Optimizer of a recipe, in the FP32 warm-up and with `qat.lr` after it; a script brings its own."""

    name: Literal["sgd", "adam", "adamw"] = Field("adamw", description="Which optimizer.")
    lr: float = Field(0.001, gt=0, description="Learning rate after the warm-up steps; sgd: 0.05 unless written.")
    momentum: float = Field(0.0, ge=0, lt=1, description="Momentum of sgd, 0.9 unless written; adam and adamw have none.")
    weight_decay: float = Field(0.0, ge=0, description="L2 penalty (sgd, adam) or decoupled decay (adamw).")

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_sgd(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("name") == "sgd":
            return {"lr": 0.05, "momentum": 0.9, **values}
        return values

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.name != "sgd" and self.momentum != 0:
            raise ValueError(
                f"optimizer.momentum is {self.momentum}, but optimizer.name is {self.name}, which has none; "
                "remove optimizer.momentum or write optimizer.name: sgd"
            )
        return self


class ScheduleConfig(Config):
    """How a recipe's learning rate moves during the FP32 warm-up."""

    name: Literal["constant", "cosine"] = Field(
        "cosine",
        description="`constant` keeps `optimizer.lr`; `cosine` falls from it to 0 at the last step of the warm-up.",
    )
    warmup_steps: int = Field(
        0, ge=0, description="Steps over which the rate first rises linearly from 0.", json_schema_extra=unit("steps")
    )


def _store(url: str) -> str:
    scheme, _, place = url.partition("://")
    if not place.strip("/") or scheme in ("file", "local", "memory"):
        raise ValueError(f"{url!r} is no object store that outlives its hosts; write a URL such as s3://my-bucket/runs")
    return url


def _keys(options: dict[str, Any]) -> Iterator[str]:
    """Of all levels."""
    for key, value in options.items():
        yield key
        if isinstance(value, dict):
            yield from _keys(value)


def _without_secrets(options: dict[str, Any]) -> dict[str, Any]:
    words = ("key", "secret", "token", "password", "credential", "connection_string")
    if found := [key for key in _keys(options) if any(word in key.lower() for word in words)]:
        raise ValueError(
            f"{found[0]!r} would be kept in the job's folder for all to read; leave it out, and let the store's driver "
            "find credentials in the environment of each host"
        )
    return options


class CheckpointConfig(Config):
    """When the state is saved, in how many bytes, and how many savings stay."""

    every: int = Field(
        100,
        ge=0,
        description="Committed steps from one checkpoint to the next; 0 saves only at the end and when stopped.",
        json_schema_extra=unit("steps"),
    )
    tier: Literal["exact", "qins"] = Field(
        "exact",
        description="`exact`: a resume goes on bit for bit. `qins`: a quarter of the bytes, weights and moments rounded, "
        "except for every `exact_every`-th checkpoint. At the end, when stopped and where a phase of a recipe begins it is "
        "always `exact`.",
    )
    exact_every: Count = Field(
        8,
        description="With tier `qins`: checkpoints from one exact one to the next; 1 makes all of them exact.",
        json_schema_extra=unit("checkpoints"),
    )
    whole_every: int = Field(
        8,
        ge=1,
        le=8,
        description="With tier `qins`: checkpoints of that tier from one that is whole to the next; those between hold the "
        "difference to the one before, and are lost with it. 1 makes all of them whole.",
        json_schema_extra=unit("checkpoints"),
    )
    weights: Literal["int8", "v1", "log7", "log8"] = Field(
        "int8",
        description="With tier `qins`, the codec of the weights: `int8` in blocks of 128; logarithmic codes of 7 or 8 bits "
        "in such blocks, `log7` and `log8`, which need no range for the tensor and keep NaN; or the logarithmic code `v1`.",
    )
    share_bytes: Count = Field(
        64 << 20,
        description="Large states are written by several ranks while they train: by as many as there are shares of this "
        "size in one. A smaller one is written by one rank, and so is the last one of a job.",
        json_schema_extra=unit("bytes"),
    )
    keep: Count = Field(
        3,
        description="How many of the newest checkpoints stay on disk; the newest exact one stays beside them.",
        json_schema_extra=unit("checkpoints"),
    )
    keep_every: int = Field(
        0,
        ge=0,
        description="Beside them those of a step that is a multiple of this stay for ever; 0: none.",
        json_schema_extra=unit("steps"),
    )
    keep_best: Literal["accuracy", "loss"] | None = Field(
        None, description="Beside them the one whose evaluation had the highest accuracy, or the lowest loss, stays."
    )
    at_end: bool = Field(True, description="Save when the last step is committed.")
    store: Annotated[str, AfterValidator(_store)] | None = Field(
        None,
        description="An object store that the checkpoints go to instead of the job's folder, by its URL; each run gets a "
        "folder `<job>/run-…` there. All hosts have to reach it, and whoever starts the job.",
        examples=["s3://my-bucket/runs"],
        json_schema_extra={"expectation": "a URL such as s3://my-bucket/runs"},
    )
    store_options: Annotated[dict[str, Any], AfterValidator(_without_secrets)] = Field(
        default={},
        description="For the driver of that store, fsspec's `storage_options`. No credentials: it is kept in the job's "
        "folder.",
        examples=[{"endpoint_url": "https://store.example"}],
    )

    def due(self, step: int) -> Literal["exact", "qins"] | None:
        """The tier in which the state after `step` committed steps is saved beside training; None: it is not."""
        if not self.every or step % self.every:
            return None
        return "exact" if (step // self.every) % self.exact_every == 0 else self.tier


class TrainingConfig(Config):
    """Everything a rank needs to know to train, whatever hosts it runs on."""

    name: Name = Field(
        description="Name of the job and of its folder.",
        examples=["my-job"],
        json_schema_extra={"expectation": "a text of at most 63 lower-case letters, digits and '-', not '-' first"},
    )
    storage: LocalPath = Field(
        Path("runs"),
        description="Folder that holds a folder per job. On a cluster: an absolute path that every host sees.",
    )
    seed: int = Field(0, ge=0, lt=2**63, description="Decides initial weights, order of samples, dropout and augmentation.")
    global_batch: Count = Field(
        128,
        description="Samples of one optimizer step over all ranks; stays the same however many ranks there are.",
        json_schema_extra=unit("samples"),
    )
    micro_batch: Count = Field(
        64,
        description="Samples that a rank runs at once; a larger share is accumulated, so it bounds the memory.",
        json_schema_extra=unit("samples"),
    )
    reproducible: bool = Field(
        False,
        description="The same bits on any number of ranks, whoever fails meanwhile: ranks share out whole micro-batches, "
        "and sums have one order.",
    )
    threads_per_rank: Count = Field(1, description="CPU threads of one rank.", json_schema_extra=unit("threads"))
    task: TaskConfig = Field(default_factory=TaskConfig, description="What is trained.")
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig, description="Optimizer of a recipe.")
    schedule: ScheduleConfig = Field(default_factory=ScheduleConfig, description="Learning rate over the steps.")
    phases: PhasesConfig = Field(default_factory=PhasesConfig, description="How long the job trains.")
    qat: QatConfig = Field(default_factory=QatConfig, description="Quantization-aware training of a recipe.")
    clip_norm: float | None = Field(
        None,
        gt=0,
        description="Largest L2 norm of the reduced gradient; null does not clip.",
        examples=[1.0],
    )
    evaluate_every: int = Field(
        1,
        ge=0,
        description="Epochs from one evaluation to the next; 0 evaluates only at the end.",
        json_schema_extra=unit("epochs"),
    )
    compression: CompressionConfig = Field(
        default_factory=CompressionConfig, description="How gradients travel between hosts."
    )
    sync: SyncConfig = Field(default_factory=SyncConfig, description="How often ranks merge what they have learned.")
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig, description="When the state is saved.")
    record_samples: bool = Field(
        True, description="Write the id of every sample read to `samples/`, for `quantarion audit`."
    )
    tensorboard: bool = Field(False, description="Write TensorBoard files; needs the extra `tensorboard`.")
    faults: list[FaultText] = Field(
        default=[],
        description="For tests of the recovery only: faults injected by name, `point[@rank=R,step=S]=action[:value]`; the "
        "points and actions stand in `workers/faults.py`.",
        examples=[["in_apply@rank=1,step=5=kill"]],
    )

    @model_validator(mode="after")
    def _check_batches(self) -> Self:
        if self.micro_batch > self.global_batch:
            raise ValueError(
                f"micro_batch is {self.micro_batch}, more than global_batch, which is {self.global_batch}; "
                f"write micro_batch: {self.global_batch} or less"
            )
        return self

    @model_validator(mode="after")
    def _check_compression(self) -> Self:
        if self.reproducible and self.compression.compresses:
            raise ValueError(
                "reproducible is true, but compression depends on how many ranks there are; write reproducible: false, "
                "or compression.policy: fixed and compression.codec: none"
            )
        return self

    @model_validator(mode="after")
    def _check_sync(self) -> Self:
        if not self.sync.merges:
            return self
        alone, compression = f"sync.every is {self.sync.every}", self.compression
        if self.reproducible:
            raise ValueError(
                f"{alone}, but ranks that train alone learn something else when there are more of them; "
                "write reproducible: false, or sync.every: 1"
            )
        if compression.compresses:
            key, value = ("codec", "none") if compression.policy == "fixed" else ("policy", "fixed")
            raise ValueError(
                f"{alone}, so that no gradients travel, but compression.{key} is {getattr(compression, key)}; write "
                f"compression.{key}: {value}, and sync.codec for parameter differences"
            )
        if compression.follow_learning_rate:
            raise ValueError(
                f"{alone}, and what travels then does not follow the learning rate; "
                "write compression.follow_learning_rate: false"
            )
        if compression.momentum:
            raise ValueError(
                f"{alone}, and sync.outer_momentum is the momentum of what travels then, but compression.momentum is "
                f"{compression.momentum}; write compression.momentum: 0"
            )
        return self

    @property
    def wire(self) -> CompressionConfig:
        """How that travels which is merged in a step: gradients, or parameter differences as `sync.codec` has it."""
        return self.compression.model_copy(update={"codec": self.sync.codec}) if self.sync.merges else self.compression

    @property
    def epochs(self) -> int:
        """Epochs of all phases together."""
        return self.phases.epochs

    @property
    def folder(self) -> Path:
        """The job's folder, `<storage>/<name>`; relative if `storage` is."""
        return self.storage / self.name

    @classmethod
    def from_job_json(cls, values: Mapping[str, Any]) -> Self:
        """The configuration in a resolved JobSpec (`job.json`); keys that this model has not are left out.

        Raises pydantic.ValidationError where the file was not written by `launch`.
        """
        return cls.model_validate({key: values[key] for key in cls.model_fields if key in values})
