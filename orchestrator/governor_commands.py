"""`quantarion governor …`: what its policy made of a log, `governor.jsonl` in a job's folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from orchestrator.errors import ExitCode, UserError

app = typer.Typer(name="governor", help="What the governor's policy made of a job's log.", no_args_is_help=True)

Log = Annotated[Path, typer.Argument(help="A governor's log.")]
Result = TypeVar("Result")


@app.command()
def replay(log: Log) -> None:
    """Tell the policy again what it was told, and see whether it says the same, byte for byte."""
    from orchestrator.governor.log import replay

    found = _read(log, replay)
    if found.difference is None:
        print(f"{found.events} events, {found.verdicts} verdicts, all the same")
        return
    number, logged, now = found.difference
    raise UserError(
        f"{log}, line {number}: the log has {logged or 'no verdict'} where this version says {now or 'nothing'}; it was "
        "written by another version, or altered",
        ExitCode.DATA,
    )


@app.command()
def calibrate(log: Log) -> None:
    """Say of each noisy rule whether it has been quiet for long enough to be enforced."""
    from orchestrator.governor.calibration import calibrated, most_allowed
    from orchestrator.governor.codes import NOISY

    found = _read(log, calibrated)
    if not found.hosts:
        raise UserError(f"{log} has no evaluations yet", ExitCode.DATA)
    allowed = most_allowed(found.hosts, found.config)
    print(f"{found.hours:.1f} hours, at most {found.hosts} hosts; alerts are allowed in {allowed:.2g} of all checks")
    print(f"{'rule':16}{'checks':>10}{'alerts':>8}{'rate below':>12}  enforce")
    for code in NOISY:
        record = found.records[code]
        verdict = "yes" if found.may_be_enforced(code) else "not yet"
        print(f"{code.value:16}{record.checks:>10}{record.alerts:>8}{record.bound:>12.2g}  {verdict}")


def _read(log: Path, what: Callable[[Iterable[str]], Result]) -> Result:
    """Out of the log's lines."""
    from orchestrator.governor.log import LogError

    try:
        with log.open(encoding="utf-8") as lines:
            return what(lines)
    except OSError as error:
        raise UserError(f"{log} cannot be read ({error.strerror}); give a governor's log", ExitCode.DATA) from None
    except (LogError, UnicodeDecodeError) as error:
        raise UserError(f"{log} is not a governor's log: {error}", ExitCode.DATA) from None
