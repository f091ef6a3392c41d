"""Bounds of the upstream half; `app.py` fills them from the dispatcher's settings."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class UpstreamSettings:
    """What may wait for subscribers in memory, and what uploads may take on disk.

    The `most_waiting_*` bounds count messages that no subscriber has settled; a node at one of its bounds,
    or with as much as all have left (`shares`), loses status reports, oldest first, else the newcomer.
    Lifecycle events that no subscriber has seen are bounded apart: of a node for a module the last ones
    stay, which say where it is now; of all, those of the module and node with the most go first. Durable
    uploads have a window of their own in memory, the rest of them is on disk, where each node has a share.
    """

    most_waiting_per_node: int = 4096
    most_waiting_bytes_per_node: int = 16 * 1024 * 1024
    most_waiting_total: int = 200_000
    most_waiting_bytes_total: int = 256 * 1024 * 1024
    most_events_per_node: int = 16
    most_events_total: int = 200_000
    subscriber_ack_seconds: float = 60.0
    max_subscriptions: int = 1024
    max_delivery_bytes: int = 4 * 1024 * 1024
    upload_pause_seconds: float = 30.0
    max_node_upload_rows: int = 20_000
    max_node_upload_bytes: int = 64 * 1024 * 1024
    max_upload_rows: int = 1_000_000
    max_upload_bytes: int = 8 * 1024 * 1024 * 1024
