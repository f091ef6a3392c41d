"""Parts around the delivery half of a dispatcher: a clock that is moved, metrics to read, requests."""

from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from cloudhub.v1 import dispatcher_pb2 as pb
from cloudhub.v1.message_pb2 import Message
from services.dispatcher.metrics import DispatcherMetrics

NOW_MS = 1_700_000_000_000


@dataclass
class SteppedClock:
    """Stands still until it is moved."""

    seconds: float = 1000.0
    now_ms: int = NOW_MS

    def monotonic(self) -> float:
        return self.seconds

    def wall_ms(self) -> int:
        return self.now_ms

    def advance(self, seconds: float) -> None:
        """Time goes by on both clocks."""
        self.seconds += seconds
        self.now_ms += int(seconds * 1000)


class Metrics(DispatcherMetrics):
    """Metrics of a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        super().__init__(self.registry)

    def value(self, name: str, **labels: str) -> float:
        """A sample's value; 0 if there is none."""
        return self.registry.get_sample_value(f"cloudhub_dispatcher_{name}", labels) or 0.0


def request(
    *node_ids: str,
    content: bytes = b'{"metadata":{"uid":"u1"}}',
    resource: str = "default/configmap/a",
    version: str = "1",
    operation: str = "update",
    message_id: str = "",
    parent_id: str = "",
    ack_mode: pb.AckMode.ValueType = pb.ACK_MODE_UNSPECIFIED,
) -> pb.PublishRequest:
    """A publish request as a cloud program would send it."""
    return pb.PublishRequest(
        message=Message(
            id=message_id,
            parent_id=parent_id,
            resource=resource,
            resource_version=version,
            operation=operation,
            source="edgecontroller",
            group="resource",
            content=content,
        ),
        node_ids=node_ids,
        ack_mode=ack_mode,
    )
