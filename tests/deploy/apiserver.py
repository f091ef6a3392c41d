"""A Kubernetes API server of its own for tests: the real one with its etcd, and no controller."""

import secrets
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.deploy.manifests import Manifest
from tests.support.processes import HOST, free_ports
from tests.support.tools import answers, program, running

# Said of every headless service, since the server itself puts the default "None" there.
_NOISE = "Warning: spec.SessionAffinity is ignored for headless services\n"


class ApiServer:
    """Asked by kubectl."""

    def __init__(self, kubectl: str, folder: Path, port: int, token: str) -> None:
        self._kubectl = kubectl
        self._home = folder
        self._config = folder / "kubeconfig"
        cluster = {"server": f"https://{HOST}:{port}", "insecure-skip-tls-verify": True}
        self._config.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [{"name": "test", "cluster": cluster}],
                    "users": [{"name": "admin", "user": {"token": token}}],
                    "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin"}}],
                    "current-context": "test",
                }
            )
        )

    def run(self, *words: str, given: str = "") -> subprocess.CompletedProcess[str]:
        """What kubectl says."""
        return subprocess.run(
            [self._kubectl, f"--kubeconfig={self._config}", f"--cache-dir={self._home / 'cache'}", *words],
            input=given,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def do(self, *words: str, given: str = "") -> str:
        """The same, which must go well and without a warning."""
        done = self.run(*words, given=given)
        told = done.stderr.replace(_NOISE, "")
        assert (done.returncode, told) == (0, ""), f"kubectl {' '.join(words)}: {told}"
        return done.stdout

    def would_take(self, *objects: Manifest) -> list[str]:
        """The objects as the server would store them, after every check that it makes."""
        words = ("apply", "--dry-run=server", "--validate=strict", "--output=name", "--filename=-")
        return self.do(*words, given=yaml.safe_dump_all(objects)).split()

    def refusal(self, obj: Manifest) -> str:
        """Why the server would not take the object."""
        words = ("apply", "--dry-run=server", "--validate=strict", "--filename=-")
        done = self.run(*words, given=yaml.safe_dump(obj))
        assert done.returncode, f"taken: {done.stdout}"
        return done.stderr


@asynccontextmanager
async def running_apiserver(kubectl: str, folder: Path) -> AsyncIterator[ApiServer]:
    """etcd and kube-apiserver with the admission plugins that are on by default."""
    etcd, apiserver = program("kubernetes", "etcd"), program("kubernetes", "kube-apiserver")
    client, peer, port = free_ports(3)
    token = secrets.token_hex(16)
    (folder / "tokens.csv").write_text(f"{token},admin,admin,system:masters\n")
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    accounts = folder / "accounts.key"
    accounts.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    store: list[str | Path] = [
        *(etcd, f"--data-dir={folder / 'etcd'}", "--unsafe-no-fsync"),
        *(f"--listen-client-urls=http://{HOST}:{client}", f"--advertise-client-urls=http://{HOST}:{client}"),
        *(f"--listen-peer-urls=http://{HOST}:{peer}", f"--initial-advertise-peer-urls=http://{HOST}:{peer}"),
        f"--initial-cluster=default=http://{HOST}:{peer}",
    ]
    server: list[str | Path] = [
        *(apiserver, f"--etcd-servers=http://{HOST}:{client}"),
        *(f"--bind-address={HOST}", f"--secure-port={port}", f"--cert-dir={folder / 'certs'}"),
        *("--authorization-mode=RBAC", f"--token-auth-file={folder / 'tokens.csv'}"),
        *(
            "--service-account-issuer=https://kubernetes.default.svc",
            "--service-cluster-ip-range=10.96.0.0/16",
        ),
        *(f"--service-account-key-file={accounts}", f"--service-account-signing-key-file={accounts}"),
    ]
    asked = ApiServer(kubectl, folder, port, token)
    async with (
        running(store, folder / "etcd.log", answers(f"http://{HOST}:{client}/health")),
        running(
            server,
            folder / "apiserver.log",
            lambda: asked.run("get", "--raw", "/readyz").returncode == 0,
            seconds=120.0,
        ),
    ):
        yield asked
