"""Commands about objects: what a node has, where one is, and why it is not at a node."""

from typing import Annotated

import typer

from cloudhub.v1 import dispatcher_pb2 as pb
from ctl import tables
from ctl.app import NodeArgument, OutputOption, PrefixOption, WideOption, app, run
from ctl.faults import CtlFault, ExitCode
from ctl.hub import Hub
from ctl.looking import now
from ctl.output import Output, note, show_json, show_table, write
from ctl.plain import as_dict
from ctl.processes import PAGE, Dispatcher

ObjectArgument = Annotated[
    str, typer.Argument(metavar="OBJECT", help="metadata.uid of an object, or NAMESPACE/TYPE/NAME")
]


@app.command()
def inspect(
    context: typer.Context,
    node: NodeArgument,
    every: Annotated[
        bool, typer.Option("--all", help="every object that the hub knows of the node, with what it has")
    ] = False,
    output: OutputOption = Output.TABLE,
    wide: WideOption = False,
) -> None:
    """What one node waits for: its pending objects, in the order in which they are first sent."""

    async def work(hub: Hub) -> None:
        async def ask(dispatcher: Dispatcher) -> list[pb.InspectNodeResponse]:
            request = pb.InspectNodeRequest(node_id=node, page_size=PAGE, all=every, everywhere=True)
            return [page async for page in dispatcher.pages(dispatcher.admin.InspectNode, request)]

        pages = await hub.everywhere(node, ask)
        objects = [one for page in pages for one in page.objects]
        notes = [one for page in pages for one in page.notes]
        if output is Output.JSON:
            told = {"objects": [as_dict(one) for one in objects], "notes": [as_dict(one) for one in notes]}
            show_json({"node": as_dict(pages[-1].node), **told})
            return
        if every:
            show_table(
                tables.HELD,
                tables.held_rows(objects, now()),
                f"nothing is known of objects of {node}",
                wide=wide,
            )
        else:
            show_table(
                tables.OBJECTS, tables.object_rows(objects, now()), f"{node} waits for nothing", wide=wide
            )
        if notes:
            write("")
            show_table(tables.NOTES, tables.note_rows(notes, now()), "", wide=wide)

    run(context, work)


@app.command("object")
def object_on_nodes(
    context: typer.Context,
    name: ObjectArgument,
    prefix: PrefixOption = "",
    lacking: Annotated[
        bool, typer.Option("--lacking", help="only nodes that do not have the newest version")
    ] = False,
    output: OutputOption = Output.TABLE,
    wide: WideOption = False,
) -> None:
    """Which version of an object each node has, and which nodes lack it."""

    async def work(hub: Hub) -> ExitCode:
        async def ask(dispatcher: Dispatcher) -> list[pb.FindObjectResponse]:
            request = pb.FindObjectRequest(
                object=name, page_size=PAGE, node_id_prefix=prefix, everywhere=True
            )
            return [page async for page in dispatcher.pages(dispatcher.admin.FindObject, request)]

        found = [one for page in await hub.everywhere("", ask) for one in page.nodes]
        newest = tables.newest_version(found)
        if newest is None:
            raise CtlFault(
                ExitCode.NOT_FOUND,
                f"no node has an object {name}; `cloudhubctl inspect NODE --all` lists what a node has",
                "MESSAGE_UNKNOWN",
            )
        chosen = [one for one in found if not (lacking and tables.has_version(one, newest))]
        if output is Output.JSON:
            show_json([as_dict(one) for one in chosen])
            return ExitCode.OK
        show_table(tables.HOLDERS, tables.holder_rows(chosen, now()), "every node has it", wide=wide)
        having = sum(tables.has_version(one, newest) for one in found)
        note(f"version {newest} is the newest: {having} of {len(found)} nodes have it")
        return ExitCode.OK

    run(context, work)


@app.command()
def explain(
    context: typer.Context,
    node: NodeArgument,
    object_key: Annotated[
        str, typer.Argument(metavar="[OBJECT]", help="metadata.uid of an object, or NAMESPACE/TYPE/NAME")
    ] = "",
    message: Annotated[str, typer.Option(help="id of a message, instead of an object")] = "",
    output: OutputOption = Output.TABLE,
    wide: WideOption = False,
) -> None:
    """Why a node has not got an object: where its message is and what happened to it."""
    if bool(object_key) == bool(message):
        raise CtlFault(ExitCode.USAGE, "name either an OBJECT or a message by --message")

    async def work(hub: Hub) -> None:
        async def ask(dispatcher: Dispatcher) -> list[pb.ExplainDeliveryResponse]:
            request = pb.ExplainDeliveryRequest(
                node_id=node, message_id=message, object_key=object_key, everywhere=True
            )
            return [await dispatcher.call(dispatcher.admin.ExplainDelivery, request)]

        (answer,) = await hub.everywhere(node, ask)
        if output is Output.JSON:
            show_json(as_dict(answer))
            return
        for line in tables.explanation_lines(answer, now()):
            write(line)
        write("")
        show_table(tables.EVENTS, tables.event_rows(answer.events), "its history has been dropped", wide=wide)

    run(context, work)
