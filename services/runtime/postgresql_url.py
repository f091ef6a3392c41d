"""URLs of PostgreSQL databases: postgresql://USER:PASSWORD@HOST:PORT[,HOST:PORT]/DB. Pure."""

from urllib.parse import urlsplit, urlunsplit

from services.runtime.errors import StartupError


def hosts_of(url: str) -> list[str]:
    """One URL for each host of a URL that lists several."""
    parts = urlsplit(url)
    user, at, hosts = parts.netloc.rpartition("@")
    return [urlunsplit(parts._replace(netloc=f"{user}{at}{host}")) for host in hosts.split(",")]


def shown(url: str) -> str:
    """The URL without its password."""
    parts = urlsplit(url)
    user, at, hosts = parts.netloc.rpartition("@")
    name, colon, _ = user.partition(":")
    hidden = f"{name}{colon and ':***'}{at}{hosts}"
    return urlunsplit(parts._replace(netloc=hidden, query=""))


def check_url(url: str) -> None:
    """Raises StartupError if this is no URL of a PostgreSQL database."""
    parts = urlsplit(url)
    if not parts.netloc or not parts.path.strip("/"):
        raise StartupError(f"database {shown(url)!r}: expected postgresql://USER:PASSWORD@HOST:PORT/DATABASE")
