"""Pods without a cluster: every container as its own user, in namespaces of its own, on a tree in which only
its mounts can be written to.

Each pod has a network namespace on a bridge; the names of Services stand in its hosts file. Needs root.
"""

import base64
import ctypes
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from demo.postgres import PostgresServer
from tests.deploy.images import SOURCE, Image, image
from tests.deploy.manifests import ROOT, Manifest, pod_of
from tests.lab.namespaces import Namespace, slot

NETWORK = "10.244.0"
_BRIDGE = f"{NETWORK}.1"
DATABASE_NAME = "db"
"""Under which pods know the PostgreSQL server: that of docs/deployment.md."""
_UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
STOP_SECONDS = 60.0
_POLL_SECONDS = 0.1
_PR_SET_PDEATHSIG = 1

Secrets = Mapping[str, Mapping[str, bytes]]


def _die_with_parent() -> None:
    """In a process that is being started: nothing outlives checks that are killed."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _bytes_of(quantity: str) -> int:
    match = re.fullmatch(r"(\d+)(Ki|Mi|Gi)", quantity)
    assert match, f"{quantity} is no quantity that is known here"
    return int(match[1]) * _UNITS[match[2]]


@dataclass
class Container:
    """One that runs or has run."""

    name: str
    process: "subprocess.Popen[bytes]"
    log_path: Path

    @property
    def log(self) -> str:
        """All that it wrote."""
        return self.log_path.read_text(errors="replace")

    @property
    def has_ended(self) -> bool:
        """Whether it runs no more."""
        return self.process.poll() is not None

    def ended(self, seconds: float) -> int:
        """Its exit status. Raises AssertionError with its log if it does not end."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} does not end:\n{self.log[-3000:]}") from None


