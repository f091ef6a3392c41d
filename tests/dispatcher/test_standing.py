"""How an object's message stands in a session: `services.dispatcher.standing`."""

from hypothesis import given
from hypothesis import strategies as st

from services.dispatcher.policy import PolicySettings
from services.dispatcher.standing import Standing, newer, standing_in
from tests.support.dispatcher import request, running_delivery_half


async def test_it_is_told_of_what_is_in_flight_waits_for_another_and_is_unknown() -> None:
    """An edge deletes by path: what was made anew under a deleted one's path waits until that is gone."""
    async with running_delivery_half(PolicySettings()) as half:
        session = await half.connect(epoch=4)
        for uid, operation in (("old", "delete"), ("new", "insert")):
            content = f'{{"metadata":{{"name":"a","uid":"{uid}"}}}}'.encode()
            what = request("edge-1", content=content, operation=operation, resource="default/pod/a")
            await half.publish(what)
        found = [standing_in(session.epoch, session.policy, key) for key in ("old", "new", "nobody")]
    assert found == [Standing(4, in_flight=True), Standing(4, blocked_by="old"), Standing(4)]


@given(st.permutations([1, 2, 5]))
def test_the_newest_session_counts_in_whatever_order_answers_come(epochs: list[int]) -> None:
    known: Standing | None = None
    for epoch in epochs:
        known = newer(known, Standing(epoch, in_flight=epoch == 5))
    assert known == Standing(5, in_flight=True)
