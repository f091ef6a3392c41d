"""A connection to PostgreSQL whose transactions have time limits, set as each begins.

Limits that are set once for a connection do not hold behind a pooler that lends out its connections to the
server for a transaction each (PgBouncer in transaction mode): what was set is gone, or another's. The
statement that begins a transaction takes them along, so they cost no round trip.
"""

from collections.abc import Mapping
from typing import Any

import asyncpg

InForce = Mapping[str, tuple[str, str]]
"""Value and source of each setting, as `pg_settings` tells them."""

_IN_FORCE = "SELECT name, setting, source FROM pg_settings WHERE name = ANY($1::text[])"
# What was set by SET LOCAL has the session as its source.
_SOURCES = {"session": "transaction", "user": "role", "database user": "role"}


class BoundedConnection(asyncpg.Connection):
    """See the module. Made by `bounded`."""

    __slots__ = ()
    limits: Mapping[str, str]
    along: str

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:
        """As asyncpg's; a transaction's beginning takes the limits along."""
        begins = query.startswith("BEGIN")
        try:
            done: str = await super().execute(query + self.along if begins else query, *args, timeout=timeout)
        except asyncpg.PostgresError:
            if begins:
                # It may have begun without its limits; asyncpg would take it for one that did not begin.
                self.terminate()
            raise
        return done

    async def limits_in_force(self) -> InForce:
        """What a transaction finds."""
        async with self.transaction():
            found = await self.fetch(_IN_FORCE, list(self.limits))
        return {row["name"]: (row["setting"], row["source"]) for row in found}


def bounded(limits: Mapping[str, str]) -> type[BoundedConnection]:
    """For `asyncpg.connect`: a class of connections with these settings in each transaction (times in ms)."""
    along = "".join(f";SET LOCAL {name} = {value}" for name, value in limits.items())
    return type("Bounded", (BoundedConnection,), {"__slots__": (), "limits": limits, "along": along})


def missing(limits: Mapping[str, str], in_force: InForce) -> list[str]:
    """Which limits do not hold, in words."""
    found = {name: in_force.get(name, ("unknown", "nobody")) for name in limits}
    return [
        f"{name} should be {limits[name]}, is {value} by {source}"
        for name, (value, source) in found.items()
        if value != limits[name]
    ]


def set_by(in_force: InForce) -> str:
    """By whom the limits are set: `transaction`, `role`, or what PostgreSQL calls another source."""
    return ", ".join(sorted({_SOURCES.get(source, source) for _, source in in_force.values()}))
