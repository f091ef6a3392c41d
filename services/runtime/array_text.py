"""One column of many rows as the text of a PostgreSQL array, `{"a",NULL,...}`. Pure.

The driver's own arrays ask of every element whether it is an array itself, which costs more than the rest
of a statement. A text of JSON needs no such question and is written in one call, and it reads as the text of
an array wherever nothing in it had to be escaped.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

_encoder = msgspec.json.Encoder()


def array_text(values: Sequence[Any]) -> str:
    """Of strings, integers, truth values and None.

    Raises ValueError for text that is no UTF-8; what does not fit the column's type is the database's to
    refuse.
    """
    text = _encoder.encode(values).decode()
    if "\\" in text:
        return f"{{{','.join(_elements(values))}}}"
    return f"{{{text[1:-1]}}}"


def _elements(values: Iterable[Any]) -> Iterable[str]:
    for value in values:
        if isinstance(value, str):
            escaped = value.replace("\\", "\\\\").replace('"', '\\"')
            yield f'"{escaped}"'
        else:
            yield _encoder.encode(value).decode()
