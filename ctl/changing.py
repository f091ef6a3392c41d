"""Commands that change something."""

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from google.protobuf.duration_pb2 import Duration

from cloudhub.v1 import connector_pb2, dispatcher_pb2, sessions_pb2
from cloudhub.v1.message_pb2 import Message
from ctl import tables
from ctl.answers import show_answer
from ctl.app import NodeArgument, OutputOption, WideOption, YesOption, app, confirm, run
from ctl.faults import CtlFault, ExitCode, unknown_nodes
from ctl.hub import Hub
from ctl.looking import ConnectorArgument
from ctl.manifests import ManifestFault, publish_request, read_manifests, version_by_clock
from ctl.output import Output, note, progress, show_json, show_table, write
from ctl.plain import as_dict
from ctl.publishing import Delivery, exit_code, outcome_name, wait
from ctl.publishing import publish as publish_all
from services.runtime.names import shown

_DRAIN_LOOK_SECONDS = 0.25
_NOT_DONE = ("NODE", "RESOURCE", "OUTCOME", "WHY")


def _requests(
    files: list[Path], *, delete: bool, version: str, force: bool, time_to_live: float | None
) -> list[dispatcher_pb2.PublishRequest]:
    try:
        found = read_manifests(files)
    except ManifestFault as fault:
        raise CtlFault(ExitCode.USAGE, str(fault)) from fault
    by_clock = "" if delete else version_by_clock()
    requests = []
    for manifest in found:
        own = version or manifest.version or by_clock
        request = publish_request(manifest, "delete" if delete else "update", own, [], manifest.content(own))
        request.force = force
        if time_to_live is not None:
            lifetime = Duration()
            lifetime.FromMilliseconds(round(time_to_live * 1000))
            request.time_to_live.CopyFrom(lifetime)
        requests.append(request)
    return requests


