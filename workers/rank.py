"""A rank among its peers: hears directives, keeps promises, copies state, connects, and says so.

Everything here runs in the rank's own thread. `poll` is cheap and is called at every point where the rank could be asked
to stop; `ensure_training` is where it waits, heals and connects until it may train.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from quantarion.v1 import control_pb2 as pb

from workers import wire
from workers.collectives.connect import Connector, store_prefix
from workers.collectives.exchange import Abandoned, ExchangeError, FlatExchange, Graveyard, Hosts, Place, Topology
from workers.collectives.shared import HostExchange, HostMemory, Layout, by_memory, enter
from workers.engine import ApplyError, Engine
from workers.faults import Faults
from workers.identity import GENESIS, NO_GENERATION, NOWHERE, Generation, StateId
from workers.link import AgentLink, new_worker_id, page_path, socket_path
from workers.memory_file import MemoryShortage, memory_folder, memory_path, remove_abandoned
from workers.page import Page
from workers.protocol import PrepareOrder, RankMachine, RankState, Sync
from workers.transfer import Commit, Offer, Snapshot, StateClient, StateServer, TransferError, hand_over

logger = logging.getLogger("quantarion.rank")

NEAR_STEPS = 2
"""A joiner that gains at most so many commits with one question keeps up; it follows on until it is admitted."""

EXCHANGE_SECONDS = 900.0
"""After this long gloo gives an operation up by itself. Abandoning does not rest on it; the slowest member's step does."""

ORPHAN_SECONDS = 90.0
"""A rank without an agent for this long has been given up by everyone."""


HAND_OVER_SECONDS = 25.0
"""Less than a coordinator waits for the end of a rank that leaves (`farewell`)."""


class Host(Protocol):
    """What the public `Job` does for its rank."""

    def found(self, at_most: int | None) -> Snapshot | None:
        """The state a job begins with: a checkpoint's, of a step up to `at_most`, or None for the model as it was built."""

    def restore(self, snapshot: Snapshot) -> None:
        """Take over a donor's or a checkpoint's state."""

    def replay(self, commit: Commit) -> None:
        """Apply a commit that a peer made."""

    def entered(self) -> None:
        """A generation is running: who writes, and which shares are ours, may have changed."""

    def stop_requested(self) -> None:
        """The job ends here: the first of the ring checkpoints."""

    def relieve(self, seconds: float, above: float) -> None:
        """For so long, while more than this share of the storage is used, keep no more checkpoints than have to be."""

    def held(self) -> None:
        """The gang waits for hosts, and this rank has its state: checkpoint."""


