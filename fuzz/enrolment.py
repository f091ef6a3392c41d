"""Requests to enrolment, plausible, odd and broken; and what reads, judges and answers them."""

import asyncio
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from cloudhub.v1 import enrolment_pb2 as pb
from fuzz.mutations import ODD_TEXTS, mutated
from fuzz.target import Check
from services.enrolment.authority import RenewedAuthority
from services.enrolment.handler import Handler
from services.runtime.clock import SystemClock
from services.runtime.http import Answer, Exchange, Request
from services.runtime.tracing import Tracing
from tests.support.certs import TestAuthority
from tests.support.enrolment import request_for

_KEY = ec.generate_private_key(ec.SECP256R1())
_BODIES = (request_for(key=_KEY), request_for("edge-2", key=_KEY), b"", b"\x30\x80", b"x" * 20_000)
_FITS_A_HEADER = tuple(
    text for text in ODD_TEXTS if text.isascii() and text.isprintable() and len(text) < 1000
)
_NODES = ("edge-1", "edge-1", "edge-2", "E", *_FITS_A_HEADER)
_TOKENS = ("Bearer a.b.c", "Bearer a.b.c", "Bearer", "Basic x", "bearer  y", *_FITS_A_HEADER)
_OUTCOMES = frozenset({200, 400, 401, 403, 404, 405, 413, 431, 501})


def _whole(method: str, path: str, node_id: str, token: str, body: bytes) -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: hub\r\nNodeName: {node_id}\r\nAuthorization: {token}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def enrolment_requests() -> SearchStrategy[bytes]:
    """What a client may send over an established connection."""
    whole = st.builds(
        _whole,
        st.sampled_from(("GET", "GET", "GET", "HEAD", "OPTIONS", "CONNECT", "POST", "PRI")),
        st.sampled_from(("/edge.crt", "/edge.crt", "/ca.crt", "/", "/edge.crt?x", "*")),
        st.sampled_from(_NODES),
        st.sampled_from(_TOKENS),
        st.sampled_from(_BODIES) | mutated(st.just(_BODIES[0])),
    )
    return whole | mutated(whole) | st.binary(max_size=64)


@contextmanager
def enrolment_checked() -> Iterator[Check[bytes]]:
    """Sessions grants whatever it is asked: what is signed was asked for, and is a request's that is good."""
    with tempfile.TemporaryDirectory() as folder:
        files = TestAuthority(Path(folder))
        authority = RenewedAuthority(files.certificate, files.key_file, SystemClock())
        granted: list[str] = []

        async def issue(request: pb.IssueCertificateRequest, _: str) -> pb.IssueCertificateResponse:
            granted.append(request.node_id)
            return pb.IssueCertificateResponse()

        handler = Handler(authority, issue, SystemClock(), Tracing(None, "enrolment"), 3600.0)
        with asyncio.Runner() as runner:

            def check(data: bytes) -> None:
                exchange = Exchange()
                found = exchange.receive(data) or exchange.receive(b"")
                assert found is not None, f"{data!r} is neither a request nor refused"
                granted.clear()
                answer = found
                if isinstance(found, Request):
                    answer = runner.run(handler.answer(found, None, "192.0.2.1"))
                assert isinstance(answer, Answer)
                assert answer.status in _OUTCOMES, f"{data!r} is answered {answer.status}"
                assert answer.body, f"{data!r} is answered {answer.status} without a reason"
                assert exchange.answer(answer).startswith(b"HTTP/1.1 ")
                assert not granted or granted[0] in ("edge-1", "edge-2"), f"{data!r} gets a certificate"

            yield check
