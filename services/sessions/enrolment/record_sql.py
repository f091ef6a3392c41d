"""The record of enrolment in SQL, on any engine that the store opens.

Locks are taken in one order: a token's row, the counter of the total (`book_sql`), a node's row.
"""

import secrets
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, Row, and_, delete, exists, func, insert, select, update

from services.runtime.errors import Refused
from services.runtime.rowsets import RowQuery
from services.sessions.book_sql import lock_counts
from services.sessions.enrolment.records import (
    Certificate,
    JoinToken,
    Refusal,
    RefusalReason,
    RevokedNode,
    TokenScope,
    Wanted,
)
from services.sessions.enrolment.tokens import (
    TOKEN_UNKNOWN,
    digest_of,
    make_jwt,
    read_token_id,
    refusal_of,
)
from services.sessions.limits import Scope
from services.sessions.records import Opening
from services.sessions.schema import enrolled_node, enrolment_key, join_token, node_certificate
from services.sessions.store_use import Transactions
from services.sessions.upsert import insert_missing, upsert

_PURPOSE = "join tokens"
KEPT_MS = 30 * 86_400_000
"""How long tokens that have expired are listed."""
MOST_TOKENS = 10_000
"""On record."""
MAX_NODES = 1_000_000
"""Nodes that have a row, or may get one by the uses that tokens have left."""
MAX_REVOKED_STRANGERS = 100_000
"""Beside those: nodes that never enrolled here and that operators revoke."""
MOST_PER_NODE = 16
"""Certificates on record, the newest. One that is not is refused where its node was revoked, as those that
were issued before are; where it was not, none is asked for."""
MOST_OFTEN_MS = 3_600_000
"""A node that got as many within it, or within their own time if that is less, gets no further one."""