class Rank:
    """The process's place in the job."""

    def __init__(
        self,
        *,
        job: str,
        host: str,
        address: str,
        folder: Path,
        runtime: Path,
        faults: list[str],
        shares_memory: bool = False,
    ) -> None:
        """`shares_memory`: with other ranks of its host, if the machine has the room."""
        self.shares_memory = shares_memory
        self.job, self.host, self.address, self.folder, self.runtime = job, host, address, folder, runtime
        self.worker = new_worker_id()
        self.machine = RankMachine()
        self.number = -1
        self.attempt = 0
        self.first_step = 0
        self.topology = Topology((), -1)
        self.exchange: FlatExchange | None = None
        self.hosts: Hosts = ()
        self.shares: tuple[int, ...] = ()
        """The members of this generation that share memory, by host; one that shares none is a host of its own."""
        self.host_exchange: HostExchange | None = None
        self.host_memory: HostMemory | None = None
        self.longest_step = 0.0
        self.save_after = 0
        """A checkpoint is wanted after this step; 0: nobody has asked, or it was seen to."""
        self._trains_since: float | None = None  # monotonic seconds
        self.faults = Faults(faults, folder / "faults", self._where)
        runtime.mkdir(parents=True, exist_ok=True, mode=0o700)  # where the agent is still starting
        self.page = Page(page_path(runtime, self.worker), create=True)
        self.link = AgentLink(socket_path(runtime, host), self.page, self._hello)
        self.faults.agent = lambda: self.link.agent_pid
        self.engine: Engine | None = None
        self._server: StateServer | None = None
        self._owner: Host | None = None
        self._configure: pb.Configure | None = None
        self._as_built = True  # the model holds the task's own initial values
        self._join: list[str] = []
        self._donor: str = ""
        self._connector = Connector()
        self._graveyard = Graveyard()
        self._saves_held = False  # what it holds is wanted on disk, while the gang waits
        self._posted: deque[pb.RankReport] = deque()
        self._on_exit: list[Callable[[], None]] = []

    # ------------------------------------------------------------------ set-up

    def serve(self, engine: Engine, owner: Host) -> None:
        """The task has built its model: from now on this process can be given a place."""
        self.engine, self._owner = engine, owner
        if self.shares_memory:
            self._make_memory(engine.shared_layout)
        self._server = StateServer(self.address, self._find_offer, engine.heir)
        self._note_state()
        list(self._poll_link())

    def _make_memory(self, layout: Layout) -> None:
        """Where there is none, the ranks of this host exchange through sockets (CC-2)."""
        folder = memory_folder(self.runtime)
        try:
            remove_abandoned(folder)
            self.host_memory = HostMemory(memory_path(folder, self.worker), layout)
        except (MemoryShortage, OSError) as error:
            fields = {"host": self.host, "message": f"{error}; until then its ranks go through sockets"}
            self.link.send(pb.RankReport(worker=self.worker, note=pb.Note(kind="shared_memory", json=json.dumps(fields))))
        else:
            self.at_exit(self.host_memory.remove)

    def at_exit(self, action: Callable[[], None]) -> None:
        """Run before the process leaves for good: flush what is buffered."""
        self._on_exit.append(action)

    def _where(self) -> dict[str, int]:
        """What the conditions of a fault are compared with."""
        state, generation = self.machine.state, self.machine.generation.counter
        number = self.host.rpartition("-")[2]
        return {
            "rank": self.number,
            "host": int(number) if number.isdigit() else -1,
            "step": state.step + 1,
            "round": state.round + 1,
            "generation": generation,
            "second": -1 if self._trains_since is None else int(time.monotonic() - self._trains_since),
        }

    def _find_offer(self, have: StateId, generation: Generation) -> Offer | None:
        """For a peer that needs state; called by the state server's threads."""
        assert self.engine is not None
        offer = self.engine.recent.find_offer(have, generation)
        if offer is not None:
            self.faults.hit("in_serve", snapshot=int(offer.snapshot is not None))
        return offer

    def _hello(self) -> pb.WorkerUp:
        machine = self.machine
        return pb.WorkerUp(
            worker=self.worker,
            pid=os.getpid(),
            peer_address=self._server.address if self._server else "",
            state=wire.state_to_wire(machine.state),
            previous=wire.state_to_wire(machine.previous),
            generation=wire.generation_to_wire(machine.generation),
            promised=wire.generation_to_wire(machine.promised),
            healed=machine.healed,
            phase=machine.phase.value,
            rank=self.number,
            shared_memory=self.host_memory is not None,
        )

    # ------------------------------------------------------------------ poll points

    @property
    def index(self) -> int:
        """Position in the ring of the members: 0 writes logs and checkpoints."""
        return self.topology.index

    @property
    def world(self) -> int:
        return self.topology.world

    @property
    def exchange_in_use(self) -> FlatExchange:
        """The running generation's. Raises Abandoned where a directive has just closed it."""
        if self.exchange is None:
            raise Abandoned
        return self.exchange

    def must_stop(self) -> bool:
        """Poll, and tell whether what is being done has to be abandoned."""
        self.poll()
        return self.machine.must_close

    def post(self, report: pb.RankReport) -> None:
        """Report from another thread of this process; sent at the rank's next poll."""
        self._posted.append(report)

    def poll(self) -> None:
        """Hear the agent, serve a waiting peer. Cheap when there is nothing."""
        self.page.count_poll()
        while self._posted:
            self.link.send(self._posted.popleft())
        if self.link.rung:
            self._poll_link()
        if self.engine is not None:
            self.engine.recent.serve_snapshot(self.engine.capture)

    def _poll_link(self) -> list[pb.Directive]:
        directives = list(self.link.poll())
        for directive in directives:
            if directive.HasField("prepare"):
                generation = wire.generation_from_wire(directive.prepare.generation)
                self.machine.on_prepare(PrepareOrder(generation, directive.prepare.at_step))
            elif directive.HasField("configure"):
                self._configure = pb.Configure.FromString(directive.configure)
            elif directive.HasField("join"):
                self._join = [donor.peer_address for donor in directive.join.donors]
            elif directive.HasField("relieve"):
                if self._owner is not None:
                    self._owner.relieve(directive.relieve.seconds, directive.relieve.above)
            elif directive.HasField("save"):
                if directive.save.held:
                    self._saves_held = True
                else:
                    self.save_after = directive.save.step
            elif directive.HasField("exit"):
                self._hand_over(list(directive.exit.heirs), wire.state_from_wire(directive.exit.authority))
                self.leave(directive.exit.reason)
        if self.link.orphaned_for > ORPHAN_SECONDS:
            self.leave("no agent")
        return directives

    def _hand_over(self, heirs: list[str], authority: StateId) -> None:
        """What this rank owes by error feedback goes to one that stays (CC-12), if it went with them as far as they came;
        otherwise it is lost. At the end of a job, without an authority, nobody needs it."""
        if authority == NOWHERE or self.engine is None or not self.machine.healed or not (owed := self.engine.estate()):
            return
        kind, fields = "residual_lost", {"worker": self.worker, "residual_lost_norm": self.engine.owed}
        if heirs and self.machine.state == authority:
            heir = heirs[max(self.number, 0) % len(heirs)]
            try:
                hand_over(heir, owed, HAND_OVER_SECONDS)
                norm = float(sum(float(tensor.norm()) ** 2 for tensor in owed.values()) ** 0.5)
                kind, fields = "residual_handed_over", {"worker": self.worker, "heir": heir, "residual_norm": norm}
            except TransferError as error:
                logger.warning("residuals: %s", error)
        self.link.send(pb.RankReport(worker=self.worker, note=pb.Note(kind=kind, json=json.dumps(fields))))

    def leave(self, reason: str) -> None:
        """Flush and go: never through the interpreter's exit, where an abandoned operation could hang (EP-7)."""
        logger.info("leaving: %s", reason)
        for action in self._on_exit:
            try:
                action()
            except Exception:
                logger.exception("while leaving")
        logging.shutdown()
        os._exit(0)

    # ------------------------------------------------------------------ getting to train

    def ensure_training(self) -> None:
        """Return when this rank is in a running generation and nobody has asked it to close it."""
        while True:
            self.poll()
            if self.machine.must_close:
                self._promise()
            elif self.machine.phase in (RankState.TRAINING, RankState.FINISHED):
                return
            elif self.machine.phase is RankState.JOINING:
                self._follow()
            elif self._join and self.machine.on_join():
                self._note_state()
            elif self._configure is not None:
                configure, self._configure, self._saves_held = self._configure, None, False
                self._enter(configure)
            elif self._saves_held and self.machine.healed and self._owner is not None:
                self._saves_held = False
                self._owner.held()
            else:
                self.link.wait(0.02 if self.machine.healed else 0.2)

    def _promise(self) -> None:
        """Close the old generation under the gate that guards apply, and say where we stand (EP-8)."""
        self.faults.hit("before_prepared")
        self._close_exchange()
        answer = self.machine.close()
        self._note_state()
        self.link.send(pb.RankReport(worker=self.worker, prepared=wire.answer_to_wire(answer)))
        self.faults.hit("after_prepared")

    def _close_exchange(self) -> None:
        if self.engine is not None:
            self.engine.discard()
        if self.exchange is not None:
            self._graveyard.bury(self.exchange)
            self.exchange = None
        self.host_exchange = None

    def _enter(self, configure: pb.Configure) -> None:
        """CONFIGURE: take the place, get to the authority's state, connect (EP-9)."""
        started = time.monotonic()
        generation = wire.generation_from_wire(configure.generation)
        mine = next((m for m in configure.members if m.worker == self.worker), None)
        if mine is None:
            return
        authority = wire.state_from_wire(configure.authority)
        assert self.engine is not None
        with self.engine.lock:  # a peer that asks for our state sees all of this or nothing
            sync = self.machine.on_configure(generation, NOWHERE if configure.first else authority, mine.on_line)
        if sync is None:
            return
        self._join = []
        self.page.forget_collectives()
        self._seat(configure, mine)
        self.faults.hit("in_configure")
        try:
            if configure.first:
                sync = self._begin_job(configure, mine)
            elif sync is not Sync.GO_ON:
                self._get_state([m.peer_address for m in configure.members if m.donor], authority)
            self.faults.hit("in_connect")
            self.hosts = by_memory(configure.members)
            if self.host_memory is not None:
                self.host_exchange = enter(self.host_memory, self.host, configure.members, generation)
            self.exchange = self._connector.connect(
                self.topology,
                configure.store_address,
                store_prefix(self.job, generation),
                self.machine.state,
                self.must_stop,
                EXCHANGE_SECONDS,
            )
        except Abandoned:
            return
        except (ExchangeError, TransferError, ApplyError) as error:
            self._report_failed(generation, str(error))
            return
        self._train(generation, configure, sync, time.monotonic() - started)

    def _seat(self, configure: pb.Configure, mine: pb.Member) -> None:
        places = tuple(Place(m.rank, m.host, m.peer_address.rpartition(":")[0], m.group) for m in configure.members)
        index = next(i for i, m in enumerate(configure.members) if m.worker == self.worker)
        self.topology = Topology(places, index)
        self.number = mine.rank
        self.attempt = configure.attempt
        self.shares = _shares(configure.members)
        self._note_state()

    def _train(self, generation: Generation, configure: pb.Configure, sync: Sync, seconds: float) -> None:
        assert self._owner is not None
        self._as_built = False
        self.first_step = self.machine.state.step + 1
        if self._trains_since is None:
            self._trains_since = time.monotonic()
        self.machine.train()
        self._note_state()
        self._owner.entered()
        running = pb.Running(
            generation=wire.generation_to_wire(generation),
            state=wire.state_to_wire(self.machine.state),
            how=sync.value,
            seconds=seconds,
            rank=self.number,
        )
        self.link.send(pb.RankReport(worker=self.worker, running=running))
        if configure.stop:
            self._owner.stop_requested()
            self.finish()

    def _begin_job(self, configure: pb.Configure, mine: pb.Member) -> Sync:
        """The first generation takes its state from the first of the ring (EP-15)."""
        assert self.engine is not None and self._owner is not None
        if not mine.donor:
            with self.engine.lock:
                self.machine.lost_state()  # what it holds may have the name of what it needs, and be something else
            self._get_state([m.peer_address for m in configure.members if m.donor], None)
            return Sync.HEAL
        snapshot = self._owner.found(configure.at_most if configure.HasField("at_most") else None)
        if snapshot is not None:
            self._owner.restore(snapshot)
            return Sync.HEAL
        if not self._as_built:
            self.leave("there is no checkpoint, and a job cannot begin with what this process has trained")
        with self.engine.lock:
            self.machine.synced(GENESIS, GENESIS)
        return Sync.GO_ON

    # ------------------------------------------------------------------ getting state

    def _get_state(self, donors: list[str], authority: StateId | None) -> None:
        """Catch up or heal from the first donor that can, until we are where it is: at `authority`, where that is known.

        Raises Abandoned, TransferError.
        """
        last: TransferError | None = None
        for address in sorted(donors, key=lambda a: a != self._donor):
            try:
                client = StateClient(address, self._poll_or_abandon, self.page.count_exchange)
                try:
                    while self._fetch(client, self.machine.generation):
                        pass
                    if authority is not None and self.machine.state != authority:
                        raise TransferError(f"the donor stands at {self.machine.state}, not at {authority}")
                    return
                finally:
                    client.close()
            except TransferError as error:
                last = error
        raise last or TransferError("no donor was named")

    def _fetch(self, client: StateClient, generation: Generation) -> bool:
        """One question and its answer; False where we held the donor's state of that moment already."""
        assert self.engine is not None and self._owner is not None
        commits, snapshot = client.fetch(self.machine.state, generation)
        self.faults.hit("in_heal")
        self._as_built = False
        if snapshot is not None:
            self._owner.restore(snapshot)
        for commit in commits:
            self._owner.replay(commit)
        with self.engine.lock:
            self.machine.synced(self.machine.state, self.machine.previous)
        return bool(commits) or snapshot is not None

    def _poll_or_abandon(self) -> None:
        if self.machine.phase is RankState.JOINING:
            self.page.count_exchange()  # it holds nobody up: that it is awake is enough
        if self.must_stop():
            raise Abandoned

    def _follow(self) -> None:
        """Copy beside the running job until at most one step behind, then say so and keep following (EP-15)."""
        donors, self._join = self._join, []
        for address in donors:
            try:
                self._follow_donor(address)
                return
            except TransferError as error:
                logger.info("donor %s: %s", address, error)
        if self.machine.phase is RankState.JOINING:
            self.machine.phase = RankState.IDLE
            self._note_state()
            self.link.send(pb.RankReport(worker=self.worker, note=pb.Note(kind="join_failed", json="{}")))

    def _follow_donor(self, address: str) -> None:
        client = StateClient(address, self._poll_or_abandon, self.page.count_exchange)
        reported = False
        self._donor = address
        try:
            while not self.must_stop():
                before = self.machine.state
                if self._join:  # a restarted coordinator asks again
                    self._join, reported = [], False
                self._fetch_beside(client)
                self.faults.hit("in_join_copy")
                if not reported and before != NOWHERE and self.machine.state.step - before.step <= NEAR_STEPS:
                    reported = True
                    ready = pb.Ready(state=wire.state_to_wire(self.machine.state))
                    self.link.send(pb.RankReport(worker=self.worker, ready=ready))
                    self.faults.hit("after_ready")
                if self.machine.state == before:
                    self.link.wait(0.005)
        except Abandoned:
            return
        finally:
            client.close()

    def _fetch_beside(self, client: StateClient) -> None:
        """Like `_fetch`, but a joiner stays unhealed: it is in no generation."""
        self._fetch(client, NO_GENERATION)
        self.machine.healed = False
        self.page.count_exchange()

    # ------------------------------------------------------------------ reports

    def exchange_failed(self, error: str) -> None:
        """Tell, then wait for the directive: nobody else may know yet."""
        self._report_failed(self.machine.generation, error)
        while not self.must_stop():
            self.link.wait(0.1)

    def _report_failed(self, generation: Generation, error: str) -> None:
        if self.must_stop():
            return
        failed = pb.ExchangeFailed(generation=wire.generation_to_wire(generation), error=error)
        self.link.send(pb.RankReport(worker=self.worker, exchange_failed=failed))

    def apply_failed(self, error: str) -> None:
        """EP-11: we are unhealed; the next generation heals us."""
        self.link.send(pb.RankReport(worker=self.worker, note=pb.Note(kind="apply_failed", json=error)))
        while not self.must_stop():
            self.link.wait(0.1)

    def committed(self, seconds: float) -> None:
        """Bookkeeping after a step."""
        self.longest_step = max(self.longest_step, seconds)
        self.page.set_step(self.machine.state.step, self.longest_step)

    def finish(self) -> None:
        """The task has returned (or the job stops): stay reachable until told to leave."""
        while True:
            self.faults.hit("at_finish")
            self.machine.finish()
            self._note_state()
            finished = pb.Finished(state=wire.state_to_wire(self.machine.state))
            self.link.send(pb.RankReport(worker=self.worker, finished=finished))
            while not self.must_stop():
                self.link.wait(0.2)
            self.ensure_training()

    def _note_state(self) -> None:
        self.page.set_state(self.machine.phase, self.machine.generation)
        self.page.set_step(self.machine.state.step, self.longest_step)


def _shares(members: Sequence[pb.Member]) -> tuple[int, ...]:
    """Of the samples of a step, by the order of the ring, to each other; () where they are equal."""
    return tuple(1 if member.light else 2 for member in members) if any(member.light for member in members) else ()
