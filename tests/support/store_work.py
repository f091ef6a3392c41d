"""Work for a store that is one statement."""

from collections.abc import Callable

from sqlalchemy import Connection, text


def run(statement: str, **values: object) -> Callable[[Connection], object]:
    """Executes the statement; gives back its first column's values, if it has any."""

    def work(connection: Connection) -> object:
        result = connection.execute(text(statement), values)
        return list(result.scalars()) if result.returns_rows else None

    return work
