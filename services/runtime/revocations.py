"""The list of revoked gRPC certificates of a process: a file that is looked at while the process runs."""

from collections.abc import Callable
from pathlib import Path

from services.runtime.errors import StartupError, Unauthenticated
from services.runtime.logs import get_log
from services.runtime.names import shown
from services.runtime.revoked_list import MAX_BYTES, MalformedList, RevokedList, read_revoked
from services.runtime.roles import Identity
from services.runtime.tls_files import RenewedFiles

_log = get_log("tls")


class Revocations:
    """Of the file, or none. Raises StartupError if it cannot be used; later a list that cannot be used
    changes nothing, and is told once with the line that is wrong."""

    def __init__(self, path: Path | None = None) -> None:
        self._followers: list[Callable[[], None]] = []
        self.present = RevokedList()
        self._files = (
            None if path is None else RenewedFiles("revoked certificates", (path,), lambda: self._load(path))
        )

    def _load(self, path: Path) -> None:
        try:
            with path.open("rb") as file:
                present = read_revoked(file.read(MAX_BYTES + 1))
        except OSError as error:
            raise StartupError(
                f"cannot read the list of revoked certificates {path}: {error.strerror}"
            ) from error
        except MalformedList as error:
            raise StartupError(f"the list of revoked certificates {path}: {error}") from error
        self.present = present
        _log.info("revoked.read", file=str(path), serials=len(present.serials), names=len(present.names))
        for changed in tuple(self._followers):
            changed()

    def refusal(self, identity: Identity) -> Unauthenticated | None:
        """What is said against a certificate that is on the list."""
        if not self.present.has(identity.serial, identity.name):
            return None
        return Unauthenticated(
            "CERTIFICATE_REVOKED",
            f"the certificate of {shown(identity.name)} (serial {identity.serial:x}) is revoked",
        )

    def follow(self, changed: Callable[[], None]) -> Callable[[], None]:
        """Has `changed` called after each change, until what is returned is called."""
        self._followers.append(changed)
        return lambda: self._followers.remove(changed)

    def look(self) -> bool:
        """Loads a newer list; whether there was one that can be used."""
        return self._files is not None and self._files.look()
