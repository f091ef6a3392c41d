"""Network namespaces of this machine, made and removed by name. Needs root; blocks for milliseconds."""

import ctypes
import fcntl
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX = "cloudhub"
SLOTS = 64
"""Labs of this machine that may exist at a time; a slot is a range of names and addresses."""
_CLONE_NEWNET = 0x40000000
_LOCKS = Path(tempfile.gettempdir()) / "cloudhub-lab"
_NAMED = Path("/run/netns")
_CONGESTION_CONTROL = Path("/proc/sys/net/ipv4/tcp_congestion_control")
_libc = ctypes.CDLL(None, use_errno=True)


class LabFault(Exception):
    """The machine did not do what a lab needs; the text says what."""


def missing() -> str:
    """Why this machine cannot have a lab; empty if it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    tools = [tool for tool in ("ip", "ss", "iptables") if shutil.which(tool) is None]
    if tools:
        return f"{', '.join(tools)} not installed (Debian: iproute2, iptables)"
    if not Path("/dev/net/tun").exists():
        return "/dev/net/tun does not exist"
    try:
        with slot() as number:
            probe = Namespace(number, "probe")
            probe.create()
            probe.run(
                "iptables", "-A", "INPUT", "-m", "statistic", "--mode", "random", "--probability", "0.5"
            )
            probe.ip("tuntap", "add", "probe", "mode", "tun")
    except LabFault as fault:
        return str(fault)
    return ""


def run(*words: str) -> str:
    """What a command answers. Raises LabFault with what it complains of."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabFault(f"{' '.join(words)}: {done.stderr.strip() or f'status {done.returncode}'}")
    return done.stdout


class Namespace:
    """One of a slot's namespaces."""

    def __init__(self, slot_number: int, name: str) -> None:
        self.name = f"{PREFIX}-{slot_number}-{name}"

    def create(self) -> None:
        """With its loopback up."""
        run("ip", "netns", "add", self.name)
        self.ip("link", "set", "lo", "up")
        with self.entered():
            # Whatever the machine prefers: every kernel has it, and lets namespaces choose it.
            _CONGESTION_CONTROL.write_text("reno")

    def ip(self, *words: str) -> str:
        """`ip` in it."""
        return run("ip", "-n", self.name, *words)

    def run(self, *words: str) -> str:
        """Any command in it."""
        return run("ip", "netns", "exec", self.name, *words)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """This thread is in it meanwhile: sockets made now stay in it for their life."""
        with Path("/proc/thread-self/ns/net").open() as former:
            enter(self.name)
            try:
                yield
            finally:
                _set(former.fileno())

    def socket(self, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
        """A socket whose packets begin and end here, for whoever plays an edge in this process."""
        with self.entered():
            return socket.socket(socket.AF_INET, kind)


def enter(name: str) -> None:
    """Moves this thread, and the processes that it starts, into a namespace. Raises OSError."""
    with (_NAMED / name).open() as file:
        _set(file.fileno())


def _set(descriptor: int) -> None:
    if _libc.setns(descriptor, _CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


@contextmanager
def slot() -> Iterator[int]:
    """A free slot, of which nothing is left of those who had it before, nor will be left."""
    _LOCKS.mkdir(exist_ok=True)
    for number in range(SLOTS):
        with (_LOCKS / f"{number}").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                continue
            sweep()
            _remove(number)
            try:
                yield number
            finally:
                _remove(number)
            return
    raise LabFault(f"all {SLOTS} labs of this machine are in use")


def desk(number: int) -> str:
    """The name of the device of a slot that is outside of its namespaces."""
    return f"ch{number}desk"


def sweep() -> None:
    """Removes what labs left behind whose processes were killed."""
    names = [path.name.split("-") for path in _NAMED.glob(f"{PREFIX}-*-*")] if _NAMED.exists() else []
    for number in {int(parts[1]) for parts in names if parts[1].isdecimal()}:
        with (_LOCKS / f"{number}").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                continue
            _remove(number)


def _remove(number: int) -> None:
    if Path(f"/sys/class/net/{desk(number)}").exists():
        run("ip", "link", "delete", desk(number))
    # Devices between two namespaces go with either of them.
    for path in sorted(_NAMED.glob(f"{PREFIX}-{number}-*")):
        run("ip", "netns", "delete", path.name)
