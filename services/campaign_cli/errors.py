"""What went wrong, said to a person: no traceback, the service's own reason, and each wrong field by its name."""

from collections.abc import Sequence

import grpc
import grpc.aio
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status
from rich.console import Console
from rich.markup import escape


class CommandFailed(Exception):
    """A command can't do what it was asked to. The message says why and what to do; details are lines below it."""

    def __init__(self, message: str, details: Sequence[str] = (), *, log: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.details = tuple(details)
        self.log = tuple(log)
        """The last lines of a log that may explain it."""


def explain(error: grpc.aio.AioRpcError) -> CommandFailed:
    """A status as a failure to show: its message, its ErrorInfo and its field violations."""
    code = error.code().name
    if (status := _rich_status(error)) is None:
        hint = ": is it running?" if error.code() is grpc.StatusCode.UNAVAILABLE else ""
        return CommandFailed(
            f"the service can't be reached{hint}" if hint else error.details() or code, [f"status: {code}"]
        )
    details: list[str] = []
    for packed in status.details:
        for kind in (ErrorInfo, BadRequest, RetryInfo):
            message = kind()
            if packed.Unpack(message):
                details += _lines(message)
    return CommandFailed(status.message or code, [*details, f"status: {code}"])


def show_failure(console: Console, failure: CommandFailed) -> None:
    """Prints a failure, usually to stderr."""
    console.print(f"[bold red]Error:[/] {escape(failure.message)}", highlight=False, soft_wrap=True)
    for line in failure.details:
        console.print(f"  {escape(line)}", style="dim", highlight=False, soft_wrap=True)
    for line in failure.log:
        console.print(f"  │ {escape(line)}", style="dim", highlight=False, soft_wrap=True)


def _rich_status(error: grpc.aio.AioRpcError) -> Status | None:
    try:
        return rpc_status.from_call(error)  # type: ignore[arg-type]  # typed for grpc's other kind of call
    except ValueError:
        return None  # code or text of the details differ from the status: then the details are not to be trusted


def _lines(message: ErrorInfo | BadRequest | RetryInfo) -> list[str]:
    if isinstance(message, ErrorInfo):
        return [f"reason: {message.reason}", *(f"{key}: {value}" for key, value in sorted(message.metadata.items()))]
    if isinstance(message, BadRequest):
        return [f"{each.field}: {each.description}" for each in message.field_violations]
    return [f"try again in {message.retry_delay.ToMilliseconds() / 1_000:g} s"]
