"""Every rule of docs/protocol.md, "Which messages want an acknowledgement"."""

import pytest

from services.dispatcher.ack_mode import resource_type, wants_acknowledgement

CONFIG = "default/configmap/cm1"


def wants(
    resource: str = CONFIG,
    *,
    content: bytes = b"{}",
    operation: str = "update",
    source: str = "edgecontroller",
    group: str = "resource",
    parent_id: str = "",
) -> bool:
    return wants_acknowledgement(source, group, operation, resource, content, has_parent=bool(parent_id))


@pytest.mark.parametrize("operation", ["insert", "update", "delete", "patch", "query", ""])
def test_anything_else_wants_an_acknowledgement(operation: str) -> None:
    assert wants(operation=operation)


@pytest.mark.parametrize(
    "resource",
    [
        "default/podlist",
        "membership/detail",
        "membership",
        "twin/cloud_updated",
        "device/x/twin/cloud_updated",
        "default/serviceaccounttoken/default",
        "k8s/ca.crt",
    ],
)
def test_some_resources_want_none(resource: str) -> None:
    assert not wants(resource, source="devicecontroller")


@pytest.mark.parametrize(
    "operation",
    [
        "createvolume",
        "deletevolume",
        "controllerpublishvolume",
        "controllerunpublishvolume",
        "applicationResponse",
    ],
)
def test_volume_operations_and_application_responses_want_none(operation: str) -> None:
    assert not wants(operation=operation)


def test_group_user_wants_none() -> None:
    assert not wants(group="user")


@pytest.mark.parametrize("source", ["taskmanager", "nodeupgradejobcontroller"])
def test_task_sources_want_none(source: str) -> None:
    assert not wants(source=source)


@pytest.mark.parametrize("content", [b'"OK"', b' "OK"\n', b'"error: no such object"', b'"Error to get"'])
def test_a_response_of_ok_or_an_error_wants_none(content: bytes) -> None:
    assert not wants(operation="response", content=content, parent_id="q1")


@pytest.mark.parametrize("content", [b"{}", b'"OKAY"', b'"ok"', b'{"error":1}'])
def test_a_response_that_carries_an_object_wants_one(content: bytes) -> None:
    assert wants(operation="response", content=content, parent_id="q1")


def test_an_error_answer_wants_none() -> None:
    assert not wants(operation="error", parent_id="q1")


@pytest.mark.parametrize("kind", ["lease", "nodepatch", "podpatch", "podstatus", "certificatesigningrequest"])
def test_some_types_of_edgecontroller_want_none(kind: str) -> None:
    assert not wants(f"default/{kind}/x")
    assert wants(f"default/{kind}/x", source="another")


@pytest.mark.parametrize(
    ("operation", "expected"), [("update", True), ("insert", False), ("response", False)]
)
def test_a_node_of_edgecontroller_wants_one_only_for_an_update(operation: str, expected: bool) -> None:
    assert wants("null/node/edge-1", operation=operation) is expected
    assert wants("null/node/edge-1", operation=operation, source="another")


@pytest.mark.parametrize(("operation", "expected"), [("response", False), ("update", True), ("delete", True)])
def test_a_pod_of_edgecontroller_wants_none_only_for_a_response(operation: str, expected: bool) -> None:
    assert wants("default/pod/p1", operation=operation) is expected


def test_the_type_is_the_second_part_of_the_path_and_no_other() -> None:
    assert resource_type("default/pod/p1/sub") == "pod"
    assert resource_type("default/pod") == "pod"
    assert resource_type("default") == resource_type("") == ""
    assert wants("lease/configmap/podstatus")
