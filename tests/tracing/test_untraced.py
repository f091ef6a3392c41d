"""A hub that is not traced: it carries what publishers say of their traces, and makes nothing of it."""

import asyncio
import signal
from pathlib import Path

import pytest

from services.runtime.rpc import open_channel
from tests.support.otlp import OtlpReceiver
from tests.tracing.cloud import CloudProgram, answer, new_context, receive, trace_of
from tests.tracing.hub import SERVICES, HubProcesses

pytestmark = pytest.mark.e2e


async def test_a_context_is_carried_and_stored_though_nothing_is_exported(tmp_path: Path) -> None:
    context = new_context()
    async with OtlpReceiver() as receiver:
        environment = {**receiver.environment(), "OTEL_SDK_DISABLED": "true"}
        async with (
            HubProcesses(tmp_path, environment) as hub,
            open_channel(hub.address("dispatcher")) as dispatcher,
            open_channel(hub.address("sessions")) as sessions,
        ):
            cloud = CloudProgram(dispatcher, sessions)
            async with hub.peers.link("edge-1") as peer:
                response = await cloud.publish("edge-1", context=context)
                message = await receive(peer)
                await answer(peer, message)
            assert response.trace_id == ""
            assert message["header"]["traceparent"] == context
            assert (await cloud.explain("edge-1", response.message_id)).trace_id == trace_of(context)
            # A process that exports does so at its end at the latest.
            statuses = await asyncio.gather(*(hub.stop(name, signal.SIGTERM) for name in SERVICES))
        assert statuses == [0, 0, 0]
        assert receiver.exports == 0
