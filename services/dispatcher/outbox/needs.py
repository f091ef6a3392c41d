"""Which rows a batch of operations looks at. Pure."""

from dataclasses import dataclass, field

from services.dispatcher.outbox.records import (
    Accept,
    Attempt,
    Claim,
    DeleteNode,
    Event,
    ForgetNode,
    KeepCuts,
    Op,
    Reload,
)

# Pending rows that one transaction loads, of all nodes together and of each at least. A row costs some 10 µs
# in which nobody else's work is done.
MOST_LOADED = 512
LEAST_LOADED = 16


@dataclass(frozen=True, slots=True)
class Needs:
    """The rows that a batch of operations looks at."""

    nodes: set[str]
    # (node, key) -> the path, where what else is there counts if the object is not live: of publications
    objects: dict[tuple[str, str], str]
    message_ids: set[tuple[str, str]]
    pending_of: set[str]  # all of their pending rows
    told_of: set[str] = field(default_factory=set)  # nodes that are looked at if they are there
    portions: dict[str, int] = field(default_factory=dict)  # of these the next ones above a seq
    cuts_of: set[str] = field(default_factory=set)

    @property
    def portion_rows(self) -> int:
        """How many rows a portion has at most."""
        return max(LEAST_LOADED, MOST_LOADED // max(1, len(self.portions)))


def needs_of(ops: list[Op]) -> Needs:
    """What must be loaded before `ops` are applied."""
    needs = Needs(set(), {}, set(), set())
    for op in ops:
        if isinstance(op, Event):
            needs.told_of.add(op.node_id)
            continue
        needs.nodes.add(op.node_id)
        if isinstance(op, Accept):
            publication = op.publication
            path = "" if publication.is_answer else publication.message.resource
            needs.objects[op.node_id, publication.key] = path
            if publication.own_id:
                needs.message_ids.add((op.node_id, publication.message.id))
        elif isinstance(op, (Claim, Reload)):
            needs.portions[op.node_id] = min(op.after_seq, needs.portions.get(op.node_id, op.after_seq))
            if isinstance(op, Claim) and not op.after_seq:
                needs.cuts_of.add(op.node_id)
        elif not isinstance(op, (Attempt, KeepCuts, DeleteNode, ForgetNode)):
            needs.objects.setdefault((op.node_id, op.key), "")
    return needs
