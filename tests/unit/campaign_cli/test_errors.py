"""What a person reads when something went wrong."""

import io

import grpc
import grpc.aio
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status
from rich.console import Console

from campaign_cli.errors import CommandFailed, explain, show_failure


def as_received(code: grpc.StatusCode, message: str, *details: Message) -> grpc.aio.AioRpcError:
    """The error as a client sees it, after its status has travelled in the trailing metadata."""
    status = Status(code=code.value[0], message=message)
    for detail in details:
        status.details.add().Pack(detail)
    sent = rpc_status.to_status(status)
    return grpc.aio.AioRpcError(
        sent.code, grpc.aio.Metadata(), grpc.aio.Metadata(*sent.trailing_metadata), sent.details
    )


def shown(failure: CommandFailed) -> list[str]:
    console = Console(file=io.StringIO(), record=True, width=100)
    show_failure(console, failure)
    return console.export_text().splitlines()


def test_reason_metadata_and_field_violations_are_lines_of_their_own() -> None:
    wrong = BadRequest()
    wrong.field_violations.add(field="delivery.label", description="has 201 characters: at most 200")
    wrong.field_violations.add(field="page_size", description="is negative")
    info = ErrorInfo(reason="INVALID_FIELD", domain="campaign", metadata={"b": "2", "a": "1"})
    assert shown(explain(as_received(grpc.StatusCode.INVALID_ARGUMENT, "two fields are wrong", info, wrong))) == [
        "Error: two fields are wrong",
        "  reason: INVALID_FIELD",
        "  a: 1",
        "  b: 2",
        "  delivery.label: has 201 characters: at most 200",
        "  page_size: is negative",
        "  status: INVALID_ARGUMENT",
    ]


def test_a_retry_delay_is_told() -> None:
    retry = RetryInfo()
    retry.retry_delay.FromMilliseconds(1_500)
    info = ErrorInfo(reason="LIMIT_REACHED", domain="campaign")
    error = as_received(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many watchers", info, retry)
    assert shown(explain(error))[1:3] == ["  reason: LIMIT_REACHED", "  try again in 1.5 s"]


def test_a_service_that_is_not_there_is_said_to_be_so() -> None:
    error = grpc.aio.AioRpcError(
        grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), "failed to connect to all addresses"
    )
    assert shown(explain(error)) == ["Error: the service can't be reached: is it running?", "  status: UNAVAILABLE"]


def test_an_error_without_details_keeps_its_message() -> None:
    error = grpc.aio.AioRpcError(grpc.StatusCode.UNIMPLEMENTED, grpc.aio.Metadata(), grpc.aio.Metadata(), "not [here]")
    assert shown(explain(error)) == ["Error: not [here]", "  status: UNIMPLEMENTED"]


def test_the_end_of_a_log_is_shown_as_it_is() -> None:
    failure = CommandFailed("feedback_service ended with status 1", ["log: a.log"], log=['{"level": "[ERROR]"}'])
    assert shown(failure)[2] == '  │ {"level": "[ERROR]"}'
