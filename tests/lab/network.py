"""A cloud and its edge sites, and the wires between them."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tests.lab.namespaces import LabFault, Namespace, desk, run, slot
from tests.lab.wire import Wire

_UPLINK = "uplink"
_FIRST_SITE = 10
_MOST_SITES = 60
_NEXT_ADDRESS = 100
"""Added to the last byte of a site's address when it changes."""


def launch_in(namespace: Namespace, *module: str) -> list[str]:
    """What the interpreter is told, to run a module (and its first arguments) in a namespace."""
    return ["-m", "tests.lab.inside", namespace.name, *module]


class Site(Namespace):
    """One edge location: its namespace, and its wire to the cloud. Made by Lab.add_site.

    What happens to the wire happens to packets: the programs at its ends are told nothing that a real network
    would not tell. Each method is one kind of damage; `mend` ends those that lose packets.
    """

    def __init__(self, lab: "Lab", name: str, number: int) -> None:
        super().__init__(lab.slot, name)
        self.site = name
        self._lab = lab
        self._port = f"site{number}"
        """The device at the cloud's end."""
        self._host = number + _FIRST_SITE

    @property
    def address(self) -> str:
        """The present one."""
        return self._lab.address_of(self._host)

    def lose(self, fraction: float) -> None:
        """Of the packets of each direction so many are lost, at random."""
        match = ("-m", "statistic", "--mode", "random", "--probability", f"{fraction:g}", "-j", "DROP")
        self._drop_down(*match)
        self._drop_up(*match)

    def black_hole(self) -> None:
        """Every packet is lost, both ways."""
        self.swallow_up()
        self.swallow_down()

    def swallow_up(self) -> None:
        """Every packet of the edge is lost; those of the cloud arrive."""
        self._drop_up("-j", "DROP")

    def swallow_down(self) -> None:
        """Every packet of the cloud is lost; those of the edge arrive."""
        self._drop_down("-j", "DROP")

    def mend(self) -> None:
        """No packet is lost any more."""
        self.run("iptables", "-F", "INPUT")
        self._lab.cloud.run("iptables", "-F", self._port)

    def link_down(self) -> None:
        """The cable is pulled at the edge's end, which notices."""
        self.ip("link", "set", _UPLINK, "down")

    def link_up(self) -> None:
        """It is put in again."""
        self.ip("link", "set", _UPLINK, "up")
        self._route()

    def change_address(self) -> None:
        """The edge gets another address; what used the old one hears no more."""
        old = self._host
        self._host = old - _NEXT_ADDRESS if old > _NEXT_ADDRESS else old + _NEXT_ADDRESS
        self.ip("address", "add", f"{self.address}/32", "dev", _UPLINK)
        self._route()
        self.ip("address", "delete", f"{self._lab.address_of(old)}/32", "dev", _UPLINK)
        self._lab.cloud.ip("route", "delete", self._lab.address_of(old), "dev", self._port)

    def reset(self) -> None:
        """Every TCP connection of the site is reset, at both ends, also while nothing can pass between."""
        self._lab.cloud.run("ss", "-K", "dst", self.address)
        self.run("ss", "-K", "dst", self._lab.cloud_address)

    def connect(self) -> None:
        """Makes the wire: Lab.add_site's part. Its ends must exist."""
        self.ip("address", "add", f"{self.address}/32", "dev", _UPLINK)
        for namespace, device in self.ends:
            namespace.ip("link", "set", device, "up")
        self._route()
        cloud = self._lab.cloud
        cloud.run("iptables", "-N", self._port)
        cloud.run("iptables", "-A", "INPUT", "-i", self._port, "-j", self._port)

    @property
    def ends(self) -> list[tuple[Namespace, str]]:
        """The cloud's end and the edge's end."""
        return [(self._lab.cloud, self._port), (self, _UPLINK)]

    def _route(self) -> None:
        self.ip("route", "replace", self._lab.cloud_address, "dev", _UPLINK, "src", self.address)
        self._lab.cloud.ip("route", "replace", self.address, "dev", self._port)

    def _drop_down(self, *match: str) -> None:
        self.run("iptables", "-A", "INPUT", "-i", _UPLINK, *match)

    def _drop_up(self, *match: str) -> None:
        self._lab.cloud.run("iptables", "-A", self._port, *match)


class Lab:
    """One cloud with one address, and its sites; `running_lab` makes and removes it."""

    def __init__(self, slot_number: int) -> None:
        self.slot = slot_number
        self.cloud = Namespace(slot_number, "cloud")
        self.sites: dict[str, Site] = {}
        self._wires: list[subprocess.Popen[str]] = []

    @property
    def cloud_address(self) -> str:
        """Where the hub listens, reached by every site and by this process."""
        return self.address_of(1)

    def address_of(self, host: int) -> str:
        """An address of this lab, from the range for measuring networks (RFC 2544)."""
        return f"198.18.{self.slot}.{host}"

    def create(self) -> None:
        """The cloud, and this process' wire to it."""
        self.cloud.create()
        device = desk(self.slot)
        self.cloud.ip("address", "add", f"{self.cloud_address}/32", "dev", "lo")
        run(
            *("ip", "link", "add", device, "type", "veth"),
            *("peer", "name", "desk", "netns", self.cloud.name),
        )
        run("ip", "address", "add", f"{self.address_of(2)}/32", "dev", device)
        run("ip", "link", "set", device, "up")
        self.cloud.ip("link", "set", "desk", "up")
        run("ip", "route", "add", self.cloud_address, "dev", device, "src", self.address_of(2))
        self.cloud.ip("route", "add", self.address_of(2), "dev", "desk")

    def add_site(self, name: str, wire: Wire | None = None) -> Site:
        """An edge location; without a `wire` of its own its link is as good as the machine can."""
        if len(self.sites) >= _MOST_SITES:
            raise LabFault(f"a lab has at most {_MOST_SITES} sites")
        site = Site(self, name, len(self.sites))
        site.create()
        self.sites[name] = site
        (cloud, port), (edge, uplink) = site.ends
        if wire is not None:
            for namespace, device in site.ends:
                namespace.ip("tuntap", "add", device, "mode", "tun")
            self._lay(wire, site)
        else:
            cloud.ip("link", "add", port, "type", "veth", "peer", "name", uplink, "netns", edge.name)
            for namespace, device in site.ends:
                # Packets of the size that a real wire carries, so that one loss is the loss of one.
                namespace.ip("link", "set", device, "gso_max_segs", "1")
        site.connect()
        return site

    def _lay(self, wire: Wire, site: Site) -> None:
        ends = [word for namespace, device in site.ends for word in (namespace.name, device)]
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.lab.wire", *ends, *wire.words()],
            stdout=subprocess.PIPE,
            text=True,
        )
        self._wires.append(process)
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise LabFault(f"the wire of {site.name} did not start")

    def close(self) -> None:
        """Ends the processes that are its wires."""
        for process in self._wires:
            process.terminate()
        for process in self._wires:
            with process:
                process.wait()


@contextmanager
def running_lab() -> Iterator[Lab]:
    """A lab with a cloud and no sites yet. Raises LabFault."""
    with slot() as number:
        lab = Lab(number)
        try:
            lab.create()
            yield lab
        finally:
            lab.close()
