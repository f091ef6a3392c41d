"""What the rows of an object and of its path say to a publication: taken, repeated, or stale. Pure."""

from enum import Enum

from services.dispatcher.outbox.records import ObjectRow, RowState, Stale
from services.dispatcher.publication import Publication, Rejection
from services.runtime.names import shown

SETTLED = RowState.SETTLED
MOST_NAME = 256


class Verdict(Enum):
    """A publication that is not stale."""

    TAKEN = 1
    REPEATED = 2  # what it says is pending already


def id_fault(
    used: tuple[str, int | None] | None, publication: Publication, row: ObjectRow | None
) -> Rejection | None:
    """An id names one version of one object; repeating a publish with its id is fine. `used` is the key and
    version that it was accepted for."""
    if used is None:
        return None
    same_key = used[0] in (publication.key, row.key if row else "")
    if same_key and (publication.is_delete or used[1] == publication.version):
        return None
    return Rejection(
        "MESSAGE_ID_REUSED",
        "message.id",
        f"{shown(publication.message.id)} was accepted for {shown(used[0])!r} version {used[1]}: "
        "use a new id",
    )


def path_fault(row: ObjectRow | None, publication: Publication) -> Rejection | None:
    """An object has one path on a node: an edge keeps and deletes objects by path."""
    if row is None or not row.uid or row.path == publication.message.resource or publication.is_answer:
        return None
    return Rejection(
        "UID_AT_OTHER_PATH",
        "message.resource",
        f"the object of uid {cut(row.uid)} is {cut(row.path)!r} on this node; one uid names one path",
    )


def judge(row: ObjectRow | None, other: ObjectRow | None, publication: Publication) -> Verdict | Stale:
    """By the row that the publication is about, and by what else is at its path: the live object of another
    key, or if none is live the one that was there last. `docs/architecture.md` has the rules as a table."""
    if publication.is_answer:
        return Verdict.TAKEN if row is None else Verdict.REPEATED
    if publication.is_delete:
        return _judge_delete(row, other, publication)
    version = publication.version
    assert version is not None
    if row is not None:
        if row.deleted and row.uid and not row.is_replaced:
            return Stale("DELETED", "the object of this uid was deleted")
        if version < row.floor or (row.deleted and version == row.floor):
            return Stale("BELOW_FLOOR", f"version {row.floor} was accepted before")
    if other is not None and (stale := _older_than(other, row, publication, version)):
        return stale
    if row is None or version > row.floor:
        return Verdict.TAKEN
    if row.state != SETTLED:
        return Verdict.REPEATED
    if row.acknowledged == version and not publication.force:
        return Stale("ACKNOWLEDGED", f"the node has acknowledged version {version}")
    return Verdict.TAKEN


def _older_than(
    other: ObjectRow, row: ObjectRow | None, publication: Publication, version: int
) -> Stale | None:
    """Versions are one order for all that is published under a path; but an object with a uid never seen
    begins one of its own where an object with another uid was deleted."""
    if other.deleted:
        is_new = row is None and publication.uid and other.uid
        if is_new or version > other.floor:
            return None
        return Stale("BELOW_FLOOR", f"object {cut(other.key)} was deleted there at version {other.floor}")
    was_missed = other.state == SETTLED and other.acknowledged != other.floor
    if version > other.floor or (version == other.floor and (publication.force or was_missed)):
        return None
    return _taken(other)


def _judge_delete(
    row: ObjectRow | None, other: ObjectRow | None, publication: Publication
) -> Verdict | Stale:
    """A delete never destroys another object than the one it means: an edge deletes by path."""
    version = publication.version
    if row is not None and not row.deleted:
        if row.key != publication.key and version is not None and version < row.floor:
            return _taken(row)
        return Verdict.TAKEN
    if row is not None and row.state != SETTLED:
        newer = version is not None and version > row.floor and not row.uid
        return Verdict.TAKEN if newer and other is None else Verdict.REPEATED
    if other is not None and not other.deleted:
        # Without a uid it may be the object that the delete means, if it is not newer than that.
        may_be = not other.uid and version is not None and version >= other.floor
        if not may_be or (row is not None and not row.is_replaced):
            return _taken(other)
        return Verdict.TAKEN
    if row is None or publication.force:
        return Verdict.TAKEN
    if row.is_replaced:
        return Stale("REPLACED", f"it was {row.reason}")
    if row.acknowledged is None:
        return Verdict.TAKEN
    if version is not None and version > row.floor and not row.uid:
        return Verdict.TAKEN
    return Stale("ACKNOWLEDGED", "the node has acknowledged the delete")


def _taken(other: ObjectRow) -> Stale:
    return Stale("PATH_TAKEN", f"object {cut(other.key)} is there with version {other.floor}")


def replaced_by(key: str, version: int | None, is_delete: bool = False) -> str:
    """Why an object ends whose path another one takes."""
    return "deleted with its path" if is_delete else f"replaced at its path by {cut(key)} version {version}"


def cut(name: str) -> str:
    """A name as a sentence can bear it."""
    return name if len(name) <= MOST_NAME else f"{name[:MOST_NAME]}…"
