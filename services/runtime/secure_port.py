"""A port with TLS for a gRPC server of this process: the front that ends TLS, the server for those whom it
does not believe, and the directory in which they meet."""

import asyncio
import fcntl
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TextIO

import grpc
from prometheus_client import Counter

from services.runtime.caller_shares import CallerLimits
from services.runtime.callers import Callers
from services.runtime.errors import StartupError
from services.runtime.listening import listening_sockets
from services.runtime.refusals import Refusals
from services.runtime.refusing_server import RefusingServer
from services.runtime.server_tls import ServerTls
from services.runtime.tls_front import REFUSING, SERVED, TlsFront

_PREFIX = "cloudhub-grpc-"
_LOCK = "lock"
# Of a socket's path on Linux; the longest name has an IPv6 address and a number of 12 digits.
_MOST_PATH_BYTES = 107
_MOST_NAME_BYTES = 66


class SecurePort:
    """In this order: `bind`, the server's own start, `start`; `stop_accepting`, the server's own stop,
    `close`."""

    def __init__(
        self,
        present: Callable[[], ServerTls],
        callers: Callers,
        options: Sequence[tuple[str, int]],
        refusals: Refusals,
        failed: Counter | None,
        limits: CallerLimits | None = None,
    ) -> None:
        self.front = TlsFront(present, callers, refusals, failed, limits)
        self._callers = callers
        self._options = options
        self._refusals = refusals
        self._sockets: list[socket.socket] = []
        self._folder: Path | None = None
        self._lock: TextIO | None = None
        self._refusing: RefusingServer | None = None

    async def bind(self, listen: str, server: grpc.aio.Server) -> int:
        """The port in use, which `server` serves. Raises StartupError."""
        try:
            self._sockets = await listening_sockets(listen)
        except OSError as error:
            raise StartupError(f"cannot listen on {listen}: {error.strerror or error}") from error
        folder = self._make_folder()
        server.add_insecure_port(f"unix:{folder / SERVED}")
        self._refusing = RefusingServer(f"{folder / REFUSING}", self._callers, self._refusals, self._options)
        port: int = self._sockets[0].getsockname()[1]
        return port

    def _make_folder(self) -> Path:
        try:
            sweep(Path(tempfile.gettempdir()))
            while True:
                self._folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
                self._lock = (self._folder / _LOCK).open("w")
                fcntl.flock(self._lock, fcntl.LOCK_EX)
                if os.fstat(self._lock.fileno()).st_nlink:
                    break
                self._lock.close()  # another process swept the folder before it was locked
        except OSError as error:
            raise StartupError(
                "gRPC with TLS needs a directory for its sockets, by the variable TMPDIR or /tmp: "
                f"{error.strerror or error}"
            ) from error
        if len(bytes(self._folder)) + 1 + _MOST_NAME_BYTES > _MOST_PATH_BYTES:
            raise StartupError(
                f"the path of the temporary directory {self._folder.parent} is too long for sockets in it: "
                "name a shorter one by the variable TMPDIR"
            )
        return self._folder

    async def start(self) -> None:
        """Accepts clients."""
        if self._folder is None or self._refusing is None:
            raise RuntimeError("the port is not bound")
        await self._refusing.start()
        sockets, self._sockets = self._sockets, []
        await self.front.start(sockets, self._folder)

    def stop_accepting(self) -> None:
        """No new clients; those that are there stay."""
        for one in self._sockets:
            one.close()
        self._sockets = []
        self.front.stop_accepting()

    async def close(self) -> None:
        """Once the server has stopped: nothing is left of any connection, nor of the directory."""
        self.stop_accepting()
        if self._refusing is not None:
            await self._refusing.stop()
        await self.front.close()
        if self._folder is not None:
            await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)
        if self._lock is not None:
            self._lock.close()


def sweep(parent: Path) -> None:
    """Removes what processes that were killed have left there."""
    for folder in parent.glob(f"{_PREFIX}*"):
        try:
            with (folder / _LOCK).open("r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:
            # Somebody is at work there, or it is another user's, or it is just being made.
            continue
