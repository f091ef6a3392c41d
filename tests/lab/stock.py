"""Scenarios with doubles of stock edges: `make e2e EDGES=stock`."""

import os

from harness.stock_edge.dialling import KEEPALIVE_SECONDS, REST_SECONDS

EDGES = os.environ.get("EDGES") or "agent"
"""Whose edges the fleets are: this repository's `agent`, or doubles of `stock` ones."""
STOCK = EDGES == "stock"
PACE = 15.0
"""Doubles live so many times faster, unless a scenario says otherwise: they rest for two seconds."""
AWAY_SECONDS = KEEPALIVE_SECONDS + REST_SECONDS
"""Of their own time: until one dials again whose link has ended."""

FLAGS = ("--stock-pace", str(PACE)) if STOCK else ()
"""Of a fleet; those of a scenario stand behind them."""
REAL_TIME = ("--stock-pace", "1") if STOCK else ()
"""Of a fleet that lives as fast as real ones."""

_OWN_PEERS = "no fleet plays in it: its links are the test's own, whoever the edges are"
_QUIC = "a stock edge's QUIC is another protocol than the hub's: its double speaks WebSocket"
LEFT_OUT = {
    "test_outages.py::test_edges_that_change_their_address": (
        "nothing tells a stock edge: it does not look for silence, and its kernel gives the old connection "
        "up after a quarter of an hour"
    ),
    "test_slow.py::test_a_window_makes_up_for_a_long_wire": (
        "a stock edge sends 30 messages a second, acknowledgements among them, whatever the window is"
    ),
    "test_quic.py": _QUIC,
    "test_quic_peers.py": _QUIC,
    "test_leaks.py": _OWN_PEERS,
}
"""Files and tests of `tests/weak_network` that doubles do not play, and why."""


def check(transport: str) -> None:
    """Raises ValueError if the scenarios cannot be played so."""
    if EDGES not in ("agent", "stock"):
        raise ValueError(f"EDGES: {EDGES!r} should be agent or stock")
    if STOCK and transport != "websocket":
        raise ValueError(f"EDGES=stock with TRANSPORT={transport}: {_QUIC}")


def left_out(test: str) -> str:
    """Why doubles do not play `FILE::TEST`, with or without parameters; empty: they do."""
    name = test.partition("[")[0]
    return LEFT_OUT.get(name, "") or LEFT_OUT.get(name.partition("::")[0], "")
