"""Asks for another ClientHello where the first one holds no key share that the hub can use, but names a group
that it can (RFC 8446, 4.1.4: HelloRetryRequest). No I/O.

aioquic's server (1.7) ends such handshakes by an alert. Its handler of ClientHellos stays as it is: it is
given the second one with the messages before it in front, so that they are in its transcript.
"""

from collections.abc import Callable
from dataclasses import dataclass

from aioquic._buffer import Buffer
from aioquic.tls import (
    AlertHandshakeFailure,
    AlertIllegalParameter,
    CipherSuite,
    ClientHello,
    CompressionMethod,
    Context,
    ExtensionType,
    Group,
    HandshakeType,
    cipher_suite_hash,
    pull_client_hello,
)
from cryptography.hazmat.primitives import hashes

RANDOM = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")
"""What tells this message from a ServerHello: the SHA-256 of "HelloRetryRequest"."""
NO_GROUP = "the hub has no group of the ClientHello: it should name P-256, P-384, X25519 or X448"
_TLS_1_2, _TLS_1_3 = 0x0303, 0x0304
_MESSAGE_HASH = 254

Handle = Callable[[Buffer, Buffer, Buffer], None]


@dataclass(frozen=True, slots=True)
class _Asked:
    """What the client was asked for, and the transcript until then."""

    group: int
    cipher_suite: CipherSuite
    transcript: bytes


class HelloRetry:
    """In the place of a context's handler of ClientHellos."""

    __slots__ = ("_asked", "_cipher_suites", "_groups", "_handle")

    def __init__(self, context: Context) -> None:
        self._groups = context._supported_groups
        self._cipher_suites = context._cipher_suites
        self._handle: Handle = context._server_handle_hello
        self._asked: _Asked | None = None

    def __call__(self, input_buf: Buffer, initial_buf: Buffer, handshake_buf: Buffer) -> None:
        """Takes a whole ClientHello. Raises aioquic's alerts."""
        message = input_buf.data_slice(0, input_buf.capacity)
        hello = pull_client_hello(Buffer(data=message))
        if self._asked is not None:
            transcript = self._asked.transcript
            self._check(hello, self._asked)
        elif (asked := self._ask(hello, message)) is not None:
            retry = hello_retry_request(hello.legacy_session_id, asked.group, asked.cipher_suite)
            self._asked = _Asked(asked.group, asked.cipher_suite, asked.transcript + retry)
            initial_buf.push_bytes(retry)
            input_buf.seek(input_buf.capacity)
            return
        else:
            transcript = b""
        # What lies in front of where it reads is hashed, and not looked at.
        behind = Buffer(data=transcript + message)
        behind.seek(len(transcript))
        self._handle(behind, initial_buf, handshake_buf)
        input_buf.seek(input_buf.capacity)

    def _ask(self, hello: ClientHello, message: bytes) -> _Asked | None:
        """None if the handler has what it needs, or an alert of its own for what is missing."""
        if hello.key_share is None or _TLS_1_3 not in (hello.supported_versions or []):
            return None
        if any(group in self._groups for group, _ in hello.key_share):
            return None
        cipher_suite = self._cipher_suite(hello)
        if cipher_suite is None:
            return None
        named = hello.supported_groups or []
        group = next((group for group in self._groups if group in named), None)
        if group is None:
            raise AlertHandshakeFailure(NO_GROUP)
        return _Asked(group, cipher_suite, message_hash(message, cipher_suite))

    def _check(self, hello: ClientHello, asked: _Asked) -> None:
        shares = [group for group, _ in hello.key_share or []]
        if shares != [asked.group]:
            raise AlertIllegalParameter(
                f"the second ClientHello should hold one key share, of {Group(asked.group).name}"
            )
        if self._cipher_suite(hello) is not asked.cipher_suite:
            raise AlertIllegalParameter("the second ClientHello has other cipher suites than the first")

    def _cipher_suite(self, hello: ClientHello) -> CipherSuite | None:
        return next((each for each in self._cipher_suites if each in hello.cipher_suites), None)


def hello_retry_request(session_id: bytes, group: int, cipher_suite: CipherSuite) -> bytes:
    """The message that asks for a key share of that group."""
    extensions = _extension(ExtensionType.SUPPORTED_VERSIONS, _TLS_1_3) + _extension(
        ExtensionType.KEY_SHARE, group
    )
    body = (
        _TLS_1_2.to_bytes(2, "big")
        + RANDOM
        + len(session_id).to_bytes(1, "big")
        + session_id
        + int(cipher_suite).to_bytes(2, "big")
        + int(CompressionMethod.NULL).to_bytes(1, "big")
        + len(extensions).to_bytes(2, "big")
        + extensions
    )
    return _message(HandshakeType.SERVER_HELLO, body)


def message_hash(hello: bytes, cipher_suite: CipherSuite) -> bytes:
    """What stands for the first ClientHello in the transcript (RFC 8446, 4.4.1)."""
    digest = hashes.Hash(cipher_suite_hash(cipher_suite))
    digest.update(hello)
    return _message(_MESSAGE_HASH, digest.finalize())


def _extension(kind: int, value: int) -> bytes:
    return int(kind).to_bytes(2, "big") + (2).to_bytes(2, "big") + int(value).to_bytes(2, "big")


def _message(kind: int, body: bytes) -> bytes:
    return int(kind).to_bytes(1, "big") + len(body).to_bytes(3, "big") + body
