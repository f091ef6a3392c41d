"""Our edge answers what a stock edge was recorded to answer."""

import json
from pathlib import Path
from typing import Any

import pytest

from edge import protocol
from edge.protocol import Kind, MalformedFrame

TRANSCRIPT = Path(__file__).parent.parent / "fixtures" / "edge_link_transcript.jsonl"
LINES = [json.loads(line) for line in TRANSCRIPT.read_text().splitlines()]


def without_identity(frame: dict[str, Any]) -> dict[str, Any]:
    """A frame but for what differs from run to run."""
    header = {key: value for key, value in frame["header"].items() if key not in ("msg_id", "timestamp")}
    return {**frame, "header": header}


def test_the_transcript_has_what_this_is_about() -> None:
    down = [line for line in LINES if line["dir"] == "down"]
    assert len(down) == 10


def test_the_acknowledgements_are_a_stock_edges() -> None:
    """C13: among them an older version after a newer one, a repeat and a delete by path."""
    recorded = [without_identity(json.loads(line["frame"])) for line in LINES if line["dir"] == "up"]
    recorded = [frame for frame in recorded if frame["header"].get("parent_msg_id")]
    ours = []
    for line in LINES:
        if line["dir"] != "down":
            continue
        try:
            message = protocol.decode(line["frame"].encode())
        except MalformedFrame:
            continue
        if protocol.decide(message, ()).acknowledge:
            ours.append(without_identity(json.loads(protocol.acknowledgement(message, "m", 1))))
    assert ours == recorded


def test_a_stock_edges_keepalive_is_ours() -> None:
    recorded = [json.loads(line["frame"]) for line in LINES if line["dir"] == "up"]
    keepalives = [frame for frame in recorded if frame["route"].get("operation") == "keepalive"]
    assert keepalives
    for keepalive in keepalives:
        header = keepalive["header"]
        assert json.loads(protocol.keepalive(header["msg_id"], header["timestamp"])) == keepalive


def test_the_frame_that_made_a_stock_edge_drop_its_link_is_malformed_to_ours() -> None:
    """C29: a frame that is no JSON."""
    frames = [line["frame"] for line in LINES]
    before = [frames[n - 1] for n, line in enumerate(LINES) if line["dir"] == "closed" and line["link"] == 1]
    with pytest.raises(MalformedFrame):
        protocol.decode(before[0].encode())


def test_what_a_stock_edge_says_of_itself_is_what_ours_says() -> None:
    said = json.loads(next(line["frame"] for line in LINES if line["dir"] == "connect"))
    assert said["path"] == "/e632aba927ea4ac2b575ec1603d56f10/edge-1/events"
    assert said["headers"]["Node_id"] == "edge-1"
    assert said["headers"]["Connectionuse"] == "msg"


def test_unknown_operations_got_no_answer() -> None:
    answered = {
        json.loads(line["frame"])["header"].get("parent_msg_id") for line in LINES if line["dir"] == "up"
    }
    for line in LINES:
        if line["dir"] == "down" and "nosuchop" in line["frame"]:
            message = protocol.decode(line["frame"].encode())
            assert message.header.msg_id not in answered
            assert protocol.decide(message, ()).kind is Kind.SWALLOW
            return
    pytest.fail("the transcript has no unknown operation")
