"""Errors to gRPC statuses: one table per service says which exception is which code and reason.

Every status carries `google.rpc.ErrorInfo`; field violations and a retry delay come as their own standard details.
What stands in no table is a bug: the caller learns an id, the log has the rest under that id.
"""

import logging
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status

from service_runtime.access import PermissionDenied, TokenExpired, Unauthenticated
from service_runtime.problems import FieldViolation, InvalidInput, Problem

log = logging.getLogger(__name__)

# Trailing metadata beyond 8 KiB may be refused by the client, which then sees RESOURCE_EXHAUSTED and not our error. The
# message travels twice (in the details and percent-encoded, up to three bytes for one), the details as base64 (4/3):
# 3 * 512 + 4/3 * 4,096 leaves about 1 KiB for the rest.
DETAILS_BYTES_MAX = 4_096
MESSAGE_BYTES_MAX = 512
VIOLATIONS_MAX = 50
VIOLATION_FIELD_BYTES_MAX = 128
VIOLATION_DESCRIPTION_BYTES_MAX = 256
METADATA_ENTRIES_MAX = 12
METADATA_KEY_BYTES_MAX = 64
METADATA_VALUE_BYTES_MAX = 128
_DETAIL_OVERHEAD_BYTES = 96
"""More than an Any's type URL and lengths take."""


@dataclass(frozen=True, slots=True)
class ErrorStatus:
    """What callers get for one type of exception.

    `message` replaces the text of exceptions that are no `Problem`: a driver's text may hold SQL, data or addresses.
    """

    code: grpc.StatusCode
    reason: str
    message: str = "a part this service depends on is not available: try again later"


ErrorTable = Mapping[type[Exception], ErrorStatus]


class ShuttingDown(Problem):
    """The server is going away; another replica, or this one in a moment, will serve the call."""

    def __init__(self) -> None:
        super().__init__("this server is shutting down: call again", retry_delay_seconds=0.5)


RUNTIME_ERRORS: ErrorTable = {
    InvalidInput: ErrorStatus(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"),
    Unauthenticated: ErrorStatus(grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"),
    TokenExpired: ErrorStatus(grpc.StatusCode.UNAUTHENTICATED, "TOKEN_EXPIRED"),
    PermissionDenied: ErrorStatus(grpc.StatusCode.PERMISSION_DENIED, "ROLE_MISSING"),
    ShuttingDown: ErrorStatus(grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN"),
}
"""The errors of this package. A service's own table comes on top and may replace any of them."""


class ErrorTranslator:
    """Builds the status of any exception, by its service's table. `domain` says whose reasons these are."""

    def __init__(self, table: ErrorTable, domain: str, *, internal_reason: str = "INTERNAL") -> None:
        self._table = {**RUNTIME_ERRORS, **table}
        self._domain = domain
        self._internal_reason = internal_reason

    def lookup(self, kind: type[BaseException]) -> ErrorStatus | None:
        """The table's row for `kind` or for its nearest base class, in method resolution order."""
        for base in kind.__mro__:
            if (row := self._table.get(base)) is not None:
                return row
        return None

    def status_of(self, error: BaseException, method: str) -> Status:
        """The status that tells the caller of `method` about `error`; logs what the caller is not told."""
        row = self.lookup(type(error))
        if row is None:
            return self._internal(error, method)
        if isinstance(error, Problem):
            return self._of_problem(error, row)
        log.warning(
            "a dependency failed",
            extra={"action": "translate_error", "method": method, "reason": row.reason},
            exc_info=error,
        )
        return self._build(row.code, row.message, row.reason, {})

    def _internal(self, error: BaseException, method: str) -> Status:
        error_id = secrets.token_hex(8)
        log.error(
            "a call failed unexpectedly",
            extra={"action": "translate_error", "method": method, "error_id": error_id},
            exc_info=error,
        )
        message = f"internal error {error_id}: report this id to the operators"
        return self._build(grpc.StatusCode.INTERNAL, message, self._internal_reason, {"error_id": error_id})

    def _of_problem(self, problem: Problem, row: ErrorStatus) -> Status:
        metadata, message = dict(problem.metadata), problem.message
        details: list[Message] = []
        if problem.retry_delay_seconds is not None:
            retry = RetryInfo()
            retry.retry_delay.FromMilliseconds(max(0, round(problem.retry_delay_seconds * 1_000)))
            details.append(retry)
        if problem.violations:
            info_bytes = self._error_info(row.reason, metadata).ByteSize() + 2 * _DETAIL_OVERHEAD_BYTES
            used_bytes = info_bytes + min(len(message.encode()), MESSAGE_BYTES_MAX) + _DETAIL_OVERHEAD_BYTES
            bad_request = _bad_request(problem.violations, DETAILS_BYTES_MAX - used_bytes)
            details.append(bad_request)
            if left_out := len(problem.violations) - len(bad_request.field_violations):
                note = f" [{left_out} of {len(problem.violations)} violations are not listed]"
                message = cut(message, MESSAGE_BYTES_MAX - len(note)) + note
                metadata = {"violations_left_out": str(left_out), **metadata}
        return self._build(row.code, message, row.reason, metadata, *details)

    def _error_info(self, reason: str, metadata: Mapping[str, str]) -> ErrorInfo:
        kept = list(metadata.items())[:METADATA_ENTRIES_MAX]
        return ErrorInfo(
            reason=reason,
            domain=self._domain,
            metadata={cut(key, METADATA_KEY_BYTES_MAX): cut(value, METADATA_VALUE_BYTES_MAX) for key, value in kept},
        )

    def _build(
        self, code: grpc.StatusCode, message: str, reason: str, metadata: Mapping[str, str], *details: Message
    ) -> Status:
        status = Status(code=code.value[0], message=cut(message, MESSAGE_BYTES_MAX))
        for detail in (self._error_info(reason, metadata), *details):
            packed = AnyMessage()
            packed.Pack(detail)
            status.details.append(packed)
        return status


def cut(text: str, bytes_max: int) -> str:
    """`text`, or its beginning and an ellipsis, in at most `bytes_max` bytes of UTF-8. Never splits a character."""
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= bytes_max:
        return encoded.decode()
    return encoded[: max(0, bytes_max - 3)].decode("utf-8", "ignore") + "…"


def _bad_request(violations: Iterable[FieldViolation], bytes_max: int) -> BadRequest:
    """As many of the violations, in their order, as the limits allow; the first one always."""
    bad_request = BadRequest()
    for violation in violations:
        bad_request.field_violations.add(
            field=cut(violation.field, VIOLATION_FIELD_BYTES_MAX),
            description=cut(violation.description, VIOLATION_DESCRIPTION_BYTES_MAX),
        )
        count = len(bad_request.field_violations)
        if count > VIOLATIONS_MAX or (count > 1 and bad_request.ByteSize() > bytes_max):
            del bad_request.field_violations[-1]
            break
    return bad_request
