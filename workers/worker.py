"""What a worker process does: take its place, run the task, say how it ended."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from quantarion.v1 import control_pb2 as pb

from workers import stacks
from workers.config import TrainingConfig
from workers.device_errors import is_device_lost
from workers.errors import DataError, TaskError
from workers.paths import runtime_dir

logger = logging.getLogger("quantarion.worker")

LEAVE_SECONDS = 300.0
"""How long a process whose task has failed waits to be told to leave."""


def run(*, job_folder: Path, host: str, address: str) -> None:
    """Run the job's task as one rank (idle until given a place). Ends the process."""
    import torch

    from workers import elastic, tasks
    from workers.rank import Rank

    values = json.loads((job_folder / "job.json").read_text())
    config = TrainingConfig.from_job_json(values)
    with contextlib.suppress(OSError, KeyError):  # not on this host: then Ray has put the job's files where we are
        os.chdir(values["started_in"])  # what relative paths are relative to
    torch.set_num_threads(config.threads_per_rank)
    runtime = runtime_dir(config.name, job_folder)
    rank = Rank(
        job=config.name,
        host=host,
        address=address,
        folder=job_folder,
        runtime=runtime,
        faults=list(config.faults),
        shares_memory=values["ranks_per_host"] > 1 and not config.reproducible,
    )
    stacks.show_on_request(runtime, rank.worker, rank.page)
    elastic.bind(elastic.Binding(rank, config))
    _keep_output(job_folder / "logs" / f"{rank.worker}.out")
    try:
        torch.manual_seed(config.seed)
        task = tasks.load(config)
        result = task.run(config, elastic.Job, task.preload(config))
        job = elastic.current_job()
        if job is None:
            raise TaskError("the task returned without making a Job: write job = Job(model, optimizer, dataset)")
        job.conclude(result)
    except SystemExit:
        raise
    except BaseException as error:
        _fail(rank, error)


def _keep_output(path: Path) -> None:
    """What the task prints goes to a file of the job, and what native code says, as it aborts say, to `.err` beside it.

    Ray's own files of both are gone with an embedded cluster.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout = sys.stderr = path.open("a", buffering=1)
    with path.with_suffix(".err").open("a") as native:
        for stream in (1, 2):
            os.dup2(native.fileno(), stream)


def _fail(rank: Any, error: BaseException) -> None:
    """Report and wait to be told to leave, so that the report arrives."""
    user_error = isinstance(error, (DataError, TaskError))
    text = "" if user_error else "".join(traceback.format_exception(error))
    logger.error("the task failed: %s\n%s", error, text)
    message = str(error) if user_error else f"{type(error).__name__}: {error}"
    code = error.exit_code if isinstance(error, TaskError) else 3 if isinstance(error, DataError) else 1
    failed = pb.Failed(
        error=message,
        traceback=text,
        exit_code=code,
        step=max(0, rank.machine.state.step),
        device_lost=is_device_lost(error),
    )
    rank.link.send(pb.RankReport(worker=rank.worker, failed=failed))
    until = time.monotonic() + LEAVE_SECONDS
    while time.monotonic() < until:
        rank.poll()
        rank.link.wait(0.1)
    os._exit(code)


def start_thread(**arguments: Any) -> threading.Thread:
    """Run in a thread of this process (a Ray actor's), which ends with it."""

    def body() -> None:
        try:
            run(**arguments)
        except BaseException:
            logger.exception("the worker could not start")
            logging.shutdown()
            os._exit(1)

    thread = threading.Thread(target=body, name="rank", daemon=True)
    thread.start()
    return thread
