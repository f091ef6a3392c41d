"""`python -m services.connector`: carries the links of edge nodes."""

import gc

if __name__ == "__main__":
    gc.disable()  # what is imported stays; `run_process` turns it on again

import asyncio
import socket

from services.connector.app import running_app
from services.connector.settings import ConnectorSettings
from services.runtime.lifecycle import run_process
from services.runtime.logs import configure_logs
from services.runtime.settings import load_settings

_PROGRAM = "cloudhub-connector"


def main() -> None:
    """Reads the settings and serves until SIGTERM."""
    settings = load_settings(ConnectorSettings, _PROGRAM)
    configure_logs(
        "connector", settings.name or socket.gethostname(), settings.log_level, settings.log_format
    )

    async def serve(stop: asyncio.Event) -> None:
        async with running_app(settings):
            await stop.wait()

    run_process(_PROGRAM, serve)


if __name__ == "__main__":
    main()
