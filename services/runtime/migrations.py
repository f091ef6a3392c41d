"""Which schema a database holds, and how it comes to hold the one a service wants (Alembic).

Each service has a history of its own and a version table named after it, so that two of them may share a
PostgreSQL database.
"""

from dataclasses import dataclass
from pathlib import Path

from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, MetaData, column, func, inspect, select, table, text

from services.runtime.errors import StartupError

_VERSIONS = "_schema"


@dataclass(frozen=True, slots=True)
class Schema:
    """What a service wants its database to hold; `history` is the folder of its migrations."""

    service: str
    metadata: MetaData
    history: Path

    @property
    def version_table(self) -> str:
        """Where the database says which migration it is at."""
        return self.service + _VERSIONS


def _script(schema: Schema) -> ScriptDirectory:
    return ScriptDirectory(str(schema.history), version_locations=[str(schema.history)])


def head(schema: Schema) -> str:
    """The version that this release wants."""
    return str(_script(schema).get_current_head())


def version_of(connection: Connection, schema: Schema) -> str | None:
    """The version of the service's schema in the database; None if there is none."""
    if not inspect(connection).has_table(schema.version_table):
        return None
    versions = table(schema.version_table, column("version_num"))
    return connection.execute(select(versions.c.version_num)).scalar()


def check_own(connection: Connection, schema: Schema, database: str) -> bool:
    """Whether a database that serves one service is new; raises StartupError if it serves something else."""
    tables = set(inspect(connection).get_table_names())
    if not tables or schema.version_table in tables:
        return not tables
    others = sorted(name.removesuffix(_VERSIONS) for name in tables if name.endswith(_VERSIONS))
    held = f"the schema of {others[0]}" if others else "tables of another program"
    raise StartupError(f"database {database} holds {held}, not the schema of {schema.service}")


def check_version(connection: Connection, schema: Schema, database: str, command: str) -> None:
    """Raises StartupError with what it holds, what is wanted and what to do, unless the two agree."""
    found, wanted = version_of(connection, schema), head(schema)
    if found == wanted:
        return
    if found is None:
        raise StartupError(f"database {database} holds no schema of {schema.service}; run: {command}")
    check_known(schema, found, database)
    raise StartupError(
        f"database {database} holds version {found} of the schema of {schema.service}, this release wants "
        f"{wanted}; run: {command}"
    )


def known_version(connection: Connection, schema: Schema, database: str) -> str:
    """The version of the service's schema in the database. Raises StartupError if there is none, or one that
    this release does not know."""
    found = version_of(connection, schema)
    if found is None:
        raise StartupError(f"database {database} holds no schema of {schema.service}")
    check_known(schema, found, database)
    return found


def check_known(schema: Schema, found: str, database: str) -> None:
    """Raises StartupError if this release does not know a version that a database, or a backup, holds."""
    try:
        _script(schema).get_revision(found)
    except CommandError as error:
        raise StartupError(
            f"database {database} holds version {found} of the schema of {schema.service}, which this "
            f"release ({head(schema)}) does not know; use the release that made it, or a newer one"
        ) from error


def take_turns(connection: Connection, schema: Schema) -> None:
    """Waits, however long it takes, until no other migration of this schema runs; held until the transaction
    ends (PostgreSQL). Several replicas may each start with one."""
    connection.execute(text("SET LOCAL lock_timeout = 0"))
    connection.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(schema.version_table, 0))))


def upgrade(connection: Connection, schema: Schema, database: str) -> None:
    """Brings the service's schema to the version that this release wants, in the caller's transaction."""
    found = version_of(connection, schema)
    if found is not None:
        check_known(schema, found, database)
    script = _script(schema)
    with EnvironmentContext(
        Config(),
        script,
        fn=lambda revision, _: script._upgrade_revs("head", revision),
    ) as environment:
        environment.configure(
            connection=connection, target_metadata=schema.metadata, version_table=schema.version_table
        )
        environment.run_migrations()