@app.command()
def publish(
    context: typer.Context,
    file: Annotated[
        list[Path], typer.Option("--file", "-f", help="manifests (YAML); a folder of them, or - ; repeat")
    ],
    node: Annotated[
        list[str] | None, typer.Option("--node", "-n", help="node id; repeat for several")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="to every node that the hub knows")] = False,
    prefix: Annotated[str, typer.Option(help="to every known node whose id starts with this")] = "",
    delete: Annotated[bool, typer.Option("--delete", help="delete the objects on the nodes")] = False,
    version: Annotated[
        str, typer.Option(help="of all objects; else metadata.resourceVersion, else by the clock")
    ] = "",
    force: Annotated[
        bool, typer.Option("--force", help="also a version that a node has acknowledged: it lost its disk")
    ] = False,
    time_to_live: Annotated[
        float | None, typer.Option(min=0.001, help="seconds after which it is not worth delivering")
    ] = None,
    waiting: Annotated[bool, typer.Option("--wait", help="until the nodes have acknowledged")] = False,
    wait_seconds: Annotated[float, typer.Option(min=0.1, help="how long --wait waits")] = 60.0,
    unknown: Annotated[
        bool, typer.Option("--unknown", help="to nodes of --node too that the hub does not know yet")
    ] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Publishes the objects of manifests to nodes, and says what came of it for each."""
    if sum(map(bool, (node, every, prefix))) != 1:
        raise CtlFault(ExitCode.USAGE, "say to whom: --node (as often as needed), --prefix or --all")
    requests = _requests(file, delete=delete, version=version, force=force, time_to_live=time_to_live)

    async def work(hub: Hub) -> ExitCode:
        dispatcher = await hub.any_dispatcher()
        nodes = list(dict.fromkeys(node or ()))
        if not nodes:
            nodes = [one.node_id for one in (await dispatcher.nodes(prefix)).nodes]
            if not nodes:
                raise CtlFault(
                    ExitCode.NOT_FOUND, "the hub knows no such node; `cloudhubctl nodes` lists them"
                )
        elif not unknown:
            await _check_known(hub, nodes, "--unknown publishes to nodes that have yet to connect")
        for request in requests:
            request.node_ids[:] = nodes
        with progress() as bars:
            total = len(requests) * len(nodes)
            publishing = bars.add_task("published", total=total)
            done = await publish_all(dispatcher, requests, lambda n: bars.advance(publishing, n))
            if waiting:
                settling = bars.add_task("acknowledged", total=sum(one.accepted for one in done))
                await wait(dispatcher, done, wait_seconds, lambda n: bars.advance(settling, n))
        if output is Output.JSON:
            show_json([asdict(one) for one in done])
        else:
            _tell(done, len(requests), len(nodes), waited=waiting)
        return exit_code(done, waited=waiting)

    run(context, work)


async def _check_known(hub: Hub, node_ids: Sequence[str], flag: str) -> None:
    """Raises CtlFault if the hub does not know all of these nodes."""
    found = await (await hub.any_dispatcher()).unknown(node_ids)
    if found:
        raise unknown_nodes(found, flag)


def _tell(done: list[Delivery], objects: int, nodes: int, *, waited: bool) -> None:
    bad = [one for one in done if not one.accepted or (waited and not one.acknowledged)]
    if bad:
        rows = [
            (
                one.node_id,
                one.resource,
                one.state or one.outcome,
                one.explanation or ": ".join(filter(None, (one.reason, one.detail))),
            )
            for one in bad
        ]
        show_table(_NOT_DONE, rows, "")
    counts = [f"{sum(one.accepted for one in done)} accepted"]
    if waited:
        counts.append(f"{sum(one.acknowledged for one in done)} acknowledged")
    write(f"{_counted(objects, 'object')} to {_counted(nodes, 'node')}: {', '.join(counts)}")


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


@app.command()
def redeliver(
    context: typer.Context,
    node: NodeArgument,
    object_key: Annotated[str, typer.Argument(metavar="[OBJECT]", help="only this object")] = "",
    output: OutputOption = Output.TABLE,
) -> None:
    """Sends parked messages of a node again."""

    async def work(hub: Hub) -> None:
        dispatcher = await hub.dispatcher_of(node)
        request = dispatcher_pb2.RedeliverRequest(node_id=node, object_key=object_key)
        count = (await dispatcher.call(dispatcher.admin.Redeliver, request)).redelivered
        _count(output, "redelivered", count, f"{_counted(count, 'parked message')} of {node} sent again")

    run(context, work)


@app.command()
def purge(
    context: typer.Context,
    node: NodeArgument,
    object_key: Annotated[str, typer.Argument(metavar="[OBJECT]", help="only this object")] = "",
    every: Annotated[bool, typer.Option("--all", help="every pending message of the node")] = False,
    yes: YesOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Drops pending messages of a node; nothing older than they were is accepted later."""
    if bool(object_key) == every:
        raise CtlFault(ExitCode.USAGE, "name an OBJECT, or give --all")
    confirm(f"Drop {shown(object_key) or 'everything'} that waits for {shown(node)}?", yes)

    async def work(hub: Hub) -> None:
        dispatcher = await hub.dispatcher_of(node)
        request = dispatcher_pb2.PurgeRequest(node_id=node, object_key=object_key, all=every)
        count = (await dispatcher.call(dispatcher.admin.Purge, request)).purged
        _count(output, "purged", count, f"{_counted(count, 'pending message')} of {node} dropped")

    run(context, work)


@app.command()
def resync(context: typer.Context, node: NodeArgument, output: OutputOption = Output.TABLE) -> None:
    """Forgets what a node acknowledged, since it lost its disk: publish the same versions once more."""

    async def work(hub: Hub) -> None:
        request = dispatcher_pb2.ResyncNodeRequest(node_id=node)
        dispatcher = await hub.any_dispatcher()
        count = (await dispatcher.call(dispatcher.admin.ResyncNode, request)).objects
        _count(output, "objects", count, f"{_counted(count, 'object')} of {node} can be published once more")

    run(context, work)


def _count(output: Output, name: str, count: int, sentence: str) -> None:
    if output is Output.JSON:
        show_json({name: count})
    else:
        write(sentence)


@app.command()
def evict(
    context: typer.Context,
    node: NodeArgument,
    epoch: Annotated[int, typer.Option(min=0, help="only this session; 0: whichever is live")] = 0,
    output: OutputOption = Output.TABLE,
) -> None:
    """Ends a node's session; the edge may come back."""

    async def work(hub: Hub) -> None:
        request = sessions_pb2.EvictSessionRequest(node_id=node, epoch=epoch)
        ended = (await hub.about(node, hub.sessions.admin.EvictSession, request)).session
        sentence = f"the session of {node} with epoch {ended.epoch} is {tables.session_state(ended)}"
        show_answer(output, ended, sentence)

    run(context, work)


