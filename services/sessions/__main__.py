"""`python -m services.sessions` runs the service; `... migrate` brings its database up to date,
`... backup` and `... restore` copy it."""

import gc

if __name__ == "__main__":
    gc.disable()  # what is imported stays; `run_process` turns it on again

import socket

from services.runtime.backup_command import ran_backup
from services.runtime.lifecycle import run_process
from services.runtime.logs import configure_logs
from services.runtime.migration_command import ran_migration
from services.runtime.settings import load_settings
from services.sessions.app import main_of
from services.sessions.schema import SCHEMA
from services.sessions.settings import SessionsMigrationSettings, SessionsSettings

PROGRAM = "cloudhub-sessions"


def main() -> None:
    if ran_migration(PROGRAM, SessionsMigrationSettings, SCHEMA) or ran_backup(
        PROGRAM, SessionsMigrationSettings, SCHEMA
    ):
        return
    settings = load_settings(SessionsSettings, PROGRAM)
    configure_logs("sessions", settings.name or socket.gethostname(), settings.log_level, settings.log_format)
    run_process(PROGRAM, main_of(settings))


if __name__ == "__main__":
    main()
