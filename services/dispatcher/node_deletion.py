"""Deleting a node: a publish with operation `delete` and the resource `node/<node id>`.

The order: the node's session ends in the registry, then its rows go. Between the two a repeat makes good
whatever failed. A session that the node opens after the first of them has a higher epoch than any before,
so it keeps what it owns.
"""

from collections.abc import Sequence

from cloudhub.v1.dispatcher_pb2 import PublishRequest
from services.dispatcher.outbox.contract import Outbox
from services.dispatcher.publication import Rejection
from services.dispatcher.sessions_client import SessionsClient
from services.runtime.errors import HubError
from services.runtime.names import check_node_id

_PREFIX = "node/"

# Per node: the highest epoch of the sessions that are over, or what kept them from being ended.
Fences = dict[str, int | HubError]


def node_to_delete(request: PublishRequest) -> str | None:
    """The node that a request deletes, as it was written; None for every other request. Pure."""
    message = request.message
    if message.operation != "delete" or not message.resource.startswith(_PREFIX):
        return None
    node_id = message.resource.removeprefix(_PREFIX)
    return None if "/" in node_id else node_id


def check_deletion(node_id: str, node_ids: Sequence[str]) -> Rejection | None:
    """What is wrong with a request that deletes a node; None if nothing. Pure."""
    fault = check_node_id(node_id)
    if fault:
        return Rejection("NODE_ID_MALFORMED", "message.resource", fault)
    if any(named != node_id for named in node_ids):
        return Rejection(
            "NODES_MISMATCHED",
            "node_ids",
            f"the resource names node {node_id}: name that node alone, or none",
        )
    return None


class NodeDeletion:
    """The part that comes before the rows go."""

    def __init__(self, outbox: Outbox, sessions: SessionsClient) -> None:
        self._outbox = outbox
        self._sessions = sessions

    async def end_sessions(self, requests: Sequence[PublishRequest]) -> Fences:
        """Ends the sessions of all nodes that the requests delete."""
        wanted: dict[str, None] = {}
        for request in requests:
            node_id = node_to_delete(request)
            if node_id is not None and check_deletion(node_id, request.node_ids) is None:
                wanted[node_id] = None
        if not wanted:
            return {}
        try:
            # Who owns the rows now had its session before sessions is asked, whatever sessions remembers.
            owners = {node_id: await self._outbox.summary(node_id) for node_id in wanted}
            epochs = await self._sessions.delete_nodes(list(wanted))
        except HubError as error:
            return dict.fromkeys(wanted, error)
        return {
            node_id: max(epoch, summary.node.owner_epoch if summary else 0)
            for (node_id, summary), epoch in zip(owners.items(), epochs, strict=True)
        }
