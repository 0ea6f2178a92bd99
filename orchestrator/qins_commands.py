"""`quantarion qins …`: convert a model to QINS, test what that costs, chat with it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from orchestrator.errors import ExitCode, UserError

if TYPE_CHECKING:
    from workers.qins.metrics import Row

app = typer.Typer(name="qins", help="Models in QINS: convert, test, chat.", no_args_is_help=True)

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
def chat(
    model: Converted,
    prompt: Annotated[str | None, typer.Option(help="Answer this and end; without it: a conversation.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Bytes of an answer.")] = 200,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest byte; above, bytes are drawn.")] = 0.8,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws.")] = 0,
) -> None:
    """Generate text with a model folder: after a prompt, or in a conversation that an empty line ends."""
    refused(lambda: _chat(model, prompt, max_tokens, temperature, seed))


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


def _test(source: Path, text: Path, windows: int) -> list[Row]:
    from workers.qins.metrics import compare_on
    from workers.qins.sources import open_model

    try:
        content = text.read_bytes()
    except OSError as error:
        raise UserError(f"the text {text} cannot be read ({error.strerror}); give a file", ExitCode.DATA) from None
    return compare_on(open_model(source)[0], content, windows)


def _chat(folder: Path, prompt: str | None, max_tokens: int, temperature: float, seed: int) -> None:
    from workers.qins.chat import QINSChatSystem

    system = QINSChatSystem(folder, max_tokens=max_tokens, temperature=temperature, seed=seed)
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
