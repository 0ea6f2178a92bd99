"""The machine's actions as directives on the wire."""

from __future__ import annotations

from quantarion.v1 import control_pb2 as pb

from orchestrator import membership as ms
from workers import wire


def directive(action: ms.SendPrepare | ms.SendConfigure | ms.SendJoin | ms.SendExit, store_address: str) -> pb.Directive:
    """What the agent of the action's worker hands to it."""
    message = pb.Directive(worker=action.worker)
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
            message.configure.CopyFrom(_configure(action.plan, store_address))
        case ms.SendJoin():
            message.join.CopyFrom(pb.Join(donors=[_member(donor) for donor in action.donors]))
        case ms.SendExit():
            authority = wire.state_to_wire(action.authority)
            message.exit.CopyFrom(pb.Exit(reason=action.reason, heirs=action.heirs, authority=authority))
    return message


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
    )
