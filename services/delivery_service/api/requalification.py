"""What re-qualification needs of DeliveryService: it reads reports, and corrects how they count. It has no rules."""

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import asyncpg
from google.protobuf.timestamp_pb2 import Timestamp

from campaign.delivery.v1 import requalification_service_pb2 as pb
from campaign.delivery.v1 import send_log_pb2
from campaign.delivery.v1.requalification_service_pb2_grpc import RequalificationServiceServicer
from delivery_service.api.columns import (
    ATTEMPT_MAX,
    DIAGNOSTIC_CHARACTERS_MAX,
    ENHANCED_CODE_CHARACTERS_MAX,
    RULES_VERSION_MAX,
    VENDOR_CLASS_CHARACTERS_MAX,
)
from delivery_service.api.validation import delivery_id_of, page_size_of, page_token, place_of, text_violation
from delivery_service.convert import OUTCOME_OFFSET
from delivery_service.domain.identifiers import RECIPIENT_MAX
from delivery_service.domain.outcome import (
    EVENT_TIME_US_MAX,
    EVENT_TIME_US_MIN,
    FAILING,
    FailureType,
    Outcome,
    Reason,
)
from delivery_service.settings import Settings
from delivery_service.store.deliveries import FIRST_PAGE
from delivery_service.store.requalification import BEFORE_ALL_RECIPIENTS, Change, Detail, Requalification, Verdict
from service_runtime.clock import Clock
from service_runtime.problems import InvalidInput

_REPORT_OVERHEAD_BYTES: Final = 60
"""About what a report takes beside its texts."""


class RequalificationCalls(RequalificationServiceServicer):
    """Every correction goes through CorrectReports; who asks is FeedbackService."""

    def __init__(
        self, store: Requalification, settings: Settings, clock: Clock, changed: Callable[[Iterable[int]], None]
    ) -> None:
        """`changed` is told of deliveries that were corrected: their watchers have something to see."""
        self._store = store
        self._settings = settings
        self._clock = clock
        self._changed = changed

    async def ListReportedDeliveries(
        self, request: pb.ListReportedDeliveriesRequest, context: Any
    ) -> pb.ListReportedDeliveriesResponse:
        since, until = time_range(request.since_time, request.until_time)
        size = page_size_of(request.page_size, self._settings.page_size_default, self._settings.page_size_max)
        found = await self._store.deliveries(place_of(request.page_token, FIRST_PAGE), since, until, size)
        return pb.ListReportedDeliveriesResponse(
            delivery_ids=map(str, found), next_page_token=page_token(found[-1]) if len(found) == size else ""
        )

    async def FenceRules(self, request: pb.FenceRulesRequest, context: Any) -> pb.FenceRulesResponse:
        await self._store.fence(delivery_id_of(request.delivery_id), _rules_version(request.rules_version))
        return pb.FenceRulesResponse()

    async def ListReports(self, request: pb.ListReportsRequest, context: Any) -> pb.ListReportsResponse:
        delivery_id, rules_version = delivery_id_of(request.delivery_id), _rules_version(request.rules_version)
        since, until = time_range(request.since_time, request.until_time)
        after = place_of(request.page_token, BEFORE_ALL_RECIPIENTS)
        if not BEFORE_ALL_RECIPIENTS <= after <= RECIPIENT_MAX:
            raise InvalidInput.of("page_token", "is not a token of this list: pass next_page_token on unchanged")
        page = await self._store.reports(delivery_id, after, since, until, rules_version)
        count = _whole_recipients(page.rows, self._settings.send_log_response_bytes_max)
        next_after = page.next_after if count == len(page.rows) else page.rows[count - 1]["recipient"]
        return pb.ListReportsResponse(
            reports=map(_report, page.rows[:count]),
            next_page_token=page_token(next_after) if next_after is not None else "",
        )

    async def CorrectReports(self, request: pb.CorrectReportsRequest, context: Any) -> pb.CorrectReportsResponse:
        delivery_id, rules_version = delivery_id_of(request.delivery_id), _rules_version(request.rules_version)
        limit = self._settings.apply_batch_size_max
        if not 0 < len(request.reports) <= limit:
            raise InvalidInput.of("reports", f"are {len(request.reports)}: give 1 to {limit}")
        verdicts = [_verdict(index, report) for index, report in enumerate(request.reports)]
        if not request.validate_only:
            await self._store.keep_details(
                [
                    Detail(delivery_id, *verdict[:3], report.mta_event_kind, report.vendor_class)
                    for verdict, report in zip(verdicts, request.reports, strict=True)
                    if report.mta_event_kind
                ]
            )
        changes = await self._store.correct(
            delivery_id, rules_version, verdicts, self._clock.now(), validate_only=request.validate_only
        )
        if changes and not request.validate_only:
            self._changed([delivery_id])
        return pb.CorrectReportsResponse(changes=map(_change, changes))


