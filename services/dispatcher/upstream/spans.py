"""Spans of upstream messages whose edge sent a sampled trace context."""

from opentelemetry.trace import SpanKind
from opentelemetry.util.types import AttributeValue

from cloudhub.v1.message_pb2 import Message
from services.dispatcher.upstream.parcel import Parcel
from services.runtime.tracing import CAUSE_NS, Tracing, is_sampled, start_within


def _attributes(message: Message, module: str, node_id: str, epoch: int) -> dict[str, AttributeValue]:
    return {
        "messaging.system": "cloudhub",
        "messaging.destination.name": module,
        "messaging.message.id": message.id,
        "cloudhub.node.id": node_id,
        "cloudhub.session.epoch": epoch,
    }


class UpstreamSpans:
    """`receive` when a message is routed, `handover` from when a subscriber gets it until it settles it."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing

    def received(self, message: Message, module: str, node_id: str, epoch: int) -> None:
        """The message travels on under the span recorded here."""
        if self._tracing.enabled and is_sampled(message.traceparent):
            message.traceparent = self._tracing.record(
                "receive",
                message.traceparent,
                kind=SpanKind.CONSUMER,
                lasts_ns=CAUSE_NS,
                attributes=_attributes(message, module, node_id, epoch),
            )

    def handed_over(self, parcel: Parcel) -> None:
        """A subscriber settled the message."""
        message = parcel.message
        if self._tracing.enabled and is_sampled(message.traceparent):
            attributes = _attributes(message, parcel.module, parcel.node_id, parcel.epoch)
            attributes["cloudhub.redelivered"] = parcel.redelivered
            self._tracing.record(
                "handover",
                message.traceparent,
                kind=SpanKind.PRODUCER,
                attributes=attributes,
                start_ns=start_within(parcel.handed_at_ms),
            )