class EnrolmentRecord:
    """Tokens, certificates and revocations in the database of sessions. Raises StoreUnavailable."""

    def __init__(self, store: Transactions, seen_ms: Callable[[], int] | None = None) -> None:
        """`seen_ms` is the time by which tokens and certificates on record are old enough to go, which a step
        of the clock does not change; none: that of each call."""
        self._store = store
        self._seen_ms = seen_ms

    def _old_ms(self, now_ms: int) -> int:
        return now_ms if self._seen_ms is None else min(now_ms, self._seen_ms())

    async def create_token(self, token_id: str, scope: TokenScope) -> tuple[str, JoinToken]:
        """A new token: its JWT, and what is kept of it. Tokens expired for long go. Raises Refused where
        there are too many."""
        secret = secrets.token_urlsafe(24)
        old_ms = self._old_ms(scope.created_at_ms)

        def work(connection: Connection) -> tuple[str, JoinToken]:
            token = make_jwt(_key(connection), token_id, secret, scope.expires_at_ms)
            made = JoinToken(token_id, digest_of(token), scope, scope.uses)
            column = join_token.c
            connection.execute(delete(join_token).where(column.expires_at_ms < old_ms - KEPT_MS))
            count = connection.execute(select(func.count()).select_from(join_token)).scalar_one()
            if count >= MOST_TOKENS:
                raise Refused(
                    "TOO_MANY_TOKENS",
                    f"there are {count} join tokens, and at most {MOST_TOKENS} are kept, each until "
                    f"{KEPT_MS // 86_400_000} days after its end; make tokens of more uses, for less time",
                )
            _check_nodes(connection, scope)
            connection.execute(insert(join_token), [_token_values(made)])
            return token, made

        return await self._store.write(work)

    async def tokens(self, after: tuple[int, str] | None, most: int) -> list[JoinToken]:
        """Up to `most`, the newest first, behind the one that was made at that time with that id."""
        column = join_token.c
        statement = select(join_token).order_by(column.created_at_ms.desc(), column.token_id).limit(most)
        if after is not None:
            made_at_ms, token_id = after
            same_time = (column.created_at_ms == made_at_ms) & (column.token_id > token_id)
            statement = statement.where((column.created_at_ms < made_at_ms) | same_time)
        return await self._store.read(
            lambda connection: [_token_of(row) for row in connection.execute(statement)]
        )

    async def revoke_token(self, token_id: str) -> JoinToken | None:
        """Revokes a token, perhaps again; None if there is none."""

        def work(connection: Connection) -> JoinToken | None:
            where = join_token.c.token_id == token_id
            connection.execute(update(join_token).where(where).values(revoked=True))
            row = connection.execute(select(join_token).where(where)).one_or_none()
            return _token_of(row) if row else None

        return await self._store.write(work)

    async def issue_by_token(self, token: str, wanted: Wanted, now_ms: int) -> Refusal | Wanted:
        """Puts the certificate on record and takes one use of the token, or says why not. For a key that
        has one by this token: that one again, whose answer may have been lost, and no use is taken."""
        old_ms = self._old_ms(now_ms)

        def work(connection: Connection) -> Refusal | Wanted:
            token_id = read_token_id(token, _key(connection))
            if isinstance(token_id, Refusal):
                return token_id
            where = join_token.c.token_id == token_id
            row = connection.execute(select(join_token).where(where).with_for_update()).one_or_none()
            found = _token_of(row) if row else None
            former = _former(connection, wanted, token_id)

            def refusal(revoked_at_ms: int | None) -> Refusal | None:
                return refusal_of(
                    *(found, digest_of(token), wanted.node_id, now_ms),
                    repeated=former is not None,
                    revoked_at_ms=revoked_at_ms,
                )

            # Without a lock first: whoever is refused leaves no row.
            early = refusal(_revoked_at(connection, wanted.node_id))
            if early or not found:
                return early or TOKEN_UNKNOWN
            revoked_at_ms = _lock_node(connection, wanted.node_id)
            late = refusal(revoked_at_ms)
            if late:
                return late
            if former is not None and _lasts(former, now_ms):
                return former
            too_often = _too_often(connection, wanted, now_ms)
            if too_often:
                return too_often
            if former is None:
                connection.execute(
                    update(join_token).where(where).values(uses_left=join_token.c.uses_left - 1)
                )
            connection.execute(
                update(enrolled_node)
                .where(enrolled_node.c.node_id == wanted.node_id)
                .values(project_id=found.scope.project_id)
            )
            _record(connection, wanted, token_id, now_ms, revoked_at_ms, old_ms)
            return wanted

        return await self._store.write(work)

    async def issue_by_certificate(self, former_serial: str, wanted: Wanted, now_ms: int) -> Refusal | Wanted:
        """Puts the certificate on record unless the one that was shown is revoked."""
        old_ms = self._old_ms(now_ms)

        def work(connection: Connection) -> Refusal | Wanted:
            revoked_at_ms = _lock_node(connection, wanted.node_id)
            if revoked_at_ms is not None and not _newer(
                connection, wanted.node_id, former_serial, revoked_at_ms
            ):
                return Refusal(
                    RefusalReason.NODE_REVOKED,
                    f"node {wanted.node_id} was revoked; it needs a new join token",
                )
            too_often = _too_often(connection, wanted, now_ms)
            if too_often:
                return too_often
            _record(connection, wanted, "", now_ms, revoked_at_ms, old_ms)
            return wanted

        return await self._store.write(work)

    async def is_on_record(self, node_id: str) -> bool:
        """Whether the node ever enrolled here, or was revoked."""
        return await self._store.read(lambda connection: _is_on_record(connection, node_id))

    async def revoke_node(self, node_id: str, now_ms: int) -> None:
        """Refuses the node's present certificates. When it returns, whatever opens a session after this sees
        the revocation, and what was opened before can be evicted."""

        def work(connection: Connection) -> None:
            # Opens hold this row from before they look at revocations until they end.
            lock_counts(connection, [(Scope.TOTAL, "")])
            if not _is_on_record(connection, node_id):
                _check_strangers(connection)
            _lock_node(connection, node_id)
            column = node_certificate.c
            last = connection.execute(
                select(func.max(column.issued_at_ms)).where(column.node_id == node_id)
            ).scalar()
            connection.execute(
                update(enrolled_node)
                .where(enrolled_node.c.node_id == node_id)
                .values(revoked_at_ms=max(now_ms, int(last or 0)))
            )

        await self._store.write(work)

    async def reinstate_node(self, node_id: str) -> bool:
        """Takes a revocation back; whether there was one."""

        def work(connection: Connection) -> bool:
            column = enrolled_node.c
            where = (column.node_id == node_id) & column.revoked_at_ms.is_not(None)
            return (
                connection.execute(update(enrolled_node).where(where).values(revoked_at_ms=None)).rowcount > 0
            )

        return await self._store.write(work)

    async def revoked_nodes(self, prefix: str, after: str, most: int) -> list[RevokedNode]:
        """Those whose ids begin so, behind `after`, in order of their ids."""
        node, certificate = enrolled_node.c, node_certificate.c
        since = exists().where(
            certificate.node_id == node.node_id, certificate.issued_at_ms > node.revoked_at_ms
        )
        statement = (
            select(node.node_id, node.revoked_at_ms, since.label("since"))
            .where(
                node.revoked_at_ms.is_not(None),
                node.node_id > after,
                node.node_id.startswith(prefix, autoescape=True),
            )
            .order_by(node.node_id)
            .limit(most)
        )
        return await self._store.read(
            lambda connection: [
                RevokedNode(row.node_id, int(row.revoked_at_ms), bool(row.since))
                for row in connection.execute(statement)
            ]
        )

    async def certificates(self, prefix: str, after: tuple[str, str], most: int) -> list[Certificate]:
        """Those of nodes whose ids begin so, behind (node id, serial), in that order."""
        column, node = node_certificate.c, enrolled_node.c
        behind = (column.node_id > after[0]) | ((column.node_id == after[0]) & (column.serial > after[1]))
        statement = (
            select(node_certificate, node.revoked_at_ms)
            .join_from(node_certificate, enrolled_node, column.node_id == node.node_id)
            .where(behind, column.node_id.startswith(prefix, autoescape=True))
            .order_by(column.node_id, column.serial)
            .limit(most)
        )
        return await self._store.read(
            lambda connection: [_certificate_of(row) for row in connection.execute(statement)]
        )


