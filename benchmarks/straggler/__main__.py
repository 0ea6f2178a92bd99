"""How long a host that is slower than 15 others stays in a job, and that one that is hardly slower does.

    python -m benchmarks.straggler
    python -m benchmarks.straggler --runs 3 --mild-seconds 600

Real coordinator, agents and ranks on 16 addresses of this machine, one rank each, the governor as delivered but for its
noisy rules, which are enforced: evaluations of ten seconds, two alerts 20 s apart. A rank waits for most of a step, as for
an accelerator, so 16 have room on two cores. Once the pool of residuals is full, one host takes 1.25 times as long for its
share, for a while; then another one 1.5 times as long, until it is out.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.gang.gang import Gang, InVain
from benchmarks.gang.start import start_zygote
from benchmarks.machine import made_by
from benchmarks.model import GLOBAL_BATCH
from benchmarks.straggler.program import SLOWER
from benchmarks.system import ROOT, environment, exit_on_signals
from orchestrator import stop
from orchestrator.governor.codes import Code
from orchestrator.governor.events import Observed
from orchestrator.governor.log import told
from orchestrator.governor.peers import POOL
from orchestrator.jobspec import JobSpec
from orchestrator.records import Record

HOSTS = 16
MILD, SLOW = 1.25, 1.5
MILD_HOST, SLOW_HOST = "host-5", "host-11"
LIMIT_SECONDS = 60.0
"""From the first slow step until the host is out (section 12 (f))."""

MORE_SECONDS = 3.0
"""After the pool is full, before anything is changed."""


@dataclass(frozen=True)
class Found:
    """Of one run.

    Attributes:
        warm_seconds: until the pool was full.
        mild_seconds: for which a host was 1.25 times slower; `mild_verdicts`: what was said of it.
        suspect_seconds, out_seconds: from when a host was 1.5 times slower until it was suspect, and evicted; None where
            it was not.
        others: other hosts that were suspected or removed.
    """

    warm_seconds: float
    mild_seconds: float
    mild_verdicts: int
    suspect_seconds: float | None
    out_seconds: float | None
    others: list[str]

    @property
    def is_as_it_should_be(self) -> bool:
        return (
            not self.mild_verdicts
            and not self.others
            and self.out_seconds is not None
            and self.out_seconds <= LIMIT_SECONDS
        )


class SixteenHosts(Gang):
    """One rank each, on addresses of the loopback network."""

    @property
    def addresses(self) -> list[str]:
        return [f"127.0.0.{number}" for number in range(2, 2 + HOSTS)]

    def _spec(self) -> JobSpec:
        return JobSpec.model_validate(
            {
                "name": "straggler",
                "storage": str(self.storage),
                "global_batch": GLOBAL_BATCH,
                "micro_batch": GLOBAL_BATCH,
                "governor": {"noisy": "enforce"},
                "hosts": {"min": 1, "max": HOSTS},
                "ranks_per_host": 1,
                "spares_per_host": 0,
                "task": {"script": str(Path(__file__).with_name("program.py"))},
                "phases": {"fp32_epochs": 1_000_000, "qat_epochs": 0},
                "evaluate_every": 0,
                "checkpoint": {"every": 100_000, "at_end": False},
            }
        )

    def is_warm(self) -> bool:
        """The pool that stragglers are judged by is full."""
        with (self.folder / "governor.jsonl").open() as lines:
            pools = [state.pools for state, event, _ in told(lines) if isinstance(event, Observed)]
        return bool(pools) and Code.STRAGGLER in pools[-1] and pools[-1][Code.STRAGGLER].size >= POOL

    def watch(self, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
        """For so long, or until that; whether it came to that. A coordinator that nobody asks ends its job."""
        deadline = time.time() + seconds
        while not (found := until()) and time.time() < deadline:
            self.status()
            time.sleep(min(1.0, max(0.0, deadline - time.time())))
        return found

    def slow(self, host: str, times: float) -> float:
        """From now on it takes so many times as long; the time, Unix seconds."""
        (self.folder / SLOWER.format(host=host)).write_text(str(times))
        return time.time()

    def verdicts(self, since: float = 0.0) -> list[Record]:
        """Against hosts."""
        said = [event for event in self.events("verdict") if event["act"] in ("suspect", "quarantine", "evict")]
        return [event for event in said if event["t"] >= since]


def run(zygote: str, storage: Path, mild_seconds: float) -> Found:
    """Raises InVain where the job does not come up."""
    gang = SixteenHosts(zygote, storage, hosts=HOSTS, ranks_per_host=1)
    gang.start()
    try:
        gang.wait_for("a step of all", lambda: len(gang.members()) == HOSTS and gang.step() >= 5)
        begun = time.time()
        if not gang.watch(300.0, gang.is_warm):
            raise InVain("the pool of residuals is not full after 300 s")
        warm = time.time() - begun
        gang.watch(MORE_SECONDS)
        mild_at = gang.slow(MILD_HOST, MILD)
        gang.watch(mild_seconds)
        gang.slow(MILD_HOST, 1.0)
        slow_at = gang.slow(SLOW_HOST, SLOW)
        gang.watch(3 * LIMIT_SECONDS, lambda: _first(gang.verdicts(slow_at), "evict", SLOW_HOST) is not None)
        said = gang.verdicts(mild_at)
        stop.ask(gang.folder, True, "the benchmark is over")
    finally:
        gang.clear()
    suspect, out = (_first(said, act, SLOW_HOST) for act in ("suspect", "evict"))
    return Found(
        round(warm, 1),
        mild_seconds,
        sum(event["target"] == MILD_HOST for event in said),
        None if suspect is None else round(float(suspect["t"]) - slow_at, 1),
        None if out is None else round(float(out["t"]) - slow_at, 1),
        sorted({str(event["target"]) for event in said} - {SLOW_HOST, MILD_HOST}),
    )


def _first(said: Sequence[Record], act: str, host: str) -> Record | None:
    """In force, against this host."""
    mine = (event for event in said if event["act"] == act and event["target"] == host)
    return next((event for event in mine if event["mode"] == "enforce" and not event["guard"]), None)


def page(found: Sequence[Found], command: str) -> str:
    """The whole page."""
    rows = [
        f"| {number} | {each.warm_seconds:.0f} | {each.mild_seconds:.0f} s: {each.mild_verdicts or 'none'} | "
        f"{_seconds(each.suspect_seconds)} | {_seconds(each.out_seconds)} | {', '.join(each.others) or 'none'} |"
        for number, each in enumerate(found, 1)
    ]
    lines = [
        "# A straggler among 16 hosts",
        "",
        f"Real processes on one machine, one rank a host. After the pool of residuals is full `{MILD_HOST}` takes {MILD:g} "
        f"times as long for its share, and then `{SLOW_HOST}` {SLOW:g} times. Evaluations are of ten seconds, and two "
        f"alerts have to be 20 s apart; so 21 s are the least, and {LIMIT_SECONDS:.0f} s the limit.",
        "",
        f"| run | pool full after s | against {MILD:g} × | {SLOW:g} × is suspect after s | and out after s | others |",
        "|---|---|---|---|---|---|",
        *rows,
        "",
        made_by(command),
        "",
    ]
    return "\n".join(lines)


def _seconds(value: float | None) -> str:
    return "NEVER" if value is None else f"{value:.1f}"


def main() -> int:
    """1 where a host stayed that should not have, or went that should have stayed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.straggler", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=1, help="jobs, one after the other (1)")
    parser.add_argument(
        "--mild-seconds", type=float, default=120.0, help=f"for which a host is {MILD:g} times slower (120)"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "straggler.json")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "results" / "straggler.md")
    options = parser.parse_args()
    exit_on_signals()
    found = list[Found]()
    words = environment()
    words.pop("GLOO_SOCKET_IFNAME", None)  # ranks find it out, by the address of their host
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="straggler-")))
        zygote = stack.enter_context(start_zygote(words))
        for number in range(options.runs):
            found.append(run(zygote, folder / str(number), options.mild_seconds))
            print(found[-1], flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps([asdict(each) for each in found], indent=2))
    words_of = ["python -m benchmarks.straggler"]
    if options.runs != parser.get_default("runs"):
        words_of.append(f"--runs {options.runs}")
    if options.mild_seconds != parser.get_default("mild_seconds"):
        words_of.append(f"--mild-seconds {options.mild_seconds:g}")
    options.page.write_text(page(found, " ".join(words_of)))
    return int(not all(each.is_as_it_should_be for each in found))


if __name__ == "__main__":
    sys.exit(main())
