"""`quantarion checkpoint …`: have a job save; list, look at, verify and convert what lies on disk; go back to one."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.errors import DEFAULT_STORAGE, ExitCode, UserError
from orchestrator.qins_commands import refused
from orchestrator.report import size

if TYPE_CHECKING:
    from workers.checkpoint import Entry
    from workers.checkpoint.contents import Content

WIDTH = 10_000
"""Of tables: no cell is cut; what is wider than the terminal wraps there."""

app = typer.Typer(name="checkpoint", help="Save, list, show, verify, convert, restore.", no_args_is_help=True)

Storage = Annotated[Path, typer.Option(help="Folder that holds a folder per job.")]
Job = Annotated[str, typer.Argument(metavar="JOB", help="Name of the job.")]
Where = Annotated[str, typer.Argument(metavar="JOB", help="Name of the job, or a folder or URL with checkpoints.")]
Checkpoint = Annotated[
    str, typer.Argument(metavar="CHECKPOINT", help="Its folder, runs/my-job/checkpoints/step-100-gen-1.1, or its URL.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def save(
    job: Job,
    wait: Annotated[bool, typer.Option("--wait", help="Until it lies on disk.")] = False,
    storage: Storage = DEFAULT_STORAGE,
) -> None:
    """Have a running job save its exact state after the step."""
    from orchestrator import save_command

    raise typer.Exit(save_command.checkpoint(job, storage, wait))


@app.command("list")
def list_(where: Where, as_json: AsJson = False, storage: Storage = DEFAULT_STORAGE) -> None:
    """Show the checkpoints of a job, newest first, by their manifests; `verify` reads all of them."""
    entries = _entries(where, storage)
    rows = [_row(entry) for entry in entries]
    if as_json:
        _print_json(rows)
        return
    _print_table(
        ("step", "tier", "generation", "bytes", "of", "saved", "", ""),
        (
            (
                row["step"],
                row["tier"],
                row["generation"],
                size(row["bytes"]),
                size(row["raw_bytes"]),
                _ago(row["created"]),
                "-" if row["bytes"] is None else f"difference to {row['base']}" if row["base"] else "whole",
                row["reason"] or ("pinned" if row["pinned"] else ""),
            )
            for row in rows
        ),
    )


@app.command()
def show(checkpoint: Checkpoint, as_json: AsJson = False) -> None:
    """Show what a checkpoint holds: each tensor, its codec and its bytes."""
    from workers.checkpoint.contents import contents
    from workers.checkpoint.places import place

    where = place(checkpoint)

    def read() -> tuple[dict[str, Any], list[Content]]:
        manifest, found = contents(where)
        fields = manifest.model_dump(exclude={"shards", "meta", "refused"})
        return fields, list(found)

    fields, found = refused(read)
    if as_json:
        _print_json({**fields, "tensors": [vars(each) for each in found]})
        return
    stored, raw = sum(each.stored for each in found), sum(each.raw for each in found)
    base = f", the difference to {fields['base']['folder']}" if fields["base"] else ""
    print(
        f"{where.name}: job {fields['job']}, step {fields['step']}, {fields['world']} ranks, tier {fields['tier']}"
        f"{base}; {len(found)} tensors, {size(stored)} of {size(raw)}, {raw / max(1, stored):.2f} times less"
    )
    _print_table(
        ("tensor", "dtype", "shape", "codec", "bytes", "times less", ""),
        (
            (
                each.name,
                each.dtype,
                "×".join(map(str, each.shape)) or "-",
                each.codec,
                size(each.stored),
                f"{each.raw / max(1, each.stored):.2f}",
                each.reason,
            )
            for each in found
        ),
    )


@app.command()
def verify(where: Where, as_json: AsJson = False, storage: Storage = DEFAULT_STORAGE) -> None:
    """Read every checkpoint of a job, or one, with all it needs; ends with 3 where one is damaged."""
    from workers.checkpoint import check

    entries = []
    for entry in _entries(where, storage):
        checked = refused(partial(check, entry))
        entries.append(checked)
        if not as_json:
            print(f"{checked.path.name}: {'sound' if checked.valid else checked.reason}", flush=True)
    if as_json:
        _print_json([_row(entry) for entry in entries])
    raise typer.Exit(ExitCode.DONE if all(entry.valid for entry in entries) else ExitCode.DATA)


@app.command()
def convert(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="A checkpoint; or a safetensors file, or a folder of such files.")
    ],
    target: Annotated[
        Path,
        typer.Argument(
            metavar="TARGET",
            help="Of a checkpoint: a new file that ends in .safetensors, or a new folder for torch.distributed.checkpoint. "
            "Of safetensors: the folder in which a checkpoint is made.",
        ),
    ],
    everything: Annotated[
        bool, typer.Option("--everything", help="The optimizer's tensors too, not only parameters and buffers.")
    ] = False,
    tier: Annotated[str, typer.Option(help="Of a checkpoint that is made: exact or qins.")] = "exact",
    weights: Annotated[str, typer.Option(help="With --tier qins, their codec: int8, v1, log7 or log8.")] = "int8",
) -> None:
    """Turn a checkpoint into a plain state_dict that others read, or published weights into a checkpoint."""
    print(refused(lambda: _convert(source, target, everything, tier, weights)))


@app.command()
def pin(
    checkpoint: Checkpoint,
    off: Annotated[bool, typer.Option("--off", help="It may be deleted again, once it is old.")] = False,
) -> None:
    """Have a checkpoint stay, however old it gets, with all that it needs."""
    from workers.checkpoint import places, read_manifest

    where = places.place(checkpoint)
    refused(lambda: read_manifest(where))
    refused(lambda: places.pin(where, not off))
    print(f"{where.name} {'may be deleted once it is old' if off else 'stays'}")


@app.command()
def restore(checkpoint: Checkpoint, storage: Storage = DEFAULT_STORAGE) -> None:
    """Go back to a checkpoint: newer ones of its job are set aside, so that `train --resume` takes this one."""
    from orchestrator.folder import held
    from workers.checkpoint import put_first, read_manifest
    from workers.checkpoint.places import place

    path = place(checkpoint)
    if isinstance(path, Path):
        path = path.resolve()
        job = path.parent.parent
    else:
        name = refused(lambda: read_manifest(path)).job
        if re.fullmatch(r"[a-z0-9][a-z0-9-]{0,62}", name) is None:
            raise UserError(f"{path} is of a job named {name[:80]!r}, which no job can be called", ExitCode.DATA)
        job = storage / name
        job.parent.mkdir(parents=True, exist_ok=True)
    try:
        with held(job):
            moved = refused(lambda: put_first(path))
    except OSError as error:
        raise UserError(f"{job} cannot be written ({error.strerror or error})", ExitCode.STORAGE) from None
    for each in moved:
        print(f"set aside: {each}")
    print(f"{path.name} is the newest now; go on with `quantarion train JOB.yaml --resume`")


def _entries(where: str, storage: Path) -> list[Entry[Any]]:
    """Of a job by its name, of a folder with checkpoints, or the one that is named."""
    from orchestrator import status
    from workers.checkpoint import list_checkpoints
    from workers.checkpoint.manifest import parse_folder
    from workers.checkpoint.places import Where as Place
    from workers.checkpoint.places import checkpoints_of, place

    path = place(where)
    if parse_folder(path.name) is not None:
        beside = path.absolute().parent if isinstance(path, Path) else path.parent
        found = [entry for entry in refused(lambda: list_checkpoints(beside)) if entry.path.name == path.name]
        if not found:
            raise UserError(
                f"there is no checkpoint at {path}; write the folder of one, or the name of a job", ExitCode.DATA
            )
        return found
    root: Place = path
    if isinstance(path, Path):
        folder = path
        if len(path.parts) == 1 and (not path.is_dir() or (storage / where).is_dir()):
            folder = status.find(where, storage)
        is_job = (folder / "checkpoints").is_dir() or (folder / "job.json").is_file()
        root = refused(lambda: checkpoints_of(folder)) if is_job else folder
    entries = refused(lambda: list_checkpoints(root))
    if not entries:
        raise UserError(f"there are no checkpoints in {root}; write the name of a job that has saved one", ExitCode.DATA)
    return entries


def _row(entry: Entry[Any]) -> dict[str, Any]:
    from workers.checkpoint import CheckpointError, read_manifest
    from workers.checkpoint.places import is_pinned

    row: dict[str, Any] = {
        "path": str(entry.path),
        "step": entry.step,
        "tier": entry.tier,
        "generation": str(entry.generation),
        "bytes": None,
        "raw_bytes": None,
        "created": None,
        "base": None,
        "bases": list(entry.bases),
        "valid": entry.valid,
        "pinned": refused(lambda: is_pinned(entry.path)),
        "reason": entry.reason,
    }
    try:
        manifest = read_manifest(entry.path)
    except CheckpointError:
        return row
    stored = sum(shard.bytes for shard in manifest.shards)
    base = manifest.base.folder if manifest.base is not None else None
    return row | {"base": base, "bytes": stored, "raw_bytes": manifest.raw_bytes, "created": manifest.created}


def _convert(written: str, target: Path, everything: bool, tier: str, weights: str) -> str:
    from workers.checkpoint import interchange
    from workers.checkpoint.lossy import WEIGHTS
    from workers.checkpoint.manifest import MANIFEST, TIERS
    from workers.checkpoint.places import place

    source = place(written)
    if re.match(r"[a-z][a-z0-9+.-]*:/", str(target)):
        raise UserError(f"the target is {target}, a URL; write a folder or file of this machine")
    if not isinstance(source, Path) or (source / MANIFEST).exists():
        if target.suffix == interchange.SUFFIX:
            return f"{target}: {size(interchange.to_safetensors(source, target, everything))} in safetensors"
        num_bytes = interchange.to_distributed(source, target, everything)
        return f"{target}: {size(num_bytes)}, for torch.distributed.checkpoint.load"
    for option, given, known in (("--tier", tier, TIERS), ("--weights", weights, tuple(WEIGHTS))):
        if given not in known:
            raise UserError(f"{option} is {given!r}; write one of {', '.join(known)}")
    name = target.absolute().name
    published = interchange.from_safetensors(source, target, name, tier, weights)
    if not published.new:
        raise UserError(f"{published.path} exists already; remove it or choose another folder")
    times = published.raw_bytes / published.bytes
    return f"{published.path}: {size(published.bytes)}, {times:.2f} times less than in memory"


def _ago(created: float | None) -> str:
    if created is None:
        return "-"
    seconds = max(0.0, time.time() - created)
    for unit, scale in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= scale:
            return f"{seconds / scale:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def _print_table(heads: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*heads, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(Text(str(each)) for each in row))
    Console(highlight=False, soft_wrap=True, width=WIDTH).print(table)


def _print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, indent=2) + "\n")
