"""`quantarion explain …`: why a job does what it does, from its folder; it may be running or not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.errors import DEFAULT_STORAGE
from orchestrator.records import Record, read_events, read_object, surviving_decisions

if TYPE_CHECKING:
    from workers.config import TrainingConfig

app = typer.Typer(name="explain", help="Say why a job does what it does.", no_args_is_help=True)


@app.command()
def compression(
    job: Annotated[str, typer.Argument(metavar="JOB", help="Name of the job.")],
    storage: Annotated[Path, typer.Option(help="Folder that holds a folder per job.")] = DEFAULT_STORAGE,
) -> None:
    """Print how the gradients of a job are compressed: each decision, what was measured for it, and the present plan."""
    from orchestrator import status

    folder = status.find(job, storage)
    print(explanation(read_object(folder / "job.json"), read_events(folder)))


@app.command()
def topology(
    job: Annotated[str, typer.Argument(metavar="JOB", help="Name of the job.")],
    storage: Annotated[Path, typer.Option(help="Folder that holds a folder per job.")] = DEFAULT_STORAGE,
) -> None:
    """Print the groups of a job's hosts, and how fast the links between them are, where that was measured."""
    from orchestrator import explain_topology, status

    print(explain_topology.explain(job, read_events(status.find(job, storage))))


def explanation(job: Record, events: Sequence[Record]) -> str:
    """Of the job in `job.json`, with its events in their order."""
    from workers.compression.controller.explain import explain
    from workers.config import TrainingConfig

    config = TrainingConfig.from_job_json(job)
    if config.compression.policy == "fixed":
        return _fixed(config, events)
    return explain(surviving_decisions(events))


def _fixed(config: TrainingConfig, events: Sequence[Record]) -> str:
    """One codec for all buckets, which nobody has to decide on."""
    from workers.compression.choice import NONE, Choice
    from workers.compression.controller.candidates import INT8, is_late
    from workers.compression.controller.state import dense_until

    setting = config.wire
    what = "parameter differences" if config.sync.merges else "gradients"
    choice = Choice.parse(setting.codec)
    if choice == NONE:
        return f"The {what} of {config.name} are not compressed (policy fixed, codec none)."
    start = f"The {what} of {config.name} travel between hosts as"
    if not is_late(choice):
        return f"{start} {choice}, from the first step on (policy fixed)."
    epochs = [int(event["steps_per_epoch"]) for event in events if event["kind"] == "plan"]
    if epochs:
        until = f"up to step {dense_until(setting, epochs[-1] * config.epochs)}"
    else:
        share = f"{setting.dense_share * 100:g} % of those planned"
        until = f"in the first {setting.dense_steps} steps or {share}, whichever is more"
    return f"{start} {INT8} {until}, the dense start, and as {choice} after it (policy fixed)."
