"""The Prometheus endpoint of a process. Each service declares its metrics in its own `metrics.py`."""

import socket
import threading
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, start_http_server

from services.runtime.errors import StartupError
from services.runtime.settings import split_address


class MetricsEndpoint:
    """Serves `registry` over HTTP until closed."""

    def __init__(self, listen: str, registry: CollectorRegistry) -> None:
        host, port = split_address(listen)
        try:
            started = start_http_server(port, host, registry)
        except OSError as error:
            raise StartupError(f"cannot serve metrics on {listen}: {error.strerror or error}") from error
        self._host = host
        self._server: WSGIServer = started[0]
        self._thread: threading.Thread = started[1]

    @property
    def port(self) -> int:
        """The port in use (of interest when 0 was asked for)."""
        return self._server.server_port

    def close(self) -> None:
        """Stops serving; returns when the thread has ended."""
        stopping = threading.Thread(target=self._server.shutdown)
        stopping.start()
        # The server looks at the request to stop twice a second, and after each connection.
        try:
            socket.create_connection((self._host, self.port), 0.5).close()
        except OSError:
            pass
        stopping.join()
        self._server.server_close()
        self._thread.join()
