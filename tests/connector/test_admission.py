"""Who may open a link."""

import pytest

from services.connector.admission import CertificateNames, HttpRefusal, Identity, check_identity

_GOOD = CertificateNames(("system:nodes",), ("system:node:edge-1",))
_HEADERS = [("Node_id", "edge-1"), ("Project_id", "p1"), ("Connectionuse", "msg")]


def test_agreeing_certificate_path_and_headers_are_an_identity() -> None:
    assert check_identity(_GOOD, "/p1/edge-1/events", _HEADERS) == Identity("edge-1", "p1")


def test_header_names_are_case_insensitive_and_the_use_may_be_absent() -> None:
    headers = [("NODE_ID", "edge-1"), ("project_ID", "p1")]
    assert check_identity(_GOOD, "/p1/edge-1/events", headers) == Identity("edge-1", "p1")


@pytest.mark.parametrize(
    "uses", [["msg"] * dial for dial in range(1, 6)] + [["msg, msg", "msg"]], ids=lambda uses: ";".join(uses)
)
def test_how_often_the_use_is_told_says_nothing(uses: list[str]) -> None:
    """A stock edge's n-th dial of a round has n of them; a proxy may write them as one."""
    headers = [*_HEADERS[:2], *(("ConnectionUse", use) for use in uses)]
    assert check_identity(_GOOD, "/p1/edge-1/events", headers) == Identity("edge-1", "p1")


@pytest.mark.parametrize(
    ("certificate", "path", "headers", "status", "reason"),
    [
        (_GOOD, "/p1/edge-1", _HEADERS, 404, "path"),
        (_GOOD, "/p1/edge-1/events/", _HEADERS, 404, "path"),
        (_GOOD, "x/p1/edge-1/events", _HEADERS, 404, "path"),
        (_GOOD, "/p1/edge-1/events?x=1", _HEADERS, 404, "path"),
        (_GOOD, "/p1/Edge-1/events", _HEADERS, 403, "node_id_malformed"),
        (_GOOD, "/p1//events", _HEADERS, 403, "node_id_malformed"),
        (_GOOD, "/p 1/edge-1/events", _HEADERS, 403, "project_id_malformed"),
        (CertificateNames((), ("system:node:edge-1",)), "", [], 403, "certificate_organization"),
        (CertificateNames(("other",), ("system:node:edge-1",)), "", [], 403, "certificate_organization"),
        (CertificateNames(("system:nodes",), ()), "", [], 403, "certificate_name"),
        (CertificateNames(("system:nodes",), ("edge-1",)), "", [], 403, "certificate_name"),
        (
            CertificateNames(("system:nodes",), ("system:node:edge-1", "system:node:edge-2")),
            "",
            [],
            403,
            "certificate_name",
        ),
        (CertificateNames(("system:nodes",), ("system:node:edge-2",)), "", [], 403, "certificate_node"),
        (_GOOD, "", _HEADERS[1:], 403, "header_node_missing"),
        (_GOOD, "", [_HEADERS[0]], 403, "header_project_missing"),
        (_GOOD, "", [("Node_id", "edge-2"), *_HEADERS[1:]], 403, "header_node"),
        (_GOOD, "", [*_HEADERS, ("node_id", "edge-1")], 403, "header_node"),
        (_GOOD, "", [_HEADERS[0], ("Project_id", "p2")], 403, "header_project"),
        (_GOOD, "", [*_HEADERS[:2], ("Connectionuse", "other")], 403, "header_use"),
        (_GOOD, "", [*_HEADERS, ("Connectionuse", "stream")], 403, "header_use"),
        (_GOOD, "", [*_HEADERS[:2], ("Connectionuse", "")], 403, "header_use"),
        (_GOOD, "", [*_HEADERS[:2], ("Connectionuse", "msg,other")], 403, "header_use"),
    ],
)
def test_a_disagreement_is_a_refusal_that_says_what_disagrees(
    certificate: CertificateNames, path: str, headers: list[tuple[str, str]], status: int, reason: str
) -> None:
    """C6: the node is who the certificate says, not who a header says."""
    refusal = check_identity(certificate, path or "/p1/edge-1/events", headers)
    assert isinstance(refusal, HttpRefusal)
    assert (refusal.status, refusal.reason) == (status, reason)
    assert refusal.text


@pytest.mark.parametrize(
    ("said", "window"),
    [([], 0), (["1"], 1), ([" 300 "], 300), (["65536"], 65536), (["9" * 9], 65536)]
    + [([text], 0) for text in ("", "-1", "1e3", "\u0663", "9" * 10, "x")],
    ids=lambda value: str(value),
)
def test_how_many_messages_an_edge_takes_is_its_own_word(said: list[str], window: int) -> None:
    """What is no number says nothing, as a stock edge does."""
    headers = [*_HEADERS, *(("Cloudhub-Window", text) for text in said)]
    assert check_identity(_GOOD, "/p1/edge-1/events", headers) == Identity("edge-1", "p1", "", window)
