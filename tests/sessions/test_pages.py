"""Page tokens: `services.sessions.pages`."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.sessions.pages import page_start, page_token
from services.sessions.records import Filter


@given(st.from_regex(r"[a-z0-9.-]{1,253}", fullmatch=True))
def test_a_token_leads_to_the_page_after_its_node(node_id: str) -> None:
    wanted = Filter(project_id="p1")
    assert page_start(wanted, page_token(wanted, node_id)) == node_id


def test_no_token_is_the_first_page() -> None:
    assert page_start(Filter(), "") == ""


def test_a_token_of_another_filter_is_refused() -> None:
    assert page_start(Filter(project_id="p2"), page_token(Filter(project_id="p1"), "edge-1")) is None


@pytest.mark.parametrize("token", ["x", "edge-1", "!!!!", "AAAA", "ä", page_token(Filter(), "")])
def test_what_is_no_token_is_refused(token: str) -> None:
    assert page_start(Filter(), token) is None


@given(st.text(max_size=40))
def test_no_text_breaks_it(token: str) -> None:
    page_start(Filter(), token)