_issued_at_by_serial = RowQuery(
    ["node_id", "serial"],
    lambda wanted: select(
        node_certificate.c.node_id, node_certificate.c.serial, node_certificate.c.issued_at_ms
    ).join_from(
        wanted,
        node_certificate,
        and_(node_certificate.c.node_id == wanted.c.node_id, node_certificate.c.serial == wanted.c.serial),
    ),
)


def forbidden_nodes(connection: Connection, entries: Sequence[Opening]) -> dict[str, str]:
    """Nodes among these that may not open a session, and why. Call it behind the lock of the total.

    Of a node that was revoked the certificate that it shows is looked at, however many it has: everybody
    waits for this.
    """
    node = enrolled_node.c
    ids = sorted({entry.node_id for entry in entries})
    known = {
        row.node_id: row for row in connection.execute(select(enrolled_node).where(node.node_id.in_(ids)))
    }
    revoked = {node_id for node_id, row in known.items() if row.revoked_at_ms is not None}
    shown = sorted({(one.node_id, one.certificate_serial) for one in entries if one.node_id in revoked})
    issued: dict[tuple[str, str], int] = {}
    if shown:
        issued = {(row[0], row[1]): int(row[2]) for row in _issued_at_by_serial.execute(connection, shown)}
    return dict(_forbidden(known, issued, entries))


