"""What the kernel knows of a TCP connection."""

import fcntl
import socket
import struct
import termios

_INT = struct.Struct("i")


def unacknowledged_bytes(connection: socket.socket) -> int:
    """What waits in the kernel, sent or not, for the acknowledgement of the host at the other end (tcp(7),
    SIOCOUTQ); 0 where the kernel does not say."""
    try:
        answer = fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(_INT.size))
    except (OSError, ValueError):  # closed meanwhile
        return 0
    (waiting,) = _INT.unpack(answer)
    return int(waiting)