def time_range(since_time: Timestamp, until_time: Timestamp, now: datetime | None = None) -> tuple[datetime, datetime]:
    """The time that a request names; `now` is its end if none is given."""
    since = _time("since_time", since_time)
    until = now if now is not None and until_time == Timestamp() else _time("until_time", until_time)
    if since >= until:
        raise InvalidInput.of("since_time", "does not lie before until_time: give a time that has a length")
    return since, until


def _time(field: str, value: Timestamp) -> datetime:
    try:
        moment = value.ToDatetime(UTC)
    except ValueError:
        raise InvalidInput.of(field, "is not a time: give seconds and nanoseconds of one") from None
    if value == Timestamp():
        raise InvalidInput.of(field, "is missing: give a time")
    return moment


def _rules_version(value: int) -> int:
    if not 0 < value <= RULES_VERSION_MAX:
        raise InvalidInput.of("rules_version", f"is {value}: give 1 to {RULES_VERSION_MAX}")
    return value


def _whole_recipients(rows: Sequence[asyncpg.Record], bytes_max: int) -> int:
    """How many of the rows make one response: of about that size, and ending at the end of a recipient."""
    used = boundary = 0
    for index, row in enumerate(rows):
        if index and row["recipient"] != rows[index - 1]["recipient"]:
            boundary = index
        used += _REPORT_OVERHEAD_BYTES + len(row["diagnostic"].encode()) + len(row["vendor_class"])
        if used > bytes_max and boundary:
            return boundary
    return len(rows)


def _report(row: asyncpg.Record) -> pb.QualifiedReport:
    return pb.QualifiedReport(
        recipient=row["recipient"],
        outcome=send_log_pb2.Outcome.ValueType(row["outcome"] + OUTCOME_OFFSET),
        event_time_us=row["event_time_us"],
        smtp_code=row["smtp_code"],
        enhanced_code=row["enhanced_code"],
        diagnostic=row["diagnostic"],
        attempt=row["attempt"],
        failure_type=send_log_pb2.FailureType.ValueType(row["failure_type"]),
        reason=send_log_pb2.Reason.ValueType(row["reason"]),
        rules_version=row["rules_version"],
        disputed=row["disputed"],
        mta_event_kind=row["mta_event_kind"],
        vendor_class=row["vendor_class"],
    )


def _verdict(index: int, report: pb.QualifiedReport) -> Verdict:
    field = f"reports[{index}]"
    outcome = report.outcome - OUTCOME_OFFSET
    if outcome not in FAILING:
        raise InvalidInput.of(f"{field}.outcome", "is no failure: give DEFERRED, EXPIRED or BOUNCED")
    for name, value, low, high in (
        ("recipient", report.recipient, BEFORE_ALL_RECIPIENTS, RECIPIENT_MAX),
        ("event_time_us", report.event_time_us, EVENT_TIME_US_MIN, EVENT_TIME_US_MAX),
        ("failure_type", report.failure_type, FailureType.SOFT, max(FailureType)),
        ("reason", report.reason, Reason.NOT_DEFINED, max(Reason)),
        ("smtp_code", report.smtp_code, 0, 599),
        ("attempt", report.attempt, 0, ATTEMPT_MAX),
        ("mta_event_kind", report.mta_event_kind, 0, RULES_VERSION_MAX),
    ):
        if not low <= value <= high:
            raise InvalidInput.of(f"{field}.{name}", f"is {value}: give {low:d} to {high:d}")
    for name, text, characters_max in (
        ("enhanced_code", report.enhanced_code, ENHANCED_CODE_CHARACTERS_MAX),
        ("diagnostic", report.diagnostic, DIAGNOSTIC_CHARACTERS_MAX),
        ("vendor_class", report.vendor_class, VENDOR_CLASS_CHARACTERS_MAX),
    ):
        if violation := text_violation(f"{field}.{name}", text, characters_max):
            raise InvalidInput([violation])
    return Verdict(
        report.recipient,
        outcome,
        report.event_time_us,
        report.failure_type,
        report.reason,
        report.smtp_code,
        report.enhanced_code,
        report.diagnostic,
        report.attempt,
    )


def _change(change: Change) -> pb.QualificationChange:
    return pb.QualificationChange(
        outcome=send_log_pb2.Outcome.ValueType(Outcome(change.outcome) + OUTCOME_OFFSET),
        failure_type_before=send_log_pb2.FailureType.ValueType(change.failure_type_before),
        reason_before=send_log_pb2.Reason.ValueType(change.reason_before),
        failure_type=send_log_pb2.FailureType.ValueType(change.failure_type),
        reason=send_log_pb2.Reason.ValueType(change.reason),
        reports=change.reports,
        send_logs=change.send_logs,
    )
