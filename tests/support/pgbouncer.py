"""A PgBouncer of its own for tests, between a store and a real server."""

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

from tests.support.postgres import reachable_folder
from tests.support.processes import HOST, free_ports
from tests.support.tools import program, running


@asynccontextmanager
async def running_pgbouncer(url: str, **settings: str | int) -> AsyncIterator[str]:
    """In transaction mode, all else as it comes unless it is said; the URL to reach the database by."""
    binary = program("pgbouncer", "pgbouncer")
    server = urlsplit(url)
    (port,) = free_ports(1)
    lines: dict[str, str | int] = {
        "listen_addr": HOST,
        "listen_port": port,
        "unix_socket_dir": "",
        "auth_type": "any",
        "pool_mode": "transaction",
        **settings,
    }
    if os.geteuid() == 0:
        lines["user"] = "nobody"  # it refuses to run as root

    def listens() -> bool:
        try:
            socket.create_connection((HOST, port), 1).close()
        except OSError:
            return False
        return True

    with reachable_folder() as folder:
        file = folder / "pgbouncer.ini"
        to = f"host={server.hostname} port={server.port} user={server.username} password={server.password}"
        told = "\n".join(f"{name} = {value}" for name, value in lines.items())
        file.write_text(f"[databases]\n* = {to}\n[pgbouncer]\n{told}\n")
        async with running([binary, file], folder / "pgbouncer.log", listens):
            yield f"postgresql://hub@{HOST}:{port}{server.path}"
