"""Publishes objects to nodes, and waits until the nodes have acknowledged them."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cloudhub.v1 import dispatcher_pb2 as pb
from ctl.faults import CtlFault, ExitCode
from ctl.processes import Dispatcher
from ctl.tables import delivery_state

# Nodes of one request: enough for one transaction, few enough for a bar that moves.
NODES_AT_ONCE = 256
_ASKED_AT_ONCE = 16
_FIRST_WAIT_SECONDS, _MOST_WAIT_SECONDS = 0.1, 2.0
# Nothing more will come of a message in one of these.
_FINAL = (pb.DELIVERY_STATE_ACKNOWLEDGED, pb.DELIVERY_STATE_PARKED, pb.DELIVERY_STATE_ENDED)
_GONE = "gone"

Progress = Callable[[int], None]
"""Told how many deliveries got further."""


@dataclass(slots=True)
class Delivery:
    """One object on its way to one node."""

    resource: str
    version: str
    message_id: str
    node_id: str
    outcome: str
    """Of the publish: `accepted`, `stale`, `rejected`, `no session`, `unavailable`; `unknown` if the
    dispatcher went away meanwhile, `not sent` of what came after."""
    reason: str = ""
    detail: str = ""
    state: str = ""
    """Where it is, once that was asked: `acknowledged`, `parked`, ..."""
    explanation: str = ""

    @property
    def accepted(self) -> bool:
        """It is stored, and sent until it is acknowledged."""
        return self.outcome == "accepted"

    @property
    def acknowledged(self) -> bool:
        """Its node has it."""
        return self.state == delivery_state(pb.DELIVERY_STATE_ACKNOWLEDGED)


def outcome_name(outcome: pb.Outcome.ValueType) -> str:
    """`accepted`, `no session`, ..."""
    return pb.Outcome.Name(outcome).removeprefix("OUTCOME_").replace("_", " ").lower()


def _delivery(request: pb.PublishRequest, answer: pb.PublishResponse, one: pb.NodeOutcome) -> Delivery:
    return Delivery(
        request.message.resource,
        request.message.resource_version,
        one.duplicate_of or answer.message_id,
        one.node_id,
        outcome_name(one.outcome),
        one.reason,
        one.detail,
    )


def _lost(part: pb.PublishRequest, outcome: str, fault: CtlFault) -> list[Delivery]:
    message = part.message
    return [
        Delivery(message.resource, message.resource_version, "", node_id, outcome, "", str(fault))
        for node_id in part.node_ids
    ]


async def publish(
    dispatcher: Dispatcher, requests: Sequence[pb.PublishRequest], progress: Progress
) -> list[Delivery]:
    """Publishes each request in turn, to some nodes at a time. Raises CtlFault if the first part comes to
    nothing; what a later fault leaves is told by the outcomes."""
    deliveries: list[Delivery] = []
    fault: CtlFault | None = None
    for request in requests:
        nodes = list(request.node_ids)
        for start in range(0, len(nodes), NODES_AT_ONCE):
            part = pb.PublishRequest()
            part.CopyFrom(request)
            part.node_ids[:] = nodes[start : start + NODES_AT_ONCE]
            if fault is not None:
                deliveries.extend(_lost(part, "not sent", fault))
                continue
            try:
                answer = await dispatcher.call(dispatcher.publishing.Publish, part)
            except CtlFault as raised:
                if not deliveries:
                    raise
                fault = raised
                deliveries.extend(_lost(part, "unknown", fault))
                continue
            deliveries.extend(_delivery(part, answer, one) for one in answer.outcomes)
            progress(len(part.node_ids))
    return deliveries


async def wait(
    dispatcher: Dispatcher, deliveries: Sequence[Delivery], seconds: float, progress: Progress
) -> None:
    """Returns when nothing more will come of those that were accepted, or after so long; their `state` says
    where each one is. A dispatcher that is away for a while is waited for. Raises CtlFault."""
    waiting = [one for one in deliveries if one.accepted]
    turns = asyncio.Semaphore(_ASKED_AT_ONCE)

    async def settled(one: Delivery) -> bool:
        async with turns:
            request = pb.ExplainMessageRequest(node_id=one.node_id, message_id=one.message_id)
            try:
                answer = await dispatcher.call(dispatcher.publishing.ExplainMessage, request)
            except CtlFault as fault:
                if fault.code is ExitCode.NOT_FOUND:
                    one.state, one.explanation = _GONE, "The node was deleted, or its history was dropped."
                    return True
                if fault.code is not ExitCode.UNREACHABLE:
                    raise
                # It is stored; a dispatcher that is started again will know.
                one.state, one.explanation = "unknown", str(fault)
                return False
        one.state, one.explanation = delivery_state(answer.state), answer.explanation
        if answer.state in _FINAL:
            progress(1)
        return answer.state in _FINAL

    interval = _FIRST_WAIT_SECONDS
    try:
        async with asyncio.timeout(seconds):
            while waiting:
                done = await asyncio.gather(*map(settled, waiting))
                waiting = [one for one, ended in zip(waiting, done, strict=True) if not ended]
                if waiting:
                    await asyncio.sleep(interval)
                    interval = min(interval * 1.5, _MOST_WAIT_SECONDS)
    except TimeoutError:
        return


def exit_code(deliveries: Sequence[Delivery], *, waited: bool) -> ExitCode:
    """How a publish ended, its worst delivery taken."""
    if any(one.outcome in ("unknown", "not sent", "unavailable") for one in deliveries):
        return ExitCode.UNREACHABLE
    if any(not one.accepted for one in deliveries):
        return ExitCode.FAILED
    if not waited or all(one.acknowledged for one in deliveries):
        return ExitCode.OK
    final = {delivery_state(state) for state in _FINAL} | {_GONE}
    failed = any(one.state in final and not one.acknowledged for one in deliveries)
    return ExitCode.FAILED if failed else ExitCode.TIMED_OUT
