"""CC-25 with torchrun itself, and over the cables of a lab."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from benchmarks.lab import Lab, can_run
from benchmarks.lab.ranks import variables

OURS = [
    "import workers.comm",
    "state = workers.comm.CommState()  # (1)",
    "model.register_comm_hook(state, workers.comm.hook)  # (2)",
]

# torch 2.13 puts a Python object of the backward pass into each work that DDP starts during it, and gloo's thread drops
# the work some time after it is done. Where Python ends before that, the thread aborts the process: plain DDP over gloo,
# no matter how the script ends (met twice). Our hook starts no work of torch's during a backward pass.
CONTEXTS = """\
import contextvars, gc, time
contextvars.copy_context()
def contexts(): return sum(isinstance(each, contextvars.Context) for each in gc.get_objects())
before = contexts()
"""
ALL_DROPPED = "while contexts() > before: time.sleep(0.01)"


def torchrun(script: Path, environment: Mapping[str, str]) -> str:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_cc25_two_lines_in_a_script_that_knows_nothing_else_of_us(
    project: Path, child_environment: dict[str, str], tmp_path: Path
) -> None:
    lines = (project / "examples" / "ddp_script.py").read_text().splitlines()
    assert [line for line in lines if "workers" in line or "state" in line] == OURS
    without = tmp_path / "without.py"
    without.write_text("\n".join([CONTEXTS, *(line for line in lines if line not in OURS), ALL_DROPPED]))
    environment = {**child_environment, "GLOO_SOCKET_IFNAME": "lo"}
    for script in (without, project / "examples" / "ddp_script.py"):
        accuracies = re.findall(r"accuracy ([\d.]+)", torchrun(script, environment))
        assert len(accuracies) == 5
        assert float(accuracies[-1]) > 0.85


def test_cc25_the_page_shows_the_lines_of_the_example(project: Path) -> None:
    page = (project / "docs" / "comm.md").read_text()
    for line in OURS:
        assert line.partition("  #")[0] in page


@pytest.mark.root
def test_cc25_bytes_sent_are_what_the_cables_carry(project: Path) -> None:
    """Two hosts of two ranks; the cables also carry DDP's first broadcast, of one step's bytes, and headers."""
    if reason := can_run():
        pytest.skip(reason)
    script = [sys.executable, str(project / "tests" / "workers" / "comm" / "counted.py")]
    with Lab(hosts=2) as lab:
        ranks = [
            host.popen(script, env=variables(lab, host.index, rank, 2), stdout=subprocess.PIPE, cwd=Path(os.sep))
            for host in lab.hosts
            for rank in range(2)
        ]
        said = [rank.communicate()[0].decode() for rank in ranks]
        carried = sum(lab.bytes_sent())
    claimed = sum(int(re.findall(r"sent (\d+)", each)[0]) for each in said)
    assert claimed > 60 * 2_000_000
    assert 0.95 < claimed / carried < 1.0
