"""`python -m services.NAME migrate`: brings a service's database to the schema that this release wants."""

import asyncio
import sys

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.runtime.database_source import DatabaseSettings
from services.runtime.lifecycle import run_process
from services.runtime.migrations import Schema
from services.runtime.settings import load_settings
from services.runtime.store import migrate

WORD = "migrate"


class MigrationSettings(DatabaseSettings, BaseSettings):
    """Brings the database to the schema that this release wants. Subclasses set `env_prefix`."""

    model_config = SettingsConfigDict(cli_kebab_case=True, cli_avoid_json=True, extra="ignore", frozen=True)

    database: str = Field(
        repr=False, description="URL of the database; with a password better given by the environment"
    )


def ran_migration(program: str, kind: type[MigrationSettings], schema: Schema) -> bool:
    """Whether the command line asks for a migration, which is done then; exits with status 1 and one
    sentence if it cannot be."""
    if sys.argv[1:2] != [WORD]:
        return False
    settings = load_settings(kind, f"{program} {WORD}", sys.argv[2:])

    async def main(_: asyncio.Event) -> None:
        print(await migrate(settings.database_source.read(), schema))

    run_process(program, main)
    return True
