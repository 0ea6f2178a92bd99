"""All that a rank keeps to compress its gradients: what is in force for each bucket, codecs, residuals, the Q of PowerSGD.

It belongs to the process and outlives generations. What all ranks must have alike, the plan and the Q, is replicated
state; residuals are this rank's own, and are never copied when a rank heals (EP-6).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from workers.collectives.buckets import BucketPlan
from workers.collectives.exchange import Groups, Hosts
from workers.compression.bucketed import BucketMemory
from workers.compression.choice import MAX_RANK, NONE, Choice, Plan
from workers.compression.codec import Codec
from workers.compression.controller.controller import LEVEL, Controller
from workers.compression.finite import NonFiniteError
from workers.compression.powersgd import PowerSGD
from workers.compression.registry import codec_of
from workers.identity import Generation, StateId


class Underway(NamedTuple):
    """The step that residuals are pending for: the state it goes out from, and the generation that computes it."""

    before: StateId
    generation: Generation


class GradientCompression:
    """Of one rank.

    Args:
        plan: of the buckets.
        policy: the choices for a step, counted from 1, one for each bucket; of replicated state only.
        seed: the job's.
        follow_learning_rate: as in `ErrorFeedback`.
        momentum: as in `BucketMemory`.
        max_rank: of PowerSGD; the memory that the ranks of a host share has room for its P and Q.
        controller: whose policy it is, and which measures; None where nothing is measured.
    """

    def __init__(
        self,
        plan: BucketPlan,
        policy: Callable[[int], Plan],
        *,
        seed: int = 0,
        follow_learning_rate: bool = False,
        momentum: float = 0.0,
        max_rank: int = MAX_RANK,
        controller: Controller | None = None,
    ) -> None:
        self.plan, self._policy, self._max_rank, self.controller = plan, policy, max_rank, controller
        self.choices = policy(1)
        self.memory = BucketMemory(plan, follow_learning_rate=follow_learning_rate, momentum=momentum)
        self.non_finite: NonFiniteError | None = None
        """What was refused in the present step."""
        self._seed = seed
        self._shapes = {slot.name: slot.shape for slot in plan.slots}
        self._codecs: dict[Choice, Codec] = {}
        self._low_rank: dict[int, PowerSGD] = {}
        self._owing = [False] * len(plan.sizes)
        self._recut = False
        self._encoded: set[int] = set()
        self._underway: Underway | None = None

    # ------------------------------------------------------------------ what is in force

    def choice(self, bucket: int) -> Choice:
        return self.choices[bucket]

    def codec(self, choice: Choice) -> Codec:
        """Of what travels. Raises CodecError where there is none such."""
        if choice not in self._codecs:
            self._codecs[choice] = codec_of(choice)
        return self._codecs[choice]

    def powersgd(self, bucket: int) -> PowerSGD:
        """Of the rank that is in force for the bucket."""
        rank = self.choices[bucket].rank
        if rank not in self._low_rank:
            self._low_rank[rank] = PowerSGD(self._shapes, rank, self._seed)
        return self._low_rank[rank]

    def alters(self, bucket: int) -> bool:
        """Whether the sum is another than that of the plain gradients: they are encoded, or something is owed."""
        return self.choices[bucket] != NONE or self._owing[bucket]

    @property
    def thin_sizes(self) -> tuple[int, ...]:
        """Elements that P and Q of a bucket have at most; none where there never are any."""
        codecs = [PowerSGD(self._shapes, rank, self._seed) for rank in range(1, self._max_rank + 1)]
        sizes = [codec.sizes(self._names(bucket)) for codec in codecs for bucket in range(len(self.plan.sizes))]
        return (max(p for p, _ in sizes), max(1, max(q for _, q in sizes))) if sizes else ()

    def views(self, bucket: int, flat: Tensor) -> dict[str, Tensor]:
        """Of a bucket's gradient, float32 [n]: its parameters, by name, of their shapes."""
        slots = (slot for slot in self.plan.slots if slot.bucket == bucket)
        return {slot.name: flat[slot.start : slot.start + slot.numel].view(slot.shape) for slot in slots}

    # ------------------------------------------------------------------ a step

    def begin(self, before: StateId, generation: Generation, learning_rate: float) -> None:
        """A step begins; what was pending of one that did not come to its end is forgotten."""
        self._forget_pending()
        self._choose(before.step + 1)
        if self._recut:
            self.memory.begin_generation()
            self._recut = False
        self.memory.set_learning_rate(learning_rate)
        self._underway = Underway(before, generation)
        if self.controller is not None:
            self.controller.begin_step(before.step + 1)

    def encoded(self, bucket: int) -> None:
        """All that this rank's residual of the bucket depends on is known."""
        self._encoded.add(bucket)

    def refused(self, error: NonFiniteError) -> None:
        """A gradient is not finite: the step will be skipped."""
        self.non_finite = self.non_finite or error

    def replicated(self) -> Tensor:
        """What the commit of this step changes of the replicated state beside the gradients: float32 [n], n may be 0."""
        parts = [q.reshape(-1) for q in self._drafts()]
        return torch.cat(parts) if parts else torch.empty(0)

    def commit(self, *, skipped: bool = False) -> None:
        """The step is committed; `skipped` where nothing of it was applied, and residuals stay as they were (CC-11)."""
        if not skipped:
            self.memory.commit()
            for codec in self._low_rank.values():
                codec.commit()
            self._owing = [
                choice != NONE or (owing and bucket not in self._encoded)  # not paid: this rank had no part in the step
                for bucket, (choice, owing) in enumerate(zip(self.choices, self._owing, strict=True))
            ]
        self._forget_pending()

    def replay(self, before: StateId, generation: Generation, replicated: Tensor) -> bool:
        """A peer's commit is taken over, and `commit` follows. Where this rank took part in that step, what is pending is
        what it sent (EP-6); returns whether it did."""
        took_part = self._underway == Underway(before, generation) and len(self._encoded) == len(self.choices)
        if not took_part:
            self._forget_pending()
            self._choose(before.step + 1)
        at = 0
        for bucket, choice in enumerate(self.choices):
            if choice.is_low_rank:
                codec = self.powersgd(bucket)
                for name in filter(codec.compresses, self._names(bucket)):
                    like = codec.q(name)
                    codec.adopt(name, replicated[at : at + like.numel()].view(like.shape))
                    at += like.numel()
        return took_part

    def begin_generation(self, units: Hosts | Groups) -> None:
        """Pieces of buckets may have other owners from now on. What is pending stays until it is known (EP-6).

        Args:
            units: between which gradients are encoded, `Topology.units`.
        """
        self._recut = True
        if self.controller is not None:
            self.controller.begin_generation(units)

    def absorb(self, residuals: Mapping[str, Tensor]) -> None:
        """Owe this too: a leaver's residuals, or a checkpoint's. Raises ValueError where they are of another model."""
        self.memory.absorb(residuals)
        self._owing = [True] * len(self._owing)  # also where the plan says `none` from here on

    def lose(self) -> None:
        """The state was taken over as a whole: owe nothing any more."""
        self._forget_pending()
        self.memory.forget()
        self._owing = [False] * len(self._owing)

    def _choose(self, step: int) -> None:
        choices = self._policy(step)
        self._recut = self._recut or choices != self.choices
        self.choices = choices

    def _forget_pending(self) -> None:
        self.memory.discard()
        for codec in self._low_rank.values():
            codec.discard()
        self._encoded.clear()
        self._underway, self.non_finite = None, None

    def _drafts(self) -> Iterator[Tensor]:
        """The Q^T that are pending, in an order that is the same on all ranks."""
        for bucket, choice in enumerate(self.choices):
            if choice.is_low_rank:
                codec = self.powersgd(bucket)
                yield from (codec.drafts()[name] for name in self._names(bucket) if codec.compresses(name))

    def _names(self, bucket: int) -> list[str]:
        return [slot.name for slot in self.plan.slots if slot.bucket == bucket]

    # ------------------------------------------------------------------ what is measured

    def transferred(self, nbytes: int, begun: float, ended: float, transfers: int = 1) -> None:
        """So many bytes were on links between the units of the generation; times of `time.perf_counter`, in seconds."""
        if self.controller is not None and self.controller.is_calm:
            self.controller.measures.transfer(LEVEL, nbytes, begun, ended, transfers)

    def answered_in(self, seconds: float) -> None:
        """From sending something small to all others to having theirs."""
        if self.controller is not None:
            self.controller.measures.round_trip(seconds)

    def encoded_in(self, bucket: int, elements: int, seconds: float) -> None:
        if self.controller is not None:
            self.controller.measures.encoded(self.choices[bucket], elements, seconds)

    def decoded_in(self, bucket: int, elements: int, seconds: float) -> None:
        if self.controller is not None:
            self.controller.measures.decoded(self.choices[bucket], elements, seconds)

    def summed_in(self, bucket: int, seconds: float, hidden: float) -> None:
        """From when the exchange of the bucket could begin to its end, and to the end of backward."""
        if self.controller is not None and self.controller.is_calm:
            self.controller.measures.took(bucket, seconds)
            self.controller.measures.hidden(bucket, hidden)

    # ------------------------------------------------------------------ replicated state

    def plain_state(self) -> dict[str, Any]:
        """What of it is no tensor."""
        return {} if self.controller is None else {"controller": self.controller.as_dict()}

    def load_plain_state(self, plain: Mapping[str, Any]) -> None:
        """Take over a `plain_state`, of another job's policy too."""
        if self.controller is not None:
            self.controller.restore(plain.get("controller"))

    def state_dict(self) -> dict[str, Tensor]:
        """The committed Q of PowerSGD, as `RANK/PARAMETER`."""
        return {f"{r}/{name}": q for r, codec in self._low_rank.items() for name, q in codec.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over a `state_dict`. Raises ValueError where it is of another model."""
        by_rank: dict[int, dict[str, Tensor]] = {}
        for key, q in state.items():
            number, _, name = key.partition("/")
            by_rank.setdefault(int(number), {})[name] = q
        loaded = {rank: PowerSGD(self._shapes, rank, self._seed) for rank in by_rank}
        for rank, each in by_rank.items():
            loaded[rank].load_state_dict(each)
        self._low_rank = loaded
