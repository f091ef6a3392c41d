"""Certificates, keys and CAs as files: read, checked, and looked at again for newer ones."""

import asyncio
import datetime
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from services.runtime.errors import StartupError
from services.runtime.logs import get_log

_log = get_log("tls")
LOOK_SECONDS = 5.0
"""How often files are looked at; a look asks the file system for times and sizes only."""

Stamp = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Where a process has its certificate (with its chain), the key of it, and the CA of its peers."""

    certificate: Path
    private_key: Path
    authority: Path

    @property
    def paths(self) -> tuple[Path, ...]:
        """All of them."""
        return (self.certificate, self.private_key, self.authority)


@dataclass(frozen=True, slots=True, repr=False)
class TlsMaterial:
    """What the files held, in PEM form; the parts fit each other and are valid."""

    certificate: bytes
    private_key: bytes
    authority: bytes
    not_after: datetime.datetime
    """Until when the certificate is valid."""


def key_exposure(path: Path) -> str:
    """What is wrong with who may read a private key, and the fix; "" if nothing is. Groups may: secrets of
    Kubernetes are read by them."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError:
        return ""
    if not mode & stat.S_IRWXO:
        return ""
    return (
        f"the private key {path} can be read or changed by everybody on this machine (mode {mode:04o}): "
        f"chmod 600 {path} (in Kubernetes: defaultMode 0440 and an fsGroup)"
    )


def _warn_by_log(sentence: str) -> None:
    _log.warning("private_key.exposed", detail=sentence)


def read_material(files: TlsFiles, now_ms: int, warn: Callable[[str], None] = _warn_by_log) -> TlsMaterial:
    """Raises StartupError with one sentence, naming the file, if one is unreadable, not valid now or does not
    fit the others. A key that everybody may read is used all the same, and `warn` is told."""
    certificate = _read(files.certificate, "certificate")
    authority = _read(files.authority, "CA certificate")
    own = _certificates(files.certificate, certificate, "certificate")[0]
    _check_times(files.certificate, [own], now_ms)
    _check_times(files.authority, _certificates(files.authority, authority, "CA certificate"), now_ms)
    private_key = _read(files.private_key, "private key")
    try:
        key = load_pem_private_key(private_key, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise StartupError(
            f"the private key {files.private_key} is not an unencrypted key in PEM form"
        ) from error
    try:
        fits = key.public_key() == own.public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise StartupError(f"the certificate {files.certificate} has a key of no known kind") from error
    if not fits:
        raise StartupError(
            f"the private key {files.private_key} does not belong to the certificate {files.certificate}"
        )
    exposure = key_exposure(files.private_key)
    if exposure:
        warn(exposure)
    return TlsMaterial(certificate, private_key, authority, own.not_valid_after_utc)


def _read(path: Path, what: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StartupError(f"cannot read the {what} {path}: {error.strerror}") from error


def _certificates(path: Path, data: bytes, what: str) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(data)
    except (ValueError, x509.InvalidVersion) as error:
        raise StartupError(f"the {what} {path} is not a certificate in PEM form") from error


def _check_times(path: Path, found: Sequence[x509.Certificate], now_ms: int) -> None:
    """One of a CA's several is enough: the next one is put beside the present one before it is used."""
    if any(
        one.not_valid_before_utc.timestamp() * 1000 <= now_ms < one.not_valid_after_utc.timestamp() * 1000
        for one in found
    ):
        return
    first = found[0]
    if first.not_valid_after_utc.timestamp() * 1000 <= now_ms:
        raise StartupError(f"the certificate {path} expired on {first.not_valid_after_utc:%Y-%m-%d}")
    raise StartupError(
        f"the certificate {path} is not valid before {first.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"
    )


def _stamp(path: Path) -> Stamp:
    try:
        found = path.stat()
    except OSError:
        return ()
    return (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


class RenewedFiles:
    """Loads files anew when one of them is another than before.

    `load` raises StartupError for files that cannot be used, such as a pair of which only one half is
    written yet: what was loaded before stays, and one line says which file is wrong.
    """

    def __init__(self, what: str, paths: Sequence[Path], load: Callable[[], None]) -> None:
        self._what = what
        self._paths = tuple(paths)
        self._load = load
        # Taken before the files are read: what changes meanwhile is found by the next look.
        self._stamps = self._present()
        load()

    def _present(self) -> list[Stamp]:
        return [_stamp(path) for path in self._paths]

    def look(self) -> bool:
        """Whether newer files were loaded."""
        present = self._present()
        if present == self._stamps:
            return False
        self._stamps = present
        try:
            self._load()
        except StartupError as error:
            _log.error("certificates.kept", what=self._what, error=str(error))
            return False
        _log.info("certificates.renewed", what=self._what, files=[str(path) for path in self._paths])
        return True

    async def run(self) -> None:
        """Looks every LOOK_SECONDS until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self.look()
