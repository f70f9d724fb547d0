"""Reading send logs and dead letters."""

from datetime import timedelta

from campaign.delivery.v1 import delivery_service_pb2 as pb
from campaign.delivery.v1 import send_log_pb2
from delivery_service import convert
from delivery_service.api.send_log_filters import AskedFilters, mode_of, recipient_of
from delivery_service.api.validation import (
    delivery_id_of,
    page_size_of,
    page_token,
    place_of,
    require_valid,
    text_violation,
)
from delivery_service.domain.address import normalise_address
from delivery_service.domain.identifiers import RECIPIENT_MAX
from delivery_service.domain.lifecycle import HAS_SEND_LOGS
from delivery_service.domain.problems import SendLogNotFound
from delivery_service.settings import Settings
from delivery_service.store.deliveries import FIRST_PAGE, Deliveries
from delivery_service.store.feedback import FeedbackStore
from delivery_service.store.send_logs import SendLogs
from service_runtime.problems import InvalidInput


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
        asked = AskedFilters.of(request)
        require_valid([text_violation("address", request.address, self._settings.address_characters_max)])
        size = page_size_of(request.page_size, self._settings.page_size_default, self._settings.page_size_max)
        after = place_of(request.page_token, 0)
        if not 0 <= after <= RECIPIENT_MAX:
            raise InvalidInput.of("page_token", "is not a token of this list: pass next_page_token on unchanged")
        delivery = await self._deliveries.get(delivery_id)
        if delivery.state not in HAS_SEND_LOGS:
            return pb.ListSendLogsResponse()
        mode = mode_of(request.feedback_mode, delivery)
        address = normalise_address(delivery.channel, request.address) if request.address else ""
        async with self._deliveries.log_kept(delivery_id):
            page = await self._send_logs.page(delivery_id, after, asked.in_mode(mode, address), size)
        return pb.ListSendLogsResponse(
            send_logs=[convert.send_log_to_pb(send_log, mode, self._tolerance) for send_log in page.send_logs],
            next_page_token=page_token(page.next_after) if page.next_after is not None else "",
        )

    async def get(self, request: pb.GetSendLogRequest) -> pb.GetSendLogResponse:
        delivery_id = delivery_id_of(request.delivery_id)
        recipient_of(request.recipient)
        delivery = await self._deliveries.get(delivery_id)
        if delivery.state not in HAS_SEND_LOGS:
            raise SendLogNotFound(delivery_id, request.recipient)
        mode = mode_of(request.feedback_mode, delivery)
        limit = self._settings.timeline_entries_max
        async with self._deliveries.log_kept(delivery_id):
            send_log = await self._send_logs.get(delivery_id, request.recipient)
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
