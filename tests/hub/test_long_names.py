"""Long names in requests: errors stay what they are, and say a part of the name."""

from pathlib import Path
from typing import Any

import grpc
import pytest

from cloudhub.v1 import dispatcher_pb2 as pb
from services.runtime.rpc import error_info
from tests.support.certs import TestAuthority
from tests.support.hub import request, running_hub

_LONG = "\u6f22" * 300_000


async def test_an_error_about_a_long_name_keeps_its_code(tmp_path: Path, authority: TestAuthority) -> None:
    """C41: over gRPC's limit of metadata NOT_FOUND became RESOURCE_EXHAUSTED."""
    async with running_hub(tmp_path, authority) as hub:
        await hub.accept(request("edge-1"))
        for named, code, reason in (
            ({"object_key": _LONG}, grpc.StatusCode.NOT_FOUND, "MESSAGE_UNKNOWN"),
            ({"message_id": _LONG}, grpc.StatusCode.NOT_FOUND, "MESSAGE_UNKNOWN"),
            ({"message_id": "m", "node_id": _LONG}, grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"),
        ):
            fields: dict[str, Any] = {"node_id": "edge-1", **named}
            wanted = pb.ExplainDeliveryRequest(**fields)
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await hub.dispatcher_admin.ExplainDelivery(wanted, timeout=10)
            assert failed.value.code() is code
            assert error_info(failed.value)[0] == reason
            assert "300000" in (failed.value.details() or "")
