"""Whether everything that was accepted is where it should be: compares the hub with the edges' disks."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from cloudhub.v1 import dispatcher_pb2 as pb
from demo.fleets import Disk
from demo.ledger import Expected, Ledger, ObjectKey
from demo.operator import Operator
from edge.store import read_history, read_objects

MOST_EXAMPLES = 5
_WAITING = (pb.DELIVERY_STATE_PENDING, pb.DELIVERY_STATE_IN_FLIGHT, pb.DELIVERY_STATE_PARKED)


@dataclass(slots=True)
class Verdict:
    """What became of the messages that were accepted since the demo started."""

    published: int
    acknowledged: int
    pending: int
    """What the hub holds as pending, parked messages included; also from before."""
    waiting: int = 0
    """Newest versions among them that their node does not have."""
    lost: int = 0
    ended: int = 0
    """Newest versions that ended with a reason on record: expired or purged."""
    replaced: int = 0
    """Newest versions whose path another publisher's object has taken, at the hub (told) and at the node."""
    examples: list[str] = field(default_factory=list)
    """Some of the lost, in words."""

    @property
    def unrecorded(self) -> int:
        """Pending at the hub although the nodes have what was published: acknowledgements on their way."""
        return max(0, self.pending - self.waiting)

    @property
    def superseded(self) -> int:
        """Accepted, but a newer version took their place before the node had them."""
        return max(0, self.published - self.acknowledged - self.waiting - self.ended - self.lost)

    def __str__(self) -> str:
        return f"published={self.published} acked={self.acknowledged} pending={self.pending} lost={self.lost}"


@dataclass(frozen=True, slots=True)
class Held:
    """What the edges hold."""

    versions: dict[ObjectKey, int]
    """Of the objects of this run."""
    others: set[tuple[str, str]]
    """Node id and path of objects that somebody else has published."""
    applied: int
    """How many distinct messages of this run they have stored."""


def on_disk(disks: Sequence[Disk], ledger: Ledger) -> Held:
    """What an earlier run left on a disk of nodes that are elsewhere now is none of theirs."""
    uids = {uid for _, uid in ledger.expected}
    held: dict[ObjectKey, int] = {}
    others: set[tuple[str, str]] = set()
    applied: set[tuple[str, str, str]] = set()
    for disk in disks:
        for row in read_objects(disk.database):
            if row.node_id not in disk.node_ids:
                continue
            if row.uid in uids:
                held[row.node_id, row.uid] = int(row.version)
            else:
                others.add((row.node_id, row.resource))
        applied |= {
            (row.node_id, row.uid, row.version)
            for row in read_history(disk.database)
            if row.node_id in disk.node_ids
            and row.uid in uids
            and ledger.first_version
            and int(row.version) >= ledger.first_version
        }
    return Held(held, others, len(applied))


def _ended_rightly(expected: Expected, explained: pb.ExplainDeliveryResponse) -> bool:
    """The newest version ended without an acknowledgement, for a reason that is on record."""
    return explained.object.state == pb.DELIVERY_STATE_ENDED and any(
        event.version == str(expected.version) and event.kind == "ended" and event.reason
        for event in explained.events
    )


async def check(ledger: Ledger, operator: Operator, disks: Sequence[Disk]) -> Verdict:
    """Compares what was last accepted per node and object with the edges' files and with the hub."""
    held = await asyncio.to_thread(on_disk, disks, ledger)
    verdict = Verdict(ledger.accepted, held.applied, (await operator.figures()).pending)
    for (node_id, uid), expected in ledger.missing(held.versions):
        explained = await operator.explain(node_id, uid)
        if explained is not None and explained.object.state in _WAITING:
            if int(explained.object.version or "0") >= expected.version:
                verdict.waiting += 1
                continue
        elif explained is not None and _ended_rightly(expected, explained):
            if (node_id, expected.resource) in held.others and not expected.deleted:
                verdict.replaced += 1
            else:
                verdict.ended += 1
            continue
        verdict.lost += 1
        if len(verdict.examples) < MOST_EXAMPLES:
            there = held.versions.get((node_id, uid))
            verdict.examples.append(
                f"{node_id}: {expected.resource} version {expected.version}"
                f"{' (delete)' if expected.deleted else ''}; "
                f"the node holds {'nothing' if there is None else f'version {there}'}; "
                f"the hub says: {explained.explanation if explained else 'unknown'}"
            )
    return verdict
