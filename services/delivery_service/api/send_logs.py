"""Reading send logs and dead letters."""

from datetime import timedelta

from campaign.delivery.v1 import delivery_service_pb2 as pb
from campaign.delivery.v1 import send_log_pb2
from delivery_service import convert
from delivery_service.api.validation import (
    delivery_id_of,
    enums_of,
    page_size_of,
    page_token,
    place_of,
    require_valid,
    text_violation,
)
from delivery_service.domain.address import normalise_address
from delivery_service.domain.delivery import Delivery
from delivery_service.domain.lifecycle import HAS_SEND_LOGS, Channel
from delivery_service.domain.outcome import FailureType, Reason
from delivery_service.domain.problems import SendLogNotFound
from delivery_service.domain.status import FeedbackMode, Status, outcomes_shown_as
from delivery_service.settings import Settings
from delivery_service.store.deliveries import FIRST_PAGE, Deliveries
from delivery_service.store.feedback import FeedbackStore
from delivery_service.store.send_logs import Filters, SendLogs
from service_runtime.problems import InvalidInput

_STATUSES = {int(status): status for status in Status}
_FAILURE_TYPES = {int(kind): kind for kind in FailureType if kind is not FailureType.NONE}
_REASONS = {int(reason): reason for reason in Reason if reason is not Reason.NONE}
_RECIPIENT_MAX = 2**31 - 1


class SendLogCalls:
    """Shows each row in a feedback mode's projection."""

    def __init__(
        self, deliveries: Deliveries, send_logs: SendLogs, feedback: FeedbackStore, settings: Settings
    ) -> None:
        self._deliveries = deliveries
        self._send_logs = send_logs
        self._feedback = feedback
        self._settings = settings
        self._tolerance = timedelta(seconds=settings.event_time_ahead_tolerance_seconds)

    async def list(self, request: pb.ListSendLogsRequest) -> pb.ListSendLogsResponse:
        delivery_id = delivery_id_of(request.delivery_id)
        statuses = enums_of("statuses", request.statuses, _STATUSES)
        failure_types = enums_of("failure_types", request.failure_types, _FAILURE_TYPES)
        reasons = enums_of("reasons", request.reasons, _REASONS)
        require_valid([text_violation("address", request.address, self._settings.address_characters_max)])
        size = page_size_of(request.page_size, self._settings.page_size_default, self._settings.page_size_max)
        after = place_of(request.page_token, 0)
        if not 0 <= after <= _RECIPIENT_MAX:
            raise InvalidInput.of("page_token", "is not a token of this list: pass next_page_token on unchanged")
        delivery = await self._deliveries.get(delivery_id)
        if delivery.state not in HAS_SEND_LOGS:
            return pb.ListSendLogsResponse()
        mode = _mode(request.feedback_mode, delivery)
        outcomes = outcomes_shown_as(mode, statuses or frozenset(Status))
        if failure_types or reasons:
            # What the mode hides can't be asked for: a filter would tell it.
            outcomes &= outcomes_shown_as(mode, frozenset({Status.FAILED}))
        address = normalise_address(delivery.channel, request.address) if request.address else ""
        page = await self._send_logs.page(delivery_id, after, Filters(outcomes, failure_types, reasons, address), size)
        return pb.ListSendLogsResponse(
            send_logs=[convert.send_log_to_pb(send_log, mode, self._tolerance) for send_log in page.send_logs],
            next_page_token=page_token(page.next_after) if page.next_after is not None else "",
        )

    async def get(self, request: pb.GetSendLogRequest) -> pb.GetSendLogResponse:
        delivery_id = delivery_id_of(request.delivery_id)
        if not 1 <= request.recipient <= _RECIPIENT_MAX:
            raise InvalidInput.of("recipient", f"is {request.recipient}: give the recipient's number, from 1")
        delivery = await self._deliveries.get(delivery_id)
        if delivery.state not in HAS_SEND_LOGS:
            raise SendLogNotFound(delivery_id, request.recipient)
        mode = _mode(request.feedback_mode, delivery)
        send_log = await self._send_logs.get(delivery_id, request.recipient)
        limit = self._settings.timeline_entries_max
        entries = await self._send_logs.timeline(delivery_id, request.recipient, limit + 1)
        return pb.GetSendLogResponse(
            send_log=convert.send_log_to_pb(send_log, mode, self._tolerance),
            timeline=[convert.timeline_entry_to_pb(row) for row in entries[:limit]],
            timeline_truncated=len(entries) > limit,
        )

    async def list_dead_letters(self, request: pb.ListDeadLettersRequest) -> pb.ListDeadLettersResponse:
        size = page_size_of(request.page_size, self._settings.page_size_default, self._settings.page_size_max)
        rows = await self._feedback.list_dead_letters(place_of(request.page_token, FIRST_PAGE), size + 1)
        return pb.ListDeadLettersResponse(
            dead_letters=[
                pb.DeadLetter(
                    message_id=row["message_id"],
                    source_id=row["source_id"],
                    outcome=send_log_pb2.Outcome.ValueType(row["outcome"] + convert.OUTCOME_OFFSET),
                    tracking_kind=send_log_pb2.TimelineEntryKind.ValueType(max(row["tracking_kind"], 0)),
                    event_time=convert.timestamp(row["event_time"]),
                    create_time=convert.timestamp(row["create_time"]),
                    smtp_code=row["smtp_code"],
                    diagnostic=row["diagnostic"],
                    detail=row["detail"],
                )
                for row in rows[:size]
            ],
            next_page_token=page_token(rows[size - 1]["dead_letter_id"]) if len(rows) > size else "",
        )


def _mode(number: int, delivery: Delivery) -> FeedbackMode:
    if number == 0:
        return delivery.feedback_mode
    if number not in FeedbackMode.__members__.values():
        raise InvalidInput.of("feedback_mode", f"is {number}: give WITH_EFS, WITHOUT_EFS, or nothing")
    if number == FeedbackMode.WITH_EFS and delivery.channel is not Channel.EMAIL:
        raise InvalidInput.of("feedback_mode", f"is WITH_EFS on channel {delivery.channel.name}: it is of EMAIL alone")
    return FeedbackMode(number)
