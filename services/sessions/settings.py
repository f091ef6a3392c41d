"""Settings of the sessions service."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.runtime.database_source import DatabaseSettings
from services.runtime.migration_command import MigrationSettings
from services.runtime.settings import Address, ServiceSettings


class SessionsSettings(DatabaseSettings, ServiceSettings):
    """Keeps the registry of node sessions: who is connected where, under which epoch, within which limits."""

    model_config = SettingsConfigDict(env_prefix="CLOUDHUB_SESSIONS_")

    listen: Address = Field("0.0.0.0:50052", description="HOST:PORT of the gRPC server")
    database: str = Field(
        "sqlite:///cloudhub-sessions.db",
        repr=False,  # it may hold a password, as all such settings
        description="URL of the database; with a password better given by the environment",
    )
    lease_seconds: float = Field(
        15.0, gt=0, le=600, description="silence after which a dispatcher's sessions are orphans"
    )
    limit_per_connector: int = Field(
        10_000, ge=0, description="nodes per connector until changed at run time; 0: unlimited"
    )
    limit_per_project: int = Field(
        0, ge=0, description="nodes per project until changed at run time; 0: unlimited"
    )
    limit_total: int = Field(0, ge=0, description="nodes in total until changed at run time; 0: unlimited")
    limit_retry_seconds: float = Field(
        10.0, ge=0, le=3600, description="when a node refused by a limit is advised to try again"
    )
    event_retention_seconds: float = Field(
        86_400.0, gt=0, description="age at which unacknowledged lifecycle events are dropped"
    )
    most_events: int = Field(
        200_000, ge=1, description="unacknowledged lifecycle events kept; the oldest above are dropped"
    )
    most_watchers: int = Field(64, ge=1, le=10_000, description="WatchSessions streams at a time")
    watch_queue: int = Field(
        10_000, ge=1, description="changes a WatchSessions stream may lag behind before it is ended"
    )
    enrolment_ca: Path = Field(
        Path("certs/ca.crt"),
        description="CA of the edges' certificates (PEM; of several the first): join tokens carry its hash",
    )


class SessionsMigrationSettings(MigrationSettings):
    """Brings the database of the registry to the schema that this release wants."""

    model_config = SettingsConfigDict(env_prefix="CLOUDHUB_SESSIONS_")
