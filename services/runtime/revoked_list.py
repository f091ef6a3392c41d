"""Which gRPC certificates count no more, as lines of text. Pure.

# a comment
serial: 4f1c9a...      of one certificate, hexadecimal, colons allowed
name: CN=shop,O=cloudhub:publisher      of all certificates of a subject, as the audit log writes callers
"""

from dataclasses import dataclass

MAX_BYTES = 1024 * 1024
MAX_SERIAL_DIGITS = 40
"""Of 20 bytes (RFC 5280, 4.1.2.2)."""


class MalformedList(ValueError):
    """A line that is none of those; the text names it by its number."""


@dataclass(frozen=True, slots=True)
class RevokedList:
    """Certificates by serial number and by subject."""

    serials: frozenset[int] = frozenset()
    names: frozenset[str] = frozenset()

    def __len__(self) -> int:
        return len(self.serials) + len(self.names)

    def has(self, serial: int, name: str) -> bool:
        """Whether a certificate with that serial number and subject is revoked."""
        return serial in self.serials or name in self.names


def read_revoked(data: bytes) -> RevokedList:
    """Raises MalformedList, also for a list above MAX_BYTES."""
    if len(data) > MAX_BYTES:
        raise MalformedList(f"the list has {len(data)} bytes, it should have at most {MAX_BYTES}")
    try:
        lines = data.decode().splitlines()
    except UnicodeDecodeError as error:
        number = data[: error.start].count(b"\n") + 1
        raise MalformedList(f"line {number} is not UTF-8 text") from None
    serials, names = set[int](), set[str]()
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        what, colon, value = (part.strip() for part in text.partition(":"))
        if what == "name" and value:
            names.add(value)
        elif what == "serial" and colon:
            serials.add(_serial(number, value))
        else:
            raise MalformedList(f"line {number} should be `serial: HEX`, `name: SUBJECT` or a comment (#)")
    return RevokedList(frozenset(serials), frozenset(names))


def _serial(number: int, value: str) -> int:
    digits = value.replace(":", "").lower().removeprefix("0x")
    if not digits or len(digits) > MAX_SERIAL_DIGITS or set(digits) - set("0123456789abcdef"):
        raise MalformedList(
            f"line {number}: a serial number should be 1 to {MAX_SERIAL_DIGITS} hexadecimal digits"
        )
    return int(digits, 16)
