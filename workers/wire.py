"""Between the wire types (`quantarion.v1`) and the dataclasses that the state machines speak."""

from __future__ import annotations

from quantarion.v1 import control_pb2 as pb

from workers.identity import Generation, StateId
from workers.protocol import Answer


def generation_to_wire(generation: Generation) -> pb.Generation:
    return pb.Generation(incarnation=generation.incarnation, counter=generation.counter)


def generation_from_wire(message: pb.Generation) -> Generation:
    return Generation(message.incarnation, message.counter)


def state_to_wire(state: StateId) -> pb.StateId:
    return pb.StateId(
        step=state.step, round=state.round, generation=generation_to_wire(state.generation), lineage=state.lineage
    )


def state_from_wire(message: pb.StateId) -> StateId:
    return StateId(message.step, message.round, generation_from_wire(message.generation), message.lineage)


def answer_to_wire(answer: Answer) -> pb.Prepared:
    return pb.Prepared(
        generation=generation_to_wire(answer.generation),
        state=state_to_wire(answer.state),
        previous=state_to_wire(answer.previous),
        healed=answer.healed,
        configured=generation_to_wire(answer.configured),
    )


def answer_from_wire(message: pb.Prepared) -> Answer:
    return Answer(
        generation_from_wire(message.generation),
        state_from_wire(message.state),
        state_from_wire(message.previous),
        message.healed,
        generation_from_wire(message.configured),
    )
