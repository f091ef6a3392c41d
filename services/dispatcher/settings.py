"""Settings of the dispatcher."""

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.dispatcher.sizes import MAX_CONTENT_BYTES
from services.runtime.database_source import DatabaseSettings
from services.runtime.migration_command import MigrationSettings
from services.runtime.rpc import MOST_MESSAGE_BYTES
from services.runtime.settings import Address, Replicas, ServiceSettings


class DispatcherSettings(DatabaseSettings, ServiceSettings):
    """Flags of `python -m services.dispatcher`; each is also CLOUDHUB_DISPATCHER_<NAME>."""

    model_config = SettingsConfigDict(env_prefix="CLOUDHUB_DISPATCHER_")

    listen: Address = Field("0.0.0.0:50051", description="HOST:PORT of the gRPC server")
    sessions: Replicas = Field(
        "127.0.0.1:50052",
        description="HOST:PORT of the sessions service, HOST standing for all its replicas; "
        "or IP:PORT of each, separated by commas",
    )
    sessions_seconds: float = Field(5.0, gt=0, le=60, description="time limit of a call to sessions")
    database: str = Field(
        "sqlite:///cloudhub-dispatcher.db",
        repr=False,  # it may hold a password, as all such settings
        description="URL of the outbox; with a password better given by the environment",
    )
    cluster_ca: Path | None = Field(
        None,
        description="PEM file that edges get when they ask for k8s/ca.crt; none: such requests get no answer",
    )
    keepalive_seconds: float = Field(
        45.0, gt=0, le=3600, description="silence after which a link is given up"
    )
    lease_seconds: float = Field(
        15.0, gt=0, le=600, description="silence after which a stream counts as lost"
    )

    window_messages: int = Field(
        64,
        ge=1,
        le=65536,
        description="messages in flight per node; at most 100 to an edge that does not say that it takes "
        "more (Cloudhub-Window), as stock edges, whose queue drops the oldest",
    )
    window_bytes: int = Field(256 * 1024, ge=1024, description="bytes in flight per node")
    ack_seconds: float = Field(
        5.0,
        gt=0,
        le=3600,
        description="first interval without ack before a resend, longer on links that acknowledge late",
    )
    ack_most_seconds: float = Field(60.0, gt=0, le=3600, description="longest such interval")
    most_attempts: int = Field(
        10, ge=1, le=1000, description="intervals without ack before a message is parked"
    )
    max_connector_bytes: int = Field(
        128 * 1024 * 1024,
        ge=1024 * 1024,
        description="bytes sent to a connector that its links have not written; at it large messages wait",
    )
    max_cut_links: int = Field(
        5,
        ge=3,
        le=1000,
        description="links in a row that an edge ends over one message before that is parked",
    )
    subscriber_ack_seconds: float = Field(
        60.0,
        gt=0,
        le=86_400,
        description="how long a subscriber may hold deliveries without acknowledging any, where another "
        "could have them",
    )
    max_subscriptions: int = Field(
        1024,
        ge=4,
        le=65_536,
        description="subscriptions open at a time, a quarter of them for callers with few",
    )
    max_delivery_bytes: int = Field(
        4 * 1024 * 1024,
        ge=64 * 1024,
        le=MOST_MESSAGE_BYTES,
        description="largest response to a subscriber, and so largest message of an edge; above 4 MiB, "
        "gRPC's default, all subscribers have to be told to receive as much",
    )
    max_node_upload_rows: int = Field(
        20_000, ge=1, description="stored uploads of a node that nobody has taken"
    )
    max_node_upload_bytes: int = Field(
        64 * 1024 * 1024, ge=1024, description="size of the stored uploads of a node"
    )
    max_upload_rows: int = Field(
        1_000_000, ge=1, description="stored uploads of all nodes, a quarter of them for nodes with few"
    )
    max_upload_bytes: int = Field(
        8 * 1024 * 1024 * 1024,
        ge=1024,
        description="size of the stored uploads of all nodes, a quarter of it for nodes with few",
    )

    content_most_bytes: int = Field(
        900 * 1024,
        ge=1024,
        le=MAX_CONTENT_BYTES,
        description="size of a content; extra fields and names may take 64 KiB more, all as encoded",
    )
    answer_seconds: float = Field(60.0, gt=0, le=3600, description="how long an answer to an edge waits")
    max_node_objects: int = Field(
        50_000, ge=1, description="objects on record per node, deleted ones included while remembered"
    )
    edge_acknowledgements: Literal["stock", "all"] = Field(
        "stock",
        description="which acknowledged messages are taken: those that stock edges acknowledge, or all",
    )
    node_most_rows: int = Field(20_000, ge=1, description="pending messages per node")
    node_most_bytes: int = Field(64 * 1024 * 1024, ge=1024, description="pending bytes per node")
    total_most_rows: int = Field(2_000_000, ge=1, description="pending messages in all")
    total_most_bytes: int = Field(8 * 1024 * 1024 * 1024, ge=1024, description="pending bytes in all")
    unknown_nodes: Literal["accept", "refuse"] = Field(
        "accept", description="publishes to nodes that never connected"
    )
    unknown_node_most_rows: int = Field(
        100, ge=1, description="pending messages of a node that never connected"
    )
    unknown_node_most_bytes: int = Field(4 * 1024 * 1024, ge=1024, description="pending bytes of such a node")
    unknown_node_seconds: float = Field(
        7 * 86_400.0, gt=0, description="latest expiry of messages to such a node"
    )
    max_unknown_share: float = Field(
        0.1,
        gt=0,
        le=1,
        description="what all such nodes together may have pending, beside the others: "
        "part of the messages and bytes in all",
    )
    max_unknown_nodes: int = Field(10_000, ge=1, description="such nodes that anything is kept of")
    event_seconds: float = Field(7 * 86_400.0, gt=0, description="how long delivery history is kept")
    max_history_rows: int = Field(
        30_000,
        ge=300,
        description="lines of delivery history per node, a hundredth if it never connected; at the bound the "
        "newest third stays of acceptances with ids of publishers, and of all else",
    )
    tombstone_seconds: float = Field(
        7 * 86_400.0, gt=0, description="how long a deleted object is remembered"
    )


class DispatcherMigrationSettings(MigrationSettings):
    """Brings the database of the dispatchers to the schema that this release wants."""

    model_config = SettingsConfigDict(env_prefix="CLOUDHUB_DISPATCHER_")
