"""`quantarion train`: prepare the folder, start Ray or join a cluster, start the coordinator, watch, clean up."""

from __future__ import annotations

import json
import logging
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from orchestrator import checkpoint_store, rayenv, report, status, stop
from orchestrator.embedded import HEAD_ADDRESS, EmbeddedCluster
from orchestrator.errors import ExitCode, UserError, again
from orchestrator.folder import JobFolder
from orchestrator.jobspec import JobSpec
from orchestrator.preflight import admission
from orchestrator.preflight.hosts import hosts_of_cluster, hosts_of_machine
from orchestrator.records import EVENTS, signal_name
from orchestrator.view import View
from workers.actors import log_to

logger = logging.getLogger("quantarion.launch")

SIGNALS = (signal.SIGINT, signal.SIGTERM)
LOOK_SECONDS = 0.25
SILENCE_SECONDS = 120.0
"""After this long without a word from the coordinator the job is given up."""
END_SECONDS = 5.0
"""After this long without a word the end is looked for in the record."""
HEAD_LOOK_SECONDS = 2.0
HEAD_SILENCE_SECONDS = 30.0


def train(spec: JobSpec, *, address: str | None, resume: bool, exact: bool, report: Path | None) -> int:
    """Run a job to its end and show it; returns the exit code.

    Raises UserError for everything a user can put right. A start that comes to no step leaves an earlier run as it was.
    """
    started = time.time()
    if report is not None and report.is_dir():
        raise UserError(f"--report {report} is a folder; write the path of a file")
    logging.getLogger("quantarion").addHandler(logging.NullHandler())  # what users are to know is told by the view
    cluster = rayenv.cluster_address(address)
    with JobFolder(spec, cluster=cluster, resume=resume, exact=exact) as folder:
        try:
            with ExitStack() as stack:
                interrupts, answers = stack.enter_context(listening()), _Answers(folder.path)
                view = View(folder.path, status=lambda: answers.last, phases=_has_phases(spec))
                exit_code = _run(folder, cluster, stack.enter_context(view), interrupts, answers)
        except BaseException as error:
            restored = _give_back(folder)
            lost = (ExitCode.FAILED, ExitCode.REQUEUE)
            if isinstance(error, UserError) and error.exit_code in lost and (go_on := _go_on(folder, restored)):
                raise UserError(f"{error}; {go_on}", error.exit_code) from None
            raise
        restored = False
        if exit_code == ExitCode.DONE:
            folder.keep()
        else:
            restored = _give_back(folder)
            if folder.taken and (go_on := _go_on(folder, restored)):
                sys.stdout.write(f"{go_on}\n")
        if not folder.taken:
            sys.stdout.write("stopped: 0 steps, before the job began\n")
        elif restored and resume:  # the report there is that of the run before
            sys.stdout.write("stopped: 0 steps since the run before\n")
        else:
            exit_code = _conclude(folder.logs, time.time() - started, exit_code, report)
    return exit_code


def _has_phases(spec: JobSpec) -> bool:
    """A script has phases only where its JobSpec gives it a second one."""
    return spec.task.script is None or ("qat_epochs" in spec.phases.model_fields_set and spec.phases.qat_epochs > 0)


def _give_back(folder: JobFolder) -> bool:
    """After a start that has come to no step; True where the run before has its folder again."""
    try:
        restored = folder.give_back()
    except OSError as error:
        sys.stderr.write(f"{folder.aside or folder.path} cannot be put back ({error.strerror}); nothing in it is lost\n")
        return False
    if restored and folder.resume:
        sys.stdout.write(
            f"{folder.path} has job.json, result.json and report.json of the run before again; what this one, which came "
            "to no step, has added to control/, events.jsonl, samples/ and logs/ stays\n"
        )
    elif restored and folder.taken:
        sys.stdout.write(f"{folder.path} is as the run before has left it; the logs of this one are in {folder.logs}\n")
    sys.stdout.flush()
    return restored


def _go_on(folder: JobFolder, restored: bool) -> str:
    """How to go on from the newest checkpoint in the job's folder; empty where there is none, or nothing left to do.

    `restored`: it is one of an earlier run, which has its folder again.
    """
    if not checkpoint_store.has_some(folder.path) or status.ended(folder.path) == ExitCode.DONE:
        return ""
    earlier = " the run before" if restored and not folder.resume else ""
    return f"go on with{earlier}: {again('--resume')}"


@dataclass(frozen=True)
class Site:
    """Where a job is to run, and how this process is connected to Ray there.

    Attributes:
        keep: looks after it from time to time; a sentence where it is lost.
        pinned: Ray resources of the node that the coordinator must be on; it prefers the driver's.
        sweep: removes what the job has left there.
    """

    connection: rayenv.Connection
    keep: Callable[[], str | None]
    pinned: dict[str, float]
    sweep: Callable[[], None]


