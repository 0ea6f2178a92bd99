"""`quantarion train`: prepare the folder, start Ray or join a cluster, start the coordinator, watch, clean up."""

from __future__ import annotations

import json
import logging
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from orchestrator import rayenv, report, status, stop
from orchestrator.embedded import HEAD_ADDRESS, EmbeddedCluster
from orchestrator.errors import ExitCode, UserError
from orchestrator.folder import prepare
from orchestrator.jobspec import JobSpec
from orchestrator.view import View

logger = logging.getLogger("quantarion.launch")

SIGNALS = (signal.SIGINT, signal.SIGTERM)
LOOK_SECONDS = 0.25
SILENCE_SECONDS = 120.0
"""After this long without a word from the coordinator the job is given up."""


def train(spec: JobSpec, *, address: str | None, resume: bool, exact: bool, report: Path | None) -> int:
    """Run a job to its end and show it; returns the exit code.

    Raises UserError for everything a user can put right before the job starts.
    """
    started = time.time()
    folder = prepare(spec, cluster=rayenv.cluster_address(address), resume=resume, exact=exact)
    with ExitStack() as stack:
        interrupts, answers = stack.enter_context(_interrupts()), _Answers(folder)
        view = stack.enter_context(View(folder, status=lambda: answers.last, since=started))
        exit_code = _run(spec, folder, address, view, interrupts, answers)
    _conclude(folder, time.time() - started, exit_code, report)
    return exit_code


def _run(spec: JobSpec, folder: Path, address: str | None, view: View, interrupts: Interrupts, answers: _Answers) -> int:
    cluster = rayenv.cluster_address(address)
    with ExitStack() as stack:
        if cluster is None:
            view.note(f"starting Ray with {spec.hosts.max} host{'s' if spec.hosts.max > 1 else ''} in this machine")
            embedded = stack.enter_context(
                EmbeddedCluster(spec.hosts.max, spec.ranks_per_host + spec.spares_per_host, folder)
            )
            connection = rayenv.connect(embedded.address, rayenv.namespace(spec.name), node_address=HEAD_ADDRESS)
            keep: Callable[[], str | None] = partial(_look_after, embedded)
            pinned = {f"node:{HEAD_ADDRESS}": 0.001}
        else:
            connection = rayenv.connect(cluster, rayenv.namespace(spec.name))
            stack.callback(rayenv.disconnect)
            keep = _nothing
            pinned = {}
        interrupts.listen()  # Ray has put its own handlers in their place
        if interrupts.count:
            return ExitCode.STOPPED
        stack.enter_context(_Actors(spec, folder, connection, pinned))
        return _watch(spec, folder, view, interrupts, keep, answers)


def _look_after(embedded: EmbeddedCluster) -> str | None:
    """Restart dead hosts; a sentence where the cluster as a whole is lost."""
    failure = embedded.failure()
    if failure is None:
        embedded.revive()
    return failure


def _watch(
    spec: JobSpec,
    folder: Path,
    view: View,
    interrupts: Interrupts,
    keep: Callable[[], str | None],
    answers: _Answers,
) -> int:
    """Until the coordinator says how it ended."""
    asked = 0
    heard = time.monotonic()
    while True:
        time.sleep(LOOK_SECONDS)
        failure = keep()
        if failure is not None:
            raise UserError(f"{failure} Go on with: quantarion train … --resume", ExitCode.FAILED)
        answer = answers.ask()
        view.update()
        if interrupts.count > asked:
            asked = interrupts.count
            _ask_to_stop(folder, view, asked)
        if asked > 1 and answer is None:
            return ExitCode.STOPPED
        if answer is not None:
            heard = time.monotonic()
            if answer["phase"] in ("finished", "failed"):
                return _ended(folder, answer)
        elif time.monotonic() - heard > SILENCE_SECONDS:
            raise UserError(
                f"the coordinator of {spec.name} has not answered for {SILENCE_SECONDS:g} s; see {folder / 'logs'}, and "
                f"go on with: quantarion train … --resume",
                ExitCode.FAILED,
            )


def _ended(folder: Path, answer: dict[str, Any]) -> int:
    code = int(answer["exit_code"])
    if code not in (ExitCode.DONE, ExitCode.STOPPED):
        traceback = folder / "traceback.txt"
        if traceback.exists():
            sys.stderr.write(traceback.read_text())
        raise UserError(answer["message"], code)
    return code


