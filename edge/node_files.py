"""Key and certificate of a node as files that survive a power cut at any moment.

`nodes/<id>.crt` and `nodes/<id>.key` belong together but cannot be replaced together. So the next key waits
as `nodes/<id>.key.next`, from before it is shown to anybody: it becomes the key right after its certificate
has become the certificate, or when `settle` finds that this was cut short.
"""

import os
from contextlib import suppress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

_KEY_MODE = 0o600
_CERTIFICATE_MODE = 0o644


class StoredFault(Exception):
    """A file cannot be read or written; the text names it."""


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StoredFault(f"{path} cannot be read: {error.strerror}") from error


def _replace(path: Path, data: bytes, mode: int) -> None:
    """Writes a file; it appears whole and durable, or stays as it was."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        _rename(draft, path)
    except OSError as error:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        raise StoredFault(f"{path} cannot be written: {error.strerror}") from error


def _rename(source: Path, target: Path) -> None:
    source.replace(target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    data = _read(path)
    try:
        key = load_pem_private_key(data, None)
    except (ValueError, TypeError) as error:
        raise StoredFault(f"{path} is no unencrypted PEM private key") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise StoredFault(f"{path} is no elliptic-curve key")
    return key


class NodeFiles:
    """The files of one node. Raises StoredFault."""

    def __init__(self, folder: Path, node_id: str) -> None:
        self.node_id = node_id
        # Not with_suffix: a node id may hold dots.
        self.certificate = folder / "nodes" / f"{node_id}.crt"
        self.key = folder / "nodes" / f"{node_id}.key"
        self._next = folder / "nodes" / f"{node_id}.key.next"

    def settle(self) -> x509.Certificate | None:
        """The present certificate, whose key is in its place; None if there is none."""
        if not self.certificate.exists():
            return None
        data = _read(self.certificate)
        try:
            certificate = x509.load_pem_x509_certificate(data)
        except (ValueError, x509.InvalidVersion) as error:
            raise StoredFault(f"{self.certificate} is no PEM certificate") from error
        if self._next.exists() and _load_key(self._next).public_key() == certificate.public_key():
            self._take_next()
        return certificate

    def next_key(self) -> ec.EllipticCurvePrivateKey:
        """The key to ask the next certificate for. It is the same until that is installed, so that the hub
        knows a request again whose answer was lost."""
        if self._next.exists():
            return _load_key(self._next)
        key = ec.generate_private_key(ec.SECP256R1())
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        _replace(self._next, pem, _KEY_MODE)
        return key

    def install(self, certificate: x509.Certificate) -> None:
        """The next certificate becomes the present one, and its key with it."""
        _replace(self.certificate, certificate.public_bytes(Encoding.PEM), _CERTIFICATE_MODE)
        self._take_next()

    def _take_next(self) -> None:
        try:
            _rename(self._next, self.key)
        except OSError as error:
            raise StoredFault(f"{self.key} cannot be written: {error.strerror}") from error


def read_authorities(folder: Path) -> list[x509.Certificate]:
    """The CAs that are trusted."""
    path = folder / "ca.crt"
    if not path.exists():
        return []
    data = _read(path)
    try:
        return x509.load_pem_x509_certificates(data)
    except (ValueError, x509.InvalidVersion) as error:
        raise StoredFault(f"{path} is no PEM certificate") from error


def add_authority(folder: Path, authority: x509.Certificate) -> None:
    """Trusts a CA besides those that are trusted already."""
    present = read_authorities(folder)
    if authority not in present:
        pem = b"".join(one.public_bytes(Encoding.PEM) for one in (*present, authority))
        _replace(folder / "ca.crt", pem, _CERTIFICATE_MODE)
