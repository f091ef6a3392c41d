"""A private key that everybody may read is used, and told with the fix, wherever one is loaded."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from ctl.hub import Access, security_of
from edge.agent import EdgeFleet
from edge.settings import EdgeSettings
from services.connector.tls import EdgeTls
from services.enrolment.authority import RenewedAuthority, RenewedContext
from services.runtime.clock import SystemClock
from services.runtime.roles import Role
from services.runtime.security import MutualTls
from services.runtime.tls_files import TlsFiles
from tests.support.certs import TestAuthority

CLOCK = SystemClock()
# The service's own, the connector's and enrolment's for edges, the key of the CA.
LOADERS: dict[str, Callable[[TlsFiles], Any]] = {
    "gRPC": lambda files: MutualTls(files, CLOCK),
    "edge links": lambda files: EdgeTls(files, CLOCK),
    "enrolment": lambda files: RenewedContext(files, CLOCK),
    "CA": lambda files: RenewedAuthority(files.certificate, files.private_key, CLOCK),
}


@pytest.fixture
def files(authority: TestAuthority, request: pytest.FixtureRequest) -> TlsFiles:
    if "CA" in request.node.name:
        return TlsFiles(authority.certificate, authority.key_file, authority.certificate)
    issued = authority.service()
    return TlsFiles(issued.certificate, issued.key, authority.certificate)


def exposed(logs: Any) -> list[str]:
    """The sentences of the warnings."""
    return [line["detail"] for line in logs if line["event"] == "private_key.exposed"]


@pytest.mark.parametrize("what", LOADERS)
def test_a_key_that_all_may_read_is_told_with_the_fix(what: str, files: TlsFiles) -> None:
    files.private_key.chmod(0o644)
    with capture_logs() as logs:
        LOADERS[what](files)
    (sentence,) = exposed(logs)
    assert f"{files.private_key} can be read" in sentence
    assert f"chmod 600 {files.private_key}" in sentence
    assert "BEGIN" not in sentence


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o440, 0o640], ids=oct)
@pytest.mark.parametrize("what", LOADERS)
def test_a_key_of_its_owner_or_a_group_is_fine(what: str, mode: int, files: TlsFiles) -> None:
    """0440 is what the manifests give to the group of a pod."""
    files.private_key.chmod(mode)
    with capture_logs() as logs:
        LOADERS[what](files)
    assert exposed(logs) == []


@pytest.mark.parametrize("what", LOADERS)
def test_it_is_looked_at_again_when_files_change(what: str, files: TlsFiles) -> None:
    loaded = LOADERS[what](files)
    with capture_logs() as logs:
        files.private_key.chmod(0o604)
        assert loaded.look()
        assert len(exposed(logs)) == 1
        assert not loaded.look()
        files.private_key.chmod(0o600)
        assert loaded.look()
    assert len(exposed(logs)) == 1


def test_cloudhubctl_says_it_beside_its_answer(
    authority: TestAuthority, capsys: pytest.CaptureFixture[str]
) -> None:
    issued = authority.program("ann", Role.OPERATOR)
    nowhere = "127.0.0.1:1"
    access = Access(nowhere, nowhere, nowhere, authority.certificate, issued.certificate, issued.key)
    security_of(access)
    assert capsys.readouterr() == ("", "")
    issued.key.chmod(0o644)
    security_of(access)
    out, err = capsys.readouterr()
    assert out == ""
    assert f"chmod 600 {issued.key}" in err


async def test_the_edge_agent_says_it_at_the_start_and_after_a_renewal(
    authority: TestAuthority, tmp_path: Path
) -> None:
    issued = authority.node("edge-1")
    issued.key.chmod(0o644)
    settings = EdgeSettings(
        server="wss://127.0.0.1:1",
        ca=authority.certificate,
        certificate=issued.certificate,
        key=issued.key,
        database=tmp_path / "edge.db",
    )
    with capture_logs() as logs:
        async with EdgeFleet(settings, ["edge-1"]) as fleet:
            assert [f"chmod 600 {issued.key}" in sentence for sentence in exposed(logs)] == [True]
            issued.key.chmod(0o600)
            fleet["edge-1"].certificate_renewed()
            assert len(exposed(logs)) == 1
            issued.key.chmod(0o644)
            fleet["edge-1"].certificate_renewed()
            assert len(exposed(logs)) == 2
