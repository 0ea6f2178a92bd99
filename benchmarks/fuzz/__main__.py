"""Broken and hostile checkpoints and model folders, one after the other, before our readers: `python -m benchmarks.fuzz`.

    python -m benchmarks.fuzz --minutes 30
    python -m benchmarks.fuzz --inputs 2000 --seed 7

Each input is a sound one of a small corpus, changed in one to three places. What is damaged blindly is refused by a
checksum, so most changes are sealed again as an attacker would: behind the checksum of a manifest, of a shard, of a tensor.

A reader may return a state or raise CheckpointError with one sentence. Anything else is a finding: another exception, more
than `--patience` seconds, more memory than `--memory` MiB beyond what the corpus needs, and what was changed without being
sealed again and comes back as another state. A finding is kept below `--keep`.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import resource
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
from rich.progress import Progress, TextColumn, TimeElapsedColumn

from benchmarks.fuzz.changes import Random
from benchmarks.fuzz.corpus import make_corpus
from benchmarks.fuzz.readers import Tally, one, read


def fuzz(
    *,
    seed: int,
    inputs: int | None,
    seconds: float | None,
    memory: int,
    patient: float,
    keep: Path | None,
    show: bool = False,
) -> tuple[Tally, Mapping[str, int]]:
    """Until `inputs` were read, or `seconds` are over. The tally, and resident MiB after the first 500 and at the end."""
    chance, tally = Random(seed), Tally()
    process = psutil.Process()
    with TemporaryDirectory() as made, TemporaryDirectory() as scratch:
        corpus = make_corpus(Path(made))
        digests = {sound: read(sound) for sound in corpus}
        begun, first = time.monotonic(), 0
        with limited(memory), _bar(show) as bar:
            while (inputs is None or tally.inputs < inputs) and (seconds is None or time.monotonic() - begun < seconds):
                sound = chance.choice(corpus)
                faulthandler.dump_traceback_later(10 * patient, exit=True)  # what a signal does not interrupt
                finding = one(sound, Path(scratch), chance, tally, patient, digests[sound])
                faulthandler.cancel_dump_traceback_later()
                if finding is not None:
                    tally.findings.append(finding)
                    if keep is not None:
                        kept = keep / f"seed-{seed}-input-{tally.inputs}"
                        shutil.rmtree(kept, ignore_errors=True)
                        shutil.copytree(Path(scratch, sound.name), kept, symlinks=True)
                        (keep / f"{kept.name}.txt").write_text(finding)
                if tally.inputs == 500:
                    first = process.memory_info().rss
                bar(f"{tally.inputs} inputs, {tally.refused} refused, {tally.read} read, {len(tally.findings)} findings")
    last = process.memory_info().rss
    return tally, {"first": (first or last) >> 20, "last": last >> 20}


@contextmanager
def limited(megabytes: int) -> Iterator[None]:
    """Inside `with` this process gets no more address space than it has and so much."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + (megabytes << 20), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@contextmanager
def _bar(show: bool) -> Iterator[Callable[[str], None]]:
    if not show:
        yield lambda text: None
        return
    with Progress(TimeElapsedColumn(), TextColumn("{task.description}"), transient=True) as progress:
        task = progress.add_task("")
        yield lambda text: progress.update(task, description=text)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, help="how long; or")
    parser.add_argument("--inputs", type=int, help="how many")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--memory", type=int, default=1024, metavar="MIB", help="that a reader gets (1024)")
    parser.add_argument("--patience", type=float, default=20.0, metavar="SECONDS", help="that a reader gets (20)")
    parser.add_argument("--keep", type=Path, default=Path("runs/fuzz"), help="where findings are kept (runs/fuzz)")
    parser.add_argument("--out", type=Path, help="the figures, as JSON")
    options = parser.parse_args(arguments)
    if (options.minutes is None) == (options.inputs is None):
        parser.error("write either --minutes or --inputs")
    options.keep.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    tally, resident = fuzz(
        seed=options.seed,
        inputs=options.inputs,
        seconds=None if options.minutes is None else 60 * options.minutes,
        memory=options.memory,
        patient=options.patience,
        keep=options.keep,
        show=sys.stderr.isatty(),
    )
    minutes = (time.monotonic() - begun) / 60
    print(f"{tally.inputs} inputs in {minutes:.1f} min: {tally.refused} refused, {tally.read} read all the same")
    print(f"{len(tally.sentences)} kinds of sentences; the slowest took {tally.slowest:.2f} s")
    print(f"resident: {resident['first']} MiB after 500 inputs, {resident['last']} MiB at the end")
    by_source = Counter[str]()
    for kind, number in tally.kinds.items():
        by_source[kind.partition(":")[0]] += number
    print(", ".join(f"{name} {number}" for name, number in sorted(by_source.items())))
    for finding in tally.findings[:5]:
        print(f"\n{finding}")
    print(f"{len(tally.findings)} findings{f', kept in {options.keep}' if tally.findings else ''}")
    if options.out is not None:
        figures = {"minutes": minutes, "inputs": tally.inputs, "refused": tally.refused, "read": tally.read}
        more = {"findings": len(tally.findings), "slowest": tally.slowest, "kinds": tally.kinds, **resident}
        options.out.write_text(json.dumps({**figures, **more}, indent=1) + "\n")
    return 1 if tally.findings else 0


if __name__ == "__main__":
    sys.exit(main())