@app.command()
def delete_node(
    context: typer.Context,
    node: NodeArgument,
    yes: YesOption = False,
    unknown: Annotated[
        bool, typer.Option("--unknown", help="also one that the hub does not know: done before, perhaps")
    ] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Deletes a node: its session ends, and all that is stored for it goes."""
    confirm(f"Delete {shown(node)} and all that is stored for it?", yes)

    async def work(hub: Hub) -> ExitCode:
        if not unknown:
            await _check_known(hub, [node], "--unknown deletes what an interrupted delete may have left")
        message = Message(source="cloudhubctl", group="resource", operation="delete", resource=f"node/{node}")
        request = dispatcher_pb2.PublishRequest(message=message)
        dispatcher = await hub.any_dispatcher()
        answer = await dispatcher.call(dispatcher.publishing.Publish, request)
        [outcome] = answer.outcomes
        accepted = outcome.outcome == dispatcher_pb2.OUTCOME_ACCEPTED
        if output is Output.JSON:
            show_json(as_dict(answer))
        elif accepted:
            write(f"{node} is deleted; an edge that shows its certificate comes back as a new node")
        else:
            name = outcome_name(outcome.outcome)
            note(f"cloudhubctl: {node} is not deleted: {name}, {outcome.reason} {outcome.detail}")
        return ExitCode.OK if accepted else ExitCode.FAILED

    run(context, work)


def _projects(texts: list[str]) -> dict[str, int]:
    projects = {}
    for text in texts:
        name, _, number = text.rpartition("=")
        if not name or not number.isdigit():
            raise CtlFault(
                ExitCode.USAGE, f"--project: {text!r} should be PROJECT=NODES, for example pilot=50"
            )
        projects[name] = int(number)
    return projects


@app.command()
def limits(
    context: typer.Context,
    total: Annotated[int | None, typer.Option(min=0, help="nodes in all; 0: unlimited")] = None,
    per_connector: Annotated[int | None, typer.Option(min=0, help="nodes of each connector")] = None,
    per_project: Annotated[int | None, typer.Option(min=0, help="nodes of each project")] = None,
    project: Annotated[
        list[str] | None, typer.Option(help="PROJECT=NODES: its own limit; 0 removes it; repeat")
    ] = None,
    output: OutputOption = Output.TABLE,
    wide: WideOption = False,
) -> None:
    """Limits on nodes: shows them, after changing those that are given."""
    wanted = {"total": total, "per_connector": per_connector, "per_project": per_project}
    request = sessions_pb2.SetLimitsRequest(
        **{name: value for name, value in wanted.items() if value is not None},
        projects=_projects(project or []),
    )

    async def work(hub: Hub) -> None:
        if request.ByteSize():
            await hub.sessions.call(hub.sessions.admin.SetLimits, request)
        answer = await hub.sessions.limits()
        if output is Output.JSON:
            show_json(as_dict(answer))
            return
        names = {one.instance_id: one.name for one in await hub.sessions.instances()}
        show_table(tables.LIMITS, tables.limit_rows(answer, names), "", wide=wide)

    run(context, work)


@app.command()
def drain(
    context: typer.Context,
    connector: ConnectorArgument = "",
    rate: Annotated[float, typer.Option(min=0, help="links closed a second; 0: as configured")] = 0.0,
    deadline: Annotated[
        float, typer.Option(min=0, help="seconds after which the rest is closed at once; 0: as configured")
    ] = 0.0,
    yes: YesOption = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Empties a connector before its machine is taken away; only a restart undoes it."""

    confirm(f"Close all links of {shown(connector) or f'the connector at {context.obj.connector}'}?", yes)

    async def work(hub: Hub) -> None:
        emptied = await hub.connector(connector)
        before = await emptied.count()
        request = connector_pb2.DrainRequest(links_per_second=rate, deadline_seconds=deadline)
        draining = asyncio.ensure_future(emptied.drain(request))
        with progress() as bars:
            closing = bars.add_task("closed", total=before)
            while not (await asyncio.wait([draining], timeout=_DRAIN_LOOK_SECONDS))[0]:
                bars.update(closing, completed=before - await emptied.count())
        closed = (await draining).closed
        sentence = f"{_counted(closed, 'link')} closed; the connector takes no more until it is restarted"
        _count(output, "closed", closed, sentence)

    run(context, work)
