"""The one table of DeliveryService: which problem is which status code and reason (error_reason.proto)."""

from typing import Final

import asyncpg
import grpc

from campaign.delivery.v1.error_reason_pb2 import ErrorReason
from delivery_service.domain import problems
from delivery_service.store.database import UNAVAILABLE_ERRORS
from service_runtime.errors import ErrorStatus, ErrorTable
from service_runtime.problems import InvalidInput

DOMAIN: Final = "campaign"

_PREFIX: Final = "ERROR_REASON_"


def _row(code: grpc.StatusCode, reason: ErrorReason.ValueType) -> ErrorStatus:
    return ErrorStatus(code, ErrorReason.Name(reason).removeprefix(_PREFIX))


_UNAVAILABLE: Final = _row(grpc.StatusCode.UNAVAILABLE, ErrorReason.ERROR_REASON_DATABASE_UNAVAILABLE)
_TIMEOUT: Final = _row(grpc.StatusCode.DEADLINE_EXCEEDED, ErrorReason.ERROR_REASON_TIMEOUT)

ERROR_TABLE: Final[ErrorTable] = {
    InvalidInput: _row(grpc.StatusCode.INVALID_ARGUMENT, ErrorReason.ERROR_REASON_INVALID_FIELD),
    problems.RequestIdReused: _row(grpc.StatusCode.INVALID_ARGUMENT, ErrorReason.ERROR_REASON_REQUEST_ID_REUSED),
    problems.DeliveryNotFound: _row(grpc.StatusCode.NOT_FOUND, ErrorReason.ERROR_REASON_DELIVERY_NOT_FOUND),
    problems.SendLogNotFound: _row(grpc.StatusCode.NOT_FOUND, ErrorReason.ERROR_REASON_SEND_LOG_NOT_FOUND),
    problems.UploadNotFound: _row(grpc.StatusCode.NOT_FOUND, ErrorReason.ERROR_REASON_UPLOAD_NOT_FOUND),
    problems.StateProblem: _row(grpc.StatusCode.FAILED_PRECONDITION, ErrorReason.ERROR_REASON_DELIVERY_STATE),
    problems.KindProblem: _row(grpc.StatusCode.FAILED_PRECONDITION, ErrorReason.ERROR_REASON_DELIVERY_KIND),
    problems.ApprovalMissing: _row(grpc.StatusCode.FAILED_PRECONDITION, ErrorReason.ERROR_REASON_APPROVAL_MISSING),
    problems.SecondPersonNeeded: _row(
        grpc.StatusCode.FAILED_PRECONDITION, ErrorReason.ERROR_REASON_SECOND_PERSON_NEEDED
    ),
    problems.MtaSideUnavailable: _row(grpc.StatusCode.UNAVAILABLE, ErrorReason.ERROR_REASON_MTA_SIDE_UNAVAILABLE),
    problems.RulesOutdated: _row(grpc.StatusCode.FAILED_PRECONDITION, ErrorReason.ERROR_REASON_RULES_OUTDATED),
    problems.SuppressionListNotFound: _row(
        grpc.StatusCode.NOT_FOUND, ErrorReason.ERROR_REASON_SUPPRESSION_LIST_NOT_FOUND
    ),
    problems.SuppressionListExists: _row(
        grpc.StatusCode.ALREADY_EXISTS, ErrorReason.ERROR_REASON_SUPPRESSION_LIST_EXISTS
    ),
    problems.SuppressionListInUse: _row(
        grpc.StatusCode.FAILED_PRECONDITION, ErrorReason.ERROR_REASON_SUPPRESSION_LIST_IN_USE
    ),
    problems.NothingToRetry: _row(grpc.StatusCode.FAILED_PRECONDITION, ErrorReason.ERROR_REASON_NOTHING_TO_RETRY),
    problems.ErasureBlocked: _row(grpc.StatusCode.FAILED_PRECONDITION, ErrorReason.ERROR_REASON_ERASURE_BLOCKED),
    problems.PlanChanged: _row(grpc.StatusCode.ABORTED, ErrorReason.ERROR_REASON_PLAN_CHANGED),
    problems.DeliveryChanged: _row(grpc.StatusCode.ABORTED, ErrorReason.ERROR_REASON_DELIVERY_CHANGED),
    problems.AlreadyRunning: _row(grpc.StatusCode.ABORTED, ErrorReason.ERROR_REASON_ALREADY_RUNNING),
    problems.ChunkOutOfOrder: _row(grpc.StatusCode.OUT_OF_RANGE, ErrorReason.ERROR_REASON_CHUNK_OUT_OF_ORDER),
    problems.LimitReached: _row(grpc.StatusCode.RESOURCE_EXHAUSTED, ErrorReason.ERROR_REASON_LIMIT_REACHED),
    problems.LogOutOfRange: _row(grpc.StatusCode.OUT_OF_RANGE, ErrorReason.ERROR_REASON_LOG_OUT_OF_RANGE),
    problems.LogDropped: _row(grpc.StatusCode.FAILED_PRECONDITION, ErrorReason.ERROR_REASON_LOG_DROPPED),
    problems.MessageNotRendered: _row(
        grpc.StatusCode.FAILED_PRECONDITION, ErrorReason.ERROR_REASON_MESSAGE_NOT_RENDERED
    ),
    **dict.fromkeys(UNAVAILABLE_ERRORS, _UNAVAILABLE),
    asyncpg.QueryCanceledError: _TIMEOUT,
    TimeoutError: _TIMEOUT,
    asyncpg.DeadlockDetectedError: _UNAVAILABLE,
    asyncpg.SerializationError: _UNAVAILABLE,
    asyncpg.LockNotAvailableError: _UNAVAILABLE,
}
