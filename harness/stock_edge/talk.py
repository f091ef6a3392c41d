"""What a stock edge says by itself: keepalives aside, the twin's question and, with its edged, the node's
registration and lease. Pure: time is an argument, in seconds.

Requests carry no mark that they are any: `sync` never reaches the wire. Each try has a fresh id.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

TWIN_FIRST_SECONDS, TWIN_NEXT_SECONDS = 120.0, 60.0
TRY_SECONDS = 60.0
LEASE_SECONDS = 10.0


class Saying(NamedTuple):
    """One message of the edge's own, with its content as a JSON value."""

    message_id: str
    source: str
    group: str
    operation: str
    resource: str
    content: Any


@dataclass(slots=True)
class _Request:
    """One that is repeated until it is answered; `again_at` is None once nobody asks any more."""

    again_at: float | None = None
    message_id: str = ""


class Talk:
    """Of one node. With `edged` it registers the node and keeps its lease; what it asked last of each kind
    waits for an answer."""

    def __init__(self, node_id: str, next_id: Callable[[], str], *, edged: bool, pace: float = 1.0) -> None:
        self._node_id = node_id
        self._next_id = next_id
        self._edged = edged
        self._pace = pace
        self._twin = _Request()
        self._lease_query = _Request()
        self._node = _Request()
        self._patch = _Request()
        self._lease = _Request()
        self._lease_queries = 0
        self._lease_at = 0.0
        self._lease_stored: dict[str, Any] | None = None
        self.answered_with: dict[str, Any] = {}
        """The last answer to each kind of request."""

    @property
    def _requests(self) -> dict[str, _Request]:
        return {
            "twin": self._twin,
            "lease query": self._lease_query,
            "node": self._node,
            "node patch": self._patch,
            "lease": self._lease,
        }

    def __contains__(self, message_id: object) -> bool:
        return any(one.message_id == message_id for one in self._requests.values() if one.message_id)

    @property
    def next_at(self) -> float | None:
        """When something is due; None if nothing will be."""
        return min(
            (one.again_at for one in self._requests.values() if one.again_at is not None), default=None
        )

    def opened(self, now: float) -> list[Saying]:
        """A link is there: everything that is not answered is asked again."""
        self._twin.again_at = now
        if self._edged:
            self._lease_query.again_at = self._node.again_at = now
            self._lease_queries = 0
            self._lease_at = now + LEASE_SECONDS / self._pace
        return self.due(now)

    def closed(self) -> None:
        """The link is gone, and with it what would have been answered over it."""
        for one in self._requests.values():
            one.message_id, one.again_at = "", None

    def due(self, now: float) -> list[Saying]:
        """What is to be said now."""
        said: list[Saying] = []
        for name, one in self._requests.items():
            if one.again_at is not None and one.again_at <= now:
                first = not one.message_id
                one.message_id = self._next_id()
                seconds = TRY_SECONDS
                if name == "lease query":
                    self._lease_queries += 1
                    seconds = LEASE_SECONDS
                if name == "twin":
                    seconds = TWIN_FIRST_SECONDS if first else TWIN_NEXT_SECONDS
                one.again_at = now + seconds / self._pace
                said.append(self._say(name, one.message_id))
        return said

    def answered(self, parent_id: str, operation: str, content: bytes, now: float) -> None:
        """An answer to one of its requests came."""
        for name, one in self._requests.items():
            if parent_id and one.message_id == parent_id:
                value = json.loads(content)
                self.answered_with[name] = value
                one.message_id, one.again_at = "", None
                self._take(name, operation, value, now)
                return

    def _take(self, name: str, operation: str, value: Any, now: float) -> None:
        is_result = operation == "response" and isinstance(value, dict) and "Err" in value
        if name == "node":
            if is_result:
                self._patch.again_at = now
            else:  # an error, or a text: it tries again after the time of a try
                self._node.again_at = now + TRY_SECONDS / self._pace
        elif name == "lease query":
            # What the first one tells is of no consequence; the second comes ten seconds later.
            if self._lease_queries == 1:
                self._lease_query.again_at = self._lease_at
            else:
                self._lease_stored = value["Object"] if is_result and not value["Err"] else None
                self._lease.again_at = now
        elif name == "lease":
            seconds = LEASE_SECONDS if is_result and not value["Err"] else TRY_SECONDS
            self._lease_stored = value["Object"] if is_result and not value["Err"] else None
            self._lease.again_at = now + seconds / self._pace

    def _say(self, name: str, message_id: str) -> Saying:
        node_id = self._node_id
        if name == "twin":
            content = {
                "event_type": "group_membership_event",
                "event_id": message_id,
                "group_id": node_id,
                "operation": "detail",
                "timestamp": 0,
            }
            text = json.dumps(content, separators=(",", ":"))
            return Saying(message_id, "twin", "resource", "get", "membership/detail", text)
        lease = f"kube-node-lease/lease/{node_id}"
        if name == "lease query":
            return Saying(message_id, "edged", "meta", "query", lease, None)
        if name == "node":
            node = {"metadata": {"name": node_id, "creationTimestamp": None}, "spec": {}, "status": {}}
            return Saying(message_id, "edged", "meta", "insert", f"null/node/{node_id}", node)
        if name == "node patch":
            return Saying(message_id, "edged", "meta", "patch", f"null/nodepatch/{node_id}", "{}")
        stored = self._lease_stored
        if stored is None:
            fresh = {
                "metadata": {"name": node_id, "namespace": "kube-node-lease", "creationTimestamp": None},
                "spec": {"holderIdentity": node_id, "leaseDurationSeconds": 40},
            }
            return Saying(message_id, "edged", "meta", "insert", lease, fresh)
        return Saying(message_id, "edged", "meta", "update", lease, stored)
