"""One link: how it opens, what it carries, and what is said about its end."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path

import pytest

from edge import link as link_module
from edge.certificates import create_node_certificates
from edge.link import Link
from edge.reconnect import LinkEnd
from edge.settings import EdgeSettings
from edge.transport import EdgeLink
from tests.edge.conftest import MakeSettings
from tests.support.cloud_side import CloudSide, eventually


class Collector:
    """Receives what a link tells."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.opened = 0

    def link_opened(self, link: EdgeLink) -> None:
        self.opened += 1

    def frame_received(self, link: EdgeLink, frame: bytes) -> None:
        self.frames.append(frame)


async def dialled(settings: EdgeSettings, collector: Collector | None = None) -> Link:
    link = Link(
        settings.url(settings.server, "edge-1"), settings.headers("edge-1").items(), collector or Collector()
    )
    await link.dial(settings.tls("edge-1"), settings.open_seconds)
    return link


async def end_of(link: Link) -> LinkEnd:
    return await asyncio.wait_for(link.ended, 10)


@asynccontextmanager
async def answering(certificates: Path, answer: bytes) -> AsyncIterator[str]:
    """A TLS server that answers anything with some bytes and closes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "server.crt", certificates / "server.key")
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with server:
        yield f"wss://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_a_refusal_has_its_status_its_words_and_its_advice(
    cloud: CloudSide, make_settings: MakeSettings
) -> None:
    """C5: an edge can read why it was refused."""
    cloud.refuse = (HTTPStatus.TOO_MANY_REQUESTS, {"Retry-After": "7"})
    end = await end_of(await dialled(make_settings()))
    assert end == LinkEnd("refused", "Too Many Requests", 429, 7.0)


async def test_a_close_has_its_code_and_reason(cloud: CloudSide, make_settings: MakeSettings) -> None:
    link = await dialled(make_settings())
    await (await cloud.link()).connection.close(4001, "superseded by a newer link of this node")
    end = await end_of(link)
    assert (end.cause, end.code) == ("closed", 4001)
    assert end.detail == "superseded by a newer link of this node"
    assert end.open_seconds >= 0


async def test_a_link_that_just_breaks_is_lost(cloud: CloudSide, make_settings: MakeSettings) -> None:
    link = await dialled(make_settings())
    (await cloud.link()).connection.transport.abort()
    assert (await end_of(link)).cause == "lost"


async def test_nobody_listening_is_told(cloud: CloudSide, make_settings: MakeSettings) -> None:
    settings = make_settings()
    await cloud.stop()
    end = await end_of(await dialled(settings))
    assert end.cause == "failed"
    assert "connect" in end.detail.lower() or "refused" in end.detail.lower()


async def test_a_server_of_another_authority_is_told(make_settings: MakeSettings, tmp_path: Path) -> None:
    create_node_certificates(tmp_path / "other", ["edge-1"])
    end = await end_of(await dialled(make_settings(ca=tmp_path / "other" / "ca.crt")))
    assert end.cause == "failed"
    assert end.detail.startswith("TLS: CERTIFICATE_VERIFY_FAILED")


async def test_a_certificate_the_hub_does_not_accept_is_told(
    cloud: CloudSide, make_settings: MakeSettings, tmp_path: Path
) -> None:
    """C6."""
    create_node_certificates(tmp_path / "other", ["edge-1"])
    end = await end_of(await dialled(make_settings(certificates=tmp_path / "other")))
    assert (end.cause, end.open_seconds) == ("failed", 0.0)
    assert end.detail
    assert cloud.links == []


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"rubbish\r\n\r\n", "did not receive a valid HTTP response"),
        (b"", "did not receive a valid HTTP response"),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", "Connection"),
    ],
)
async def test_a_server_that_speaks_no_websocket_is_told(
    certificates: Path, make_settings: MakeSettings, answer: bytes, says: str
) -> None:
    async with answering(certificates, answer) as url:
        end = await end_of(await dialled(make_settings(server=url)))
    assert end.cause == "failed"
    assert says in end.detail


async def test_a_frame_over_the_limit_ends_the_link_with_1009(
    cloud: CloudSide, make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C33, seen from the edge."""
    monkeypatch.setattr(link_module, "MOST_FRAME_BYTES", 1000)
    collector = Collector()
    link = await dialled(make_settings(), collector)
    far = await cloud.link()
    await far.send("x" * 1001)
    await far.ended.wait()
    assert far.connection.close_code == 1009
    await end_of(link)
    assert collector.frames == []


async def test_a_peer_that_does_not_answer_a_close_is_cut(
    cloud: CloudSide, make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "_CLOSE_SECONDS", 0.05)
    link = await dialled(make_settings())
    far = await cloud.link()
    far.connection.transport.pause_reading()
    link.close()
    assert (await end_of(link)).cause == "stopped"
    far.connection.transport.abort()


async def test_closing_before_the_hub_has_answered_gives_up(make_settings: MakeSettings) -> None:
    settings = make_settings()
    link = Link(settings.url(settings.server, "edge-1"), settings.headers("edge-1").items(), Collector())
    link.close()
    assert (await end_of(link)).cause == "stopped"
    await link.dial(settings.tls("edge-1"), settings.open_seconds)
    link.send([b"{}"])
    link.ping()
    assert not link.is_open


async def test_a_link_blocked_before_it_connects_does_not_open_until_unblocked(
    cloud: CloudSide, make_settings: MakeSettings
) -> None:
    settings = make_settings()
    collector = Collector()
    link = Link(settings.url(settings.server, "edge-1"), settings.headers("edge-1").items(), collector)
    link.block()
    link.block()
    async with asyncio.TaskGroup() as group:
        dial = group.create_task(link.dial(settings.tls("edge-1"), 10.0))
        await asyncio.wait([dial], timeout=0.1)
        assert collector.opened == 0
        link.unblock()
        await dial
    assert collector.opened == 1
    link.unblock()
    link.abort(LinkEnd("cut"))
    assert (await end_of(link)).cause == "cut"


async def test_reading_goes_on_only_when_every_reason_to_pause_is_gone(
    cloud: CloudSide, make_settings: MakeSettings
) -> None:
    collector = Collector()
    link = await dialled(make_settings(), collector)
    far = await cloud.link()
    link.pause("disk")
    link.pause("blocked")
    link.resume("disk")
    link.resume("disk")
    await far.send("{}")
    assert not collector.frames
    link.resume("blocked")
    await eventually(lambda: collector.frames == [b"{}"])
    link.abort(LinkEnd("cut"))
    await end_of(link)
