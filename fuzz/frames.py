"""JSON frames of edges, plausible, odd and broken; and the codec that reads them."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from chaos.settings import REPOSITORY
from fuzz.mutations import ODD_TEXTS, mutated
from fuzz.target import Check
from services.connector.frames import FrameError, decode_frame, encode_frame

Json: TypeAlias = Any

_ODD = (
    st.none()
    | st.booleans()
    | st.sampled_from([0, -1, 2**53, 2**63 - 1, 2**63, -(2**63) - 1, 10**400, 0.5, 1e308])
    | st.sampled_from(ODD_TEXTS)
    | st.lists(st.integers(0, 1), max_size=2)
    | st.dictionaries(st.sampled_from(["a", "", "\x00", "header.x", "msg_id"]), st.integers(0, 1), max_size=2)
)
# What takes a message past the codec to whoever handles it.
_PLAUSIBLE: dict[str, dict[str, list[Json]]] = {
    "header": {
        "msg_id": ["m1", "m2", "m3"],
        "parent_msg_id": ["m1", "good-1"],
        "timestamp": [1, 1795467760226],
        "resourceversion": ["1", "100"],
        "sync": [True, False],
        "type": ["t"],
        "traceparent": ["00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"],
        "unknown": [1],
    },
    "route": {
        "source": ["websocket", "edged", "twin", "metaserver", "cloudhub"],
        "destination": ["cloud"],
        "group": ["resource", "user", "twin"],
        "operation": ["keepalive", "response", "error", "update", "upload", "query", "connected", "upgrade"],
        "resource": ["node", "default/podstatus", "default/podstatus/p1", "k8s/ca.crt", "membership/detail"],
        "header.unknown": [1],
    },
}
_CONTENTS: SearchStrategy[Json] = st.sampled_from(
    ["OK", "ping", None, {}, [], {"metadata": {"uid": "u1"}}, "no \x00 space"]
)


def _part(fields: dict[str, list[Json]]) -> SearchStrategy[Json]:
    known = {name: st.one_of(*[st.sampled_from(values)] * 20, _ODD) for name, values in fields.items()}
    return st.fixed_dictionaries({}, optional=known)


def _messages() -> SearchStrategy[Json]:
    parts: dict[str, SearchStrategy[Json]] = {
        name: st.one_of(*[_part(fields)] * 12, _ODD) for name, fields in _PLAUSIBLE.items()
    }
    return st.fixed_dictionaries(parts, optional={"content": _CONTENTS | _ODD, "unknown": _ODD})


def _text(message: Json) -> bytes:
    # Halves of surrogate pairs stay escapes, as an edge may send them.
    return json.dumps(message).encode()


_DEEP = [b'{"content":' + opening * 20_000 for opening in (b"[", b'{"a":', b'"\\')]
_WHOLE = _messages().map(_text)


def frame_texts() -> SearchStrategy[bytes]:
    """What an edge may put into a text frame."""
    return st.one_of(*[_WHOLE] * 4, mutated(_WHOLE), st.sampled_from(_DEEP), st.binary(max_size=64))


def recorded_frames() -> list[bytes]:
    """What a stock edge and a hub said to each other."""
    lines = (REPOSITORY / "tests" / "fixtures" / "edge_link_transcript.jsonl").read_text().splitlines()
    return [json.loads(line)["frame"].encode() for line in lines]


def check_frame(data: bytes) -> None:
    """A frame is a message that can be sent on and says the same, or a FrameError with a reason."""
    try:
        message = decode_frame(data)
    except FrameError as error:
        assert error.detail, f"{data!r} is refused without a reason"
        return
    message.SerializeToString()
    again = encode_frame(message)
    assert decode_frame(again) == message, f"{data!r} is {message}, and after the way back {again!r}"


@contextmanager
def frames_checked() -> Iterator[Check[bytes]]:
    """The codec needs nothing."""
    yield check_frame
