"""Messages of the hub as JSON: `ctl.plain`."""

import json

from google.protobuf.timestamp_pb2 import Timestamp

from cloudhub.v1 import dispatcher_pb2, sessions_pb2
from ctl.plain import as_dict


def test_fields_are_there_also_where_nothing_was_said() -> None:
    """In the order of the API: defaults, empty lists and maps, null for what is known to be absent."""
    assert as_dict(sessions_pb2.Instance(service="sessions")) == {
        "service": "sessions",
        "instance_id": "",
        "name": "",
        "address": "",
        "nodes": 0,
        "silent_seconds": 0.0,
        "version": "",
        "draining": False,
    }
    empty = as_dict(dispatcher_pb2.ExplainDeliveryResponse())
    assert (empty["object"], empty["events"]) == (None, [])
    limits = as_dict(sessions_pb2.GetLimitsResponse(limits=sessions_pb2.Limits(projects={"pilot": 50})))
    assert limits["limits"] == {"per_connector": 0, "per_project": 0, "total": 0, "projects": {"pilot": 50}}
    assert limits["nodes_by_connector"] == {}


def test_integers_are_numbers_as_far_as_every_reader_has_them_exactly() -> None:
    exact = as_dict(sessions_pb2.Session(epoch=2**53 - 1, link=7))
    assert (exact["epoch"], exact["link"]) == (9007199254740991, 7)
    assert as_dict(sessions_pb2.Session(epoch=2**53))["epoch"] == "9007199254740992"
    nested = as_dict(sessions_pb2.GetSessionResponse(session=sessions_pb2.Session(epoch=5)))
    assert nested["session"]["epoch"] == 5
    rows = [dispatcher_pb2.ObjectDelivery(seq=3, version="9007199254740993")]
    listed = as_dict(dispatcher_pb2.InspectNodeResponse(objects=rows))["objects"][0]
    # Versions have up to 20 digits: they are strings in the API, and stay so.
    assert (listed["seq"], listed["version"]) == (3, "9007199254740993")


def test_instants_are_as_the_api_writes_them() -> None:
    session = sessions_pb2.Session(opened_at=Timestamp(seconds=1))
    found = as_dict(session)
    assert (found["opened_at"], found["closed_at"]) == ("1970-01-01T00:00:01Z", None)
    assert json.loads(json.dumps(found)) == found
