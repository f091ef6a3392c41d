"""What the hub has accepted, and whether it is where it should be. Pure."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cloudhub.v1 import dispatcher_pb2 as pb
from cloudhub.v1.dispatcher_pb2 import PublishRequest, PublishResponse

ObjectKey = tuple[str, str]
"""Node id and uid."""


@dataclass(frozen=True, slots=True)
class Expected:
    """The newest accepted version of an object on a node."""

    version: int
    resource: str
    deleted: bool


class Ledger:
    """Outcomes of publishes."""

    def __init__(self) -> None:
        self.accepted = 0
        self.first_version = 0
        self.versions: set[int] = set()
        """Of what was accepted; each is one request's."""
        self.refused: Counter[str] = Counter()
        """Other outcomes, by their name and reason."""
        self.expected: dict[ObjectKey, Expected] = {}

    def enter(self, request: PublishRequest, response: PublishResponse, uid: str) -> None:
        """Takes down what became of one request."""
        message = request.message
        version = int(message.resource_version)
        for outcome in response.outcomes:
            if outcome.outcome != pb.OUTCOME_ACCEPTED:
                name = pb.Outcome.Name(outcome.outcome).removeprefix("OUTCOME_")
                self.refused[f"{name} {outcome.reason}".strip()] += 1
                continue
            self.accepted += 1
            self.versions.add(version)
            self.first_version = self.first_version or version
            self.expected[outcome.node_id, uid] = Expected(
                version, message.resource, message.operation == "delete"
            )

    def missing(self, held: Mapping[ObjectKey, int]) -> Iterable[tuple[ObjectKey, Expected]]:
        """What the nodes do not hold as accepted; `held` has the version of each object on a node.

        A newer version than the accepted one is one whose outcome never reached us: it counts.
        """
        for key, expected in self.expected.items():
            version = held.get(key)
            right = version is None if expected.deleted else version is not None
            if not right or (version is not None and version < expected.version):
                yield key, expected
