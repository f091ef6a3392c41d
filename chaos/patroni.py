"""Two PostgreSQL servers that Patroni keeps: one leads, the other is its synchronous standby.

Patroni and the etcd that it keeps its word in come from `scripts/get_tools.py`. What they decide, and how
fast, is theirs: here processes are killed and a switchover is asked for, as an operator would.
"""

import asyncio
import json
import os
import secrets
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import yaml

from chaos.standby import DATABASE, SERVER_SETTINGS
from demo.databases import Databases, ensured_database, migrate
from demo.ports import free_port
from demo.postgres import USER, PostgresFault, PostgresServer, end_with_parent, find_binaries
from scripts.get_tools import path_of

TTL_SECONDS = 20
"""The shortest that Patroni takes: a leader that died with its machine is replaced after so long."""
LOOK_SECONDS = 0.2
MOST_SECONDS = 60.0
"""For any change of roles."""
REPLICATION_USER = "replicator"


def configuration(
    name: str,
    server: PostgresServer,
    binaries: Path,
    passwords: dict[str, str],
    etcd_port: int,
    rest_port: int,
) -> dict[str, Any]:
    """Patroni's file for one member (patroni.readthedocs.io, "YAML configuration settings")."""
    return {
        "scope": "cloudhub",
        "name": name,
        "restapi": {"listen": f"127.0.0.1:{rest_port}", "connect_address": f"127.0.0.1:{rest_port}"},
        "etcd3": {"hosts": [f"127.0.0.1:{etcd_port}"]},
        "bootstrap": {
            "dcs": {
                "ttl": TTL_SECONDS,
                "loop_wait": 1,
                "retry_timeout": 3,
                # Whoever takes over has every transaction that was answered.
                "synchronous_mode": True,
                "postgresql": {"parameters": {"max_connections": 200}},
            },
            "initdb": [{"encoding": "UTF8"}, {"locale": "C"}, "no-sync"],
        },
        "postgresql": {
            "listen": f"127.0.0.1:{server.port}",
            "connect_address": f"127.0.0.1:{server.port}",
            "data_dir": str(server.data),
            "bin_dir": str(binaries),
            "pgpass": str(server.folder / "pgpass"),
            "authentication": {
                user: {"username": login, "password": passwords[login]}
                for user, login in (("superuser", USER), ("replication", REPLICATION_USER))
            },
            "parameters": {**SERVER_SETTINGS, "unix_socket_directories": str(server.folder)},
            "pg_hba": [
                "local all all scram-sha-256",
                "host all all 127.0.0.1/32 scram-sha-256",
                f"host replication {REPLICATION_USER} 127.0.0.1/32 scram-sha-256",
            ],
            # A former leader whose history went another way is copied anew.
            "remove_data_directory_on_diverged_timelines": True,
            "basebackup": {"checkpoint": "fast"},
        },
    }


