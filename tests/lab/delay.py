"""`python -m tests.lab.delay`: a long wire between two namespaces, for kernels without netem.

A packet that goes in at one end comes out at the other after the one-way delay and a random part of the
jitter, in order; it is a packet of the kernel's own TCP, so what else the devices at the ends do to packets
composes with it.
"""

import asyncio
import fcntl
import os
import random
import signal
import struct
import sys
from collections import deque

from tests.lab.namespaces import enter

_TUNSETIFF = 0x400454CA
_IFF_TUN = 0x0001
_IFF_NO_PI = 0x1000
_MOST_BYTES = 65536
_MOST_WAITING = 20_000
"""Packets under way in one direction; further ones are lost, as in a router."""


def attach(namespace: str, device: str) -> int:
    """The descriptor of a tun device that exists already; this thread stays in its namespace."""
    enter(namespace)
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", device.encode(), _IFF_TUN | _IFF_NO_PI))
    return descriptor


class Direction:
    """Packets from one end to the other."""

    def __init__(self, source: int, target: int, delay_seconds: float, jitter_seconds: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._source, self._target = source, target
        self._delay_seconds, self._jitter_seconds = delay_seconds, jitter_seconds
        self._waiting: deque[tuple[float, bytes]] = deque()
        self._last = 0.0
        self._loop.add_reader(source, self._take)

    def _take(self) -> None:
        while True:
            try:
                packet = os.read(self._source, _MOST_BYTES)
            except BlockingIOError:
                return
            if len(self._waiting) >= _MOST_WAITING:
                continue
            due = self._loop.time() + self._delay_seconds + random.uniform(0, self._jitter_seconds)
            self._last = max(due, self._last)
            self._waiting.append((self._last, packet))
            if len(self._waiting) == 1:
                self._loop.call_at(self._last, self._deliver)

    def _deliver(self) -> None:
        while self._waiting and self._waiting[0][0] <= self._loop.time():
            try:
                os.write(self._target, self._waiting.popleft()[1])
            except OSError:
                pass  # the device is down: the packet is lost
        if self._waiting:
            self._loop.call_at(self._waiting[0][0], self._deliver)


async def main(ends: list[tuple[str, str]], delay_seconds: float, jitter_seconds: float) -> None:
    """Until told to end; says `ready` once both ends are there."""
    one, other = (attach(namespace, device) for namespace, device in ends)
    directions = [
        Direction(source, target, delay_seconds, jitter_seconds)
        for source, target in ((one, other), (other, one))
    ]
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    print("ready", flush=True)
    await stop.wait()
    del directions


if __name__ == "__main__":
    asyncio.run(
        main([(sys.argv[1], sys.argv[2]), (sys.argv[3], sys.argv[4])], float(sys.argv[5]), float(sys.argv[6]))
    )
