"""A node's session and its backlog, through the writer: `services.dispatcher.delivery`."""

from services.dispatcher.outbox.records import Claim
from services.dispatcher.policy import PolicySettings
from tests.support.dispatcher import DeliveryHalf, request, running_delivery_half
from tests.support.processes import eventually

NODE = "edge-1"
BACKLOG = 1300
SETTINGS = PolicySettings(window_messages=BACKLOG, window_bytes=10**9)


async def backlog(half: DeliveryHalf) -> None:
    """Of a node that had a session before; one that never had may have little."""
    half.delivery.remove(await half.connect(NODE, 1))
    await half.publish(
        *(
            request(NODE, content=b"{}", resource=f"default/configmap/{number}", message_id=f"m-{number}")
            for number in range(BACKLOG)
        )
    )
    half.outbox.batches.clear()


async def test_others_publish_while_a_backlog_is_loaded() -> None:
    """C28: 1 300 messages are three portions; what others publish goes between them, and the node's messages
    go in their order when all are there."""
    sent: list[str] = []

    def all_sent() -> bool:
        sent.extend(message_id for message_id, _ in half.stream.frames())
        return len(sent) >= BACKLOG

    async with running_delivery_half(SETTINGS) as half:
        await backlog(half)
        session = await half.connect(NODE, 2, max_window_messages=BACKLOG)
        assert session.policy.last_seq is None, "the rest is loaded behind the link's admission"
        await half.publish(request("edge-2"))
        await eventually(all_sent)
    portions = [op.after_seq for batch in half.outbox.batches for op in batch if isinstance(op, Claim)]
    assert portions == [0, 512, 1024]
    assert not isinstance(half.outbox.batches[1][-1], Claim), "the publish went before the last portion"
    assert sent == [f"m-{number}" for number in range(BACKLOG)]


async def test_a_session_that_ends_while_its_backlog_is_loaded_loads_no_more() -> None:
    """C2, C3: and sends nothing."""
    async with running_delivery_half(SETTINGS) as half:
        await backlog(half)
        half.delivery.remove(await half.connect(NODE, 2))
        await half.settled()
        assert len(half.outbox.batches) == 2
        assert half.stream.frames() == []
