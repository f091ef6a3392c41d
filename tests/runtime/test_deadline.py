"""One call later, at most: `services.runtime.deadline`."""

import asyncio

from services.runtime.deadline import Deadline


async def test_only_what_was_set_last_is_called_and_nothing_after_it_was_taken_back() -> None:
    loop = asyncio.get_running_loop()
    called: list[str] = []
    done, taken_back = asyncio.Event(), Deadline(loop)
    deadline = Deadline(loop)

    def second() -> None:
        called.append("second")
        done.set()

    taken_back.set(0.0, lambda: called.append("taken back"))
    deadline.set(0.0, lambda: called.append("first"))
    deadline.set(0.001, second)
    taken_back.cancel()
    assert (deadline.is_set, taken_back.is_set) == (True, False)
    async with asyncio.timeout(5):
        await done.wait()
    assert called == ["second"]
    assert deadline.is_set, "until it is taken back, also after the call"
    deadline.cancel()
    assert not deadline.is_set
