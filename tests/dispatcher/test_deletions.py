"""What a delete says of its object: `services.dispatcher.deletions`."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudhub.v1 import dispatcher_pb2 as pb
from services.dispatcher.deletions import CORE_KINDS, Incomplete, completed
from services.dispatcher.publication import Publication, PublishLimits, Rejection, check_request
from tests.support.dispatcher import NOW_MS, request

WHOLE = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "namespace": "shop"}}
CONFIG = "shop/configmap/a"


def complete(content: Any, resource: str = CONFIG) -> Any:
    return json.loads(completed(json.dumps(content).encode(), resource))


@pytest.mark.parametrize(
    "content",
    [
        None,
        {},
        {"metadata": None},
        {"metadata": {}},
        {"metadata": {"name": ""}, "kind": None, "apiVersion": ""},
        {"kind": "ConfigMap"},
        {"apiVersion": "v1", "metadata": {"name": "a"}},
    ],
)
def test_what_is_missing_comes_from_the_path(content: Any) -> None:
    """C23: one of an edge's two stores deletes by what the content says."""
    assert complete(content) == WHOLE


def test_what_is_there_stays_as_it_came() -> None:
    content = b'{"data": {"n": 9007199254740993, "x": 1.50},  "metadata": {"uid": "u", "name": "other"}}'
    found = completed(content, CONFIG)
    assert b'9007199254740993, "x": 1.50' in found
    metadata = {"uid": "u", "name": "other", "namespace": "shop"}
    assert json.loads(found)["metadata"] == metadata
    whole = json.dumps(WHOLE).encode()
    assert completed(whole, CONFIG) is whole


def test_a_cluster_scoped_object_has_no_namespace() -> None:
    assert complete(None, "null/node/edge-1") == {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": "edge-1"},
    }


@pytest.mark.parametrize(
    ("content", "resource", "missing"),
    [
        (None, "shop/deployment/web", "apiVersion, kind"),
        ({"apiVersion": "apps/v1"}, "shop/deployment/web", "kind"),
        ({"kind": "Service", "metadata": {}}, "shop/deployment/web", "apiVersion"),
        ({"kind": "Other"}, CONFIG, "apiVersion"),
        (None, "shop/configmap", "metadata.name, metadata.namespace"),
        ({"apiVersion": "v1", "kind": "X", "metadata": {"name": "n"}}, "", "metadata.namespace"),
    ],
)
def test_what_no_path_says_is_named(content: Any, resource: str, missing: str) -> None:
    """C16."""
    with pytest.raises(Incomplete, match=f"needs {missing} in its content"):
        complete(content, resource)


@pytest.mark.parametrize("content", ["text", 5, [], True, {"metadata": "m"}, {"metadata": []}])
def test_what_is_no_object_is_refused(content: Any) -> None:
    """C16."""
    with pytest.raises(Incomplete, match="must be an object, or null"):
        complete(content)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=9,
)


@given(
    content=st.fixed_dictionaries(
        {},
        optional={
            "apiVersion": st.none() | st.sampled_from(["", "v1", "apps/v1"]) | st.integers(),
            "kind": st.none() | st.sampled_from(["", "Pod", "Deployment"]),
            "metadata": st.none() | st.dictionaries(st.sampled_from(["name", "namespace", "uid"]), _JSON),
            "data": _JSON,
        },
    ),
    kind=st.sampled_from(["pod", "deployment", "node"]),
    namespace=st.sampled_from(["null", "shop"]),
)
def test_whatever_is_taken_says_all_that_edges_need(
    content: dict[str, Any], kind: str, namespace: str
) -> None:
    try:
        found = complete(content, f"{namespace}/{kind}/x")
    except Incomplete:
        return
    named = [found["apiVersion"], found["kind"], found["metadata"]["name"]]
    if namespace != "null":
        named.append(found["metadata"]["namespace"])
    assert all(isinstance(one, str) and one for one in named)
    assert {**content, "apiVersion": 0, "kind": 0, "metadata": 0} == {
        **found,
        "apiVersion": 0,
        "kind": 0,
        "metadata": 0,
    }


def test_the_kinds_are_those_of_the_core_group() -> None:
    assert CORE_KINDS["persistentvolumeclaim"] == "PersistentVolumeClaim"
    assert "deployment" not in CORE_KINDS
    assert "lease" not in CORE_KINDS


def deletion(content: bytes, resource: str = CONFIG) -> pb.PublishRequest:
    return request("edge-1", operation="delete", version="", content=content, resource=resource)


def test_a_delete_is_sent_completed() -> None:
    """C23: the key is what it was."""
    found = check_request(deletion(b"null"), PublishLimits(), "made-here", NOW_MS, "")
    assert isinstance(found, Publication)
    assert json.loads(found.message.content) == WHOLE
    assert (found.key, found.uid) == (CONFIG, "")
    assert json.dumps(WHOLE, separators=(",", ":")).encode() in found.body


def test_a_delete_that_leaves_the_object_at_the_edge_is_refused() -> None:
    """C16: with the field and what would be right."""
    what = deletion(b"null", "shop/deployment/web")
    refused = check_request(what, PublishLimits(), "made-here", NOW_MS, "")
    assert isinstance(refused, Rejection)
    assert (refused.reason, refused.field) == ("OBJECT_INCOMPLETE", "message.content")
    assert "apiVersion, kind" in refused.detail
    other_edges = PublishLimits(takes_unacknowledged=True)
    assert isinstance(check_request(what, other_edges, "made-here", NOW_MS, ""), Publication)


def test_other_messages_are_not_touched() -> None:
    update = request("edge-1", content=b"null")
    found = check_request(update, PublishLimits(), "made-here", NOW_MS, "")
    assert isinstance(found, Publication)
    assert found.message.content == b"null"
