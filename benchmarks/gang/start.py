"""How a zygote is started, and how it is sure to end."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping

from benchmarks.system import ROOT

SINGLE = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@contextlib.contextmanager
def start_zygote(environment: Mapping[str, str], *, bucket_bytes: int | None = None) -> Iterator[str]:
    """The path of the socket of a new zygote, whose ranks have one thread each. It ends with the block, and also where this
    process is killed, and with it whatever it has forked.

    Args:
        bucket_bytes: of the largest bucket of a gradient; None for what ranks usually take.

    Raises:
        RuntimeError: it did not come up; what it said is on stderr.
    """
    with tempfile.TemporaryDirectory(prefix="gang-") as folder:
        path = f"{folder}/zygote"
        words = [path] if bucket_bytes is None else [path, str(bucket_bytes)]
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gang.zygote", *words],
            env={**environment, **SINGLE},
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            process_group=0,  # Ctrl-C is for us: we end it
        )
        with process:
            assert process.stdin is not None and process.stdout is not None
            try:
                if process.stdout.readline() != "ready\n":
                    raise RuntimeError("the process that forks the gang did not come up")
                yield path
            finally:
                process.stdin.close()
