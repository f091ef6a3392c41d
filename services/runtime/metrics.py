"""The Prometheus endpoint of a process. Each service declares its metrics in its own `metrics.py`."""

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
        self._server: WSGIServer = started[0]
        self._thread: threading.Thread = started[1]

    @property
    def port(self) -> int:
        """The port in use (of interest when 0 was asked for)."""
        return self._server.server_port

    def close(self) -> None:
        """Stops serving; returns when the thread has ended."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
