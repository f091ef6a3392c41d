"""Where the processes of a hub on this machine listen."""

import random
import socket
from collections.abc import Container
from dataclasses import dataclass

HOST = "127.0.0.1"
# Below the ports that the kernel gives to outgoing connections: a process that was killed finds its port
# free when it is started again. And below those that the tests give out by themselves.
_LOWEST, _HIGHEST = 10_500, 20_000
_STEP = 10


@dataclass(frozen=True, slots=True)
class HubPorts:
    """Of one replica of each service."""

    sessions: int = 50052
    dispatcher: int = 50051
    connector: int = 50053
    edges: int = 10000
    edges_quic: int = 10001
    sessions_metrics: int = 9465
    dispatcher_metrics: int = 9464
    connector_metrics: int = 9466
    enrolment: int = 10002
    enrolment_grpc: int = 50054
    enrolment_metrics: int = 9467

    def of_replica(self, number: int) -> "HubPorts":
        """Those of a further replica, counted from 0: a step of 10 each."""
        names = self.__dataclass_fields__
        return HubPorts(**{name: getattr(self, name) + _STEP * number for name in names})


def _bound(port: int, kind: socket.SocketKind) -> socket.socket | None:
    listener = socket.socket(type=kind)
    if kind is socket.SOCK_STREAM:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
    except OSError:
        listener.close()
        return None
    return listener


def _bound_anywhere(kind: socket.SocketKind, chosen: Container[int] = ()) -> socket.socket:
    for _ in range(1000):
        port = random.randrange(_LOWEST, _HIGHEST)
        listener = None if port in chosen else _bound(port, kind)
        if listener is not None:
            return listener
    raise OSError(f"no free port on {HOST} from {_LOWEST} to {_HIGHEST}")


def free_port() -> int:
    """A TCP port that nobody listens on at the moment. Raises OSError if there is none."""
    with _bound_anywhere(socket.SOCK_STREAM) as listener:
        return int(listener.getsockname()[1])


def choose_ports(replicas: int = 1, wanted: HubPorts | None = None) -> tuple[HubPorts, ...]:
    """Ports of each replica: those wanted, or a free one where it is taken; without `wanted` free ones."""
    held: dict[int, socket.socket] = {}
    try:
        found: list[HubPorts] = []
        for number in range(replicas):
            preferred = wanted.of_replica(number) if wanted else None
            chosen: dict[str, int] = {}
            for name in HubPorts.__dataclass_fields__:
                kind = socket.SOCK_DGRAM if name.endswith("quic") else socket.SOCK_STREAM
                listener = _bound(getattr(preferred, name), kind) if preferred else None
                # Held until all are chosen, and no number for TCP and UDP both: none is chosen twice.
                listener = listener or _bound_anywhere(kind, held)
                chosen[name] = listener.getsockname()[1]
                held[chosen[name]] = listener
            found.append(HubPorts(**chosen))
        return tuple(found)
    finally:
        for listener in held.values():
            listener.close()
