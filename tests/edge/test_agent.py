"""A fleet of edges against a scripted cloud side, over real TLS and WebSocket links."""

import asyncio
import gc
import threading
from collections.abc import Sequence
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path

import pytest

from edge.agent import EdgeFleet
from edge.content import ContentRefused
from edge.node import OutboxFull, RequestFailed
from edge.outbox import SetAside, Upload
from edge.settings import EdgeSettings, SettingsFault
from edge.store import Batch, Change, EdgeStore, StoreFault, read_history, read_objects, read_set_aside
from tests.edge.conftest import MakeSettings
from tests.support.cloud_side import CloudSide, Json, answer_to, eventually, object_message

SAMPLED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class ControlledStore:
    """The real database behind a gate: commits wait while it is closed, and fail while told to."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.fail = False
        self.waiting = threading.Event()
        self.committed: list[str] = []

    def commit(self, batch: Batch) -> None:
        self.waiting.set()
        assert self.gate.wait(10)
        if self.fail:
            raise StoreFault("the disk is full")
        self.committed += [change.message.header.msg_id for change in batch.changes]


def parent(message: Json) -> str:
    return str(message["header"]["parent_msg_id"])


async def test_a_node_says_who_it_is_and_keeps_alive_at_once(
    cloud: CloudSide, make_settings: MakeSettings
) -> None:
    """C6: certificate, path and headers agree."""
    async with EdgeFleet(make_settings(), ["edge-1"]) as fleet:
        link = await cloud.link()
        await fleet.connected()
        assert link.path == "/e632aba927ea4ac2b575ec1603d56f10/edge-1/events"
        assert link.headers["Node_id"] == "edge-1"
        assert link.headers["Project_id"] == "e632aba927ea4ac2b575ec1603d56f10"
        assert link.headers["Connectionuse"] == "msg"
        assert "Sec-WebSocket-Extensions" not in link.headers
        assert link.common_name == "system:node:edge-1"
        await eventually(lambda: link.keepalives == 1)


async def test_keepalives_go_on(cloud: CloudSide, make_settings: MakeSettings) -> None:
    async with EdgeFleet(make_settings(keepalive_seconds=0.05), ["edge-1"]):
        link = await cloud.link()
        await eventually(lambda: link.keepalives >= 4)


async def test_a_message_is_stored_then_acknowledged(
    cloud: CloudSide, make_settings: MakeSettings, tmp_path: Path
) -> None:
    async with EdgeFleet(make_settings(), ["edge-1"]) as fleet:
        link = await cloud.link()
        message = object_message(version="5", data="payload")
        await link.send(message)
        answer = await link.next()
        assert parent(answer) == message["header"]["msg_id"]
        assert (answer["route"]["operation"], answer["content"]) == ("response", "OK")
        (row,) = read_objects(tmp_path / "edge.db")
        assert (row.node_id, row.resource, row.version) == ("edge-1", "default/configmap/cm1", "5")
        assert b'"payload"' in row.content
        assert fleet.total("acknowledged") == 1


async def test_a_message_received_twice_is_acknowledged_twice(
    cloud: CloudSide, make_settings: MakeSettings, tmp_path: Path
) -> None:
    async with EdgeFleet(make_settings(), ["edge-1"]):
        link = await cloud.link()
        message = object_message()
        await link.send(message)
        await link.send(message)
        assert [parent(await link.next()) for _ in range(2)] == [message["header"]["msg_id"]] * 2
    assert [row.msg_id for row in read_history(tmp_path / "edge.db")] == [message["header"]["msg_id"]] * 2


async def test_no_acknowledgement_leaves_before_the_commit(
    cloud: CloudSide, make_settings: MakeSettings
) -> None:
    store = ControlledStore()
    async with EdgeFleet(make_settings(), ["edge-1"], store=store):
        link = await cloud.link()
        store.gate.clear()
        await link.send(object_message())
        await asyncio.to_thread(store.waiting.wait, 10)
        # Whatever was written before the answer to this ping has arrived here when it comes.
        await (await link.connection.ping())
        assert link.received.empty()
        store.gate.set()
        await link.next()
        assert len(store.committed) == 1


async def test_a_failing_store_is_never_acknowledged_and_harms_nothing_else(
    cloud: CloudSide, make_settings: MakeSettings
) -> None:
    store = ControlledStore()
    async with EdgeFleet(make_settings(), ["edge-1"], store=store) as fleet:
        link = await cloud.link()
        store.fail = True
        await link.send(object_message(version="1"))
        await eventually(lambda: fleet.total("not_stored") == 1)
        with pytest.raises(StoreFault, match="disk is full"):
            await fleet["edge-1"].upload(b"{}")
        store.fail = False
        good = object_message(version="2")
        await link.send(good)
        assert parent(await link.next()) == good["header"]["msg_id"]
        assert fleet.total("acknowledged") == 1


async def test_acknowledgements_of_one_commit_leave_in_order(
    cloud: CloudSide, make_settings: MakeSettings
) -> None:
    groups: list[Sequence[Change]] = []
    async with EdgeFleet(make_settings(), ["edge-1", "edge-2"], on_acknowledged=groups.append) as fleet:
        links = [await cloud.link(), await cloud.link()]
        sent = [[object_message(f"default/configmap/c{n}") for n in range(40)] for _ in links]
        for link, messages in zip(links, sent, strict=True):
            for message in messages:
                await link.send(message)
        for link, messages in zip(links, sent, strict=True):
            assert [parent(await link.next()) for _ in messages] == [
                one["header"]["msg_id"] for one in messages
            ]
        assert sum(len(group) for group in groups) == 80
        assert fleet.commits < 80
        assert {change.node_id for group in groups for change in group} == {"edge-1", "edge-2"}


async def test_unknown_operations_and_keepalives_get_no_answer(
    cloud: CloudSide, make_settings: MakeSettings
) -> None:
    async with EdgeFleet(make_settings(), ["edge-1"]) as fleet:
        link = await cloud.link()
        await link.send(object_message(operation="nosuchop"))
        await link.send(object_message(operation="keepalive"))
        known = object_message()
        await link.send(known)
        assert parent(await link.next()) == known["header"]["msg_id"]
        assert fleet["edge-1"].counters.swallowed == {"unknown_operation": 1, "keepalive": 1}


async def test_a_frame_that_is_no_json_drops_the_link_without_a_close_frame(
    cloud: CloudSide, make_settings: MakeSettings
) -> None:
    """C29, as a stock edge does."""
    async with EdgeFleet(make_settings(), ["edge-1"]) as fleet:
        link = await cloud.link()
        await link.send('{"not json')
        await link.ended.wait()
        assert link.connection.close_code == 1006
        assert fleet.total("malformed") == 1
        await (await cloud.link()).send(object_message())


async def test_a_fragmented_message_is_one_message(cloud: CloudSide, make_settings: MakeSettings) -> None:
    async with EdgeFleet(make_settings(), ["edge-1"]):
        link = await cloud.link()
        await link.connection.send(
            [
                '{"header":{"msg_id":"m-1"},"route":',
                '{"operation":"update","resource":"a/b/c"},',
                '"content":1}',
            ]
        )
        assert parent(await link.next()) == "m-1"


@pytest.mark.parametrize(("given", "returned"), [(SAMPLED, SAMPLED), (SAMPLED[:-1] + "0", None)])
async def test_a_sampled_trace_context_comes_back_with_the_acknowledgement(
    cloud: CloudSide, make_settings: MakeSettings, given: str, returned: str | None
) -> None:
    async with EdgeFleet(make_settings(), ["edge-1"]):
        link = await cloud.link()
        await link.send(object_message(traceparent=given))
        assert (await link.next())["header"].get("traceparent") == returned


async def test_a_cut_link_comes_back_by_itself(cloud: CloudSide, make_settings: MakeSettings) -> None:
    async with EdgeFleet(make_settings(), ["edge-1"]) as fleet:
        first = await cloud.link()
        await fleet.connected()
        fleet["edge-1"].cut()
        second = await cloud.link()
        await first.ended.wait()
        assert first.connection.close_code == 1006
        await fleet.connected()
        await second.send(object_message())
        await second.next()
        assert fleet["edge-1"].counters.reconnects == 1


async def test_a_link_the_hub_closes_comes_back(cloud: CloudSide, make_settings: MakeSettings) -> None:
    async with EdgeFleet(make_settings(), ["edge-1"]) as fleet:
        link = await cloud.link()
        await link.connection.close(1012, "the connector drains")
        await cloud.link()
        await fleet.connected()
        assert link.connection.close_code == 1012


async def test_acknowledgements_for_a_link_that_is_gone_are_dropped(
    cloud: CloudSide, make_settings: MakeSettings
) -> None:
    """C24, seen from the edge: the hub sends again over the next link."""
    store = ControlledStore()
    async with EdgeFleet(make_settings(), ["edge-1"], store=store) as fleet:
        link = await cloud.link()
        store.gate.clear()
        message = object_message()
        await link.send(message)
        await asyncio.to_thread(store.waiting.wait, 10)
        fleet["edge-1"].cut()
        again = await cloud.link()
        store.gate.set()
        await again.send(message)
        assert parent(await again.next()) == message["header"]["msg_id"]
        assert again.received.empty()
        assert store.committed == [message["header"]["msg_id"]] * 2


async def test_a_hub_that_is_away_is_dialled_until_it_is_back(
    cloud: CloudSide, make_settings: MakeSettings
) -> None:
    async with EdgeFleet(make_settings(), ["edge-1"]) as fleet:
        await cloud.link()
        await cloud.stop()
        await eventually(lambda: fleet["edge-1"].counters.dials_failed >= 3)
        assert fleet.links == 0
        await cloud.start()
        await cloud.link()
        await fleet.connected()


async def test_a_node_goes_on_to_another_server_of_its_hub(
    cloud: CloudSide, certificates: Path, make_settings: MakeSettings
) -> None:
    """C35: one connector dies, its edges reconnect through another."""
    async with CloudSide(certificates) as other:
        both = make_settings(server=f"{cloud.url},{other.url}")
        async with EdgeFleet(both, ["edge-1"]) as fleet:
            await fleet.connected()
            dead, alive = (cloud, other) if cloud.links else (other, cloud)
            await dead.stop()
            await alive.link()
            await fleet.connected()


async def test_a_refused_edge_waits_as_advised_and_does_not_give_up(
    cloud: CloudSide, make_settings: MakeSettings
) -> None:
    """C7: 429 with Retry-After."""
    cloud.refuse = (HTTPStatus.TOO_MANY_REQUESTS, {"Retry-After": "1"})
    loop = asyncio.get_running_loop()
    async with EdgeFleet(make_settings(), ["edge-1"]) as fleet:
        await eventually(lambda: cloud.refused == 1)
        refused_at = loop.time()
        cloud.refuse = None
        await cloud.link()
        assert loop.time() - refused_at >= 0.9
        await fleet.connected()
        assert fleet["edge-1"].counters.dials_failed == 1


async def test_an_edge_does_not_talk_to_a_hub_of_another_authority(
    cloud: CloudSide, make_settings: MakeSettings, tmp_path: Path
) -> None:
    from edge.certificates import create_authority

    other = create_authority(tmp_path / "other").certificate_path
    async with EdgeFleet(make_settings(ca=other), ["edge-1"]) as fleet:
        await eventually(lambda: fleet["edge-1"].counters.dials_failed >= 2)
        assert cloud.links == []


async def test_a_hub_that_never_answers_is_given_up_in_time(make_settings: MakeSettings) -> None:
    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            await reader.read()
        writer.close()

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    async with server:
        url = f"wss://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with EdgeFleet(make_settings(server=url, open_seconds=0.1), ["edge-1"]) as fleet:
            await eventually(lambda: fleet["edge-1"].counters.dials_failed >= 2)


async def test_a_half_open_link_is_noticed_and_replaced(
    cloud: CloudSide, make_settings: MakeSettings
) -> None:
    """C4: packets black-holed, the edge comes back by itself."""
    async with EdgeFleet(make_settings(keepalive_seconds=0.05, silence_seconds=0.3), ["edge-1"]) as fleet:
        link = await cloud.link()
        await fleet.connected()
        link.connection.transport.pause_reading()
        try:
            await eventually(lambda: fleet["edge-1"].counters.links_opened == 2)
            assert len(cloud.links) == 2
        finally:
            link.connection.transport.abort()


async def test_pongs_keep_an_idle_link(cloud: CloudSide, make_settings: MakeSettings) -> None:
    async with EdgeFleet(make_settings(keepalive_seconds=0.05, silence_seconds=0.3), ["edge-1"]) as fleet:
        link = await cloud.link()
        await eventually(lambda: link.keepalives >= 12)
        assert fleet["edge-1"].counters.links_opened == 1


async def test_a_blocked_node_reads_and_answers_nothing_until_the_time_is_over(
    cloud: CloudSide, make_settings: MakeSettings
) -> None:
    async with EdgeFleet(make_settings(), ["edge-1", "edge-2"]) as fleet:
        by_node = {link.node_id: link for link in [await cloud.link(), await cloud.link()]}
        await fleet.connected()
        fleet["edge-1"].block(60.0)
        fleet["edge-1"].block(0.2)
        held, free = object_message(), object_message()
        await by_node["edge-1"].send(held)
        await by_node["edge-2"].send(free)
        assert parent(await by_node["edge-2"].next()) == free["header"]["msg_id"]
        assert by_node["edge-1"].received.empty()
        assert parent(await by_node["edge-1"].next()) == held["header"]["msg_id"]


async def test_a_blocked_node_does_not_dial(cloud: CloudSide, make_settings: MakeSettings) -> None:
    async with EdgeFleet(make_settings(), ["edge-1"]) as fleet:
        await cloud.link()
        await fleet.connected()
        fleet["edge-1"].block(0.3)
        fleet["edge-1"].cut()
        await eventually(lambda: not fleet["edge-1"].connected)
        started = asyncio.get_running_loop().time()
        await cloud.link()
        assert asyncio.get_running_loop().time() - started > 0.15


async def test_reading_pauses_while_the_disk_is_behind(cloud: CloudSide, make_settings: MakeSettings) -> None:
    store = ControlledStore()
    async with EdgeFleet(make_settings(most_unstored=8), ["edge-1"], store=store) as fleet:
        link = await cloud.link()
        store.gate.clear()
        messages = [object_message(data="x" * 60_000) for _ in range(300)]

        async def send_all() -> None:
            for message in messages:
                await link.send(message)

        async with asyncio.TaskGroup() as group:
            sending = group.create_task(send_all())
            await asyncio.to_thread(store.waiting.wait, 10)
            await eventually(lambda: fleet.total("received") >= 8)
            assert not sending.done()
            store.gate.set()
            for _ in messages:
                await link.next()
        assert len(store.committed) == 300


async def test_an_upload_is_on_disk_before_it_is_sent_and_gone_when_confirmed(
    cloud: CloudSide, make_settings: MakeSettings
) -> None:
    """C31."""
    settings = make_settings()
    async with EdgeFleet(settings, ["edge-1"]) as fleet:
        link = await cloud.link()
        assert await fleet["edge-1"].upload(b'{"celsius":21}', "line-4") == 1
        sent = await link.next()
        assert sent["route"] == {
            "source": "eventbus",
            "group": "user",
            "operation": "upload",
            "resource": "line-4",
        }
        assert sent["header"]["sync"] is True
        assert sent["content"]["number"] == 1
        assert sent["content"]["data"] == {"celsius": 21}
        await link.send(answer_to(sent))
        await eventually(lambda: fleet.total("uploads_confirmed") == 1)
        assert fleet["edge-1"].uploads_waiting == 0
    with_store = EdgeStore(settings.database)
    assert with_store.waiting_uploads() == []
    with_store.close()


async def test_uploads_are_numbered_on_and_repeated_by_the_next_process(
    cloud: CloudSide, make_settings: MakeSettings
) -> None:
    """C31."""
    settings = make_settings()
    async with EdgeFleet(settings, ["edge-1"]) as fleet:
        link = await cloud.link()
        for _ in range(3):
            await fleet["edge-1"].upload(b"{}")
        first = [await link.next() for _ in range(3)]
        await link.send(answer_to(first[0]))
        await eventually(lambda: fleet.total("uploads_confirmed") == 1)
    async with EdgeFleet(settings, ["edge-1"]) as fleet:
        link = await cloud.link()
        again = [await link.next() for _ in range(2)]
        assert [one["header"]["msg_id"] for one in again] == [one["header"]["msg_id"] for one in first[1:]]
        assert await fleet["edge-1"].upload(b"{}") == 4


async def test_an_upload_is_repeated_after_an_error_or_silence(
    cloud: CloudSide, make_settings: MakeSettings
) -> None:
    async with EdgeFleet(make_settings(repeat_seconds=0.1, keepalive_seconds=0.2), ["edge-1"]) as fleet:
        link = await cloud.link()
        await fleet["edge-1"].upload(b"{}")
        first = await link.next()
        await link.send(answer_to(first, "no room", "error"))
        again = await link.next()
        assert again["header"]["msg_id"] == first["header"]["msg_id"]
        assert fleet.total("uploads_refused") == 1


async def test_uploads_wait_for_a_link_and_the_outbox_is_bounded(
    cloud: CloudSide, make_settings: MakeSettings
) -> None:
    cloud.refuse = (HTTPStatus.SERVICE_UNAVAILABLE, {})
    async with EdgeFleet(make_settings(most_uploads_waiting=2), ["edge-1"]) as fleet:
        agent = fleet["edge-1"]
        await agent.upload(b"1")
        await agent.upload(b"2")
        with pytest.raises(OutboxFull):
            await agent.upload(b"3")
        cloud.refuse = None
        link = await cloud.link()
        assert [(await link.next())["content"]["data"] for _ in range(2)] == [1, 2]


async def test_status_reports_go_out_at_once_or_the_latest_after_connecting(
    cloud: CloudSide, make_settings: MakeSettings
) -> None:
    """C30: what an edge says after a reconnect."""
    async with EdgeFleet(make_settings(), ["edge-1"]) as fleet:
        agent = fleet["edge-1"]
        for phase in (b'"Pending"', b'"Running"'):
            agent.report_status("default/podstatus/p1", phase)
        link = await cloud.link()
        report = await link.next()
        assert (report["route"]["operation"], report["content"]) == ("update", "Running")
        agent.report_status("default/podstatus/p1", b'"Failed"')
        assert (await link.next())["content"] == "Failed"


async def test_status_reports_that_wait_are_bounded(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.node.MOST_STATUS_REPORTS", 2)
    fleet = EdgeFleet(make_settings(), ["edge-1"])
    for number in range(3):
        fleet["edge-1"].report_status(f"default/podstatus/p{number}", b"{}")
    assert fleet.total("reports_dropped") == 1
    async with fleet:
        pass


async def test_a_request_gets_its_answer_and_acknowledges_it(
    cloud: CloudSide, make_settings: MakeSettings
) -> None:
    """C40."""
    async with EdgeFleet(make_settings(), ["edge-1"]) as fleet:
        link = await cloud.link()
        await fleet.connected()
        async with asyncio.TaskGroup() as group:
            asking = group.create_task(fleet["edge-1"].request("default/configmap/cm1"))
            asked = await link.next()
            assert (asked["route"]["operation"], asked["header"]["sync"]) == ("query", True)
            answer = answer_to(asked, {"data": {"a": "b"}})
            await link.send(answer)
        assert bytes(asking.result().content) == b'{"data": {"a": "b"}}'
        assert parent(await link.next()) == answer["header"]["msg_id"]
        await link.send(answer)
        await eventually(lambda: fleet["edge-1"].counters.swallowed["unasked_answer"] == 1)


async def test_a_request_fails_with_the_hubs_words(cloud: CloudSide, make_settings: MakeSettings) -> None:
    """C32."""
    async with EdgeFleet(make_settings(), ["edge-1"]) as fleet:
        link = await cloud.link()
        await fleet.connected()

        async def refuse() -> None:
            await link.send(answer_to(await link.next(), "nobody serves it", "error"))

        async with asyncio.TaskGroup() as group:
            group.create_task(refuse())
            with pytest.raises(RequestFailed, match="nobody serves it"):
                await fleet["edge-1"].request("default/configmap/cm1")


async def test_a_request_gives_up_by_itself_and_ends_with_its_link(
    cloud: CloudSide, make_settings: MakeSettings
) -> None:
    async with EdgeFleet(make_settings(), ["edge-1"]) as fleet:
        link = await cloud.link()
        await fleet.connected()
        agent = fleet["edge-1"]
        with pytest.raises(TimeoutError):
            await agent.request("default/configmap/cm1", timeout_seconds=0.05)
        await link.next()

        async def cut() -> None:
            await link.next()
            agent.cut()

        async with asyncio.TaskGroup() as group:
            group.create_task(cut())
            with pytest.raises(RequestFailed, match="the link to the hub ended"):
                await agent.request("default/configmap/cm1")
        with pytest.raises(RequestFailed, match="there is no link"):
            await agent.request("default/configmap/cm1")


async def test_requests_that_wait_are_bounded(
    cloud: CloudSide, make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.node.MOST_REQUESTS", 0)
    async with EdgeFleet(make_settings(), ["edge-1"]) as fleet:
        await fleet.connected()
        with pytest.raises(RequestFailed, match="wait already"):
            await fleet["edge-1"].request("default/configmap/cm1")


async def test_waiting_for_a_part_of_the_fleet(cloud: CloudSide, make_settings: MakeSettings) -> None:
    async with EdgeFleet(make_settings(), [f"edge-{n}" for n in range(1, 6)]) as fleet:
        await fleet.connected(2)
        assert fleet.links >= 2
        await fleet.connected()
        await fleet.connected()
        assert (fleet.links, len(fleet)) == (5, 5)


async def test_stopping_says_goodbye(cloud: CloudSide, make_settings: MakeSettings) -> None:
    async with EdgeFleet(make_settings(), ["edge-1"]) as fleet:
        link = await cloud.link()
        await fleet.connected()
    await link.ended.wait()
    assert link.connection.close_code == 1001


async def test_many_reconnects_leave_what_one_leaves(cloud: CloudSide, make_settings: MakeSettings) -> None:
    """C2, seen from the edge."""
    settings = make_settings(first_delay_seconds=0.001, most_delay_seconds=0.001)

    def in_use() -> tuple[int, int]:
        gc.collect()
        return len(list(Path("/proc/self/fd").iterdir())), len(asyncio.all_tasks())

    async with EdgeFleet(settings, ["edge-1"]) as fleet:

        async def reconnect() -> None:
            link = await cloud.link()
            await fleet.connected()
            fleet["edge-1"].cut()
            await link.ended.wait()
            await eventually(lambda: not fleet["edge-1"].connected)

        await reconnect()
        await cloud.link()
        await fleet.connected()
        before = in_use()
        fleet["edge-1"].cut()
        for _ in range(30):
            await reconnect()
        await cloud.link()
        await fleet.connected()
        await eventually(lambda: in_use() <= before)
    assert fleet["edge-1"].counters.reconnects == 32


async def test_an_error_in_the_owners_body_stops_the_fleet_and_is_raised(
    cloud: CloudSide, make_settings: MakeSettings
) -> None:
    settings = make_settings()
    with pytest.raises(ExceptionGroup) as raised:
        async with EdgeFleet(settings, ["edge-1"]) as fleet:
            await fleet.connected()
            raise ValueError("the owner's")
    assert isinstance(raised.value.exceptions[0], ValueError)
    EdgeStore(settings.database).close()


async def test_a_node_without_a_certificate_is_a_clear_error_and_frees_the_file(
    make_settings: MakeSettings,
) -> None:
    settings = make_settings()
    with pytest.raises(SettingsFault, match=r"nodes/edge-99\.crt does not exist"):
        EdgeFleet(settings, ["edge-99"])
    EdgeStore(settings.database).close()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"server": "https://hub"}, "should be wss://HOST:PORT"),
        ({"server": "wss://hub:1/path"}, "should be wss://HOST:PORT"),
        ({"server": "wss://hub:1,hub:2"}, "server 'hub:2': should be wss://HOST:PORT"),
        ({"server": "wss://hub:1,"}, "server '': should be wss://HOST:PORT"),
        ({"certificates": None}, "either a folder"),
        ({"certificate": Path("x.crt")}, "either a folder"),
        ({"certificates": None, "certificate": Path("x.crt")}, "needs its key"),
        ({"keepalive_seconds": 0.0}, "keepalive-seconds: should be above 0"),
    ],
)
def test_settings_that_cannot_be_are_named(changes: dict[str, object], says: str) -> None:
    values: dict[str, object] = {
        "server": "wss://hub:10000",
        "ca": Path("ca.crt"),
        "database": Path("edge.db"),
        "certificates": Path("certificates"),
        **changes,
    }
    with pytest.raises(SettingsFault, match=says):
        EdgeSettings(**values)  # type: ignore[arg-type]


def test_certificates_that_cannot_be_used_are_named(certificates: Path, tmp_path: Path) -> None:
    settings = EdgeSettings(
        "wss://hub:1",
        certificates / "ca.crt",
        tmp_path / "edge.db",
        certificate=certificates / "nodes" / "edge-1.crt",
        key=certificates / "nodes" / "edge-2.key",
    )
    with pytest.raises(SettingsFault, match="cannot be used"):
        settings.tls("edge-1")


async def test_an_upload_that_is_being_stored_when_the_agent_stops_fails_and_may_be_repeated(
    cloud: CloudSide, make_settings: MakeSettings
) -> None:
    """C31: not answered, so not promised."""
    store = ControlledStore()
    async with EdgeFleet(make_settings(), ["edge-1"], store=store) as fleet:
        await fleet.connected()
        store.gate.clear()
        uploading = asyncio.create_task(fleet["edge-1"].upload(b"{}"))
        await asyncio.to_thread(store.waiting.wait, 10)
        fleet["edge-1"].stop()
        with pytest.raises(StoreFault, match="the agent stops"):
            await uploading
        store.gate.set()


async def test_stopping_while_blocked_or_waiting_to_dial_does_not_wait(
    cloud: CloudSide, make_settings: MakeSettings
) -> None:
    cloud.refuse = (HTTPStatus.SERVICE_UNAVAILABLE, {"Retry-After": "3600"})
    async with asyncio.timeout(5):
        async with EdgeFleet(make_settings(), ["edge-1", "edge-2"]) as fleet:
            fleet["edge-2"].block(3600.0)
            await eventually(lambda: fleet["edge-1"].counters.dials_failed == 1)


async def test_few_dial_at_once(cloud: CloudSide, make_settings: MakeSettings) -> None:
    """A fleet that comes back together does not time itself out in TLS."""
    async with EdgeFleet(make_settings(dials_at_once=1), [f"edge-{n}" for n in range(1, 6)]) as fleet:
        await fleet.connected()
        assert fleet.total("dials_failed") == 0


@pytest.mark.parametrize(
    ("content", "resource"),
    [
        (b"", "telemetry"),
        (b'{"load": NaN}', "telemetry"),
        (b'"\\ud83d"', "telemetry"),
        (b'"' + b"x" * 4_400_000 + b'"', "telemetry"),
        (b"1", "half \ud83d"),
    ],
)
async def test_what_the_hub_does_not_take_is_refused_before_it_is_durable(
    cloud: CloudSide, make_settings: MakeSettings, content: bytes, resource: str
) -> None:
    """C43: the program is told, nothing is kept, the link stays, and what follows has the next number."""
    settings = make_settings()
    async with EdgeFleet(settings, ["edge-1"]) as fleet:
        link = await cloud.link()
        agent = fleet["edge-1"]
        with pytest.raises(ContentRefused):
            await agent.upload(content, resource)
        with pytest.raises(ContentRefused):
            agent.report_status(resource, content)
        with pytest.raises(ContentRefused):
            await agent.request(resource, content=content)
        assert agent.uploads_waiting == 0
        assert await agent.upload(b'"good"') == 1
        sent = await link.next()
        assert sent["content"]["data"] == "good"
        await link.send(answer_to(sent))
        await eventually(lambda: agent.uploads_waiting == 0)
        assert fleet.total("links_opened") == 1


async def test_an_upload_that_the_hub_ends_links_over_is_set_aside_and_told(
    cloud: CloudSide, make_settings: MakeSettings
) -> None:
    """C43: a hub may take less than the agent knows; what is durable goes nowhere else."""
    settings = make_settings()
    refused: list[SetAside] = []
    cloud.refuse = (HTTPStatus.SERVICE_UNAVAILABLE, {})
    async with EdgeFleet(settings, ["edge-1"], on_set_aside=refused.append) as fleet:
        agent = fleet["edge-1"]
        for data in (b'"one"', b'"bad"', b'"three"'):
            await agent.upload(data)
        cloud.refuse = None
        taken: list[str] = []
        for _ in range(3):
            link = await cloud.link()
            while len(taken) < 2:
                sent = await link.next()
                data = sent["content"]["data"]
                if data == "bad":
                    await link.connection.close(1009, "too big")
                    break
                taken.append(data)
                await link.send(answer_to(sent))
        await eventually(lambda: agent.uploads_waiting == 0)
        assert taken == ["one", "three"]
        assert [one.upload.number for one in refused] == [2]
        assert refused[0].reason == "the hub ended the link over it: 1009 too big"
        assert (fleet.total("uploads_set_aside"), fleet.total("objections")) == (1, 2)
    assert read_set_aside(settings.database) == refused
    async with EdgeFleet(settings, ["edge-1"]) as fleet:
        assert fleet["edge-1"].uploads_waiting == 0
        assert await fleet["edge-1"].upload(b"4") == 4


async def test_uploads_of_a_former_release_that_cannot_go_are_set_aside_at_the_start(
    cloud: CloudSide, make_settings: MakeSettings
) -> None:
    """C43."""
    settings = make_settings()
    store = EdgeStore(settings.database)
    contents = [b'{"number":1,"data":NaN}', b'{"number":2,"data":1}', b'{"number":3,"data":}']
    store.commit(
        Batch(
            uploads=[Upload("edge-1", n, f"m-{n}", "t", content, 5) for n, content in enumerate(contents, 1)]
        )
    )
    store.close()
    async with EdgeFleet(settings, ["edge-1"]) as fleet:
        link = await cloud.link()
        assert (await link.next())["content"]["number"] == 2
        assert fleet.total("uploads_set_aside") == 2
    assert [one.upload.number for one in read_set_aside(settings.database)] == [1, 3]


async def test_a_report_too_large_for_the_hub_is_not_taken_for_an_upload(
    cloud: CloudSide, make_settings: MakeSettings
) -> None:
    """C43: it is counted and told; the upload that was in flight with it stays."""
    async with EdgeFleet(make_settings(), ["edge-1"]) as fleet:
        agent = fleet["edge-1"]
        link = await cloud.link()
        await agent.upload(b'"small"')
        for number in range(1, 4):
            agent.report_status("default/podstatus/large", b'"' + b"x" * 10_000 + b'"')
            await link.connection.close(1009, "too big")
            await eventually(lambda: fleet.total("reports_refused") == number)  # noqa: B023
            link = await cloud.link()
        assert fleet.total("uploads_set_aside") == 0
        sent = await link.next()
        assert sent["content"]["data"] == "small"
