"""What doubles of stock edges do not play: `tests.lab.stock`."""

import re
from pathlib import Path

import pytest

from tests.lab import stock

SCENARIOS = Path(__file__).parent.parent / "weak_network"
PAGE = Path(__file__).parent.parent.parent / "docs" / "weak-networks.md"


def test_whatever_is_left_out_is_a_scenario_and_told_with_its_reason() -> None:
    """The table of the page is the one that scenarios are skipped by."""
    for name in stock.LEFT_OUT:
        file, _, test = name.partition("::")
        assert f"def {test or 'test_'}" in (SCENARIOS / file).read_text()
    told = re.findall(r"^\| `(test_\w+\.py(?:::\w+)?)` \| (.+) \|$", PAGE.read_text(), re.MULTILINE)
    assert dict(told) == stock.LEFT_OUT


def test_a_file_or_a_test_is_left_out_with_all_its_parameters() -> None:
    assert stock.left_out("test_quic.py::test_any[quic]")
    assert stock.left_out("test_slow.py::test_a_window_makes_up_for_a_long_wire")
    assert not stock.left_out("test_slow.py::test_two_seconds_each_way_lose_no_message")
    assert not stock.left_out("test_outages.py::test_a_half_open_link_is_closed_in_time[what-swallow]")


@pytest.mark.parametrize(
    ("edges", "transport", "told"), [("stock", "quic", "QUIC"), ("mine", "websocket", "'mine' should be")]
)
def test_what_cannot_be_played_is_refused(
    edges: str, transport: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C16."""
    monkeypatch.setattr(stock, "EDGES", edges)
    monkeypatch.setattr(stock, "STOCK", edges == "stock")
    with pytest.raises(ValueError, match=told):
        stock.check(transport)
