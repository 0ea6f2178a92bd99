"""The JobSpec: one YAML file, validated, assembled from the configuration models of its owners."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from orchestrator import jobfile
from orchestrator.errors import UserError
from orchestrator.governor.config import GovernorConfig
from orchestrator.refusals import refusal
from orchestrator.schema import fields
from orchestrator.security import SecurityConfig
from orchestrator.spares import spares_for
from orchestrator.topology import TopologyConfig
from workers.config import TrainingConfig
from workers.settings import Config, Count, unit

Seconds = Annotated[float, Field(ge=0)]


def _off_is_a_word(value: Any) -> Any:
    """YAML takes a bare `off` for false."""
    return "off" if value is False else value


Asked = Annotated[Literal["off", "advise", "require"] | None, BeforeValidator(_off_is_a_word)]
"""Of a pass of the pre-flight gate."""


class HostsConfig(Config):
    """On how many hosts the job runs, and how long it waits for them."""

    min: Count = Field(1, description="With fewer than these nothing is trained.", json_schema_extra=unit("hosts"))
    max: Count = Field(1, description="More than these never train.", json_schema_extra=unit("hosts"))
    spares: Annotated[int, Field(ge=0)] | Literal["auto"] = Field(
        0,
        description="Hosts beside `max` that are kept ready, and take the place of one that is lost within seconds; "
        "`auto`: as many as are enough in 99 of 100 cases, where a host fails once in 1000 hours and is replaced in 2.",
        json_schema_extra=unit("hosts"),
    )
    wait: Seconds = Field(
        300.0, description="Wait for `min` hosts at the start; then exit code 7.", json_schema_extra=unit("seconds")
    )
    replace_wait: Seconds = Field(
        600.0,
        description="Wait for others when fewer than `min` hosts are left of a running job, whose state is saved; then "
        "exit code 75: start it again, with `--resume`.",
        json_schema_extra=unit("seconds"),
    )
    autoscale: bool = Field(
        False,
        description="Ask Ray's autoscaler for the nodes that the job lacks. It knows one such request of a whole cluster.",
    )
    group: int = Field(
        64,
        ge=2,
        description="Of more hosts, groups of so many at most have a leader each, whose agent hears their heartbeats too.",
        json_schema_extra=unit("hosts"),
    )
    streams: Count = Field(
        1000,
        description="From so many hosts on, where they have leaders, they reach the coordinator through these.",
        json_schema_extra=unit("hosts"),
    )
    only: list[str] = Field(
        default=[],
        description="Only these become hosts of the job, by address, Ray node id or node name; empty: all that have room.",
        examples=[["10.0.0.1", "10.0.0.2"]],
    )

    @property
    def num_spares(self) -> int:
        """Of `max` hosts; those who scale the job do not change it."""
        return spares_for(self.max) if self.spares == "auto" else self.spares

    @property
    def most(self) -> int:
        """That the job ever holds."""
        return self.max + self.num_spares

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.min > self.max:
            raise ValueError(
                f"hosts.min is {self.min}, more than hosts.max, which is {self.max}; "
                f"write hosts.min: {self.max} or less, or hosts.max: {self.min} or more"
            )
        return self


class LimitsConfig(Config):
    """When the coordinator gives up a host."""

    agent_grace: Seconds = Field(
        20.0,
        description="For a lost agent to come back while the collectives of its host still progress.",
        json_schema_extra=unit("seconds"),
    )
    exits_allowed: int = Field(
        5,
        ge=0,
        description="Exits of ranks of one host within `exits_window`, those of one second counted once; one more is "
        "evidence against the host.",
        json_schema_extra=unit("exits"),
    )
    exits_window: Seconds = Field(600.0, description="How far back exits are counted.", json_schema_extra=unit("seconds"))


class JobSpec(TrainingConfig):
    """A job: what is trained, on how many hosts, and when a host is given up."""

    hosts: HostsConfig = Field(default_factory=HostsConfig, description="On how many hosts the job runs.")
    ranks_per_host: Count = Field(2, description="Training processes of a host.", json_schema_extra=unit("ranks"))
    spares_per_host: int = Field(
        1,
        ge=0,
        description="Idle processes of a host that have loaded everything and replace a dead rank within seconds.",
        json_schema_extra=unit("processes"),
    )
    limits: LimitsConfig = Field(default_factory=LimitsConfig, description="When the coordinator gives up a host.")
    governor: GovernorConfig = Field(
        default_factory=GovernorConfig,
        description="Which hosts take part: how they are compared, and when one is suspected, removed and taken back.",
    )
    topology: TopologyConfig = Field(
        default_factory=TopologyConfig,
        description="Which hosts have fast links between them, the groups of hosts. A host's group is that of `groups`, "
        "else that of a label, else what the probe has found; hosts without one are a group together. The ring of ranks "
        "goes through the hosts of a group one after the other, and through the groups in the order of their names.",
    )
    security: SecurityConfig = Field(
        default_factory=SecurityConfig, description="Who may talk to the coordinator (docs/security.md)."
    )
    preflight: Asked = Field(
        None,
        description="Whether the job asks for a pass of `quantarion preflight`: `require` does not start without one (exit "
        "code 93), `advise` says so and goes on. null: `off` where Ray starts in here, `advise` on a cluster.",
        examples=["require"],
    )

    @model_validator(mode="after")
    def _check_ranks(self) -> Self:
        ranks = self.hosts.max * self.ranks_per_host
        if self.global_batch < ranks:
            raise ValueError(
                f"global_batch is {self.global_batch}, less than a sample for each of the {ranks} ranks "
                f"(hosts.max {self.hosts.max} times ranks_per_host {self.ranks_per_host}); "
                f"write global_batch: {ranks} or more"
            )
        pieces = -(-self.global_batch // self.micro_batch)
        if self.reproducible and pieces < ranks:
            raise ValueError(
                f"reproducible shares out whole micro-batches, of which global_batch {self.global_batch} has {pieces}, for "
                f"{ranks} ranks (hosts.max {self.hosts.max} times ranks_per_host {self.ranks_per_host}); "
                f"write micro_batch: {self.global_batch // ranks} or less"
            )
        return self

    @model_validator(mode="after")
    def _check_stages(self) -> Self:
        last = self.phases.qat_epochs - 1
        for key in ("activations_from", "state_from"):
            first = getattr(self.qat, key)
            if first is not None and first > last >= 0:
                raise ValueError(
                    f"qat.{key} is {first}, but the {last + 1} QAT epochs are counted from 0 to {last}; "
                    f"write qat.{key}: {last} or less"
                )
        return self


def load(path: Path, sets: list[str]) -> JobSpec:
    """The JobSpec in a YAML file, or the default one for a Python script, with `--set` changes on top, in order.

    Raises UserError (exit code 2) with one sentence: the key, the value, and what to write instead.
    """
    values = _for_script(path) if path.suffix == ".py" else jobfile.read(path)
    set_keys = {jobfile.assign(values, setting): setting for setting in sets}
    try:
        spec = JobSpec.model_validate(values)
    except ValidationError as error:
        key, reason = refusal(error, fields(json_schema()))
        setting = next((set_keys[each] for each in set_keys if _related(key, each)), None)
        raise UserError(f"{f'--set {setting}' if setting else path}: {reason}") from None
    script = spec.task.script
    if script is not None and not script.is_file():
        raise UserError(
            f"{path}: task.script is '{script}', which is no file; write the path of a script, from this folder"
        )
    return spec


def json_schema() -> dict[str, Any]:
    """The JSON schema of a JobSpec file."""
    return JobSpec.model_json_schema()


def _related(key: str, other: str) -> bool:
    """Is one of the keys the other, or a group that holds it."""
    return f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")


def _for_script(path: Path) -> jobfile.Values:
    """The keys for a script without a JobSpec: named after its file."""
    name = re.sub(r"[^a-z0-9]+", "-", path.stem.lower()).strip("-")[:63]
    return {"name": name or "job", "task": {"script": str(path)}}
