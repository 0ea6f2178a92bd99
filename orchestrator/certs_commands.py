"""`quantarion certs …`: the certificates of a job's agents, operators and coordinator."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from orchestrator.errors import DEFAULT_STORAGE, ExitCode, UserError

if TYPE_CHECKING:
    from orchestrator.certificates import Certificates, Entry
    from orchestrator.peers import Peer

app = typer.Typer(name="certs", help="The certificates of a job's agents, operators and coordinator.", no_args_is_help=True)

Job = Annotated[str, typer.Argument(metavar="JOB", help="Name of the job.")]
Storage = Annotated[Path, typer.Option(help="Folder that holds a folder per job.")]
Days = Annotated[int | None, typer.Option(help="How long they are good for; running jobs renew them before that.")]
Result = TypeVar("Result")

COLUMNS = ("file", "of", "good until", "signed by", "SHA-256")


@app.command()
def init(job: Job, days: Days = None, storage: Storage = DEFAULT_STORAGE) -> None:
    """Make them before the job starts. A job that needs some and has none makes them by itself, for 90 days."""
    _check_name(job)
    made = _do(job, storage, lambda certificates: certificates.init(time.time(), days))
    _say(job, "made", made)


@app.command()
def rotate(
    job: Job,
    authority: Annotated[bool, typer.Option("--ca", help="The authority that signs them too.")] = False,
    at_once: Annotated[
        bool, typer.Option("--at-once", help="With --ca: what the old one has signed is refused from now on.")
    ] = False,
    days: Days = None,
    storage: Storage = DEFAULT_STORAGE,
) -> None:
    """Replace them, also while the job runs: the next connection of each uses the new ones."""
    if at_once and not authority:
        raise UserError("--at-once distrusts the authority before; write --ca --at-once")
    made = _do(
        job,
        storage,
        lambda certificates: certificates.rotate(time.time(), authority=authority, at_once=at_once, days=days),
    )
    _say(job, "replaced", made)


@app.command()
def show(
    job: Job,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    storage: Storage = DEFAULT_STORAGE,
) -> None:
    """Show them, until when they are good, and how many peers the job has refused by which check."""
    entries = _do(job, storage, lambda certificates: certificates.inventory())
    if not entries:
        raise UserError(f"{job} has no certificates in {storage}; a job has none while its coordinator is on loopback")
    refused = _refused(storage / job)
    if as_json:
        rows = [dict(zip(COLUMNS, _row(entry), strict=True)) for entry in entries]
        sys.stdout.write(json.dumps({"certificates": rows, "refused": refused}, indent=2) + "\n")
        return
    table = [COLUMNS, *map(_row, entries)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        sys.stdout.write("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() + "\n")
    counts = ", ".join(f"{times} by the check '{check}'" for check, times in refused.items())
    sys.stdout.write(f"refused peers: {counts or 'none'}\n")


def _check_name(job: str) -> None:
    """There may be no folder of that name yet to tell a slip."""
    from pydantic import TypeAdapter, ValidationError

    from workers.settings import Name

    try:
        TypeAdapter(Name).validate_python(job)
    except ValidationError:
        expected = "at most 63 lower-case letters, digits and '-', not '-' first"
        raise UserError(f"'{job}' is no name of a job; write {expected}") from None


def _do(job: str, storage: Path, what: Callable[[Certificates], Result]) -> Result:
    from orchestrator.certificates import Certificates

    certificates = Certificates((storage / job).absolute(), job)
    try:
        return what(certificates)
    except OSError as error:
        raise UserError(
            f"{certificates.folder} cannot be used ({error.strerror or error}); it belongs to the user who runs {job}",
            ExitCode.STORAGE,
        ) from None


def _say(job: str, done: str, peers: list[Peer]) -> None:
    sys.stdout.write(f"{job}: {done} the certificates of {', '.join(map(str, peers))}\n")


def _row(entry: Entry) -> tuple[str, ...]:
    certificate = entry.certificate
    until = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(certificate.ends))
    until += " (expired)" * (certificate.ends <= time.time())
    whose = "authority" if entry.is_authority else str(certificate.peer or "nobody")
    return entry.file, whose, until, certificate.issuer, certificate.fingerprint[:16]


def _refused(folder: Path) -> dict[str, int]:
    """By check, over all starts that are on record in the job's folder."""
    from orchestrator.records import read_events

    counts: Counter[str] = Counter()
    for event in read_events(folder):
        if event["kind"] == "peer_refused":
            counts[str(event["check"])] += int(event["times"])
    return dict(counts)
