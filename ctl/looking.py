"""Commands that change nothing."""

import asyncio
import json
import signal
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Annotated

import typer
from rich.console import Console

from cloudhub.v1 import sessions_pb2
from ctl import tables
from ctl.answers import show_list
from ctl.app import NodeArgument, OutputOption, PrefixOption, WideOption, app, run
from ctl.faults import CtlFault, ExitCode
from ctl.hub import Hub
from ctl.output import Output, note, show_json, show_table, terminal_columns, write
from ctl.plain import as_dict

_STATES = [name.removeprefix("SESSION_STATE_").lower() for name in sessions_pb2.SessionState.keys()[1:]]
# With epoch and address of the peer.
_WATCH_COLUMNS = 105
ConnectorArgument = Annotated[
    str, typer.Argument(metavar="[CONNECTOR]", help="name or id of a connector; else that of --connector")
]


def now() -> datetime:
    """The present time."""
    return datetime.now(UTC)


async def _names(hub: Hub) -> Mapping[str, str]:
    return {one.instance_id: one.name for one in await hub.sessions.instances()}


async def _states(hub: Hub, prefix: str) -> dict[str, str] | None:
    """The states of live sessions by node; None if sessions does not answer."""
    request = sessions_pb2.ListSessionsRequest(node_id_prefix=prefix)
    try:
        return {one.node_id: tables.session_state(one) for one in await hub.sessions.listed(request)}
    except CtlFault as fault:
        if fault.code is not ExitCode.UNREACHABLE:
            raise
        note(f"cloudhubctl: {fault}; states are those that the dispatchers know")
        return None


@app.command()
def nodes(
    context: typer.Context,
    prefix: PrefixOption = "",
    parked: Annotated[bool, typer.Option("--parked", help="only nodes with parked messages")] = False,
    older_than: Annotated[
        float | None, typer.Option(min=0, help="only nodes that let a message wait for so many seconds")
    ] = None,
    output: OutputOption = Output.TABLE,
    wide: WideOption = False,
) -> None:
    """Every node that the hub knows, what it waits for, and who lags."""

    async def work(hub: Hub) -> None:
        listed = await hub.nodes(prefix, only_parked=parked, older_than_seconds=older_than)
        states = await _states(hub, prefix)
        if states is None:
            states = {node.node_id: "active" for node in listed if node.connected}
        if output is Output.JSON:
            show_json([{**as_dict(node), "state": states.get(node.node_id, "away")} for node in listed])
        else:
            show_table(tables.NODES, tables.node_rows(listed, states, now()), "no such nodes", wide=wide)
            if lines := tables.note_lines(listed, terminal_columns()):
                write("\n".join(["", "noted:", *lines]))

    run(context, work)


@app.command()
def sessions(
    context: typer.Context,
    prefix: PrefixOption = "",
    project: Annotated[str, typer.Option(help="only of this project")] = "",
    connector_id: Annotated[str, typer.Option(help="only of this connector")] = "",
    dispatcher_id: Annotated[str, typer.Option(help="only of this dispatcher")] = "",
    state: Annotated[
        list[str] | None, typer.Option(help=f"{', '.join(_STATES)}; repeat for several; else the live ones")
    ] = None,
    output: OutputOption = Output.TABLE,
    wide: WideOption = False,
) -> None:
    """Who is connected where, and since when."""
    wrong = [one for one in state or () if one not in _STATES]
    if wrong:
        raise CtlFault(ExitCode.USAGE, f"--state: {wrong[0]!r} should be one of {', '.join(_STATES)}")
    request = sessions_pb2.ListSessionsRequest(
        node_id_prefix=prefix,
        project_id=project,
        connector_id=connector_id,
        dispatcher_id=dispatcher_id,
        states=[sessions_pb2.SessionState.Value(f"SESSION_STATE_{one.upper()}") for one in state or ()],
    )

    async def work(hub: Hub) -> None:
        found = await hub.sessions.listed(request)
        names = await _names(hub) if output is Output.TABLE else {}
        rows = partial(tables.session_rows, names=names, now=now())
        show_list(output, found, tables.SESSIONS, rows, "no such sessions", wide=wide)

    run(context, work)


@app.command()
def session(
    context: typer.Context, node: NodeArgument, output: OutputOption = Output.TABLE, wide: WideOption = False
) -> None:
    """The newest session of a node, also after its end."""

    async def work(hub: Hub) -> None:
        request = sessions_pb2.GetSessionRequest(node_id=node)
        answer = await hub.about(node, hub.sessions.admin.GetSession, request)
        if output is Output.JSON:
            show_json(as_dict(answer.session))
        else:
            rows = tables.session_rows([answer.session], await _names(hub), now())
            show_table(tables.SESSIONS, rows, "", wide=wide)

    run(context, work)


@app.command()
def links(
    context: typer.Context,
    connector: ConnectorArgument = "",
    prefix: PrefixOption = "",
    output: OutputOption = Output.TABLE,
    wide: WideOption = False,
) -> None:
    """The links of one connector, and what waits in its memory for each."""

    async def work(hub: Hub) -> None:
        found = await (await hub.connector(connector)).links(prefix)
        rows = partial(tables.link_rows, now=now())
        show_list(output, found, tables.LINKS, rows, "no such links", wide=wide)

    run(context, work)


@app.command()
def instances(context: typer.Context, output: OutputOption = Output.TABLE, wide: WideOption = False) -> None:
    """Every live process of the hub."""

    async def work(hub: Hub) -> None:
        found = await hub.sessions.instances()
        show_list(output, found, tables.INSTANCES, tables.instance_rows, "none", wide=wide)

    run(context, work)


@app.command()
def watch(
    context: typer.Context,
    prefix: PrefixOption = "",
    present: Annotated[bool, typer.Option("--present", help="the live sessions first")] = False,
    output: OutputOption = Output.TABLE,
    wide: WideOption = False,
) -> None:
    """Sessions as they come and go, a line each, until Ctrl-C."""
    request = sessions_pb2.WatchSessionsRequest(node_id_prefix=prefix, include_present=present)
    # Node ids may be longer; their lines are then.
    form = "{:<8}  {:<24}  {:<9}  {:<18}"
    if wide or not sys.stdout.isatty() or Console().width >= _WATCH_COLUMNS:
        form += "  {:<13}  {}"

    async def follow(hub: Hub) -> None:
        if output is Output.TABLE:
            write(form.format(*tables.CHANGES).rstrip())
        async for answer in hub.sessions.stream(hub.sessions.admin.WatchSessions, request):
            if output is Output.JSON:
                write(json.dumps(as_dict(answer.session)))
            else:
                write(form.format(*tables.change_row(answer.session, now())).rstrip())

    async def work(hub: Hub) -> None:
        following = asyncio.ensure_future(follow(hub))
        # Ctrl-C is how this command ends; that is no fault.
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, following.cancel)
        try:
            await following
        except asyncio.CancelledError:
            sys.stdout.flush()

    run(context, work)
