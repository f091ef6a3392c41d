"""One hub of real processes, exporting to one receiver, for all tests of a module."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from services.runtime.rpc import open_channel
from tests.support.otlp import OtlpReceiver
from tests.support.skew import skewed
from tests.tracing.cloud import CloudProgram
from tests.tracing.hub import HubProcesses

# An interval is long enough for a busy machine's acknowledgement, two are short enough to wait for.
ACK_SECONDS = 1.5
MOST_ATTEMPTS = 2


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def receiver() -> AsyncIterator[OtlpReceiver]:
    """In no trace that the tests of a module make a clock looks skewed."""
    async with OtlpReceiver() as running:
        yield running
    assert running.spans
    assert skewed(running.spans) == []


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hub(
    receiver: OtlpReceiver, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[HubProcesses]:
    environment = {
        **receiver.environment(),
        "CLOUDHUB_DISPATCHER_ACK_SECONDS": str(ACK_SECONDS),
        "CLOUDHUB_DISPATCHER_ACK_MOST_SECONDS": str(ACK_SECONDS),
        "CLOUDHUB_DISPATCHER_MOST_ATTEMPTS": str(MOST_ATTEMPTS),
        # A message that the agent swallows, to see it given up.
        "CLOUDHUB_DISPATCHER_EDGE_ACKNOWLEDGEMENTS": "all",
    }
    async with HubProcesses(tmp_path_factory.mktemp("hub"), environment) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cloud(hub: HubProcesses) -> AsyncIterator[CloudProgram]:
    async with (
        open_channel(hub.address("dispatcher")) as dispatcher,
        open_channel(hub.address("sessions")) as sessions,
    ):
        yield CloudProgram(dispatcher, sessions)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def agent(hub: HubProcesses, receiver: OtlpReceiver) -> str:
    """The id of a node whose edge agent runs and is connected."""
    await hub.start_edge("edge-agent")
    await receiver.one("connect", cloudhub__node__id="edge-agent")
    return "edge-agent"