def _forbidden(
    known: dict[str, Row[Any]], issued: dict[tuple[str, str], int], entries: Sequence[Opening]
) -> Iterable[tuple[str, str]]:
    for entry in entries:
        row = known.get(entry.node_id)
        if row is None:
            continue
        if (
            row.revoked_at_ms is not None
            and issued.get((entry.node_id, entry.certificate_serial), 0) <= row.revoked_at_ms
        ):
            yield entry.node_id, f"node {entry.node_id} was revoked; it has to enrol again"
        elif row.project_id and row.project_id != entry.project_id:
            yield entry.node_id, f"node {entry.node_id} enrolled for another project than {entry.project_id}"


def _key(connection: Connection) -> bytes:
    """What tokens are signed with; made at its first use."""
    statement = select(enrolment_key.c.secret).where(enrolment_key.c.purpose == _PURPOSE)
    found = connection.execute(statement).scalar()
    if found is None:
        row = {"purpose": _PURPOSE, "secret": secrets.token_hex(32)}
        connection.execute(insert_missing(connection, enrolment_key), [row])
        found = connection.execute(statement).scalar_one()
    return bytes.fromhex(str(found))


def _revoked_at(connection: Connection, node_id: str) -> int | None:
    statement = select(enrolled_node.c.revoked_at_ms).where(enrolled_node.c.node_id == node_id)
    found = connection.execute(statement).scalar()
    return None if found is None else int(found)


def _lock_node(connection: Connection, node_id: str) -> int | None:
    """Makes the node's row if it has none and locks it; since when the node is revoked."""
    row = {"node_id": node_id, "project_id": "", "revoked_at_ms": None}
    connection.execute(insert_missing(connection, enrolled_node), [row])
    statement = select(enrolled_node.c.revoked_at_ms).where(enrolled_node.c.node_id == node_id)
    found = connection.execute(statement.with_for_update()).scalar()
    return None if found is None else int(found)


def _nodes(connection: Connection) -> int:
    return int(connection.execute(select(func.count()).select_from(enrolled_node)).scalar_one())


def _is_on_record(connection: Connection, node_id: str) -> bool:
    column = enrolled_node.c.node_id
    return connection.execute(select(column).where(column == node_id)).first() is not None


def _check_nodes(connection: Connection, scope: TokenScope) -> None:
    """Raises Refused for a token whose uses could make more rows of nodes than are kept."""
    column = join_token.c
    left = connection.execute(
        select(func.sum(column.uses_left)).where(
            column.revoked.is_(False), column.expires_at_ms > scope.created_at_ms
        )
    ).scalar()
    promised, nodes = int(left or 0), _nodes(connection)
    if nodes + promised + scope.uses > MAX_NODES:
        raise Refused(
            "TOO_MANY_USES",
            f"{nodes} nodes are on record and tokens have {promised} uses left; with {scope.uses} more there "
            f"would be over {MAX_NODES}: ask for fewer uses, or revoke tokens that are needed no more",
        )


def _check_strangers(connection: Connection) -> None:
    """Raises Refused where there are too many rows for one of a node that never enrolled here."""
    nodes = _nodes(connection)
    if nodes >= MAX_NODES + MAX_REVOKED_STRANGERS:
        raise Refused(
            "TOO_MANY_NODES",
            f"{nodes} nodes are on record, and this one never enrolled here: check its id",
        )


def _former(connection: Connection, wanted: Wanted, token_id: str) -> Wanted | None:
    """What the node has by this token for the same key, if it is on record: the one that lasts longest."""
    column = node_certificate.c
    statement = (
        select(node_certificate)
        .where(
            column.node_id == wanted.node_id,
            column.token_id == token_id,
            column.key_sha256 == wanted.key_sha256,
        )
        .order_by(column.not_after_ms.desc())
        .limit(1)
    )
    row = connection.execute(statement).one_or_none()
    if row is None:
        return None
    return replace(
        wanted,
        serial=row.serial,
        not_before_ms=int(row.not_before_ms),
        not_after_ms=int(row.not_after_ms),
    )


