"""The table of who may call what: complete, and as strict as it says."""

import pytest
from grpc_channelz.v1 import channelz_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from cloudhub.v1 import connector_pb2, dispatcher_pb2, enrolment_pb2, link_pb2, peer_pb2, sessions_pb2
from edge import certificates
from services.runtime.roles import ALLOWED, PROGRAMS, Role, allowed, identity_of, is_admin
from services.runtime.security import SERVICE_NAME
from tests.support.certs import TestAuthority

_FILES = (
    *(connector_pb2, dispatcher_pb2, enrolment_pb2, link_pb2, peer_pb2, sessions_pb2),
    *(channelz_pb2, health_pb2, reflection_pb2),
)
METHODS = sorted(
    f"/{service.full_name}/{method.name}"
    for file in _FILES
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
)


def test_every_method_of_every_server_is_in_the_table_and_nothing_else() -> None:
    """A method that is added to a .proto is forbidden until somebody says whose it is."""
    assert sorted(ALLOWED) == METHODS
    assert all(ALLOWED.values())


@pytest.mark.parametrize("method", METHODS)
def test_an_edge_may_call_nothing_whatever_else_its_certificate_says(method: str) -> None:
    """C6 for gRPC: nodes have links."""
    assert not allowed(method, frozenset({Role.EDGE}))
    assert not allowed(method, frozenset(Role))


def test_publishers_and_services_have_no_admin_method_and_operators_no_other() -> None:
    for method in METHODS:
        if is_admin(method):
            assert ALLOWED[method] == {Role.OPERATOR}
        elif method.startswith("/cloudhub.v1.DispatcherService/"):
            assert ALLOWED[method] == {Role.PUBLISHER}
        elif method.startswith("/cloudhub."):
            assert ALLOWED[method] == {Role.SERVICE}
        elif "channelz" not in method:
            assert ALLOWED[method] == PROGRAMS


def test_a_method_that_nobody_knows_is_nobodys() -> None:
    assert not allowed("/cloudhub.v1.DispatcherAdmin/DropEverything", PROGRAMS)
    assert not allowed("", PROGRAMS)


def test_several_roles_may_what_each_may() -> None:
    both = frozenset({Role.PUBLISHER, Role.OPERATOR})
    assert allowed("/cloudhub.v1.DispatcherService/Publish", both)
    assert allowed("/cloudhub.v1.DispatcherAdmin/Purge", both)
    assert not allowed("/cloudhub.v1.SessionsService/DeleteNodes", both)


def test_the_organisation_gives_the_role(authority: TestAuthority) -> None:
    cases = {
        authority.program("shop", Role.PUBLISHER): {Role.PUBLISHER},
        authority.program("ann", Role.OPERATOR, Role.PUBLISHER): {Role.OPERATOR, Role.PUBLISHER},
        authority.service(): {Role.SERVICE},
        authority.node("edge-1"): {Role.EDGE},
        authority.issue("somebody", None): set(),
        authority.issue("cloudhub:operator", "cloudhub:operators"): set(),
    }
    for issued, roles in cases.items():
        identity = identity_of(issued.certificate.read_bytes())
        assert identity.roles == roles
        assert "CN=" in identity.name


def test_certificates_made_here_carry_the_same_names() -> None:
    """The agent's command shares no code with the hub."""
    assert set(certificates.ROLES.values()) == {role.value for role in PROGRAMS}
    assert certificates.SERVICE_NAME == SERVICE_NAME
