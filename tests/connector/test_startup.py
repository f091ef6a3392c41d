"""Starting: settings, certificates, ports."""

import datetime as dt
import signal
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

from services.connector.app import running_app
from services.connector.discovery import Entry
from services.connector.settings import ConnectorSettings
from services.connector.tls import server_context
from services.runtime.errors import StartupError
from services.runtime.settings import load_settings
from services.runtime.tls_files import TlsFiles
from services.runtime.tracing import Tracing
from tests.connector.conftest import MakeSettings
from tests.support.certs import Issued, TestAuthority, of_another_version

_NOW = int(dt.datetime.now(dt.UTC).timestamp() * 1000)
_HOUR = dt.timedelta(hours=1)


def test_a_missing_certificate_is_told(authority: TestAuthority, tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"cannot read the certificate .*No such file"):
        server_context(TlsFiles(tmp_path / "no.crt", tmp_path / "no.key", authority.certificate), _NOW)


def test_files_that_are_not_pem_are_told(
    authority: TestAuthority, server_certificate: Issued, tmp_path: Path
) -> None:
    junk = tmp_path / "junk"
    junk.write_text("junk")
    good = server_certificate
    with pytest.raises(StartupError, match="is not a certificate in PEM form"):
        server_context(TlsFiles(junk, good.key, authority.certificate), _NOW)
    with pytest.raises(StartupError, match=r"the CA certificate .* is not a certificate"):
        server_context(TlsFiles(good.certificate, good.key, junk), _NOW)
    odd = tmp_path / "odd.crt"
    odd.write_bytes(of_another_version(good.certificate))
    with pytest.raises(StartupError, match=r"odd\.crt is not a certificate in PEM form"):
        server_context(TlsFiles(odd, good.key, authority.certificate), _NOW)
    with pytest.raises(StartupError, match="is not an unencrypted key in PEM form"):
        server_context(TlsFiles(good.certificate, junk, authority.certificate), _NOW)
    with pytest.raises(StartupError, match="cannot read the private key"):
        server_context(TlsFiles(good.certificate, tmp_path / "no.key", authority.certificate), _NOW)


def test_an_expired_or_early_certificate_is_told(authority: TestAuthority, tmp_path: Path) -> None:
    old = authority.issue("old", None, starts=-2 * _HOUR, ends=-_HOUR)
    with pytest.raises(StartupError, match=r"old\.crt expired on"):
        server_context(TlsFiles(old.certificate, old.key, authority.certificate), _NOW)
    new = authority.issue("new", None, starts=_HOUR, ends=2 * _HOUR)
    with pytest.raises(StartupError, match=r"new\.crt is not valid before"):
        server_context(TlsFiles(new.certificate, new.key, authority.certificate), _NOW)


def test_a_key_of_another_certificate_is_told(authority: TestAuthority, server_certificate: Issued) -> None:
    other = authority.issue("other", None)
    with pytest.raises(StartupError, match="does not belong to the certificate"):
        server_context(TlsFiles(server_certificate.certificate, other.key, authority.certificate), _NOW)


async def test_a_taken_port_is_told(make_settings: MakeSettings) -> None:
    async with running_app(make_settings("127.0.0.1:1"), tracing=Tracing(None, "c")) as app:
        for field, port in (("listen", app.edge_port), ("grpc_listen", app.grpc_port)):
            settings = make_settings("127.0.0.1:1", **{field: f"127.0.0.1:{port}"})
            with pytest.raises((StartupError, ExceptionGroup)) as refused:
                async with running_app(settings, tracing=Tracing(None, "c")):
                    pass
            assert f"cannot listen on 127.0.0.1:{port}" in repr(refused.value)


@pytest.mark.parametrize("value", ["nohost", "a:b", ":50051", "a:0", "a:1,,b:2", "a:99999"])
def test_dispatchers_that_are_no_addresses_are_told(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load_settings(ConnectorSettings, "cloudhub-connector", [f"--dispatchers={value}"])
    assert "should be HOST:PORT,HOST:PORT" in capsys.readouterr().err


def test_the_settings_reach_the_limits() -> None:
    settings = ConnectorSettings(
        dispatchers="a:1, [::1]:2", frame_most_bytes=2048, frames_per_second=5, close_seconds=1
    )
    assert settings.dispatcher_entries() == [Entry("a", 1), Entry("::1", 2)]
    assert settings.connection_limits().frame_most_bytes == 2048
    assert settings.link_limits().frames_per_second == 5


def test_the_process_says_one_sentence_when_it_cannot_start(tmp_path: Path) -> None:
    ended = subprocess.run(
        [
            sys.executable,
            "-m",
            "services.connector",
            "--grpc-insecure-loopback=true",
            f"--certificate={tmp_path}/no.crt",
        ],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert ended.returncode == 1
    lines = [line for line in ended.stderr.splitlines() if line]
    assert len(lines) == 1
    assert lines[0].startswith("cloudhub-connector: cannot read the certificate")


def test_the_process_ends_by_itself_when_it_is_told(
    authority: TestAuthority, server_certificate: Issued
) -> None:
    """C11."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "services.connector", "--listen=127.0.0.1:0"),
            "--quic-listen=127.0.0.1:0",
            *("--grpc-listen=127.0.0.1:0", "--metrics-listen=127.0.0.1:0", "--log-format=json"),
            "--grpc-insecure-loopback=true",
            f"--certificate={server_certificate.certificate}",
            f"--private-key={server_certificate.key}",
            f"--client-ca={authority.certificate}",
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        # What it says before is of the machine: how many descriptors there are.
        assert any('"started"' in line for line in process.stderr)
        process.send_signal(signal.SIGTERM)
        rest = process.communicate(timeout=20)[1]
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
    assert process.returncode == 0
    assert "Traceback" not in rest


def test_a_certificate_whose_key_is_of_no_known_kind_is_told(
    authority: TestAuthority, server_certificate: Issued, tmp_path: Path
) -> None:
    """One changed digit of the key's algorithm, as a damaged file may have."""
    pem = server_certificate.certificate.read_text()
    der = ssl.PEM_cert_to_DER_cert(pem)
    elliptic = bytes.fromhex("06072a8648ce3d0201")
    assert elliptic in der
    odd = tmp_path / "odd.crt"
    odd.write_text(ssl.DER_cert_to_PEM_cert(der.replace(elliptic, bytes.fromhex("06072a8648ce3d0209"))))
    with pytest.raises(StartupError, match=r"odd\.crt has a key of no known kind"):
        server_context(TlsFiles(odd, server_certificate.key, authority.certificate), _NOW)


@pytest.mark.parametrize(
    "flag", ["--frames-per-second=inf", "--frames-burst=1e30", "--links-most=" + "9" * 30]
)
def test_a_number_that_no_clock_or_column_holds_is_told(
    flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        load_settings(ConnectorSettings, "connector", [flag])
    assert end.value.code == 2
    assert "should be at most 1000000000000000" in capsys.readouterr().err


def test_a_name_that_the_hub_cannot_tell_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load_settings(ConnectorSettings, "connector", ["--name", "x" * 254])
    assert "at most 253 characters" in capsys.readouterr().err
