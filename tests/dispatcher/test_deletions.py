"""What a delete says of its object: `services.dispatcher.deletions`."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudhub.v1 import dispatcher_pb2 as pb
from cloudhub.v1.message_pb2 import Message
from services.dispatcher.deletions import (
    CORE_KINDS,
    MAX_TYPE_CHARS,
    Incomplete,
    Published,
    completed,
    kept_type,
    named,
)
from services.dispatcher.publication import Publication, PublishLimits, Rejection, check_request
from services.dispatcher.publication import complete as complete_publication
from tests.support.dispatcher import NOW_MS, request

WHOLE = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a", "namespace": "shop"}}
CONFIG = "shop/configmap/a"


def complete(content: Any, resource: str = CONFIG, published: Published | None = None) -> Any:
    return json.loads(completed(json.dumps(content).encode(), resource, published))


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
    found = completed(content, CONFIG, None)
    assert b'9007199254740993, "x": 1.50' in found
    metadata = {"uid": "u", "name": "other", "namespace": "shop"}
    assert json.loads(found)["metadata"] == metadata
    whole = json.dumps(WHOLE).encode()
    assert completed(whole, CONFIG, None) is whole
    assert named(whole, CONFIG) == (whole, False)


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


WEB = "shop/deployment/web"
DEPLOYMENT = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": "shop"}}


@pytest.mark.parametrize("content", [None, {"kind": "Deployment"}, {"apiVersion": "apps/v1"}, DEPLOYMENT])
def test_the_type_is_that_of_the_object_as_it_was_published(content: Any) -> None:
    """C23: a path says neither group nor version."""
    assert complete(content, WEB, Published("apps/v1 Deployment", "")) == DEPLOYMENT


def test_what_was_published_goes_before_what_a_path_reads_like() -> None:
    """C23: a Service of another group has the path of a core one."""
    knative = "serving.knative.dev/v1 Service"
    found = complete(None, "shop/service/web", Published(knative, ""))
    assert f"{found['apiVersion']} {found['kind']}" == knative
    assert complete(None, "shop/service/web", Published("", ""))["apiVersion"] == "v1"


@pytest.mark.parametrize("content", [{"kind": "Other"}, {"apiVersion": "apps/v2"}])
def test_a_type_that_contradicts_what_was_published_is_not_completed(content: Any) -> None:
    """C16."""
    with pytest.raises(Incomplete, match=r"needs (apiVersion|kind) in its content"):
        complete(content, WEB, Published("apps/v1 Deployment", ""))


def test_a_pod_gets_the_uid_it_was_published_with() -> None:
    """C23: a stock edge ends a pod by the uid in the content."""
    assert complete(None, "shop/pod/p", Published("", "u1"))["metadata"]["uid"] == "u1"
    own = {"metadata": {"uid": "own"}}
    assert complete(own, "shop/pod/p", Published("", "u1"))["metadata"]["uid"] == "own"
    assert "uid" not in complete(None, "shop/pod/p", Published("", ""))["metadata"]
    assert "uid" not in complete(None, CONFIG, Published("", "u1"))["metadata"]
    with pytest.raises(Incomplete, match=r"needs metadata\.uid in its content"):
        complete(None, "shop/pod/p", None)


def test_what_a_path_says_is_not_kept() -> None:
    assert kept_type("v1", "ConfigMap", CONFIG) == ""
    assert kept_type("v1", "ConfigMap", "shop/settings/a") == "v1 ConfigMap"
    assert kept_type("apps/v1", "Deployment", WEB) == "apps/v1 Deployment"


@pytest.mark.parametrize(
    ("api_version", "kind"),
    [
        ("", "X"),
        ("v1", ""),
        (1, "X"),
        ("v1", None),
        ("v 1", "X"),
        ("v1", "X\0"),
        ("v1", "x" * MAX_TYPE_CHARS),
    ],
)
def test_what_is_no_type_is_not_kept(api_version: object, kind: object) -> None:
    """C16: a database takes no NUL, and a row has a bound."""
    assert kept_type(api_version, kind, WEB) == ""
    longest = "x" * (MAX_TYPE_CHARS - len("v1 "))
    assert len(kept_type("v1", longest, WEB)) == MAX_TYPE_CHARS


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
    published=st.none()
    | st.builds(
        Published, st.sampled_from(["", "apps/v1 Deployment", "v1 Other"]), st.sampled_from(["", "u"])
    ),
)
def test_whatever_is_taken_says_all_that_edges_need(
    content: dict[str, Any], kind: str, namespace: str, published: Published | None
) -> None:
    try:
        found = complete(content, f"{namespace}/{kind}/x", published)
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


def test_a_delete_is_completed_by_what_is_stored() -> None:
    """C23: name and namespace are in its path, the key is what it was."""
    found = check_request(deletion(b"null"), PublishLimits(), "made-here", NOW_MS, "")
    assert isinstance(found, Publication)
    assert (found.key, found.uid, found.incomplete) == (CONFIG, "", True)
    whole = complete_publication(found, None)
    assert isinstance(whole, Publication)
    assert json.loads(whole.message.content) == WHOLE
    assert (Message.FromString(whole.body), whole.size_bytes) == (whole.message, len(whole.body))
    assert not whole.incomplete
    assert json.loads(found.message.content) == {"metadata": WHOLE["metadata"]}  # of other nodes


def test_a_delete_that_leaves_the_object_at_the_edge_is_refused() -> None:
    """C16: with the field and what would be right."""
    what = deletion(b"null", WEB)
    found = check_request(what, PublishLimits(), "made-here", NOW_MS, "")
    assert isinstance(found, Publication)
    refused = complete_publication(found, None)
    assert isinstance(refused, Rejection)
    assert (refused.reason, refused.field) == ("OBJECT_INCOMPLETE", "message.content")
    assert "apiVersion, kind" in refused.detail
    unnamed = check_request(deletion(b"null", "shop/deployment"), PublishLimits(), "made-here", NOW_MS, "")
    assert isinstance(unnamed, Rejection)
    assert "apiVersion, kind, metadata.name, metadata.namespace" in unnamed.detail
    other_edges = PublishLimits(takes_unacknowledged=True)
    as_it_is = check_request(deletion(b"null", WEB), other_edges, "made-here", NOW_MS, "")
    assert isinstance(as_it_is, Publication)
    assert (as_it_is.message.content, as_it_is.incomplete) == (b"null", False)


def test_other_messages_are_not_touched() -> None:
    update = request("edge-1", content=b"null")
    found = check_request(update, PublishLimits(), "made-here", NOW_MS, "")
    assert isinstance(found, Publication)
    assert found.message.content == b"null"
