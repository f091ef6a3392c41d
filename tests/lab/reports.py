"""Reports of edges, and whether all that had to reach a subscriber did, in order."""

import json
import time
from collections import defaultdict
from collections.abc import Iterator

from cloudhub.v1.dispatcher_pb2 import UpstreamDelivery

REPORTS = 1000
RESOURCES = 50
_PER_RESOURCE = REPORTS // RESOURCES
_DELETIONS = (8, 15)


def storm(number: int) -> list[str]:
    """1 000 reports: of each resource eight updates in a row, whose later ones may take the place of earlier
    ones, then a deletion, then updates again, twice."""
    return [
        json.dumps(
            {
                "header": {"msg_id": f"storm-{number}-{name}-{place}", "timestamp": 1},
                "route": {
                    "source": "edged",
                    "group": "resource",
                    "operation": "delete" if place in _DELETIONS else "update",
                    "resource": f"default/podstatus/pod-{name}",
                },
                "content": {"storm": number, "place": place},
            }
        )
        for place in range(_PER_RESOURCE)
        for name in range(RESOURCES)
    ]


class Handed:
    """What subscribers were handed of such storms, and when single reports came; a tap of `Scenario`."""

    def __init__(self, stormy: str) -> None:
        self._stormy = stormy
        self._ids: set[str] = set()
        self._told: defaultdict[tuple[int, str], list[int]] = defaultdict(list)
        self._sent_at: dict[str, float] = {}
        self.seconds: list[float] = []
        """How long single reports took."""

    def expect(self, message_id: str) -> None:
        """A single report is about to be sent."""
        self._sent_at[message_id] = time.perf_counter()

    def add(self, delivery: UpstreamDelivery) -> None:
        """Once for each message: what a stream had that broke comes again."""
        message = delivery.message
        sent_at = self._sent_at.pop(message.id, None)
        if sent_at is not None:
            self.seconds.append(time.perf_counter() - sent_at)
        elif delivery.node_id == self._stormy and message.source == "edged" and message.id not in self._ids:
            self._ids.add(message.id)
            content = json.loads(message.content)
            self._told[content["storm"], message.resource].append(content["place"])

    def are_complete(self, storms: int) -> bool:
        """Whether the last report of each resource of each storm is here."""
        ends = [places for places in self._told.values() if places[-1] == _PER_RESOURCE - 1]
        return len(ends) == storms * RESOURCES

    def share(self, storms: int) -> float:
        """Of all reports, how many were handed on."""
        return len(self._ids) / (storms * REPORTS)

    def breaches(self) -> Iterator[str]:
        """C30: in order; every deletion; the last update before one and at the end; of the others, some."""
        must = {place for deletion in _DELETIONS for place in (deletion - 1, deletion)} | {_PER_RESOURCE - 1}
        for (number, resource), places in self._told.items():
            if places != sorted(set(places)):
                yield f"storm {number}, {resource}: out of order: {places}"
            elif not must <= set(places):
                yield f"storm {number}, {resource}: {sorted(must - set(places))} are missing in {places}"
