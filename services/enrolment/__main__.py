"""`python -m services.enrolment`: signs certificates of edge nodes."""

import gc

if __name__ == "__main__":
    gc.disable()  # what is imported stays; `run_process` turns it on again

import asyncio

from services.enrolment.app import instance_name, running_app
from services.enrolment.settings import EnrolmentSettings
from services.runtime.lifecycle import run_process
from services.runtime.logs import configure_logs
from services.runtime.settings import load_settings

_PROGRAM = "cloudhub-enrolment"


def main() -> None:
    """Reads the settings and serves until SIGTERM."""
    settings = load_settings(EnrolmentSettings, _PROGRAM)
    configure_logs("enrolment", instance_name(settings), settings.log_level, settings.log_format)

    async def serve(stop: asyncio.Event) -> None:
        async with running_app(settings):
            await stop.wait()

    run_process(_PROGRAM, serve)


if __name__ == "__main__":
    main()