@dataclass
class Pod:
    """A Deployment's pod. `command` of `start` stands for an entrypoint other than the image's."""

    cluster: "Cluster"
    name: str
    spec: Manifest
    address: str
    namespace: Namespace
    folder: Path
    containers: list[Container] = field(default_factory=list)

    @property
    def main(self) -> list[Container]:
        """Of those that were started, the ones that are to go on."""
        names = {f"{self.name}/{one['name']}" for one in self.spec["containers"]}
        return [one for one in self.containers if one.name in names]

    def start(self, container: Manifest, target: str, command: list[str] | None = None) -> Container:
        """Starts one container of it; returns at once."""
        script = self.folder / f"{container['name']}.sh"
        words = command or [*image(target).entrypoint, *container.get("args", ())]
        script.write_text(self._script(container, image(target), words))
        log_path = self.folder / f"{container['name']}.log"
        with log_path.open("ab") as log:
            process = subprocess.Popen(
                [
                    *("nsenter", f"--net=/run/netns/{self.namespace.name}"),
                    *("unshare", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child=KILL"),
                    *("sh", "-e", str(script)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        started = Container(f"{self.name}/{container['name']}", process, log_path)
        self.containers.append(started)
        return started

    def variables(self, container: Manifest) -> dict[str, str]:
        """What its process finds in its environment, beside the image's."""
        found = {"HOSTNAME": self.name}
        for one in container.get("env", ()):
            source = one.get("valueFrom", {})
            if "secretKeyRef" in source:
                reference = source["secretKeyRef"]
                found[one["name"]] = self.cluster.secrets[reference["name"]][reference["key"]].decode()
            elif "fieldRef" in source:
                assert source["fieldRef"]["fieldPath"] == "status.podIP"
                found[one["name"]] = self.address
            else:
                found[one["name"]] = re.sub(
                    r"\$\((\w+)\)", lambda match: found.get(match[1], match[0]), one["value"]
                )
        return found

    def _script(self, container: Manifest, of: Image, words: list[str]) -> str:
        root = self.folder / "root"
        root.mkdir(exist_ok=True)
        user = self.spec["securityContext"]
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        lines = [
            "mount --make-rprivate /",
            f"hostname {self.name}",
            f"mount -t tmpfs -o mode=755 root {root}",
            f"mkdir -p {root}/etc {root}/dev {root}/proc {root}{of.folder}",
            f"mkdir -m 1777 {root}/tmp",
            f"chown {user['runAsUser']}:{user['runAsGroup']} {root}{of.folder}",
            *(f"ln -s usr/{name} {root}/{name}" for name in ("bin", "lib", "lib64", "sbin")),
            f"cp {self.cluster.folder}/hosts {root}/etc/hosts",
            f"echo 'hosts: files' > {root}/etc/nsswitch.conf",
            f"echo 'nonroot:x:{user['runAsUser']}:{user['runAsGroup']}::/home/nonroot:/' > {root}/etc/passwd",
            f"mount -t proc proc {root}/proc",
        ]
        for device in ("null", "zero", "random", "urandom"):
            lines += [f"touch {root}/dev/{device}", f"mount --bind /dev/{device} {root}/dev/{device}"]
        for source, path in of.read_only().items():
            lines += _bind(Path(source), f"{root}{path}", is_writable=False)
        volumes = {one["name"]: one for one in self.spec.get("volumes", ())}
        for mount in container.get("volumeMounts", ()):
            lines += self._mount(volumes[mount["name"]], mount, f"{root}{mount['mountPath']}", user)
        lines.append(f"mount -o remount,ro,mode=755 {root}")
        environment = {**of.variables, "PYTHONPATH": SOURCE, **self.variables(container)}
        given = " ".join(shlex.quote(f"{name}={value}") for name, value in environment.items())
        groups = user.get("fsGroup", user["runAsGroup"])
        command = " ".join(map(shlex.quote, words))
        lines.append(
            f"exec chroot {root} env --ignore-environment --chdir={of.folder} {given} "
            f"setpriv --reuid={user['runAsUser']} --regid={user['runAsGroup']} --groups={groups} "
            f"--pdeathsig=KILL --no-new-privs --inh-caps=-all --bounding-set=-all {command}"
        )
        return "\n".join(lines) + "\n"

    def _mount(self, volume: Manifest, mount: Manifest, path: str, user: Manifest) -> list[str]:
        assert set(mount) <= {"name", "mountPath", "readOnly"}, mount
        group = user.get("fsGroup", 0)
        if "emptyDir" in volume:
            size = _bytes_of(volume["emptyDir"]["sizeLimit"])
            options = f"size={size},mode=2777,gid={group}"
            return [f"mkdir -p {path}", f"mount -t tmpfs -o {options} empty {path}"]
        if "persistentVolumeClaim" in volume:
            claim = self.folder / volume["persistentVolumeClaim"]["claimName"]
            claim.mkdir(exist_ok=True)
            os.chown(claim, 0, group)
            claim.chmod(0o2775)
            return _bind(claim, path, is_writable=not mount.get("readOnly", False))
        return _bind(self._files_of(volume, group), path, is_writable=False)

    def _files_of(self, volume: Manifest, group: int) -> Path:
        """The folder that a secret or a config map becomes: links into a folder that is replaced."""
        folder = self.folder / f"volume-{volume['name']}"
        if folder.exists():
            return folder
        if "secret" in volume:
            source, name = volume["secret"], volume["secret"]["secretName"]
            held: Mapping[str, bytes] | None = self.cluster.secrets.get(name)
        else:
            source, name = volume["configMap"], volume["configMap"]["name"]
            held = self.cluster.config_map(name)
        assert held is not None or source.get("optional"), f"{self.name} needs {name}"
        inner = folder / "..2026"
        inner.mkdir(parents=True)
        (folder / "..data").symlink_to("..2026")
        content = held or {}
        wanted = {one["key"]: one["path"] for one in source.get("items", ())} or {key: key for key in content}
        for key, path in wanted.items() if content else ():
            assert key in content, f"{self.name}: {name} has no key {key}"
            (inner / path).write_bytes(content[key])
            os.chown(inner / path, 0, group)
            (inner / path).chmod(source.get("defaultMode", 0o644))
            (folder / path).symlink_to(f"..data/{path}")
        return folder


def _bind(source: Path, path: str, *, is_writable: bool) -> list[str]:
    lines = [f"mkdir -p {path}", f"mount --bind {source} {path}"]
    return lines if is_writable else [*lines, f"mount -o remount,bind,ro {path}"]


class Cluster:
    """The pods of one overlay, a bridge between them and, where a secret names one, a PostgreSQL server."""

    def __init__(
        self, slot_number: int, folder: Path, objects: tuple[Manifest, ...], secrets: Secrets
    ) -> None:
        self.folder = folder
        self.secrets = secrets
        self._objects = objects
        self._slot = slot_number
        self.outside = Namespace(slot_number, "node")
        """Where the kubelet and PostgreSQL are."""
        self.pods: dict[str, Pod] = {}
        self._server: PostgresServer | None = None

    def config_map(self, name: str) -> dict[str, bytes] | None:
        """What a config map holds."""
        for one in self._objects:
            if (one["kind"], one["metadata"]["name"]) == ("ConfigMap", name):
                text = {key: value.encode() for key, value in one.get("data", {}).items()}
                return text | {
                    key: base64.b64decode(value) for key, value in one.get("binaryData", {}).items()
                }
        return None

    def create(self, deployments: list[Manifest]) -> None:
        """The network, the pods and the names of the Services in front of them."""
        self.outside.create()
        self.outside.ip("link", "add", "bridge", "type", "bridge")
        self.outside.ip("address", "add", f"{_BRIDGE}/24", "dev", "bridge")
        self.outside.ip("link", "set", "bridge", "up")
        for number, deployment in enumerate(deployments, 10):
            name = deployment["metadata"]["name"]
            folder = self.folder / name
            folder.mkdir()
            pod = Pod(
                self,
                name,
                pod_of(deployment),
                f"{NETWORK}.{number}",
                Namespace(self._slot, f"pod{number}"),
                folder,
            )
            self._connect(pod, number)
            self.pods[name] = pod
        (self.folder / "hosts").write_text("".join(self._hosts(deployments)))

    def _connect(self, pod: Pod, number: int) -> None:
        pod.namespace.create()
        inside = ("name", "eth0", "netns", pod.namespace.name)
        self.outside.ip("link", "add", f"pod{number}", "type", "veth", "peer", *inside)
        self.outside.ip("link", "set", f"pod{number}", "master", "bridge", "up")
        pod.namespace.ip("address", "add", f"{pod.address}/24", "dev", "eth0")
        pod.namespace.ip("link", "set", "eth0", "up")

    def _hosts(self, deployments: list[Manifest]) -> Iterator[str]:
        yield "127.0.0.1 localhost\n"
        yield f"{_BRIDGE} {DATABASE_NAME}\n"
        for service in self._objects:
            if service["kind"] != "Service":
                continue
            for deployment in deployments:
                labels = deployment["spec"]["template"]["metadata"]["labels"]
                if service["spec"]["selector"].items() <= labels.items():
                    name, space = service["metadata"]["name"], service["metadata"]["namespace"]
                    yield f"{self.pods[deployment['metadata']['name']].address} {name} {name}.{space}\n"

    def start_database(self, user: str, password: str, database: str) -> None:
        """PostgreSQL at the bridge, with the database that the secrets name."""
        self._server = server = PostgresServer(
            self.folder / "postgres", settings={"listen_addresses": "*", "fsync": "off"}, port=5432
        )
        server.create()
        with (server.data / "pg_hba.conf").open("a") as rules:
            rules.write(f"host all all {NETWORK}.0/24 scram-sha-256\n")
        with self.outside.entered():
            server.start()
            server.wait_ready()
            server.sql(f"CREATE ROLE \"{user}\" LOGIN PASSWORD '{password}'")
            server.sql(f'CREATE DATABASE "{database}" OWNER "{user}"')

    def sql(self, statement: str) -> str:
        """Runs a statement as the server's superuser."""
        assert self._server is not None
        with self.outside.entered():
            return self._server.sql(statement)

    def unready(self, probes: list[str], seconds: float) -> list[str]:
        """Which of ADDRESS:PORT/SERVICE do not say SERVING in time, with their last answer; at once which
        containers have ended instead of serving."""
        asking = subprocess.Popen(
            [
                *("nsenter", f"--net=/run/netns/{self.outside.name}"),
                *(sys.executable, "-m", "tests.deploy.probing", str(seconds), *probes),
            ],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        with asking:
            while asking.poll() is None:
                ended = [one.name for pod in self.pods.values() for one in pod.main if one.has_ended]
                if ended:
                    asking.kill()
                    return [f"{name} has ended" for name in ended]
                # Processes of many pods: the first of them that ends can only be polled for.
                time.sleep(_POLL_SECONDS)
            assert asking.stdout is not None
            assert asking.returncode == 0
            return asking.stdout.read().splitlines()

    def stop(self) -> dict[str, int]:
        """SIGTERM to every process that still runs, all at once; their exit statuses."""
        running = [one for pod in self.pods.values() for one in pod.containers if not one.has_ended]
        for one in running:
            subprocess.run(["pkill", "-TERM", "-P", str(one.process.pid)], check=False)
        return {one.name: one.ended(STOP_SECONDS) for one in running}

    def close(self) -> None:
        """Nothing is left of it."""
        for pod in self.pods.values():
            for one in pod.containers:
                if not one.has_ended:
                    one.process.kill()
                one.process.wait()
        if self._server is not None:
            self._server.stop()


@contextmanager
def cluster(
    folder: Path, objects: tuple[Manifest, ...], deployments: list[Manifest], secrets: Secrets
) -> Iterator[Cluster]:
    """The pods of these Deployments, none of their containers started; nothing is left of them afterwards."""
    with slot() as number:
        made = Cluster(number, folder, objects, secrets)
        try:
            made.create(deployments)
            yield made
        finally:
            made.close()
