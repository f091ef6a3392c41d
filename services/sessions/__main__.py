"""`python -m services.sessions`: runs the sessions service until SIGTERM or SIGINT."""

import socket

from services.runtime.lifecycle import run_process
from services.runtime.logs import configure_logs
from services.runtime.settings import load_settings
from services.sessions.app import main_of
from services.sessions.settings import SessionsSettings

PROGRAM = "cloudhub-sessions"


def main() -> None:
    settings = load_settings(SessionsSettings, PROGRAM)
    configure_logs("sessions", settings.name or socket.gethostname(), settings.log_level, settings.log_format)
    run_process(PROGRAM, main_of(settings))


if __name__ == "__main__":
    main()
