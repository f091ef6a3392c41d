"""The command line: settings of all commands, and how a command is run."""

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from cloudhub.v1.dispatcher_pb2 import ListNodesRequest
from ctl.faults import CtlFault, ExitCode
from ctl.hub import Access, Hub
from ctl.output import Output, asks_for_json
from services.runtime.names import shown
from services.runtime.release import release

app = typer.Typer(
    name="cloudhubctl",
    help="Looks after a CloudHub: who is connected, where messages are, what to do about them.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

_OFFERED = 200
_MAX_FAULT_CHARS = 2000

WideOption = Annotated[bool, typer.Option("--wide", help="all columns, however narrow the terminal is")]
OutputOption = Annotated[Output, typer.Option("--output", "-o", help="a table for people, or JSON")]


def _access_of(values: Mapping[str, Any]) -> Access:
    named = {**values, "timeout_seconds": values["timeout"]}
    return Access(**{field.name: named[field.name] for field in fields(Access)})


def complete_node(context: typer.Context, incomplete: str) -> list[str]:
    """Node ids that the shell offers: none if the hub does not answer at once."""
    wanted = replace(_access_of(context.parent.params if context.parent else {}), timeout_seconds=1.0)

    async def found() -> list[str]:
        async with Hub(wanted) as hub:
            request = ListNodesRequest(page_size=_OFFERED, node_id_prefix=incomplete)
            dispatcher = await hub.any_dispatcher()
            page = await dispatcher.call(dispatcher.admin.ListNodes, request)
            return [node.node_id for node in page.nodes]

    try:
        wanted.check()
        return asyncio.run(found())
    except CtlFault:
        return []


def _tell_release(wanted: bool) -> None:
    if wanted:
        print(f"cloudhubctl {release()}")
        raise typer.Exit


NodeArgument = Annotated[str, typer.Argument(metavar="NODE", help="node id", autocompletion=complete_node)]
PrefixOption = Annotated[str, typer.Option(help="only nodes whose id starts with this")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="do not ask")]


@app.callback()
def access(
    context: typer.Context,
    dispatcher: Annotated[
        str,
        typer.Option(envvar="CLOUDHUBCTL_DISPATCHER", help="HOST:PORT of any; several with commas between"),
    ] = "127.0.0.1:50051",
    sessions: Annotated[
        str, typer.Option(envvar="CLOUDHUBCTL_SESSIONS", help="HOST:PORT of any sessions process")
    ] = "127.0.0.1:50052",
    connector: Annotated[
        str, typer.Option(envvar="CLOUDHUBCTL_CONNECTOR", help="HOST:PORT of a connector's gRPC server")
    ] = "127.0.0.1:50053",
    ca: Annotated[
        Path | None,
        typer.Option(envvar="CLOUDHUBCTL_CA", help="CA of the hub: use TLS, with --cert and --key"),
    ] = None,
    cert: Annotated[
        Path | None,
        typer.Option(envvar="CLOUDHUBCTL_CERT", help="your certificate, an operator's or publisher's"),
    ] = None,
    key: Annotated[Path | None, typer.Option(envvar="CLOUDHUBCTL_KEY", help="its private key")] = None,
    timeout: Annotated[
        float, typer.Option(envvar="CLOUDHUBCTL_TIMEOUT", min=0.1, help="seconds for one call")
    ] = 10.0,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_tell_release, is_eager=True, help="tell the release and end"),
    ] = False,
) -> None:
    """The options of all commands, which go before the command."""
    context.obj = _access_of(context.params)


def run(context: typer.Context, work: Callable[[Hub], Awaitable[ExitCode | None]]) -> None:
    """Carries out a command and ends the process with its exit code. Raises CtlFault."""
    wanted: Access = context.obj
    wanted.check()

    async def body() -> ExitCode | None:
        async with Hub(wanted) as hub:
            return await work(hub)

    try:
        code = asyncio.run(body())
    except KeyboardInterrupt:
        raise CtlFault(ExitCode.INTERRUPTED, "interrupted; what the hub was asked already goes on") from None
    except BrokenPipeError:
        # Whoever read has what they wanted; what is buffered must not fail once more at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(ExitCode.BROKEN_PIPE) from None
    raise typer.Exit(code or ExitCode.OK)


def confirm(question: str, yes: bool) -> None:
    """Asks before what cannot be taken back. Raises CtlFault without an answer."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise CtlFault(ExitCode.USAGE, f"{question} Give --yes, since nobody can be asked here")
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise CtlFault(ExitCode.FAILED, "nothing was done")


def main() -> None:
    """Entry point: one sentence on standard error and an exit code for whatever goes wrong, as JSON for those
    who asked for JSON."""
    as_json = asks_for_json(sys.argv[1:])
    try:
        ended = app(prog_name="cloudhubctl", standalone_mode=not as_json)
    except CtlFault as raised:
        fault = raised
    except typer.TyperException as error:
        fault = CtlFault(ExitCode.USAGE, error.format_message())
    else:
        raise SystemExit(ended)
    # It may repeat what was typed, or lines of a file.
    text = shown(str(fault), _MAX_FAULT_CHARS)
    told = (
        json.dumps({"error": fault.fields(text)}, ensure_ascii=False) if as_json else f"cloudhubctl: {text}"
    )
    print(told, file=sys.stderr)
    raise SystemExit(fault.code)
