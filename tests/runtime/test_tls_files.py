"""Files that are rotated: newer ones are taken; unusable ones are told of once, and the former ones stay."""

import datetime as dt
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from services.runtime.clock import SystemClock
from services.runtime.errors import StartupError
from services.runtime.tls_files import RenewedFiles, TlsFiles, read_material
from tests.support.certs import Issued, TestAuthority

_HOUR = dt.timedelta(hours=1)


@pytest.fixture
def issued(authority: TestAuthority) -> Issued:
    return authority.service()


class Loaded:
    """What a process holds of its files."""

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self.times = 0
        self.renewed = RenewedFiles("gRPC", files.paths, self._load)

    def _load(self) -> None:
        self.material = read_material(self._files, SystemClock().wall_ms())
        self.times += 1


@pytest.fixture
def loaded(authority: TestAuthority, issued: Issued) -> Loaded:
    return Loaded(TlsFiles(issued.certificate, issued.key, authority.certificate))


def test_files_that_stay_are_not_read_again(loaded: Loaded) -> None:
    assert not loaded.renewed.look()
    assert loaded.times == 1


def test_a_new_pair_is_taken(loaded: Loaded, authority: TestAuthority, issued: Issued) -> None:
    former = loaded.material
    authority.service()
    with capture_logs() as logs:
        assert loaded.renewed.look()
    assert loaded.material != former
    assert loaded.material.certificate == issued.certificate.read_bytes()
    assert [line["event"] for line in logs] == ["certificates.renewed"]


def test_half_a_pair_keeps_the_former_and_is_told_once(
    loaded: Loaded, authority: TestAuthority, issued: Issued
) -> None:
    former = loaded.material
    newer = authority.service(file="newer")
    issued.certificate.write_bytes(newer.certificate.read_bytes())
    with capture_logs() as logs:
        assert not loaded.renewed.look()
        assert not loaded.renewed.look()
    assert loaded.material == former
    (line,) = logs
    assert line["event"] == "certificates.kept"
    assert line["log_level"] == "error"
    assert f"{issued.key} does not belong to the certificate {issued.certificate}" in line["error"]
    issued.key.write_bytes(newer.key.read_bytes())
    assert loaded.renewed.look()
    assert loaded.material.certificate == newer.certificate.read_bytes()


@pytest.mark.parametrize("content", [b"", b"-----BEGIN CERTIFICATE-----\nMIIB", b"junk"])
def test_a_half_written_file_keeps_the_former(loaded: Loaded, issued: Issued, content: bytes) -> None:
    former = loaded.material
    issued.certificate.write_bytes(content)
    with capture_logs() as logs:
        assert not loaded.renewed.look()
    assert loaded.material == former
    assert str(issued.certificate) in logs[0]["error"]


def test_a_file_that_is_gone_keeps_the_former_and_may_come_back(loaded: Loaded, issued: Issued) -> None:
    content = issued.key.read_bytes()
    issued.key.unlink()
    with capture_logs() as logs:
        assert not loaded.renewed.look()
    assert f"cannot read the private key {issued.key}" in logs[0]["error"]
    issued.key.write_bytes(content)
    assert loaded.renewed.look()


def test_an_expired_successor_keeps_the_former(
    loaded: Loaded, authority: TestAuthority, issued: Issued
) -> None:
    former = loaded.material
    authority.service(starts=-2 * _HOUR, ends=-_HOUR)
    with capture_logs() as logs:
        assert not loaded.renewed.look()
    assert loaded.material == former
    assert "expired on" in logs[0]["error"]


def test_a_link_that_points_elsewhere_is_followed(authority: TestAuthority, tmp_path: Path) -> None:
    """As Kubernetes swaps the files of a secret."""
    for name in ("a", "b"):
        issued = authority.service(file=name)
        (tmp_path / name).mkdir()
        issued.certificate.rename(tmp_path / name / "tls.crt")
        issued.key.rename(tmp_path / name / "tls.key")
    data = tmp_path / "data"
    data.symlink_to("a")
    loaded = Loaded(TlsFiles(data / "tls.crt", data / "tls.key", authority.certificate))
    (tmp_path / "next").symlink_to("b")
    (tmp_path / "next").rename(data)
    assert loaded.renewed.look()
    assert loaded.material.certificate == (tmp_path / "b" / "tls.crt").read_bytes()


def test_a_next_ca_beside_the_present_one_is_taken(
    authority: TestAuthority, issued: Issued, tmp_path: Path
) -> None:
    """Also if only one of them is valid at the moment."""
    late = TestAuthority(tmp_path / "late", "next", starts=_HOUR, ends=48 * _HOUR)
    bundle = tmp_path / "bundle.crt"
    bundle.write_bytes(late.certificate.read_bytes() + authority.certificate.read_bytes())
    now_ms = SystemClock().wall_ms()
    read = read_material(TlsFiles(issued.certificate, issued.key, bundle), now_ms)
    assert read.authority == bundle.read_bytes()
    with pytest.raises(StartupError, match="is not valid before"):
        read_material(TlsFiles(issued.certificate, issued.key, late.certificate), now_ms)