def on_embedded(cluster: EmbeddedCluster, job: str) -> Site:
    """Connect to a cluster of this process, for one job of it. Raises UserError."""
    connection = rayenv.connect(cluster.address, rayenv.namespace(job), node_address=HEAD_ADDRESS)
    sweep = partial(sweep_actors, connection.namespace)
    return Site(connection, partial(_look_after, cluster), {f"node:{HEAD_ADDRESS}": 0.001}, sweep)


def on_cluster(address: str, job: str) -> Site:
    """Connect to a cluster that runs already, for one job. Raises UserError."""
    connection = rayenv.connect(address, rayenv.namespace(job))
    head = _Head(connection.address)
    return Site(connection, head.look, {}, partial(head.sweep, connection.namespace))


def _run(folder: JobFolder, cluster: str | None, view: View, interrupts: Interrupts, answers: _Answers) -> int:
    spec = folder.spec
    with ExitStack() as stack:
        stack.callback(_remove_runtime, folder)
        if cluster is None:
            admission.admit(spec, hosts_of_machine, cluster=False, note=view.note)
            view.note(f"starting Ray with {spec.hosts.most} host{'s' if spec.hosts.most > 1 else ''} in this machine")
            embedded = stack.enter_context(
                EmbeddedCluster(
                    spec.hosts.most,
                    spec.ranks_per_host + spec.spares_per_host,
                    folder.path,
                    left_behind=left_behind(folder),
                )
            )
            site = on_embedded(embedded, spec.name)
        else:
            site = on_cluster(cluster, spec.name)
            stack.callback(rayenv.disconnect)
            admission.admit(spec, hosts_of_cluster, cluster=True, note=view.note)
        interrupts.listen()  # Ray has put its own handlers in their place
        if interrupts.signals:
            return ExitCode.STOPPED
        folder.take()
        recorded = _size(folder.path / EVENTS)
        start_coordinator(folder, site)
        if cluster is not None:  # an embedded one goes as a whole
            stack.callback(site.sweep)
        log_to(folder.path / "logs" / "launch.log")
        return _watch(spec, folder.path, view, interrupts, site.keep, answers, recorded)


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
    recorded: int,
) -> int:
    """Until the coordinator says how it ended. `recorded`: bytes of events.jsonl before it began, of runs before."""
    request = _StopRequest(folder, view)
    begun, heard = False, time.monotonic()
    while True:
        time.sleep(LOOK_SECONDS)
        failure = keep()
        answer = answers.ask()
        view.update()
        silent = 0.0 if answer is not None else time.monotonic() - heard
        if failure is not None or silent > END_SECONDS:
            end = status.recorded_end(folder, recorded)
            if end is not None:
                return _ended(folder, end)
        if failure is not None:
            raise UserError(failure.rstrip("."), ExitCode.FAILED)
        request.follow(interrupts.signals)
        if answer is None and interrupts.signals and (not begun or len(interrupts.signals) > 1):
            return ExitCode.STOPPED  # there is nobody to ask
        if answer is not None:
            begun, heard = True, time.monotonic()
            if answer["phase"] in ("finished", "failed"):
                return _ended(folder, answer)
        elif silent > SILENCE_SECONDS:
            raise UserError(
                f"the coordinator of {spec.name} has not answered for {SILENCE_SECONDS:g} s; see its log, "
                "logs/coordinator.log in the job's folder",
                ExitCode.FAILED,
            )


