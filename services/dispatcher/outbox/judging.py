"""What the rows of an object say to a publication: taken, repeated, or stale. Pure."""

from enum import Enum

from services.dispatcher.outbox.records import ObjectRow, RowState, Stale
from services.dispatcher.publication import Publication, Rejection
from services.runtime.names import shown

SETTLED = RowState.SETTLED


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


def judge(row: ObjectRow | None, publication: Publication) -> Verdict | Stale:
    """By the row that the publication is about."""
    if row is None:
        return Verdict.TAKEN
    version = publication.version
    if publication.is_answer:
        return Verdict.REPEATED
    if publication.is_delete:
        if not row.deleted:
            return Verdict.TAKEN
        newer = version is not None and version > row.floor and not row.uid
        if row.state != SETTLED:
            return Verdict.TAKEN if newer else Verdict.REPEATED
        if publication.force or row.acknowledged is None or newer:
            return Verdict.TAKEN
        return Stale("ACKNOWLEDGED", "the node has acknowledged the delete")
    assert version is not None
    if row.deleted and row.uid:
        return Stale("DELETED", "the object of this uid was deleted")
    if version < row.floor or (row.deleted and version == row.floor):
        return Stale("BELOW_FLOOR", f"version {row.floor} was accepted before")
    if version > row.floor:
        return Verdict.TAKEN
    if row.state != SETTLED:
        return Verdict.REPEATED
    if row.acknowledged == version and not publication.force:
        return Stale("ACKNOWLEDGED", f"the node has acknowledged version {version}")
    return Verdict.TAKEN
