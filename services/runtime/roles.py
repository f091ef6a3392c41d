"""Who may call what over gRPC. Pure: a certificate's subject gives roles, one table says what each may do.

A role is an organisation (O) of the certificate's subject, as Kubernetes carries groups: `cloudhub:service`,
`cloudhub:publisher`, `cloudhub:operator`. A certificate may have several. `system:nodes` marks an edge node
(docs/protocol.md), which may call nothing, whatever else its certificate says.
"""

import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache

from cryptography import x509
from cryptography.x509.oid import NameOID


class Role(Enum):
    """What a certificate is for; the value is the organisation that says so."""

    SERVICE = "cloudhub:service"
    """Connectors, dispatchers, sessions and enrolment, among themselves."""
    PUBLISHER = "cloudhub:publisher"
    """Programs that publish and subscribe."""
    OPERATOR = "cloudhub:operator"
    """People and programs that look after the hub."""
    EDGE = "system:nodes"
    """Edge nodes: they have links and call nothing."""


PROGRAMS = frozenset({Role.SERVICE, Role.PUBLISHER, Role.OPERATOR})
_SERVICES, _PUBLISHERS, _OPERATORS = (
    frozenset({role}) for role in (Role.SERVICE, Role.PUBLISHER, Role.OPERATOR)
)


def _methods(service: str, roles: frozenset[Role], *methods: str) -> dict[str, frozenset[Role]]:
    return {f"/{service}/{method}": roles for method in methods}


ALLOWED: Mapping[str, frozenset[Role]] = {
    **_methods(
        *("cloudhub.v1.DispatcherService", _PUBLISHERS),
        *("Publish", "PublishStream", "Subscribe", "FindUnknownNodes", "ExplainMessage"),
    ),
    **_methods(
        *("cloudhub.v1.DispatcherAdmin", _OPERATORS),
        *("ListNodes", "InspectNode", "FindObject", "ExplainDelivery"),
        *("Redeliver", "Purge", "ResyncNode", "ListConnectorLinks", "DrainConnector", "GetResources"),
    ),
    **_methods(
        *("cloudhub.v1.SessionsAdmin", _OPERATORS),
        *("ListSessions", "GetSession", "WatchSessions", "EvictSession"),
        *("GetLimits", "SetLimits", "ListInstances", "GetResources"),
    ),
    **_methods(
        *("cloudhub.v1.EnrolmentAdmin", _OPERATORS),
        *("CreateToken", "ListTokens", "RevokeToken", "ListCertificates"),
        *("RevokeNode", "ListRevokedNodes", "ReinstateNode"),
    ),
    **_methods("cloudhub.v1.EnrolmentService", _SERVICES, "IssueCertificate", "RenewPresence"),
    **_methods("cloudhub.v1.ConnectorAdmin", _OPERATORS, "ListLinks", "Drain", "GetResources"),
    **_methods("cloudhub.v1.LinkService", _SERVICES, "Attach"),
    **_methods(
        *("cloudhub.v1.PeerService", _SERVICES),
        *("Hint", "Forward", "SendDirect", "Relay", "LookAtNodes"),
    ),
    **_methods(
        *("cloudhub.v1.SessionsService", _SERVICES),
        *("OpenSessions", "ActivateSessions", "CloseSessions", "TransferSessions", "DeleteNodes"),
        *("ListHeld", "LocateNodes", "RenewLease", "ReleaseLease", "WatchDirectives", "AcknowledgeEvents"),
    ),
    **_methods("grpc.health.v1.Health", PROGRAMS, "Check", "List", "Watch"),
    **_methods("grpc.reflection.v1alpha.ServerReflection", PROGRAMS, "ServerReflectionInfo"),
    **_methods(
        *("grpc.channelz.v1.Channelz", _OPERATORS),
        *("GetTopChannels", "GetServers", "GetServer", "GetServerSockets"),
        *("GetChannel", "GetSubchannel", "GetSocket"),
    ),
}
"""Who may call each method. One that is not here may be called by nobody."""


def allowed(method: str, roles: frozenset[Role]) -> bool:
    """Whether a caller with these roles may call `/package.Service/Method`."""
    return Role.EDGE not in roles and not roles.isdisjoint(ALLOWED.get(method, frozenset()))


def is_admin(method: str) -> bool:
    """Whether calls of the method are an operator's and go into the audit log."""
    return method.rpartition("/")[0].endswith("Admin")


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a certificate names, until when (seconds since the epoch), and which one it is."""

    name: str
    roles: frozenset[Role]
    not_after: float
    serial: int


@lru_cache(maxsize=1024)
def identity_of(certificate: bytes) -> Identity:
    """What a verified certificate in PEM form says. Kept, since every call asks."""
    read = x509.load_pem_x509_certificate(certificate)
    organizations = {str(one.value) for one in read.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)}
    return Identity(
        read.subject.rfc4514_string(),
        frozenset(role for role in Role if role.value in organizations),
        read.not_valid_after_utc.replace(tzinfo=datetime.UTC).timestamp(),
        read.serial_number,
    )