def _ask_to_stop(folder: Path, view: View, times: int) -> None:
    """Ctrl-C once: finish the step, checkpoint, end. Twice: end now."""
    if times == 1:
        view.note("stopping: the step is finished and saved; press Ctrl-C again to end at once, without saving")
    else:
        view.note("ending at once")

    def ask() -> None:
        with suppress(UserError):  # no coordinator to ask: the watch sees that too
            stop.ask(folder, times > 1, "Ctrl-C")

    threading.Thread(target=ask, daemon=True).start()


def _conclude(folder: Path, seconds: float, exit_code: int, copy: Path | None) -> None:
    """The report, the picture, the last line."""
    content = report.build(folder, seconds_total=seconds)
    if copy is not None:
        report.write(content, copy)
    try:
        from orchestrator import picture

        picture.draw(folder)
    except UserError as error:
        sys.stderr.write(f"quantarion: {error}\n")
    if json.loads((folder / "job.json").read_text()).get("tensorboard"):
        from orchestrator.tensorboard import TensorBoardExport

        export = TensorBoardExport(folder)
        export.update()
        export.close()
    report.show(content, folder / report.REPORT, outcome="stopped" if exit_code == ExitCode.STOPPED else "done")


class _Answers:
    """What the coordinator says, asked once for the view and the watch; asking also tells it that the driver lives."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.last: dict[str, Any] | None = None

    def ask(self) -> dict[str, Any] | None:
        self.last = status.fetch(self._folder, driver=True)
        return self.last


class _Actors:
    """The coordinator, and everything it started, removed at the end.

    The coordinator prefers the driver's node; `pinned` are Ray resources that only the node has on which it must be: a
    raylet that has just come up does not know the other nodes yet, and then keeps what only prefers one of them.
    """

    def __init__(self, spec: JobSpec, folder: Path, connection: rayenv.Connection, pinned: dict[str, float]) -> None:
        self._spec, self._folder, self._connection, self._pinned = spec, folder, connection, pinned

    def __enter__(self) -> _Actors:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        from orchestrator.coordinator import CoordinatorActor

        spec = self._spec.model_dump(mode="json")
        try:
            self._handle: Any = (
                ray.remote(CoordinatorActor)
                .options(
                    name="coordinator",
                    namespace=self._connection.namespace,
                    lifetime="detached",
                    max_restarts=-1,
                    max_concurrency=2,
                    num_cpus=0,
                    resources=self._pinned,
                    scheduling_strategy=NodeAffinitySchedulingStrategy(self._connection.node_id, soft=True),
                )
                .remote(spec=spec, folder=str(self._folder), namespace=self._connection.namespace)
            )
        except ValueError:
            raise UserError(
                f"a job named {self._spec.name} runs on this cluster already; choose another name, or stop it with: "
                f"quantarion stop {self._spec.name}",
                ExitCode.RUNNING,
            ) from None
        return self

    def __exit__(self, *_: object) -> None:
        import ray

        from workers.paths import runtime_dir

        with suppress(Exception):
            ray.kill(self._handle, no_restart=True)
        sweep_actors(self._connection.namespace)
        shutil.rmtree(runtime_dir(self._spec.name, self._folder), ignore_errors=True)


def sweep_actors(namespace: str) -> None:
    """Remove what a job has left in the cluster: named actors and placement groups of its namespace."""
    import ray
    from ray.util.placement_group import placement_group_table

    for named in ray.util.list_named_actors(all_namespaces=True):
        if named["namespace"] == namespace:
            with suppress(Exception):
                ray.kill(ray.get_actor(named["name"], namespace), no_restart=True)
    for entry in placement_group_table().values():
        if str(entry["name"]).rpartition("-host-")[0] == namespace and entry["state"] != "REMOVED":
            with suppress(Exception):
                ray.util.remove_placement_group(ray.util.get_placement_group(entry["name"]))


class Interrupts:
    """How often Ctrl-C (or SIGTERM) came."""

    def __init__(self) -> None:
        self.count = 0

    def listen(self) -> None:
        """Count signals from here on instead of dying of them."""
        for number in SIGNALS:
            signal.signal(number, self._take)

    def _take(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self.count += 1


@contextmanager
def _interrupts() -> Iterator[Interrupts]:
    """Interrupts that listen inside."""
    interrupts = Interrupts()
    before = {number: signal.getsignal(number) for number in SIGNALS}
    interrupts.listen()
    try:
        yield interrupts
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _nothing() -> None:
    """A cluster looks after its own hosts."""
    return None
