"""The upstream half with a real gRPC server and a real store."""

import asyncio
import json
from pathlib import Path

import grpc
import pytest

from cloudhub.v1.dispatcher_pb2 import SubscribeRequest, Subscription
from cloudhub.v1.dispatcher_pb2_grpc import DispatcherServiceStub
from cloudhub.v1.message_pb2 import Message
from services.dispatcher.upstream.settings import UpstreamSettings
from services.runtime.rpc import error_reason
from tests.support.upstream import event, open_hub, report, upload


async def test_a_message_reaches_the_subscriber_of_its_module(tmp_path: Path) -> None:
    async with open_hub(tmp_path) as hub, hub.subscriber("edgecontroller") as cloud:
        hub.receive("edge-1", 5, report("p1", "Running"))
        (delivery,) = await cloud.next()
        assert delivery.module == "edgecontroller"
        assert (delivery.node_id, delivery.epoch, delivery.redelivered) == ("edge-1", 5, False)
        assert delivery.message.resource == "node/edge-1/default/podstatus/p1"
        assert delivery.message.content == b'"Running"'


async def test_uploads_are_stored_answered_and_handed_on(tmp_path: Path) -> None:
    async with open_hub(tmp_path) as hub, hub.subscriber("router") as cloud:
        for number in range(20):
            hub.receive("edge-1", 5, upload(number, sync=True))
        got = await cloud.take(20)
        assert [int(one.message.content) for one in got] == list(range(20))
        await hub.edge.until(lambda: len(hub.edge.answers) == 20)
        assert {message.operation for _, _, message in hub.edge.answers} == {"response"}
