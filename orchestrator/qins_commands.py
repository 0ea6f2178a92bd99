"""`quantarion qins …`: convert a model to QINS, test what that costs, chat with it; files of tensors in its codecs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from orchestrator.errors import ExitCode, UserError
from orchestrator.report import size

if TYPE_CHECKING:
    from workers.qins.compare import Choice
    from workers.qins.metrics import Row

app = typer.Typer(
    name="qins",
    help="Models in QINS: convert, test, chat; files of tensors: encode, decode, inspect.",
    no_args_is_help=True,
)

Result = TypeVar("Result")
Model = Annotated[Path, typer.Option(help="A model folder, a job's folder, or one of its checkpoints.")]
Converted = Annotated[Path, typer.Option(help="A model folder.")]


@app.command()
def convert(
    model: Model,
    output: Annotated[Path, typer.Option(help="The new model folder.")],
    floor: Annotated[
        float | None,
        typer.Option(
            help="Smaller weights than this share of their layer's largest are stored as that: 0 to 0.1; 0 is plain v1.",
            show_default="0.0001",
        ),
    ] = None,
) -> None:
    """Encode the linear layers of a model and write it as a model folder."""
    print(refused(lambda: _convert(model, output, floor)))


@app.command()
def test(
    model: Model,
    text: Annotated[Path, typer.Option(help="Held-out text, a file.")],
    windows: Annotated[int, typer.Option(min=1, help="How many windows of it are read.")] = 64,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print what QINS, bfloat16 and linear INT8 do to a float model."""
    rows = refused(lambda: _test(model, text, windows))
    print(json.dumps({row.codec: row.figures() for row in rows}, indent=2) if as_json else table(rows))


@app.command()
def encode(
    source: Annotated[
        str,
        typer.Argument(metavar="SOURCE", help="A safetensors file, a folder of such files, or a checkpoint."),
    ],
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="The new file, which ends in .qins.")],
    codec: Annotated[str, typer.Option(help="int8, v1, log7, log8 or exact.")] = "int8",
) -> None:
    """Write tensors into one file, floating-point ones in a codec."""
    print(refused(lambda: _encode(source, target, codec)))


@app.command()
def decode(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="A file that ends in .qins.")],
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="The new file, which ends in .safetensors.")],
) -> None:
    """Write the tensors of a .qins file as safetensors."""
    print(refused(lambda: _decode(source, target)))


