"""The command line. Each command imports what it calls when it is called: `status` never waits for torch or Ray."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from orchestrator import certs_commands, checkpoint_commands, explain_command, governor_commands, qins_commands
from orchestrator.errors import DEFAULT_STORAGE, UserError

app = typer.Typer(
    name="quantarion",
    help="Trains one model, quantization-aware, on many unreliable hosts. Exit codes stand in docs/architecture.md.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.add_typer(checkpoint_commands.app)
app.add_typer(qins_commands.app)
app.add_typer(explain_command.app)
app.add_typer(governor_commands.app)
app.add_typer(certs_commands.app)

Storage = Annotated[Path, typer.Option(help="Folder that holds a folder per job.")]
Job = Annotated[str, typer.Argument(metavar="JOB", help="Name of the job.")]
Host = Annotated[str, typer.Argument(metavar="HOST", help="Name of the host, as `quantarion hosts` shows it.")]
Reason = Annotated[str, typer.Option(help="For the record.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def train(
    job: Annotated[
        Path, typer.Argument(metavar="JOB", help="A JobSpec (.yaml), or a script (.py) to run with the defaults.")
    ],
    address: Annotated[str | None, typer.Option(help="Ray cluster to run on; without it Ray starts in here.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint of the job.")] = False,
    exact: Annotated[
        bool, typer.Option("--exact", help="With --resume: from the newest exact checkpoint, bit for bit.")
    ] = False,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Replace a key: --set hosts.max=3. Repeatable."),
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write the report to this file too.")] = None,
) -> None:
    """Train a job to its end. Ends with 10 where the integer model that comes out is not fit to be used."""
    from orchestrator import jobspec

    if exact and not resume:
        raise UserError("--exact chooses the checkpoint to go on from; write --resume --exact")
    spec = jobspec.load(job, sets or [])
    from orchestrator import launch  # after the checks: a wrong JobSpec is refused at once

    raise typer.Exit(launch.train(spec, address=address, resume=resume, exact=exact, report=report))


@app.command()
def preflight(
    job: Annotated[Path, typer.Argument(metavar="JOB", help="A JobSpec (.yaml), or a script (.py).")],
    address: Annotated[str | None, typer.Option(help="Ray cluster to test; without it Ray starts in here.")] = None,
    sets: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Replace a key, as with train. Repeatable.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Put the hosts of a job to the test, in 3 minutes at most, and sign a pass for them. Ends with 93 where they fail."""
    from orchestrator import jobspec

    spec = jobspec.load(job, sets or [])
    from orchestrator.preflight import gate

    raise typer.Exit(gate.run(spec, address=address, as_json=as_json))


@app.command()
def status(
    job: Annotated[
        str | None, typer.Argument(metavar="JOB", help="Name of the job; without it all jobs are listed.")
    ] = None,
    as_json: AsJson = False,
    storage: Storage = DEFAULT_STORAGE,
) -> None:
    """Show how far a job is, and its ranks."""
    from orchestrator import status

    raise typer.Exit(status.show(job, storage, as_json))


@app.command()
def stop(
    job: Job,
    now: Annotated[bool, typer.Option("--now", help="Without a checkpoint.")] = False,
    storage: Storage = DEFAULT_STORAGE,
) -> None:
    """Finish the step, save a checkpoint, end the job."""
    from orchestrator import stop

    raise typer.Exit(stop.stop(job, storage, now))


@app.command()
def hosts(job: Job, as_json: AsJson = False, storage: Storage = DEFAULT_STORAGE) -> None:
    """Show the hosts of a job, and how they stand with its governor."""
    from orchestrator import operator_commands

    raise typer.Exit(operator_commands.hosts(job, storage, as_json))


@app.command()
def events(
    job: Job,
    follow: Annotated[bool, typer.Option("--follow", help="Until the job has ended.")] = False,
    as_json: AsJson = False,
    storage: Storage = DEFAULT_STORAGE,
) -> None:
    """Show what has happened in a job, and what happens."""
    from orchestrator import operator_commands

    raise typer.Exit(operator_commands.events(job, storage, follow, as_json))


@app.command()
def scale(
    job: Job,
    hosts: Annotated[int, typer.Argument(min=1, help="On how many hosts at most it runs from now on.")],
    storage: Storage = DEFAULT_STORAGE,
) -> None:
    """Let a running job have more hosts, or fewer."""
    from orchestrator import operator_commands

    raise typer.Exit(operator_commands.scale(job, hosts, storage))


@app.command()
def drain(job: Job, host: Host, reason: Reason = "", storage: Storage = DEFAULT_STORAGE) -> None:
    """Let a host finish the step and leave. It is taken again once it is readmitted."""
    from orchestrator import operator_commands

    raise typer.Exit(operator_commands.drain(job, host, reason, storage))


@app.command()
def evict(job: Job, host: Host, reason: Reason = "", storage: Storage = DEFAULT_STORAGE) -> None:
    """Remove a host that is not trusted. Once it is readmitted, it is tested before it comes back."""
    from orchestrator import operator_commands

    raise typer.Exit(operator_commands.evict(job, host, reason, storage))


@app.command()
def readmit(job: Job, host: Host, storage: Storage = DEFAULT_STORAGE) -> None:
    """Let a host come back that was drained or evicted, whatever its cooldown."""
    from orchestrator import operator_commands

    raise typer.Exit(operator_commands.readmit(job, host, storage))


@app.command()
def doctor(
    storage: Storage = DEFAULT_STORAGE,
    sweep: Annotated[bool, typer.Option(help="Remove what dead jobs left.")] = True,
    address: Annotated[str | None, typer.Option(help="Ray cluster to sweep too.")] = None,
) -> None:
    """Say what will and what will not work here, and sweep what dead jobs left."""
    from orchestrator import doctor

    raise typer.Exit(doctor.run(storage, sweep, address))


@app.command()
def audit(folder: Annotated[Path, typer.Argument(metavar="RUN_FOLDER", help="Folder of a run: runs/my-job.")]) -> None:
    """Check that each sample of each epoch is in exactly one committed step."""
    from orchestrator import audit

    raise typer.Exit(audit.main(folder))


@app.command()
def schema(markdown: Annotated[bool, typer.Option("--markdown", help="As docs/jobspec.md.")] = False) -> None:
    """Print the JSON schema of the JobSpec."""
    from orchestrator import jobspec
    from orchestrator.schema import markdown as as_markdown

    tree = jobspec.json_schema()
    sys.stdout.write(as_markdown(tree) if markdown else json.dumps(tree, indent=2) + "\n")


def main() -> int:
    """The console script: runs a command and leaves with its exit code; a UserError is one line on stderr."""
    try:
        app(prog_name="quantarion")
    except UserError as error:
        sys.stderr.write(f"quantarion: {error}\n")
        return error.exit_code
    return 0
