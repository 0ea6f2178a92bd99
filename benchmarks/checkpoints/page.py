"""The results as markdown."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from benchmarks.checkpoints.measure import Outcome
from benchmarks.checkpoints.rates import CodecRate
from benchmarks.checkpoints.shares import ELEMENTS, TENSORS, WRITERS, Seconds
from benchmarks.checkpoints.training import Training
from benchmarks.checkpoints.ways import CHAIN
from benchmarks.machine import made_by

RATE_TARGETS = {"encode": 0.10, "decode": 0.20}
BLOCKED_TARGET = 0.1
"""Seconds for each GB of the state."""

SIZE_TARGETS = {"whole": 4.2, "chain": 8.0}


def page(
    outcomes: dict[str, Outcome],
    rates: Sequence[CodecRate],
    together: Seconds,
    training: Training,
    rate: float | None,
    command: str,
) -> str:
    """The results as markdown."""
    gigabytes, plain = training.bytes / 1e9, statistics.median(outcomes["torch.save"].size)
    store = f"kept to {rate:g} MB/s in both directions" if rate else "as fast as it is"
    lines = [
        "# Checkpoints, ours and others'",
        "",
        f"A transformer of {sum(p.numel() for p in training.model.parameters()) / 1e6:.1f} M parameters with AdamW after "
        f"{training.steps} steps: {training.bytes / 1e6:.0f} MB of tensors. All ways save the same state in turns, with a "
        f"step of training between two rounds; median of {len(outcomes['torch.save'].size)}. The store is this machine's "
        f"disk, {store}. *Blocked*: until training could go on; *durable*: until all bytes are synced; *restore*: until "
        "all tensors are in memory, read from the disk. What comes back was compared bit for bit, but of those that round.",
        "",
        "| | MB | torch.save = 1 | blocked s | per GB | durable s | restore s |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, each in outcomes.items():
        size, blocked = statistics.median(each.size), statistics.median(each.blocked)
        lines.append(
            f"| {name} | {size / 1e6:.1f} | 1 / {plain / size:.2f} | {blocked:.3f} | {blocked / gigabytes:.2f} "
            f"| {statistics.median(each.durable):.2f} | {statistics.median(each.restore):.2f} |"
        )
    lines += ["", *_verdicts(outcomes, gigabytes, plain), "", *_shares(together), "", "## Codecs", ""]
    lines += [
        "One thread, without zstd, in shares of the rate of a warm copy of the same float32 numbers.",
        "",
        f"| codec | encode (at least {RATE_TARGETS['encode']:g}) | decode (at least {RATE_TARGETS['decode']:g}) |",
        "|---|---|---|",
    ]
    lines += [f"| {each.codec} | {each.encode:.3f} | {each.decode:.3f} |" for each in rates]
    return "\n".join([*lines, "", made_by(command)]) + "\n"


def _shares(together: Seconds) -> list[str]:
    """Seconds by tier and number of writers."""
    tiers = list(dict.fromkeys(tier for tier, _ in together))
    titles = " | ".join("1 writer" if writers == 1 else f"{writers} writers" for writers in WRITERS)
    lines = [
        "## Written by several ranks",
        "",
        f"{TENSORS * ELEMENTS * 4 / 1e6:.0f} MB, each rank a process with one thread on this machine, the store as above; "
        "seconds until it is visible and on the disk. More writers than cores cannot help here.",
        "",
        f"| tier | {titles} |",
        "|---|" + "---|" * len(WRITERS),
    ]
    return lines + [f"| {tier} | {' | '.join(f'{together[tier, each]:.2f}' for each in WRITERS)} |" for tier in tiers]


def _verdicts(outcomes: dict[str, Outcome], gigabytes: float, plain: float) -> list[str]:
    """A line for each target of the table."""
    whole, chain, exact = outcomes["ours, qins"], outcomes["ours, qins, difference"], outcomes["ours, exact"]
    others = {name: each for name, each in outcomes.items() if not name.startswith("ours")}
    mean = (statistics.median(whole.size) + (CHAIN - 1) * statistics.median(chain.size)) / CHAIN
    durable = min(statistics.median(each.durable) for each in others.values())
    restore = statistics.median(others["DCP save"].restore)
    ours = {name: each for name, each in outcomes.items() if name.startswith("ours")}
    found = [
        (
            "size of a whole one in the qins tier",
            plain / statistics.median(whole.size),
            SIZE_TARGETS["whole"],
            True,
            "1 / {:.2f}",
        ),
        (f"mean size of a chain of {CHAIN}", plain / mean, SIZE_TARGETS["chain"], True, "1 / {:.2f}"),
        ("blocked, s per GB", statistics.median(exact.blocked) / gigabytes, BLOCKED_TARGET, False, "{:.3f}"),
    ]
    for name, each in ours.items():
        found.append((f"durable, {name}, s", statistics.median(each.durable), durable, False, "{:.2f}"))
        found.append((f"restore, {name}, s", statistics.median(each.restore), restore, False, "{:.2f}"))
    lines = ["| target | found | asked | |", "|---|---|---|---|"]
    for what, number, target, is_least, form in found:
        met = number >= target if is_least else number <= target
        lines.append(f"| {what} | {form.format(number)} | {form.format(target)} | {'met' if met else 'MISSED'} |")
    lines += ["", "A save is asked to be as fast as the fastest of the others, a restore as DCP's."]
    return lines
