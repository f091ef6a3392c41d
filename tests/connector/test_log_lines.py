"""Refused links in the log: a party that is refused all the time has some lines, others have theirs."""

import pytest
from structlog.testing import capture_logs
from websockets.exceptions import InvalidStatus

from services.runtime.line_budget import LineBudget
from tests.connector.conftest import StartApp, metric
from tests.support.certs import TestAuthority
from tests.support.edge_peer import EdgePeers
from tests.support.strangers import ATTACKER


async def test_a_network_that_is_refused_all_the_time_has_so_many_lines(
    start_app: StartApp, authority: TestAuthority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C46: all are counted."""
    async with start_app() as app:
        peers = EdgePeers(authority, app.edge_port)
        assert app.listener
        monkeypatch.setattr(app.listener, "_refused_lines", LineBudget(3, 1000.0))
        refused = authority.program("edge-1")
        with capture_logs() as logs:
            for source in (*[ATTACKER] * 8, "127.0.0.1"):
                with pytest.raises(InvalidStatus):
                    await peers.open(context=peers.context_of(refused), local_addr=(source, 0))
        lines = [line["peer"] for line in logs if line["event"] == "link.refused"]
        assert [peer.startswith(ATTACKER) for peer in lines] == [True] * 3 + [False]
        assert metric(app, "refusals_total", status="403") == 9


async def test_a_reason_that_comes_all_the_time_hides_no_other(
    start_app: StartApp, authority: TestAuthority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind one address may be a whole plant: what one node is refused for takes no other's line."""
    async with start_app() as app:
        peers = EdgePeers(authority, app.edge_port)
        assert app.listener
        monkeypatch.setattr(app.listener, "_refused_lines", LineBudget(2, 1000.0))
        with capture_logs() as logs:
            for certified in ("edge-2", "edge-2", "edge-2", "edge-1"):
                with pytest.raises(InvalidStatus):
                    await peers.open("edge-1", context=peers.context(certified), headers={})
        told = [line["reason"] for line in logs if line["event"] == "link.refused"]
        assert told == ["certificate_node", "certificate_node", "header_node_missing"]
