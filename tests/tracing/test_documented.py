"""docs/tracing.md tells the reasons for which messages are sent."""

import re
from pathlib import Path

from services.dispatcher.entry import Cause

PAGE = Path(__file__).parent.parent.parent / "docs" / "tracing.md"


def test_the_table_holds_every_cause_and_no_other() -> None:
    _, _, table = PAGE.read_text().partition("| `cloudhub.reason` of `deliver` | meaning |")
    told = re.findall(r"^\| `(\w+)` \| ", table.partition("\n\n")[0], re.MULTILINE)
    assert told == [value for name, value in vars(Cause).items() if name.isupper()]