class _Member:
    """One Patroni and the server that it keeps. Blocking, but for `start`."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.server = PostgresServer(folder / name)
        self._python = folder / "patroni" / "bin" / "python"
        self.rest_port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def prepare(self, passwords: dict[str, str], etcd_port: int) -> None:
        """Writes Patroni's file."""
        binaries = find_binaries()
        assert binaries is not None, "the server found them"
        self.server.prepare(passwords[USER])
        path = self.server.folder / "patroni.yaml"
        made = configuration(self.name, self.server, binaries, passwords, etcd_port, self.rest_port)
        path.write_text(yaml.safe_dump(made))
        self.server.own(path)

    def start(self) -> None:
        """It ends with the thread that started it."""
        command = [str(self._python), "-m", "patroni", "patroni.yaml"]
        self._process = self.server.begin(command, self.server.folder / "patroni.log", signal.SIGTERM)

    def asked(self, path: str, body: dict[str, str] | None = None) -> dict[str, Any] | None:
        """What Patroni's REST API answers; None if it is not there or says no."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.rest_port}/{path}",
            data=json.dumps(body).encode() if body else None,
            headers={"Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                text = answer.read()
        except (OSError, urllib.error.URLError):
            return None
        try:
            found = json.loads(text)
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def has_role(self, role: str) -> bool:
        """Whether its server runs, as a `primary` or as a `replica`: what PostgreSQL itself says of that."""
        told = self.asked("patroni") or {}
        return (told.get("state"), told.get("role")) == ("running", role) and bool(self.postmaster)

    @property
    def postmaster(self) -> int:
        """The server's process id; 0 if there is none."""
        try:
            return int((self.server.data / "postmaster.pid").read_text().split("\n", 1)[0])
        except (OSError, ValueError):
            return 0

    def crash_server(self) -> None:
        """kill -9 of the server alone: Patroni sees it."""
        _kill_all(self.postmaster)

    def crash(self) -> None:
        """kill -9 of everything, as when the machine is gone."""
        assert self._process is not None, "Patroni was started"
        postmaster = self.postmaster
        self._process.kill()
        self._process.wait()
        self._process = None
        _kill_all(postmaster)

    def stop(self) -> None:
        """Patroni ends, and its server with it."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(MOST_SECONDS)
        except subprocess.TimeoutExpired:
            self.crash()
        self._process = None


def _kill_all(postmaster: int) -> None:
    """kill -9 of a server and its processes; returns when they are gone, and their memory with them."""
    try:
        leader = psutil.Process(postmaster)
        processes = [leader, *leader.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for one in processes:
        try:
            one.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(processes, timeout=MOST_SECONDS)


class PatroniPair:
    """As `chaos.standby.DatabasePair`, with the roles decided by Patroni. Raises PostgresFault."""

    def __init__(self, folder: Path) -> None:
        for tool in ("etcd", "patroni"):
            if not path_of(tool).exists():
                raise PostgresFault(f"{tool} is not here; get it by `python -m scripts.get_tools {tool}`")
        self._folder = folder.absolute()
        self._members = tuple(_Member(name, self._folder) for name in ("a", "b"))
        self._leader, self._standby = self._members
        self._etcd: subprocess.Popen[bytes] | None = None
        self._crashed: _Member | None = None
        self._url = ""

    @property
    def databases(self) -> Databases:
        """For the services: both hosts, whichever takes writes."""
        return Databases(self._url, self._url, self._leader.postmaster)

    async def start(self, logs: Path) -> None:
        """Makes both, and the schemas of the services."""
        etcd_port = self._start_etcd()
        # To where the servers' user, who may not enter the folder of tools, can start it.
        await asyncio.to_thread(shutil.copytree, path_of("patroni"), self._folder / "patroni", symlinks=True)
        passwords = {user: secrets.token_hex(16) for user in (USER, REPLICATION_USER)}
        for member in self._members:
            await asyncio.to_thread(member.prepare, passwords, etcd_port)
            # Started by this thread: it ends with the thread that started it.
            member.start()
        await self._until(self._has_leader, "no server leads")
        await self._until_synchronous()
        server = self._leader.server
        await asyncio.to_thread(ensured_database, server, DATABASE)
        self._url = self._members[0].server.url(DATABASE, self._members[1].server)
        await migrate(self.databases, logs)

    async def restart(self, hold_seconds: float) -> None:
        """The leader's server crashes; Patroni does about it what it does, whatever `hold_seconds` is."""
        await asyncio.to_thread(self._leader.crash_server)
        await self._until(self._has_leader, "no server leads")

    async def fail_over(self) -> None:
        """The leader's machine is gone; `mend` brings it back."""
        self._crashed = self._leader
        await asyncio.to_thread(self._crashed.crash)
        await self._until(self._has_leader, "the standby does not take over", TTL_SECONDS + MOST_SECONDS)

    async def switch_over(self) -> None:
        """The standby is told to lead."""
        names = {"leader": self._leader.name, "candidate": self._standby.name}
        wanted = self._standby
        answer = await asyncio.to_thread(self._leader.asked, "switchover", names)
        if answer is None:
            raise PostgresFault(
                f"Patroni refused a switchover from {names['leader']} to {names['candidate']}"
            )
        await self._until(self._has_leader, "no server leads")
        if self._leader is not wanted:
            raise PostgresFault("the switchover did not come about")

    async def mend(self) -> None:
        """Until there is a synchronous standby again."""
        if self._crashed:
            self._crashed.start()
            self._crashed = None
        await self._until_synchronous()

    async def close(self) -> None:
        """Stops all."""
        for member in (self._standby, self._leader):
            await asyncio.to_thread(member.stop)
        if self._etcd:
            self._etcd.terminate()
            await asyncio.to_thread(self._etcd.wait, MOST_SECONDS)

    def _start_etcd(self) -> int:
        port, peer_port = free_port(), free_port()
        data = self._folder / "etcd"
        data.mkdir(parents=True, exist_ok=True)
        client, peer = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{peer_port}"
        words = ["--name", "e", "--data-dir", str(data / "data"), "--unsafe-no-fsync"]
        words += ["--listen-client-urls", client, "--advertise-client-urls", client]
        words += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
        words += ["--initial-cluster", f"e={peer}"]
        with (data / "etcd.log").open("ab") as log:
            self._etcd = subprocess.Popen(
                [path_of("etcd") / "etcd", *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=end_with_parent(signal.SIGTERM),
                env={**os.environ, "ETCD_LOG_LEVEL": "warn"},
            )
        return port

    def _has_leader(self) -> bool:
        """Looks whose server takes writes, and keeps it. Who has the key of the leader may have no server."""
        for member in self._members:
            if member is not self._crashed and member.has_role("primary"):
                self._leader = member
                (self._standby,) = (one for one in self._members if one is not member)
                return True
        return False

    async def _until_synchronous(self) -> None:
        def look() -> bool:
            synchronous = self._has_leader() and self._standby.asked("synchronous") is not None
            return synchronous and self._standby.has_role("replica")

        await self._until(look, "there is no synchronous standby", TTL_SECONDS + MOST_SECONDS)

    async def _until(self, look: Callable[[], bool], fault: str, seconds: float = MOST_SECONDS) -> None:
        deadline = time.monotonic() + seconds
        while not await asyncio.to_thread(look):
            if time.monotonic() > deadline:
                raise PostgresFault(f"{fault} within {seconds:g} s; logs of Patroni: {self._folder}")
            await asyncio.sleep(LOOK_SECONDS)
