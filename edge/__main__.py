"""`cloudhub-edge`: runs one edge node or many until SIGTERM, SIGINT or SIGHUP."""

import gc

if __name__ == "__main__":
    gc.disable()  # what is imported stays; `prepare_process` turns it on again

import asyncio
import json
import logging
import signal
import sys
import time
from collections.abc import Callable
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import structlog
import typer
import uvloop

from edge.agent import EdgeAgent, EdgeFleet
from edge.content import ContentRefused
from edge.enrolment import Enroller, EnrolmentFault, hub_beside, read_join_token
from edge.node import OutboxFull
from edge.node_files import NodeFiles, StoredFault
from edge.renewal import Renewals
from edge.settings import DEFAULT_PROJECT, MAX_MESSAGE_BYTES, EdgeSettings, SettingsFault
from edge.store import StoreFault
from edge.tracing import configure_tracing

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger("edge")


class Sync(StrEnum):
    """SQLite's `synchronous`."""

    FULL = "full"
    NORMAL = "normal"


class LinkTransport(StrEnum):
    """What carries the links."""

    WEBSOCKET = "websocket"
    QUIC = "quic"
    AUTO = "auto"


class LogFormat(StrEnum):
    """How log lines look."""

    AUTO = "auto"
    JSON = "json"
    TEXT = "text"


