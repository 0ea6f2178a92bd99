"""The governor's policy on simulated hosts: who is evicted of hosts that are well, and what an evaluation takes (GM-13).

    python -m benchmarks.governor
    python -m benchmarks.governor --hosts 888 --hours 24 --out governor.json

Hosts draw what they are observed with from normal distributions, as wide as a window of ten seconds leaves them. The clock
is simulated, the policy and its log are the real ones; afterwards the log is replayed and compared byte for byte.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.progress import Progress

from benchmarks.machine import made_by
from benchmarks.system import ROOT, exit_on_signals
from orchestrator.governor.config import GovernorConfig, Mode
from orchestrator.governor.events import Joined, Observed
from orchestrator.governor.groups import sizes
from orchestrator.governor.log import Governor, Outset, replay
from orchestrator.governor.readings import Observation
from orchestrator.governor.verdicts import Act

LIMITS = {888: 0.050, 10_000: 0.500}
"""Seconds that an evaluation may take (GM-13)."""

LATENCY_EVALUATIONS = 30
STEPS = 100
"""Of a window."""


@dataclass(frozen=True)
class Result:
    """Of one run. `seconds` are those of evaluations, log and all; `evicted` and `suspected` count verdicts in force."""

    hosts: int
    hours: float
    evaluations: int
    suspected: int
    evicted: int
    median_seconds: float
    p99_seconds: float
    log_bytes: int
    replayed: bool

    @property
    def failed(self) -> bool:
        """A host that is well was evicted, or the log does not say what was decided."""
        return self.evicted > 0 or not self.replayed


def observations(hosts: int, chance: np.random.Generator) -> dict[str, Observation]:
    """A window of hosts that are well."""
    normal = chance.standard_normal((hosts, 6)).tolist()
    return {
        f"h{i}": Observation(
            busy=round(0.01 * (1 + 0.01 * busy), 7),
            baseline=0.01,
            cosine=round(0.6 + 0.03 * cosine, 4),
            norm=round(2.0 + 0.1 * norm, 4),
            loss=round(1.2 + 0.05 * loss, 4),
            throughput=round(1e8 * (1 + 0.05 * throughput)),
            net_loss=0.0,
            temperature=round(60 + 3 * temperature, 1),
        )
        for i, (busy, cosine, norm, loss, throughput, temperature) in enumerate(normal)
    }


def joins(hosts: int) -> Iterator[Joined]:
    numbers = iter(range(hosts))
    for group, size in enumerate(sizes(hosts)):
        for _ in range(size):
            yield Joined(0.0, f"h{next(numbers)}", f"g{group}", first=True)


def run(hosts: int, evaluations: int, seed: int, log: Path) -> Result:
    """All rules in `enforce`."""
    config, chance, seconds = GovernorConfig(noisy=Mode.ENFORCE), np.random.default_rng(seed), list[float]()
    said: list[Act] = []
    with log.open("w") as lines, Progress(transient=True) as progress:
        governor = Governor(Outset(config, hosts, seed=seed), lines)
        for join in joins(hosts):
            governor.tell(join)
        for number in progress.track(range(1, evaluations + 1), description=f"{hosts} hosts"):
            event = Observed(number * config.evaluation, observations(hosts, chance), number * STEPS)
            begun = time.perf_counter()
            said += [verdict.act for verdict in governor.tell(event) if verdict.is_in_force]
            seconds.append(time.perf_counter() - begun)
    with log.open() as lines:
        again = replay(lines)
    return Result(
        hosts=hosts,
        hours=evaluations * config.evaluation / 3600,
        evaluations=evaluations,
        suspected=said.count(Act.SUSPECT),
        evicted=said.count(Act.QUARANTINE),
        median_seconds=statistics.median(seconds),
        p99_seconds=float(np.quantile(seconds, 0.99)),
        log_bytes=log.stat().st_size,
        replayed=again.difference is None and again.events == evaluations + hosts,
    )


def page(results: list[Result], command: str) -> str:
    """The page in Markdown."""
    rows = "\n".join(map(_row, results))
    return f"""# The governor's policy on hosts that are well

Simulated hosts draw what they are observed with from normal distributions; the clock is simulated, the policy and its log
are those of a job, all rules in `enforce`. An evaluation covers ten seconds of all hosts; its time includes the log.

| hosts | hours | evaluations | suspected | evicted | ms | p99 ms | limit ms | log MB | replay |
|---|---|---|---|---|---|---|---|---|---|
{rows}

{command}
"""


def _row(each: Result) -> str:
    limit = f"{LIMITS[each.hosts] * 1e3:.0f}" if each.hosts in LIMITS else "–"
    cells = [
        f"{each.hosts:,}",
        f"{each.hours:.2g}",
        f"{each.evaluations:,}",
        each.suspected,
        each.evicted,
        f"{each.median_seconds * 1e3:.1f}",
        f"{each.p99_seconds * 1e3:.1f}",
        limit,
        f"{each.log_bytes / 1e6:.0f}",
        "the same bytes" if each.replayed else "DIFFERS",
    ]
    return f"| {' | '.join(map(str, cells))} |"


def main() -> int:
    """1 where a host that is well was evicted, or a replay differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=int, nargs="+", default=[888, 10_000], help="fleets, one after the other")
    parser.add_argument("--hours", type=float, default=24.0, help="simulated, of the first fleet (24)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--logs", type=Path, help="folder that keeps the logs, for `quantarion governor`")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "governor.json")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "results" / "governor.md")
    options = parser.parse_args()
    exit_on_signals()
    results = []
    with tempfile.TemporaryDirectory(prefix="quantarion-governor-") as temporary:
        folder = options.logs or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for hosts in options.hosts:
            first = hosts == options.hosts[0]
            evaluations = round(options.hours * 360) if first else LATENCY_EVALUATIONS
            results.append(run(hosts, evaluations, options.seed, folder / f"{hosts}.jsonl"))
            print(results[-1], flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps([asdict(result) for result in results], indent=2))
    words = ["python -m benchmarks.governor"]
    if options.hosts != parser.get_default("hosts"):
        words.append(f"--hosts {' '.join(map(str, options.hosts))}")
    if options.hours != parser.get_default("hours"):
        words.append(f"--hours {options.hours:g}")
    options.page.write_text(page(results, made_by(" ".join(words))))
    return int(any(result.failed for result in results))


if __name__ == "__main__":
    raise SystemExit(main())
