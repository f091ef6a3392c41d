"""What a session tells its connector to forget."""

from typing import cast

from services.dispatcher.connectors import ConnectorStream
from services.dispatcher.node_session import NodeSession
from services.dispatcher.policy import NodeDelivery, PolicySettings


class Stream:
    """Remembers receipts."""

    def __init__(self) -> None:
        self.receipts: list[int] = []

    def receipt(self, link: int, epoch: int, through: int) -> None:
        assert (link, epoch) == (3, 7)
        self.receipts.append(through)


def session(stream: Stream) -> NodeSession:
    policy = NodeDelivery("edge-1", 7, PolicySettings(), lambda: 0.0)
    return NodeSession("edge-1", "p", 7, cast("ConnectorStream", stream), 3, policy, "", 0.0)


def test_a_receipt_never_goes_past_an_upload_that_is_not_stored() -> None:
    """C31, C36: if this dispatcher is lost, the next one gets the upload from the connector, in its order."""
    stream = Stream()
    node = session(stream)
    node.received = 5
    node.unstored = {3: None, 5: None}
    node.receipt()
    assert stream.receipts == [2]
    node.received = 8
    node.receipt()
    assert stream.receipts == [2], "nothing new to forget"
    node.stored(5)
    node.receipt()
    assert stream.receipts == [2], "the earlier one still waits"
    node.stored(3)
    node.stored(4)  # of no upload: harmless
    node.receipt()
    assert stream.receipts == [2, 8]
