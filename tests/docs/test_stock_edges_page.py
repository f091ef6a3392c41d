"""Each row of docs/stock-edges.md names a test that is there."""

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "stock-edges.md"
_TEST = re.compile(r"`([\w/]+\.py)(?:::(\w+))?`")


def rows() -> list[list[str]]:
    """The cells of each row but those of headings."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [row for row in cells if row[1] not in ("seen in", "---")]


@cache
def names_in(file: str) -> frozenset[str]:
    tree = ast.parse((ROOT / "tests" / file).read_text())
    return frozenset(
        node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    )


def test_every_row_says_what_it_was_seen_in_and_names_its_test() -> None:
    assert len(rows()) > 15
    for what, seen, means, test in rows():
        assert re.search(r"all three|v1\.2\d\.\d|read", seen), what
        assert means, what
        assert test.startswith("- (") or _TEST.search(test), what


def test_the_tests_that_it_names_are_there() -> None:
    named = _TEST.findall(PAGE.read_text())
    missing = [(file, name) for file, name in named if name and name not in names_in(file)]
    assert missing == []
    assert all((ROOT / "tests" / file).is_file() for file, _ in named)