@app.command()
def inspect(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="A file that ends in .qins.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a .qins file holds: each tensor, its codec and its bytes."""
    from workers.qins.container import inspect as held

    found = refused(lambda: held(source))
    if as_json:
        print(json.dumps([vars(each) for each in found], indent=2))
        return
    stored, raw = sum(each.stored for each in found), sum(each.raw for each in found)
    print(f"{source}: {len(found)} tensors, {size(stored)} of {size(raw)}, {raw / max(1, stored):.2f} times less")
    for each in found:
        shape = "×".join(map(str, each.shape)) or "-"
        print(f"  {each.name}  {each.dtype} {shape}  {each.codec}  {size(each.stored)}")


@app.command()
def compare(
    checkpoint: Annotated[str, typer.Argument(metavar="CHECKPOINT", help="Its folder, or its URL.")],
    text: Annotated[
        Path | None,
        typer.Option(help="A file; then the loss at restore and after 40 steps, too: for a job of the recipe bytes."),
    ] = None,
    job: Annotated[Path | None, typer.Option(help="The job's folder, where the checkpoint does not lie in it.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the batches of those steps.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Print what each codec of weights makes of a checkpoint: bytes, errors, and what a resume from it costs."""
    rows = refused(lambda: _compare(checkpoint, text, job, seed, show=not as_json))
    if as_json:
        print(json.dumps([vars(row) for row in rows], indent=2))


@app.command()
def chat(
    model: Converted,
    prompt: Annotated[str | None, typer.Option(help="Answer this and end; without it: a conversation.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Bytes of an answer.")] = 200,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest byte; above, bytes are drawn.")] = 0.8,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws.")] = 0,
    kv_cache: Annotated[
        str | None, typer.Option(help="Keep keys and values of attention: fp16, v1 or packed7 is the format of values.")
    ] = None,
) -> None:
    """Generate text with a model folder: after a prompt, or in a conversation that an empty line ends."""
    refused(lambda: _chat(model, prompt, max_tokens, temperature, seed, kv_cache))


def refused(action: Callable[[], Result]) -> Result:
    """What `action` returns; what workers refuse becomes a UserError: exit code 4 for a disk, 3 for its content."""
    from workers.checkpoint.errors import CheckpointError, StorageError

    try:
        return action()
    except StorageError as error:
        raise UserError(str(error), ExitCode.STORAGE) from None
    except (CheckpointError, ValueError) as error:
        raise UserError(str(error), ExitCode.DATA) from None


def table(rows: list[Row]) -> str:
    """The rows as text, a line for each metric and a column for each codec."""
    figures = {row.codec: row.figures() for row in rows}
    names = list(next(iter(figures.values()), {}))
    lines = [f"{'':22}" + "".join(f"{codec:>12}" for codec in figures)]
    lines += [f"{name:22}" + "".join(f"{each[name]:>12.5g}" for each in figures.values()) for name in names]
    return "\n".join(lines)


def _convert(source: Path, output: Path, floor: float | None) -> str:
    from workers.qins.convert import FLOOR, convert_model_to_projective, report_of
    from workers.qins.files import model_bytes, save_model
    from workers.qins.sources import open_model

    model, architecture = open_model(source)
    report = report_of(convert_model_to_projective(model, floor=FLOOR if floor is None else floor))
    stored, fp32 = model_bytes(save_model(model, output, architecture))
    skipped = "".join(f"\nnot encoded: {name}, because {reason}" for name, reason in report.skipped.items())
    return (
        f"{output}: {len(report.layers)} layers encoded, {stored} bytes, {fp32 / stored:.2f} times less than float32; "
        f"mean relative error {report.quality.mean_relative_error:.2%}{skipped}"
    )


def _compare(written: str, text: Path | None, job: Path | None, seed: int, *, show: bool) -> list[Choice]:
    from workers.checkpoint.places import place
    from workers.qins.compare import compare_checkpoint

    where = place(written)
    folder = job if job is not None else where.absolute().parent.parent if isinstance(where, Path) else None
    if text is not None and folder is None:
        raise UserError("with --text write --job, too: the job's folder, whose job.json says what it trains")
    found: list[Choice] = []
    if show:
        heads = ("bytes", 12), ("× less", 9), ("weights", 10), ("first", 10), ("second", 10), ("loss", 11), ("after 40", 11)
        print("weights " + "".join(f"{name:>{width}}" for name, width in heads))
    for row in compare_checkpoint(where, folder or Path(), _content(text), seed):
        found.append(row)
        if show:
            errors = ("–" if each is None else f"{each:.2%}" for each in (row.weights, row.first, row.second))
            losses = ("–" if each is None else f"{each:.5f}" for each in (row.at_restore, row.afterwards))
            ends = "".join(f"{each:>10}" for each in errors) + "".join(f"{each:>11}" for each in losses)
            print(f"{row.name:8}{row.bytes:>12}{row.raw_bytes / row.bytes:>9.2f}{ends}", flush=True)
    return found


def _content(text: Path | None) -> bytes | None:
    try:
        return None if text is None else text.read_bytes()
    except OSError as error:
        raise UserError(f"the text {text} cannot be read ({error.strerror}); give a file", ExitCode.DATA) from None


def _encode(written: str, target: Path, codec: str) -> str:
    from workers.checkpoint import interchange
    from workers.checkpoint.places import MANIFEST, place
    from workers.qins.container import CODECS, SUFFIX, write_container
    from workers.qins.manifest import TENSORS

    if codec not in CODECS:
        raise UserError(f"--codec is {codec!r}; write one of {', '.join(CODECS)}")
    if target.suffix != SUFFIX:
        raise UserError(f"the new file is {target}; write a name that ends in {SUFFIX}")
    source = place(written)
    is_model = isinstance(source, Path) and (source / TENSORS).exists()  # which has a manifest of another kind
    is_checkpoint = not isinstance(source, Path) or ((source / MANIFEST).exists() and not is_model)
    tensors = interchange.state_dict(source) if is_checkpoint else interchange.weights_of(Path(written))
    reasons = write_container(target, tensors, codec)
    raw, stored = sum(each.nbytes for each in tensors.values()), target.stat().st_size
    exact = "".join(f"\nbit for bit: {name}, because {reason}" for name, reason in reasons.items())
    return f"{target}: {len(tensors)} tensors, {size(stored)}, {raw / stored:.2f} times less than in memory{exact}"


def _decode(source: Path, target: Path) -> str:
    from workers.checkpoint import interchange
    from workers.qins.container import read_container

    if target.suffix != interchange.SUFFIX:
        raise UserError(f"the new file is {target}; write a name that ends in {interchange.SUFFIX}")
    tensors = read_container(source)
    return f"{target}: {len(tensors)} tensors, {size(interchange.write_safetensors(tensors, target))} in safetensors"


def _test(source: Path, text: Path, windows: int) -> list[Row]:
    from workers.qins.metrics import compare_on
    from workers.qins.sources import open_model

    content = _content(text)
    assert content is not None
    return compare_on(open_model(source)[0], content, windows)


def _chat(folder: Path, prompt: str | None, max_tokens: int, temperature: float, seed: int, kv_cache: str | None) -> None:
    from workers.qins.chat import QINSChatSystem
    from workers.qins.kv_cache import FORMATS

    v_format = next((each for each in FORMATS if each == kv_cache), None)
    if kv_cache is not None and v_format is None:
        raise UserError(f"--kv-cache is {kv_cache!r}; write one of {', '.join(FORMATS)}")
    system = QINSChatSystem(folder, max_tokens=max_tokens, temperature=temperature, seed=seed, v_format=v_format)
    history: list[tuple[str, str]] = []
    while asked := prompt if prompt is not None else _ask():
        pieces = []
        for piece in system.generate_streaming(asked, history):
            sys.stdout.write(piece)
            sys.stdout.flush()
            pieces.append(piece)
        sys.stdout.write("\n")
        if prompt is not None:
            return
        history.append((asked, "".join(pieces)))


def _ask() -> str:
    """The next line; nothing at the end of the input."""
    try:
        return input("> ")
    except EOFError:
        return ""
