"""Expecting an error status: its code, its ErrorInfo, its field violations."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import grpc
import grpc.aio
import pytest
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo
from grpc_status import rpc_status


@dataclass
class Refusal:
    """What the status said; filled when the block has ended."""

    message: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    fields: list[str] = field(default_factory=list)
    descriptions: list[str] = field(default_factory=list)


@asynccontextmanager
async def refused(code: grpc.StatusCode, reason: str) -> AsyncIterator[Refusal]:
    """The block must end with this status."""
    refusal = Refusal()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        yield refusal
    error = caught.value
    assert error.code() == code, error.details()
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # it takes the exception as well
    assert status is not None, "the status carries no details"
    refusal.message = status.message
    for detail in status.details:
        info, bad_request = ErrorInfo(), BadRequest()
        if detail.Unpack(info):
            assert info.reason == reason
            assert info.domain == "campaign"
            refusal.metadata = dict(info.metadata)
        elif detail.Unpack(bad_request):
            refusal.fields = [violation.field for violation in bad_request.field_violations]
            refusal.descriptions = [violation.description for violation in bad_request.field_violations]
