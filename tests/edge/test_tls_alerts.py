"""Which failures of TLS are about the node's certificate: `edge.tls_alerts`, by OpenSSL's own names."""

import socket
import ssl
from pathlib import Path

import pytest

from edge.certificates import create_node_certificates, create_server_certificate
from edge.tls_alerts import quic_certificate_refused, says_certificate_refused


def told(folder: Path, trusted: Path, shown: str | None) -> ssl.SSLError:
    """What the client of a real handshake is told by a server that trusts one CA."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "server.crt", folder / "server.key")
    server.load_verify_locations(trusted)
    server.verify_mode = ssl.CERT_REQUIRED
    client = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    if shown:
        client.load_cert_chain(folder / "nodes" / f"{shown}.crt", folder / "nodes" / f"{shown}.key")
    down, up = ssl.MemoryBIO(), ssl.MemoryBIO()
    near = client.wrap_bio(down, up, server_hostname="localhost")
    far = server.wrap_bio(up, down, server_side=True)
    for _ in range(10):
        for end in (far, near):
            try:
                end.do_handshake()
                if end is near:
                    near.read(1)
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLError as error:
                if end is near:
                    return error
    raise AssertionError("no alert came")


def test_an_alert_about_the_certificate_is_known(tmp_path: Path) -> None:
    for name in ("hub", "other"):
        create_server_certificate(tmp_path / name)
        create_node_certificates(tmp_path / name, ["edge-1"])
    hub = tmp_path / "hub"
    assert says_certificate_refused(told(hub, tmp_path / "other" / "ca.crt", "edge-1"))
    assert says_certificate_refused(told(hub, hub / "ca.crt", None))


@pytest.mark.parametrize(
    "error",
    [
        None,
        ConnectionResetError("reset"),
        socket.gaierror("no such host"),
        ssl.SSLError(1, "x"),
        ssl.SSLCertVerificationError("the hub's own is not trusted"),
    ],
)
def test_other_failures_are_not_about_it(error: BaseException | None) -> None:
    assert not says_certificate_refused(error)


def test_quic_has_the_alerts_number_in_its_error() -> None:
    assert quic_certificate_refused(0x100 + 45)
    # Handshake failure, application's close, flow control.
    assert not any(quic_certificate_refused(code) for code in (0x100 + 40, 0, 3, 45))
