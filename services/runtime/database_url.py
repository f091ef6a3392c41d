"""URLs of databases: sqlite:///PATH and postgresql://USER:PASSWORD@HOST:PORT[,HOST:PORT]/DATABASE. Pure.

Of a URL that cannot be read nothing is told: where its password begins and ends is what is unknown. Of one
that can, user, password and query are not.
"""

import re
from pathlib import Path
from urllib.parse import quote, unquote

from services.runtime.errors import StartupError

_SQLITE = "sqlite:///"
_MOST_PORT = 65535
_POSTGRESQL = re.compile(
    r"postgresql://"
    r"(?:(?P<user>[^\s/?#@\[\]:]+)(?::(?P<password>[^\s/?#@\[\]]*))?@)?"
    r"(?P<hosts>[^\s/?#@]+)"
    r"/(?P<database>[^\s/?#@:\[\]]+)"
    r"(?:\?(?P<query>[A-Za-z_]+=[^\s#@&]+(?:&[A-Za-z_]+=[^\s#@&]+)*))?"
)
# Percent signs: a folder of sockets is a host too.
_HOST = re.compile(r"(?:[A-Za-z0-9_.%-]+|\[[0-9A-Fa-f:.%]+\])(?::(?P<port>\d{1,5}))?")
_UNREADABLE = (
    "the URL of the database cannot be read; it should be sqlite:///PATH or postgresql://"
    "USER:PASSWORD@HOST:PORT/DATABASE; percent-encode the password (# as %23, @ as %40, / as %2F)"
)


def sqlite_path(url: str) -> Path:
    """The file that a `sqlite:///PATH` names. Raises StartupError if it names none."""
    path = url.removeprefix(_SQLITE).partition("?")[0]
    if not url.startswith(_SQLITE) or "\0" in path:
        raise StartupError(_UNREADABLE)
    if not path or path == ":memory:":
        raise StartupError("database: a file is needed, for example sqlite:///cloudhub.db")
    return Path(path)


def hosts_of(url: str) -> list[str]:
    """One URL for each host of a URL that lists several, with user and password encoded so that every reader
    takes them apart alike. Raises StartupError."""
    parts = _parts(url)
    login = ""
    if parts["user"]:
        password = "" if parts["password"] is None else ":" + _encoded(parts["password"])
        login = f"{_encoded(parts['user'])}{password}@"
    query = f"?{parts['query']}" if parts["query"] else ""
    return [
        f"postgresql://{login}{host}/{parts['database']}{query}" for host in str(parts["hosts"]).split(",")
    ]


def shown(url: str) -> str:
    """The URL as it may be told: hosts and database. Raises StartupError."""
    parts = _parts(url)
    return f"postgresql://{parts['hosts']}/{parts['database']}"


def check_url(url: str) -> None:
    """Raises StartupError if this is no URL of a PostgreSQL database."""
    _parts(url)


def engine_of(url: str) -> str:
    """`sqlite` or `postgresql`. Raises StartupError for a URL of neither."""
    if url.startswith(_SQLITE):
        return "sqlite"
    _parts(url)
    return "postgresql"


def _parts(url: str) -> dict[str, str | None]:
    match = _POSTGRESQL.fullmatch(url)
    hosts = [_HOST.fullmatch(host) for host in match["hosts"].split(",")] if match else []
    ports = [int(host["port"] or 1) for host in hosts if host is not None]
    if match is None or len(ports) < len(hosts) or not all(0 < port <= _MOST_PORT for port in ports):
        raise StartupError(_UNREADABLE)
    return match.groupdict()


def _encoded(text: str | None) -> str:
    return quote(unquote(text or ""), safe="")
