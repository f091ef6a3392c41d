"""`python -m tests.lab.wire`: a long or narrow wire between two namespaces, for kernels without netem.

A packet that goes in at one end comes out at the other, in order, after it had its turn at the wire's rate,
the one-way delay and a random part of the jitter. Packets for which the queue before the rate has no room are
lost. They are packets of the kernel's own TCP: what else the devices at the ends do to packets composes with
it, and the kernels at the ends learn of the queue as they do of a router's.
"""

import asyncio
import fcntl
import os
import random
import signal
import struct
import sys
from collections import deque
from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True)
class Wire:
    """What one is like, the same in both directions."""

    delay_seconds: float = 0.0
    jitter_seconds: float = 0.0
    """Up to so much longer, at random; the order stays."""
    kbit_per_second: float = 0.0
    """0: any rate."""
    queue_seconds: float = 1.0
    """A packet that would have to wait longer than that for its turn at the rate is lost."""

    def words(self) -> list[str]:
        """As this program takes them."""
        return [str(getattr(self, name)) for name in self.__dataclass_fields__]


class Direction:
    """Packets from one end to the other."""

    def __init__(self, source: int, target: int, wire: "Wire") -> None:
        self._loop = asyncio.get_running_loop()
        self._source, self._target = source, target
        self._wire = wire
        self._free_at = 0.0
        """When the rate has room for the next packet."""
        self._waiting: deque[tuple[float, bytes]] = deque()
        self._last = 0.0
        self._loop.add_reader(source, self._take)

    def _take(self) -> None:
        while True:
            try:
                packet = os.read(self._source, _MOST_BYTES)
            except BlockingIOError:
                return
            now, wire = self._loop.time(), self._wire
            self._free_at = max(self._free_at, now)
            if len(self._waiting) >= _MOST_WAITING or self._free_at > now + wire.queue_seconds:
                continue
            if wire.kbit_per_second:
                self._free_at += len(packet) * 8 / (wire.kbit_per_second * 1000)
            due = self._free_at + wire.delay_seconds + random.uniform(0, wire.jitter_seconds)
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


async def main(ends: list[tuple[str, str]], wire: Wire) -> None:
    """Until told to end; says `ready` once both ends are there."""
    one, other = (attach(namespace, device) for namespace, device in ends)
    directions = [Direction(source, target, wire) for source, target in ((one, other), (other, one))]
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    print("ready", flush=True)
    await stop.wait()
    del directions


if __name__ == "__main__":
    words = sys.argv[1:]
    asyncio.run(main([(words[0], words[1]), (words[2], words[3])], Wire(*map(float, words[4:]))))