def configure_logs(log_format: LogFormat) -> None:
    """Text on a terminal, one JSON object a line elsewhere; to stderr."""
    is_terminal = sys.stderr is not None and sys.stderr.isatty()  # None: closed by whoever started us
    as_json = log_format is LogFormat.JSON or (log_format is LogFormat.AUTO and not is_terminal)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    logging.getLogger("websockets").setLevel(logging.ERROR)
    structlog.configure(
        processors=[
            structlog.stdlib.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.JSONRenderer()
            if as_json
            else structlog.dev.ConsoleRenderer(
                # Without local variables, which may hold a join token.
                colors=is_terminal,
                exception_formatter=structlog.dev.plain_traceback,
            ),
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


async def _uploads(fleet: EdgeFleet, every_seconds: float) -> None:
    """Uploads a reading of every node in turn, each node once per interval."""
    while True:
        for agent in fleet:
            reading = {"sensor": "line-temperature", "celsius": round(20 + 10 * (time.time() / 60 % 1), 2)}
            try:
                await agent.upload(json.dumps(reading).encode())
            except (OutboxFull, ContentRefused) as full:
                log.warning("upload.refused", node=agent.node_id, detail=str(full))
            except StoreFault as fault:
                log.error("upload.failed", node=agent.node_id, detail=str(fault))
            await asyncio.sleep(every_seconds / len(fleet))


async def _statuses(fleet: EdgeFleet, every_seconds: float) -> None:
    """Reports a pod's status for every node in turn, each node once per interval."""
    while True:
        for agent in fleet:
            agent.report_status(f"default/podstatus/{agent.node_id}-pod", _status(agent))
            await asyncio.sleep(every_seconds / len(fleet))


def _status(agent: EdgeAgent) -> bytes:
    status = {"phase": "Running", "received": agent.counters.received, "at_ms": time.time_ns() // 1_000_000}
    return json.dumps({"name": f"{agent.node_id}-pod", "status": status}).encode()


def stop_on_signals(stop: Callable[[], object]) -> None:
    """Calls `stop` in the running loop at SIGTERM, SIGINT and SIGHUP; the last stays ignored where whoever
    started the process wanted it so (nohup)."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            loop.add_signal_handler(number, stop)


async def enrolled(renewals: Renewals, stop: asyncio.Event) -> bool:
    """Whether all nodes have certificates; False if asked to stop before. Raises EnrolmentFault
    or StoredFault."""
    enrolling = asyncio.create_task(renewals.enrol(), name="edge enrolment")
    stopping = asyncio.create_task(stop.wait(), name="edge stop")
    try:
        await asyncio.wait((enrolling, stopping), return_when=asyncio.FIRST_COMPLETED)
        if not enrolling.done():
            return False
        await enrolling
        return True
    finally:
        enrolling.cancel()
        stopping.cancel()
        await asyncio.wait((enrolling, stopping))


async def serve(
    settings: EdgeSettings,
    node_ids: list[str],
    upload_every: float,
    status_every: float,
    renewals: Renewals | None = None,
) -> None:
    """Runs a fleet until a signal asks it to stop. Raises SettingsFault, EnrolmentFault, StoredFault
    or StoreFault at the start."""
    stop = asyncio.Event()
    stop_on_signals(stop.set)
    if renewals is not None and not await enrolled(renewals, stop):
        return
    fleet = EdgeFleet(
        settings,
        node_ids,
        tracing=configure_tracing(node_ids[0]),
        on_certificate_refused=renewals.refused if renewals else lambda _node_id: None,
    )
    log.info("edge.started", nodes=len(fleet), server=settings.server, database=str(settings.database))
    async with fleet, asyncio.TaskGroup() as group:
        senders = []
        if renewals is not None:
            senders.append(
                group.create_task(renewals.run(lambda node_id: fleet[node_id].certificate_renewed()))
            )
        if upload_every > 0:
            senders.append(group.create_task(_uploads(fleet, upload_every)))
        if status_every > 0:
            senders.append(group.create_task(_statuses(fleet, status_every)))
        await stop.wait()
        for sender in senders:
            sender.cancel()
    log.info(
        "edge.stopped",
        received=fleet.total("received"),
        acknowledged=fleet.total("acknowledged"),
        uploads_confirmed=fleet.total("uploads_confirmed"),
        uploads_set_aside=fleet.total("uploads_set_aside"),
    )


def _tell_release(wanted: bool) -> None:
    if wanted:
        print(f"cloudhub-edge {version('cloudhub')}")
        raise typer.Exit


def run(
    strays: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,
    release: Annotated[
        bool,
        typer.Option("--version", callback=_tell_release, is_eager=True, help="tell the release and end"),
    ] = False,
    server: Annotated[str, typer.Option(help="wss://HOST:PORT of the hub; several with commas between")] = "",
    ca: Annotated[Path | None, typer.Option(help="certificate of the hub's CA")] = None,
    enrol: Annotated[
        str,
        typer.Option(
            help="https://HOST:PORT of the hub's enrolment: certificates are had there and renewed in time; "
            "the hub is then at port 10000 of HOST unless --server says where"
        ),
    ] = "",
    token: Annotated[
        str,
        typer.Option(
            envvar="CLOUDHUB_EDGE_TOKEN",
            show_envvar=True,
            help="join token, for nodes that have no certificate yet; better given by the environment",
        ),
    ] = "",
    database: Annotated[Path, typer.Option(help="SQLite file, made if it does not exist")] = Path("edge.db"),
    node: Annotated[list[str] | None, typer.Option(help="node id; repeat for several")] = None,
    nodes: Annotated[int, typer.Option(min=0, max=100_000, help="also PREFIX1 to PREFIXn")] = 0,
    node_prefix: Annotated[str, typer.Option(help="start of the ids that --nodes makes")] = "edge-",
    certificates: Annotated[
        Path | None, typer.Option(help="folder with nodes/<id>.crt and .key, as edge.certificates makes it")
    ] = None,
    certificate: Annotated[Path | None, typer.Option(help="certificate of a single node")] = None,
    key: Annotated[Path | None, typer.Option(help="its key")] = None,
    transport: Annotated[
        LinkTransport, typer.Option(help="auto: QUIC, and WebSocket where UDP is blocked")
    ] = LinkTransport.WEBSOCKET,
    quic_server: Annotated[
        str,
        typer.Option(help="quic://HOST:PORT; several with commas; none: the hosts of --server, port 10001"),
    ] = "",
    project: Annotated[str, typer.Option(help="project id")] = DEFAULT_PROJECT,
    sync: Annotated[
        Sync, typer.Option(help="with normal a power cut may take what was acknowledged")
    ] = Sync.FULL,
    history: Annotated[bool, typer.Option(help="keep a row of every message applied")] = True,
    keepalive: Annotated[float, typer.Option(min=0.1, help="seconds between keepalives")] = 15.0,
    silence: Annotated[
        float, typer.Option(min=0.2, help="seconds of silence after which a link is dead")
    ] = 45.0,
    first_delay: Annotated[float, typer.Option(min=0.01, help="seconds before the first new dial")] = 0.5,
    most_delay: Annotated[float, typer.Option(min=0.01, help="most seconds between dials")] = 30.0,
    max_message_bytes: Annotated[
        int,
        typer.Option(min=1024, help="largest message that the hub takes: --frame-most-bytes less 64 KiB"),
    ] = MAX_MESSAGE_BYTES,
    upload_every: Annotated[
        float, typer.Option(min=0, help="seconds between a node's uploads; 0: none")
    ] = 0.0,
    status_every: Annotated[
        float, typer.Option(min=0, help="seconds between a node's status reports; 0: none")
    ] = 0.0,
    log_format: Annotated[
        LogFormat, typer.Option(help="auto: text on a terminal, JSON elsewhere")
    ] = LogFormat.AUTO,
) -> None:
    """Runs edge nodes against a hub until SIGTERM, SIGINT or SIGHUP."""
    if strays:
        # Not repeated: one may be a token behind a space too many.
        raise SettingsFault("an argument belongs to no option; --help lists them")
    node_ids = list(dict.fromkeys((*(node or ()), *(f"{node_prefix}{n}" for n in range(1, nodes + 1)))))
    if not node_ids:
        raise SettingsFault("no node named: give --node or --nodes")
    if certificate is not None and len(node_ids) > 1:
        raise SettingsFault("certificate: serves one node only; several need --certificates DIR")
    renewals: Renewals | None = None
    if enrol:
        if certificate is not None:
            raise SettingsFault("enrol: writes certificates into a folder, --certificates DIR")
        certificates = certificates or Path("certs")
        files = [NodeFiles(certificates, node_id) for node_id in node_ids]
        renewals = Renewals(Enroller(enrol, certificates), files, read_join_token(token) if token else None)
        server = server or hub_beside(enrol)
        ca = ca or certificates / "ca.crt"
    if not server or ca is None:
        raise SettingsFault("say where the hub is and whom to trust: --server and --ca, or --enrol")
    settings = EdgeSettings(
        server=server,
        ca=ca,
        database=database,
        certificates=certificates,
        certificate=certificate,
        key=key,
        project_id=project,
        transport=transport.value,
        quic_server=quic_server,
        sync=sync.value,
        history=history,
        keepalive_seconds=keepalive,
        silence_seconds=silence,
        first_delay_seconds=first_delay,
        most_delay_seconds=most_delay,
        max_message_bytes=max_message_bytes,
    )
    configure_logs(log_format)
    prepare_process()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(settings, node_ids, upload_every, status_every, renewals))


def prepare_process() -> None:
    """For many links in one process: prompt hand-over to the store's thread, few full collections."""
    # The thread that writes takes the interpreter back between statements; the usual 5 ms add up.
    sys.setswitchinterval(0.0005)
    gc.freeze()
    gc.enable()
    gc.set_threshold(50_000, 20, 50)


def main() -> None:
    """Entry point: status 1 and one sentence if the agent cannot start."""
    try:
        typer.run(run)
    except (EnrolmentFault, SettingsFault, StoredFault, StoreFault) as fault:
        print(f"cloudhub-edge: {fault}", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
