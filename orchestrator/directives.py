"""The machine's actions as directives on the wire; what is the same for many workers is made once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby

from quantarion.v1 import control_pb2 as pb

from orchestrator import membership as ms
from workers import wire

Sending = ms.SendPrepare | ms.SendConfigure | ms.SendJoin | ms.SendExit | ms.SendSave


def runs(actions: Iterable[ms.Action]) -> Iterator[list[ms.Action]]:
    """The actions in order: those that follow one another and say the same to workers together, any other by itself."""
    for _, run in groupby(actions, key=_said):
        yield list(run)


def _said(action: ms.Action) -> object:
    """To whichever worker."""
    if not isinstance(action, Sending):
        return object()  # like no other
    return type(action), *(value for name, value in vars(action).items() if name != "worker")


class Directives:
    """Of one coordinator, whose store for the rendezvous of ranks has this address."""

    def __init__(self, store_address: str) -> None:
        self._store_address = store_address
        self._plan: ms.Plan | None = None
        self._configure = b""  # what CONFIGURE says of that plan

    def make(self, action: Sending) -> pb.Directive:
        """What agents hand to its worker, and to any other that is told the same; for nobody yet."""
        message = pb.Directive()
        match action:
            case ms.SendPrepare():
                message.prepare.CopyFrom(
                    pb.Prepare(
                        generation=wire.generation_to_wire(action.generation),
                        at_step=action.at_step,
                        timeout=action.timeout,
                        busy_timeout=action.busy_timeout,
                    )
                )
            case ms.SendConfigure():
                message.configure = self._configured(action.plan)
            case ms.SendJoin():
                message.join.CopyFrom(pb.Join(donors=[_member(donor) for donor in action.donors]))
            case ms.SendSave():
                message.save.CopyFrom(pb.Save(step=action.step, held=action.held))
            case ms.SendExit():
                authority = wire.state_to_wire(action.authority)
                message.exit.CopyFrom(pb.Exit(reason=action.reason, heirs=action.heirs, authority=authority))
        return message

    def _configured(self, plan: ms.Plan) -> bytes:
        """Of thousands of members it takes longer to make than to send."""
        if plan is not self._plan:
            self._plan, self._configure = plan, _configure(plan, self._store_address).SerializeToString()
        return self._configure


def _configure(plan: ms.Plan, store_address: str) -> pb.Configure:
    return pb.Configure(
        at_most=plan.at_most,
        generation=wire.generation_to_wire(plan.generation),
        members=[_member(member) for member in plan.members],
        store_address=store_address,
        authority=wire.state_to_wire(plan.authority),
        attempt=plan.attempt,
        first=plan.first,
        stop=plan.stop,
    )


def _member(member: ms.MemberPlan) -> pb.Member:
    return pb.Member(
        worker=member.worker,
        rank=member.rank,
        host=member.host,
        peer_address=member.peer_address,
        state=wire.state_to_wire(member.state),
        donor=member.donor,
        on_line=member.on_line,
        shared_memory=member.shared_memory,
        group=member.group,
        light=member.light,
    )
