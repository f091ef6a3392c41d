"""`python -m services.dispatcher` runs the service; `... migrate` brings its database up to date,
`... backup` and `... restore` copy it."""

import gc

if __name__ == "__main__":
    gc.disable()  # what is imported stays; `run_process` turns it on again

from services.dispatcher.app import serve
from services.dispatcher.outbox.schema import SCHEMA
from services.dispatcher.settings import DispatcherMigrationSettings, DispatcherSettings
from services.runtime.backup_command import ran_backup
from services.runtime.lifecycle import run_process
from services.runtime.migration_command import ran_migration
from services.runtime.settings import load_settings

PROGRAM = "cloudhub-dispatcher"


def main() -> None:
    """Runs a dispatcher by flags and environment."""
    if ran_migration(PROGRAM, DispatcherMigrationSettings, SCHEMA) or ran_backup(
        PROGRAM, DispatcherMigrationSettings, SCHEMA
    ):
        return
    settings = load_settings(DispatcherSettings, PROGRAM)
    run_process(PROGRAM, lambda stop: serve(settings, stop))


if __name__ == "__main__":
    main()
