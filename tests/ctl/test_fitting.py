"""Tables on narrow terminals: `ctl.fitting` and `ctl.output`."""

import pytest

from ctl import tables
from ctl.fitting import FIRST_TO_GO, fitting, needed
from ctl.output import table_text

UUID = "dispatcher-1-98f78149-ded8-4c75-90e5-8d770fdcdb66"
INSTANCE = ("dispatcher", "dispatcher-1", "serving", "1.2.3", "127.0.0.1:50051", "2", "0.3 s ago", UUID)


def shown(columns: tuple[str, ...], row: tuple[str, ...], width: int) -> list[str]:
    return [columns[at] for at in fitting(columns, [row], width)]


def test_columns_go_one_by_one_until_the_rest_fits() -> None:
    assert shown(tables.INSTANCES, INSTANCE, 200) == list(tables.INSTANCES)
    narrow = shown(tables.INSTANCES, INSTANCE, 80)
    assert narrow == ["SERVICE", "NAME", "STATE", "VERSION", "ADDRESS", "NODES", "HEARD OF"]
    assert shown(tables.INSTANCES, INSTANCE, 60) == ["SERVICE", "NAME", "STATE", "VERSION", "NODES"]


def test_what_a_row_is_about_and_what_came_of_it_stay_at_any_width() -> None:
    one = ("shop/configmap/a", "shop/configmap/a", "update", "7", "parked", "3", "2 s ago", "refused")
    assert shown(tables.OBJECTS, one, 1) == ["RESOURCE", "STATE", "PARKED BECAUSE"]
    session = ("edge-1", "closed (revoked)", "2 s ago", "c", "d", "127.0.0.1:5", "1795526126887")
    assert shown(tables.SESSIONS, session, 1) == ["NODE", "STATE"]


def test_every_table_but_those_of_long_ids_fits_80_columns() -> None:
    node = "edge-" + "x" * 19
    rows: dict[tuple[str, ...], tuple[str, ...]] = {
        tables.NODES: (node, "draining", "10000", "64", "10000", "12 min ago", "12 min ago"),
        tables.SESSIONS: (node, "closed (keepalive timeout)", "2 d ago", *("x" * 20,) * 3, "1" * 13),
        tables.LINKS: (
            *(node, "12345", "2 d ago", "12 s", "1000 frames, 1000000 B"),
            *("999999", "999999", "p" * 21, "1" * 13),
        ),
        tables.INSTANCES: INSTANCE,
        tables.REVOKED: (node, "2 d ago", "enrolled anew"),
        tables.CERTIFICATES: (node, "2 d ago", "for 89 d", "renewal", "p" * 21, "f" * 40),
        tables.TOKENS: ("f" * 36, "edge-*", "p" * 32, "100 of 100", "2 d ago", "for 12 h"),
    }
    for columns, row in rows.items():
        kept = fitting(columns, [row], 80)
        assert needed([columns[at] for at in kept], [[row[at] for at in kept]]) <= 80, columns


@pytest.mark.parametrize("width", [40, 80, 120])
def test_no_id_is_broken_and_sentences_are(width: int) -> None:
    """A line that is longer than the terminal is the terminal's to break: what is copied is whole."""
    row = (UUID, "a sentence of many words " * 9)
    text = table_text(("NODE", "WHY"), [row], width=max(width, needed(("NODE", "WHY"), [row])), tty=False)
    assert UUID in text
    assert len(text.splitlines()) > 2


def test_only_columns_that_there_are_can_go() -> None:
    every = [table for name, table in vars(tables).items() if name.isupper() and isinstance(table, tuple)]
    assert set(FIRST_TO_GO) <= {column for table in every for column in table}
