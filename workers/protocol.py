"""What one rank may do, as a pure state machine: no clock, no socket, no tensor (rules EP-5 to EP-11).

The engine asks it before every step of consequence; the tests drive it together with the coordinator's machine through
random interleavings.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from workers.identity import NO_GENERATION, NOWHERE, Generation, StateId


class RankState(StrEnum):
    """Where a rank is in the life of a generation."""

    IDLE = "idle"  # preloaded, in no generation
    JOINING = "joining"  # copies state beside the running job
    PREPARED = "prepared"  # promised; waits for CONFIGURE
    SYNCING = "syncing"  # configured; catches up, heals, connects
    TRAINING = "training"
    FINISHED = "finished"  # the task has returned; still answers


class Sync(StrEnum):
    """What CONFIGURE asks of a rank before it may train."""

    GO_ON = "went_on"
    CATCH_UP = "caught_up"
    HEAL = "healed"


@dataclass(frozen=True)
class PrepareOrder:
    """Close the running generation once `at_step` is committed (0: now)."""

    generation: Generation
    at_step: int = 0


@dataclass(frozen=True)
class Answer:
    """PREPARED: a promise that nothing older than `generation` is applied any more."""

    generation: Generation
    state: StateId
    previous: StateId
    healed: bool
    configured: Generation


@dataclass
class RankMachine:
    """One rank's side of the protocol.

    `generation` is the last one it was configured into, `promised` the highest one it has answered. A rank that is in no
    generation is unhealed.
    """

    state: StateId = NOWHERE
    previous: StateId = NOWHERE
    generation: Generation = NO_GENERATION
    promised: Generation = NO_GENERATION
    healed: bool = False
    phase: RankState = RankState.IDLE
    order: PrepareOrder | None = field(default=None)

    # ------------------------------------------------------------------ closing a generation

    def on_prepare(self, order: PrepareOrder) -> None:
        """Remember the order; it takes effect at the next poll point where `must_close` holds."""
        if order.generation < self.promised or order.generation <= self.generation:
            return
        if self.order is None or order.generation >= self.order.generation:
            obeyed = self.must_close  # what is being done may have been abandoned already
            self.order = PrepareOrder(order.generation, 0) if obeyed else order

    @property
    def must_close(self) -> bool:
        """True where the rank has to abandon what it does and answer.

        A rank past `at_step` closes at once: a peer may have closed at that boundary and will not contribute again.
        """
        return self.order is not None and (
            self.phase not in (RankState.TRAINING, RankState.JOINING) or self.state.step >= self.order.at_step
        )

    def close(self) -> Answer:
        """Promise. From here on `may_apply` is false until the next CONFIGURE."""
        assert self.order is not None
        self.promised = max(self.promised, self.order.generation)
        self.order = None
        self.phase = RankState.PREPARED
        return self.answer()

    def answer(self) -> Answer:
        """The PREPARED to send (again) for the highest promise."""
        return Answer(self.promised, self.state, self.previous, self.healed, self.generation)

    def on_join(self) -> bool:
        """Start to copy state beside the running job; False where the rank has another place already.

        Also for a rank whose promise was overtaken: it waits for a CONFIGURE that will not come.
        """
        if self.phase not in (RankState.IDLE, RankState.PREPARED):
            return False
        self.phase = RankState.JOINING
        self.healed = False
        return True

    # ------------------------------------------------------------------ committing

    def may_apply(self, generation: Generation) -> bool:
        """The gate that every commit passes, and every promise closes."""
        return self.phase is RankState.TRAINING and self.generation == generation and self.promised <= generation

    def committed(self, state: StateId) -> None:
        """The reduced values of `state` have been applied."""
        self.previous, self.state = self.state, state

    def lost_state(self) -> None:
        """The bytes are no state any more: an exception inside apply (EP-11), or a snapshot being copied over them."""
        self.state = self.previous = NOWHERE
        self.healed = False

    # ------------------------------------------------------------------ entering a generation

    def on_configure(self, generation: Generation, authority: StateId, on_line: bool) -> Sync | None:
        """Enter `generation`, or None for a stale or repeated CONFIGURE.

        `on_line` is the coordinator's word that this rank's state lies on the surviving line. A rank that does not know
        that it was left behind learns it here, and stays unhealed until it holds the authority's bytes.
        """
        if self.phase is not RankState.PREPARED or generation != self.promised:
            return None
        self.generation = generation
        self.phase = RankState.SYNCING
        if self.state == authority != NOWHERE:
            self.healed = True
            return Sync.GO_ON
        self.healed = self.healed and on_line
        return Sync.CATCH_UP if self.healed and self.state.position < authority.position else Sync.HEAL

    def synced(self, state: StateId, previous: StateId) -> None:
        """The rank holds the authority's bytes."""
        self.state, self.previous, self.healed = state, previous, True

    def train(self) -> None:
        """Its process groups stand."""
        assert self.phase is RankState.SYNCING and self.healed
        self.phase = RankState.TRAINING

    def finish(self) -> None:
        """The task has returned."""
        if self.phase is RankState.TRAINING:
            self.phase = RankState.FINISHED