def _size(path: Path) -> int:
    """0 where it does not exist."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _ended(folder: Path, answer: dict[str, Any]) -> int:
    code = int(answer["exit_code"])
    if code not in (ExitCode.DONE, ExitCode.STOPPED):
        traceback = folder / "traceback.txt"
        if traceback.exists():
            sys.stderr.write(traceback.read_text())
        raise UserError(str(answer["message"]), code)
    return code


class _StopRequest:
    """Ctrl-C or SIGTERM, once: finish the step, checkpoint, end. Twice: end now. Asks until the coordinator has heard."""

    def __init__(self, folder: Path, view: View) -> None:
        self._folder, self._view = folder, view
        self._noted = 0
        self._heard = 0
        self._asking: threading.Thread | None = None

    def follow(self, signals: Sequence[int]) -> None:
        """Tell the user and the coordinator about the signals so far."""
        if len(signals) > self._noted:
            self._noted = len(signals)
            self._view.note(stop_sentence(signals, saves=self._view.seen.step > 0))
        if self._noted > self._heard and (self._asking is None or not self._asking.is_alive()):
            self._asking = threading.Thread(target=self._ask, args=(self._noted, signal_words(signals[-1])), daemon=True)
            self._asking.start()

    def _ask(self, times: int, reason: str) -> None:
        with suppress(UserError):  # no coordinator yet, or it is away
            stop.ask(self._folder, times > 1, reason)
            self._heard = times


def stop_sentence(signals: Sequence[int], *, saves: bool) -> str:
    """What a signal to the launcher brings about; `saves`: there is a step to be saved."""
    name = signal_words(signals[-1])
    if len(signals) > 1:
        return f"{name}: ending at once, without saving"
    if not saves:
        return f"{name}: ending, there is no step to be saved"
    once_more = "press Ctrl-C again" if name == "Ctrl-C" else f"send {name} again"
    return f"{name}: the step is finished and saved; {once_more} to end at once, without saving"


def signal_words(number: int) -> str:
    """A signal as a user knows it."""
    return "Ctrl-C" if number == signal.SIGINT else signal_name(number)


def _conclude(folder: Path, seconds: float, exit_code: int, copy: Path | None) -> int:
    """The report, the picture, the last line; returns the exit code that the report asks for."""
    try:
        content = report.build(folder, seconds_total=seconds)
        if copy is not None:
            report.write(content, copy)
        for draw in (_draw_picture, _export_to_tensorboard):
            try:
                draw(folder)
            except UserError as error:  # what it needs is not installed; nothing else depends on it
                sys.stderr.write(f"{error}\n")
    except OSError as error:
        raise UserError(
            f"the job has ended, but its report cannot be written: {error.filename or folder} ({error.strerror or error}); "
            "make room there, the steps and checkpoints are safe",
            ExitCode.STORAGE,
        ) from None
    report.show(content, folder / report.REPORT, outcome="stopped" if exit_code == ExitCode.STOPPED else "done")
    return report.exit_code(content) if exit_code == ExitCode.DONE else exit_code


def _draw_picture(folder: Path) -> None:
    from orchestrator import picture

    picture.draw(folder)


def _export_to_tensorboard(folder: Path) -> None:
    if json.loads((folder / "job.json").read_text()).get("tensorboard"):
        from orchestrator.tensorboard import TensorBoardExport

        export = TensorBoardExport(folder)
        export.update()
        export.close()


class _Answers:
    """What the coordinator says, asked once for the view and the watch; asking also tells it that the driver lives."""

    def __init__(self, folder: Path) -> None:
        self._link = status.Link(folder)
        self.last: dict[str, Any] | None = None

    def ask(self) -> dict[str, Any] | None:
        self.last = self._link.fetch(driver=True)
        return self.last


def start_coordinator(folder: JobFolder, site: Site) -> None:
    """As an actor that outlives this process, on the site that the folder's job is to run on. Raises UserError.

    A raylet that has just come up does not know the other nodes yet, and then keeps what only prefers one of them.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from orchestrator.coordinator import CoordinatorActor

    actor: Any = ray.remote(CoordinatorActor)
    options = {
        "name": "coordinator",
        "namespace": site.connection.namespace,
        "lifetime": "detached",
        "max_restarts": -1,
        "max_concurrency": 2,
        "num_cpus": 0,
        "resources": site.pinned,
        "scheduling_strategy": NodeAffinitySchedulingStrategy(site.connection.node_id, soft=True),
    }
    spec = folder.spec.model_dump(mode="json")
    try:
        actor.options(**options).remote(spec=spec, folder=str(folder.path), namespace=site.connection.namespace)
    except ValueError:
        raise UserError(
            f"a job named {folder.spec.name} runs on this cluster already; choose another name with --set name=…, or stop "
            "it where it was started",
            ExitCode.RUNNING,
        ) from None


def _remove_runtime(folder: JobFolder) -> None:
    for each in left_behind(folder):
        shutil.rmtree(each, ignore_errors=True)


def left_behind(folder: JobFolder) -> list[Path]:
    """Where the job's processes on this machine meet: sockets and pages, and the memory that the ranks share."""
    from workers.memory_file import memory_folder
    from workers.paths import runtime_dir

    runtime = runtime_dir(folder.spec.name, folder.path)
    return [runtime, memory_folder(runtime)]


class _Head:
    """The head of a cluster that runs already, asked from time to time: Ray ends a driver that has lost it for a minute."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._answered = self._asked = time.monotonic()

    def look(self) -> str | None:
        """A sentence once it has been away for long."""
        now = time.monotonic()
        if now - self._asked >= HEAD_LOOK_SECONDS:
            self._asked = now
            if self.answers():
                self._answered = now
        if now - self._answered > HEAD_SILENCE_SECONDS:
            return f"The head of the Ray cluster at {self.address} has not answered for {HEAD_SILENCE_SECONDS:g} s."
        return None

    def answers(self) -> bool:
        host, _, port = self.address.rpartition(":")
        with suppress(OSError), socket.create_connection((host.strip("[]"), int(port)), timeout=1.0):
            return True
        return False

    def sweep(self, namespace: str) -> None:
        """`sweep_actors`, where somebody answers."""
        if self.answers():
            sweep_actors(namespace)


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
    """Which of `SIGNALS` came, in their order."""

    def __init__(self) -> None:
        self.signals: list[int] = []

    def listen(self) -> None:
        """Count signals from here on instead of dying of them."""
        for number in SIGNALS:
            signal.signal(number, self._take)

    def _take(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.signals.append(number)


@contextmanager
def listening() -> Iterator[Interrupts]:
    """Interrupts that listen inside."""
    interrupts = Interrupts()
    before = {number: signal.getsignal(number) for number in SIGNALS}
    interrupts.listen()
    try:
        yield interrupts
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
