"""Invariant 8: NO-ACK messages to all nodes, throughout a scenario."""

import asyncio
import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from typing import Any, NamedTuple

import grpc

from chaos.clock import RunClock
from chaos.history import Publish, Step
from cloudhub.v1.dispatcher_pb2 import ACK_MODE_NO_ACK, Outcome, PublishRequest
from cloudhub.v1.dispatcher_pb2_grpc import DispatcherServiceStub
from cloudhub.v1.message_pb2 import Message
from demo.hub import Instance
from demo.manifests import Versions

LEAST_SECONDS = 1.0
PER_PUBLISH = 5.0
"""They pass stored messages, so on a narrow wire there must be fewer of them."""
ANSWER_SECONDS = 10.0
MOST_NODES = 50
_PREFIX = "default/direct/"


class Direct(NamedTuple):
    """One for one node."""

    node_id: str
    uid: str
    outcome: str
    """In the words of the hub; empty: it did not answer."""
    answered_at: float

    @property
    def is_accepted(self) -> bool:
        """It was given to the node's link."""
        return self.outcome == "OUTCOME_ACCEPTED"


def is_direct(resource: str) -> bool:
    """Whether the message of this resource is one of these."""
    return resource.startswith(_PREFIX)


class DirectPublisher:
    """One message a second, or in five pauses of a publisher, for at most 50 of the nodes. `run` must be
    awaited by the owner."""

    def __init__(
        self,
        dispatcher: Instance,
        node_ids: Sequence[str],
        versions: Versions,
        clock: RunClock,
        pause_seconds: float,
    ) -> None:
        self._interval_seconds = max(LEAST_SECONDS, PER_PUBLISH * pause_seconds)
        self._dispatcher = dispatcher
        self._node_ids = list(node_ids[:: -(-len(node_ids) // MOST_NODES)])
        self._versions = versions
        self._clock = clock
        self.history: list[Direct] = []

    async def run(self) -> None:
        """Publishes until cancelled; what is open then is taken down as unanswered."""
        number = 0
        async with self._dispatcher.open_channel() as channel:
            stub: Any = DispatcherServiceStub(channel)
            while True:
                number += 1
                uid, version = f"direct-{number}", str(self._versions.next())
                content = json.dumps({"metadata": {"uid": uid, "resourceVersion": version}}).encode()
                message = Message(
                    id=uid,
                    source="edgecontroller",
                    group="resource",
                    operation="update",
                    resource=f"{_PREFIX}{number}",
                    resource_version=version,
                    content=content,
                )
                request = PublishRequest(message=message, node_ids=self._node_ids, ack_mode=ACK_MODE_NO_ACK)
                outcomes: dict[str, str] = dict.fromkeys(self._node_ids, "")
                try:
                    answer = await stub.Publish(request, timeout=ANSWER_SECONDS)
                    outcomes |= {one.node_id: Outcome.Name(one.outcome) for one in answer.outcomes}
                except grpc.aio.AioRpcError:
                    pass  # whether it came to anything is unknown
                finally:
                    at = self._clock.now()
                    self.history += [Direct(node_id, uid, name, at) for node_id, name in outcomes.items()]
                await asyncio.sleep(self._interval_seconds)


def direct_breaches(
    directs: Iterable[Direct],
    steps: Iterable[Step],
    publishes: Iterable[Publish],
    *,
    whole: Collection[str],
    dropped: Collection[tuple[str, str]],
) -> list[str]:
    """Invariant 8, C26: at most once; before every stored message that was published after it was taken,
    since that cannot have been in the socket; and over a link that is `whole`, not lost without a word
    (`dropped`: node, message id). Steps are in the order of each node. Pure."""
    arrived: Counter[tuple[str, str]] = Counter()
    of_node: defaultdict[str, list[Step]] = defaultdict(list)
    for step in steps:
        of_node[step.node_id].append(step)
        if is_direct(step.resource):
            arrived[step.node_id, step.uid] += 1
    found = [f"{node_id}: {uid} came {count} times" for (node_id, uid), count in arrived.items() if count > 1]
    taken_at: dict[tuple[str, str], float] = {}
    for one in directs:
        taken_at[one.node_id, one.uid] = one.answered_at if one.is_accepted else float("inf")
        came = bool(arrived[one.node_id, one.uid])
        if came and one.outcome and not one.is_accepted:
            found.append(f"{one.node_id}: {one.uid} was answered {one.outcome} and came")
        if one.is_accepted and not came and one.node_id in whole and (one.node_id, one.uid) not in dropped:
            found.append(f"{one.node_id}: {one.uid} was accepted, and is gone without a word")
    published_at = {(one.key, one.version, one.deletes): one.sent_at for one in publishes}
    for node_id, its_steps in of_node.items():
        found += _overtaken(node_id, its_steps, taken_at, published_at)
    return found


def _overtaken(
    node_id: str, steps: list[Step], taken_at: dict[tuple[str, str], float], published_at: dict[Any, float]
) -> Iterable[str]:
    first: dict[tuple[str, int, bool], int] = {}
    for place, step in enumerate(steps):
        first.setdefault((step.uid, step.version, step.operation == "delete"), place)
    earliest, waits = float("inf"), ""  # of those that come later, the one that was taken first
    for place in range(len(steps) - 1, -1, -1):
        step = steps[place]
        deletes = step.operation == "delete"
        if first[step.uid, step.version, deletes] != place:
            continue
        if is_direct(step.resource):
            at = taken_at.get((node_id, step.uid), float("inf"))
            if at < earliest:
                earliest, waits = at, step.uid
        elif published_at.get((step.key, step.version, deletes), 0.0) > earliest:
            yield f"{node_id}: {waits} came behind version {step.version} of {step.uid}, published after it"
