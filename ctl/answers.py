"""How commands show what services answered: as JSON whole, else in a table or a sentence."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from google.protobuf.message import Message

from ctl.output import Output, show_json, show_table, write
from ctl.plain import as_dict

Found = TypeVar("Found", bound=Message)


def show_list(
    output: Output,
    found: Sequence[Found],
    columns: Sequence[str],
    rows: Callable[[Sequence[Found]], Sequence[Sequence[str]]],
    empty: str,
    *,
    wide: bool,
) -> None:
    """All that was found; `rows` makes a table of it, and `empty` is said where nothing was."""
    if output is Output.JSON:
        show_json([as_dict(one) for one in found])
    else:
        show_table(columns, rows(found), empty, wide=wide)


def show_answer(output: Output, answer: Message, sentence: str) -> None:
    """One answer; `sentence` says to people what came of it."""
    if output is Output.JSON:
        show_json(as_dict(answer))
    else:
        write(sentence)
