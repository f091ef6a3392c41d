"""What stock edges send up, as three releases of KubeEdge sent it (`tests/fixtures/stock_edge_*.jsonl`)."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloudhub.v1.message_pb2 import Message
from services.dispatcher.upstream.merging import merge_key
from services.dispatcher.upstream.routing import DurableUpload, ToModule, classify, wants_answer
from tests.support.upstream import open_hub

RECORDINGS = sorted((Path(__file__).parents[2] / "fixtures").glob("stock_edge_*.jsonl"))


def recorded(path: Path) -> Iterator[tuple[str, Message]]:
    """Each message with the module that it went to, its resource as the edge wrote it."""
    for line in path.read_text().splitlines():
        one: dict[str, Any] = json.loads(line)
        message = Message(
            id=one["id"],
            parent_id=one.get("parent") or "",
            sync=one["sync"],
            source=one["source"],
            group=one["group"],
            operation=one.get("operation", ""),
            resource=one["resource"].removeprefix(f"node/{one['node']}/"),
            content=json.dumps(one["content"]).encode(),
        )
        yield one["module"], message


def all_recorded() -> list[tuple[str, Message]]:
    return [one for path in RECORDINGS for one in recorded(path)]


def type_of(message: Message) -> str:
    parts = message.resource.split("/")
    return parts[1] if len(parts) == 3 else ""


def test_the_recordings_are_of_three_releases() -> None:
    assert len(RECORDINGS) == 5
    assert {path.name.split("_")[2] for path in RECORDINGS} == {"v1.21.2", "v1.22.2", "v1.23.1"}
    assert not any(message.sync for _, message in all_recorded())


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_each_goes_to_its_module(path: Path) -> None:
    for module, message in recorded(path):
        route = classify(message)
        assert isinstance(route, (ToModule, DurableUpload))
        assert route.module == module


def test_requests_are_known_by_what_they_are() -> None:
    found = {
        (message.source, message.operation, type_of(message)): wants_answer(message)
        for _, message in all_recorded()
    }
    assert {what for what, is_request in found.items() if is_request} == {
        ("edged", "query", "node"),
        ("edged", "query", "lease"),
        ("edged", "query", "secret"),
        ("edged", "query", "configmap"),
        ("edged", "insert", "node"),
        ("edged", "insert", "lease"),
        ("metaserver", "null", ""),
    }
    others = {what for what, is_request in found.items() if not is_request}
    assert {
        ("edged", "insert", "event"),
        ("edged", "update", "lease"),
        ("servicebus", "upload", ""),
    } <= others


@pytest.mark.parametrize(
    "message",
    [
        Message(operation="query", source="metamanager", resource="k8s/ca.crt"),
        Message(operation="insert", source="edged", resource="null/certificatesigningrequest/c", sync=True),
        Message(operation="query", source="edged", resource="null/certificatesigningrequest/c"),
        Message(operation="response", source="metaserver", parent_id="p", sync=True),
        Message(operation="error", source="metaserver", parent_id="p"),
        Message(operation="insert", source="elsewhere", resource="default/node/n"),
    ],
)
def test_an_error_is_no_answer_to_these(message: Message) -> None:
    assert not wants_answer(message)


def test_none_of_it_is_merged() -> None:
    """C30: leases too are written by `update`, and each waits for its answer."""
    assert [message for _, message in all_recorded() if merge_key(message)] == []


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
async def test_a_request_that_nobody_serves_is_answered_at_once_and_nothing_else(
    path: Path, tmp_path: Path
) -> None:
    """Invariant 9. An answer is of a group that edges take; a stored upload is the router's to answer."""
    wanted = []
    async with open_hub(tmp_path) as hub:
        for _, message in recorded(path):
            if wants_answer(message):
                wanted.append(message.id)
            hub.receive("edge-1", 5, message)
        answers = [message for _, _, message in hub.edge.answers]
        assert [message.parent_id for message in answers] == wanted
        assert {(message.operation, message.group) for message in answers} <= {("error", "resource")}
        async with hub.subscriber("edgecontroller", "devicecontroller", "dynamiccontroller") as cloud:
            rest = [m.id for _, m in recorded(path) if m.id not in wanted and m.operation != "upload"]
            assert sorted(one.message.id for one in await cloud.take(len(rest))) == sorted(rest)


async def test_leases_all_reach_who_answers_them(tmp_path: Path) -> None:
    """C30: merged, all but the last would wait for a minute."""
    async with open_hub(tmp_path) as hub:
        for number in range(5):
            lease = Message(
                id=f"l{number}",
                source="edged",
                group="meta",
                operation="update",
                resource="kube-node-lease/lease/edge-1",
                content=b"{}",
            )
            hub.receive("edge-1", 5, lease)
        async with hub.subscriber("edgecontroller") as cloud:
            got = await cloud.take(5)
        assert [one.message.id for one in got] == [f"l{number}" for number in range(5)]
        assert hub.metric("merged_total") == 0
