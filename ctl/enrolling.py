"""Commands about enrolment: join tokens, certificates of nodes, revocations."""

from functools import partial
from typing import Annotated

import typer

from cloudhub.v1 import enrolment_pb2 as pb
from ctl import tables
from ctl.answers import show_answer, show_list
from ctl.app import NodeArgument, OutputOption, PrefixOption, WideOption, YesOption, app, confirm, run
from ctl.faults import UNKNOWN, CtlFault, unknown_nodes
from ctl.hub import Hub
from ctl.looking import now
from ctl.output import Output, note, show_json, write
from ctl.plain import as_dict
from services.runtime.names import shown

token = typer.Typer(help="Join tokens, by which nodes get their first certificate.", no_args_is_help=True)
app.add_typer(token, name="token")

_DAY_HOURS = 24.0


@token.command()
def create(
    context: typer.Context,
    nodes: Annotated[
        str, typer.Option(help="node ids that it is for; '*' stands for any characters, '?' for one")
    ] = "*",
    project: Annotated[str, typer.Option(help="the only project that these nodes may connect in")] = "",
    uses: Annotated[int, typer.Option(min=1, help="how many nodes may enrol with it")] = 1,
    hours: Annotated[float, typer.Option(min=0.001, help="how long it is good")] = _DAY_HOURS,
    output: OutputOption = Output.TABLE,
) -> None:
    """Makes a join token and shows it, this once."""

    async def work(hub: Hub) -> None:
        request = pb.CreateTokenRequest(
            node_pattern=nodes, project_id=project, uses=uses, valid_seconds=hours * 3600
        )
        made = await hub.sessions.call(hub.sessions.enrolment.CreateToken, request)
        if output is Output.JSON:
            show_json(as_dict(made))
        else:
            write(made.join_token)
            until = tables.clock(made.token.expires_at)
            note(f"token {made.token.token_id}, good until {until}; it is not shown again")

    run(context, work)


@token.command("list")
def list_tokens(
    context: typer.Context, output: OutputOption = Output.TABLE, wide: WideOption = False
) -> None:
    """Lists join tokens, the newest first, without their secrets."""

    async def work(hub: Hub) -> None:
        found = await hub.sessions.tokens()
        rows = partial(tables.token_rows, now=now())
        show_list(output, found, tables.TOKENS, rows, "there are no tokens", wide=wide)

    run(context, work)


@token.command()
def revoke(
    context: typer.Context,
    token_id: Annotated[str, typer.Argument(metavar="TOKEN", help="its id, as `token list` shows it")],
    output: OutputOption = Output.TABLE,
) -> None:
    """Makes a token let nobody in any more."""

    async def work(hub: Hub) -> None:
        request = pb.RevokeTokenRequest(token_id=token_id)
        found = await hub.sessions.call(hub.sessions.enrolment.RevokeToken, request)
        used = found.token.uses - found.token.uses_left
        sentence = f"token {token_id} is revoked; certificates that it got stay good: {used}"
        show_answer(output, found.token, sentence)

    run(context, work)


@app.command()
def certificates(
    context: typer.Context,
    prefix: PrefixOption = "",
    output: OutputOption = Output.TABLE,
    wide: WideOption = False,
) -> None:
    """Lists the certificates of nodes."""

    async def work(hub: Hub) -> None:
        found = await hub.sessions.certificates(prefix)
        rows = partial(tables.certificate_rows, now=now())
        show_list(output, found, tables.CERTIFICATES, rows, "no certificate was issued", wide=wide)

    run(context, work)


@app.command("revoke-node")
def revoke_node(
    context: typer.Context,
    node: NodeArgument,
    yes: YesOption = False,
    unknown: Annotated[
        bool, typer.Option("--unknown", help="also one that never enrolled here and never connected")
    ] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Refuses a node's certificates and cuts its link; it needs a new join token."""
    confirm(f"Refuse all certificates that {shown(node)} has?", yes)

    async def work(hub: Hub) -> None:
        request = pb.RevokeNodeRequest(node_id=node, may_be_unknown=unknown)
        try:
            answer = await hub.sessions.call(hub.sessions.enrolment.RevokeNode, request)
        except CtlFault as fault:
            if fault.reason not in UNKNOWN:
                raise
            # A certificate that was made elsewhere, and that was never shown, is refused all the same.
            raise unknown_nodes([node], "--unknown refuses a node that never was here") from fault
        link = "its link is cut" if answer.was_connected else "it was not connected"
        show_answer(output, answer, f"the certificates of {node} are refused; {link}")

    run(context, work)


@app.command("revoked-nodes")
def revoked_nodes(
    context: typer.Context,
    prefix: PrefixOption = "",
    output: OutputOption = Output.TABLE,
    wide: WideOption = False,
) -> None:
    """Lists the nodes whose certificates are refused, and which of them have enrolled anew."""

    async def work(hub: Hub) -> None:
        found = await hub.sessions.revoked(prefix)
        rows = partial(tables.revoked_rows, now=now())
        show_list(output, found, tables.REVOKED, rows, "no node is revoked", wide=wide)

    run(context, work)


@app.command("reinstate-node")
def reinstate_node(context: typer.Context, node: NodeArgument, output: OutputOption = Output.TABLE) -> None:
    """Takes a revocation back."""

    async def work(hub: Hub) -> None:
        request = pb.ReinstateNodeRequest(node_id=node)
        answer = await hub.sessions.call(hub.sessions.enrolment.ReinstateNode, request)
        show_answer(output, answer, f"the certificates of {node} are good again")

    run(context, work)