def _lasts(certificate: Wanted, now_ms: int) -> bool:
    """Whether a certificate has most of its time before it, so that it is worth giving again."""
    return certificate.not_after_ms - now_ms > (certificate.not_after_ms - certificate.not_before_ms) // 2


def _too_often(connection: Connection, wanted: Wanted, now_ms: int) -> Refusal | None:
    column = node_certificate.c
    statement = (
        select(column.issued_at_ms)
        .where(column.node_id == wanted.node_id)
        .order_by(column.issued_at_ms.desc())
        .offset(MOST_PER_NODE - 1)
        .limit(1)
    )
    since_ms = connection.execute(statement).scalar()
    within_ms = min(MOST_OFTEN_MS, wanted.not_after_ms - wanted.not_before_ms)
    if since_ms is None or now_ms - int(since_ms) >= within_ms:
        return None
    return Refusal(
        RefusalReason.NODE_TOO_OFTEN,
        f"node {wanted.node_id} got {MOST_PER_NODE} certificates within {within_ms / 1000:g} s; "
        "it should keep one and renew it in time",
    )


def _newer(connection: Connection, node_id: str, serial: str, than_ms: int) -> bool:
    column = node_certificate.c
    statement = select(column.issued_at_ms).where(column.node_id == node_id, column.serial == serial)
    found = connection.execute(statement).scalar()
    return found is not None and int(found) > than_ms


def _record(
    connection: Connection, wanted: Wanted, token_id: str, now_ms: int, revoked_at_ms: int | None, old_ms: int
) -> None:
    column = node_certificate.c
    connection.execute(
        delete(node_certificate).where(column.node_id == wanted.node_id, column.not_after_ms <= old_ms)
    )
    row = {
        "node_id": wanted.node_id,
        "serial": wanted.serial,
        "not_before_ms": wanted.not_before_ms,
        "not_after_ms": wanted.not_after_ms,
        "issued_at_ms": now_ms if revoked_at_ms is None else max(now_ms, revoked_at_ms + 1),
        "token_id": token_id,
        "key_sha256": wanted.key_sha256,
        "peer_address": wanted.peer_address,
    }
    # A call that is made again, because its answer was lost, finds its row.
    connection.execute(upsert(connection, node_certificate), [row])
    newest = (
        select(column.serial)
        .where(column.node_id == wanted.node_id)
        .order_by(column.issued_at_ms.desc(), column.serial.desc())
        .limit(MOST_PER_NODE)
    )
    kept = list(connection.execute(newest).scalars())
    if len(kept) == MOST_PER_NODE:
        connection.execute(
            delete(node_certificate).where(column.node_id == wanted.node_id, column.serial.not_in(kept))
        )


def _token_values(token: JoinToken) -> dict[str, object]:
    scope = token.scope
    return {
        "token_id": token.token_id,
        "digest": token.digest,
        "node_pattern": scope.node_pattern,
        "project_id": scope.project_id,
        "uses": scope.uses,
        "uses_left": token.uses_left,
        "created_at_ms": scope.created_at_ms,
        "expires_at_ms": scope.expires_at_ms,
        "revoked": token.revoked,
    }


def _token_of(row: Row[Any]) -> JoinToken:
    scope = TokenScope(
        row.node_pattern, row.project_id, row.uses, int(row.created_at_ms), int(row.expires_at_ms)
    )
    return JoinToken(row.token_id, row.digest, scope, row.uses_left, bool(row.revoked))


def _certificate_of(row: Row[Any]) -> Certificate:
    revoked = row.revoked_at_ms is not None and int(row.issued_at_ms) <= int(row.revoked_at_ms)
    return Certificate(
        *(row.node_id, row.serial, int(row.not_before_ms), int(row.not_after_ms), int(row.issued_at_ms)),
        *(row.token_id, row.peer_address, revoked),
    )
