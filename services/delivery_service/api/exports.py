"""ExportSendLogs: all send logs of a delivery, or those that changed since a place in its log.

The token of an export is read before its first row. What is committed after that comes again in the next one, and
nothing is missed: whatever changes a row has a revision behind the token.
"""

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from datetime import timedelta
from typing import Final

from campaign.delivery.v1 import send_log_feed_pb2 as pb
from campaign.delivery.v1 import send_log_pb2
from delivery_service import convert
from delivery_service.api.resume_tokens import position_of, token_of
from delivery_service.api.send_log_filters import AskedFilters, mode_of
from delivery_service.api.validation import delivery_id_of
from delivery_service.domain.delivery import Delivery
from delivery_service.domain.lifecycle import HAS_SEND_LOGS, Channel, DeliveryState
from delivery_service.domain.log_position import LogPosition
from delivery_service.domain.problems import DeliveryChanged, LimitReached, LogOutOfRange
from delivery_service.domain.status import STATUS_OF, FeedbackMode
from delivery_service.settings import Settings
from delivery_service.store.deliveries import Deliveries
from delivery_service.store.send_logs import Filters, SendLog, SendLogs
from delivery_service.store.transition_log import LogState, TransitionLog

_ROWS_PER_RESPONSE: Final = 250
"""As many as are converted before other calls get their turn of the event loop; a row takes about 250 bytes, with the
longest texts 4 KB."""


class ExportCalls:
    """`export` serves one stream."""

    def __init__(
        self, deliveries: Deliveries, send_logs: SendLogs, transitions: TransitionLog, settings: Settings
    ) -> None:
        self._deliveries = deliveries
        self._send_logs = send_logs
        self._transitions = transitions
        self._settings = settings
        self._tolerance = timedelta(seconds=settings.event_time_ahead_tolerance_seconds)
        self._running = 0

    async def export(self, request: pb.ExportSendLogsRequest) -> AsyncGenerator[pb.ExportSendLogsResponse]:
        delivery_id = delivery_id_of(request.delivery_id)
        asked = AskedFilters.of(request)
        since = position_of(delivery_id, request.resume_token) if request.resume_token else None
        with self._slot():
            state = await self._transitions.state(delivery_id)
            delivery = await self._deliveries.get(delivery_id)
            mode = mode_of(request.feedback_mode, delivery)
            filters = asked.in_mode(mode)
            if state.log_dropped_time is not None:
                raise LogOutOfRange(delivery_id, state.log_dropped_time)
            if since is not None:
                state.require_kept(delivery_id, since)
                batches = self._changed(delivery_id, since, state, filters)
            else:
                batches = self._all(delivery, filters)
            async with aclosing(batches):
                async for send_logs in batches:
                    for begin in range(0, len(send_logs), _ROWS_PER_RESPONSE):
                        part = send_logs[begin : begin + _ROWS_PER_RESPONSE]
                        yield pb.ExportSendLogsResponse(
                            send_logs=[_exported(each, delivery, mode, self._tolerance) for each in part]
                        )
            # Before the start, a new preparation may replace every row without a transition.
            started = delivery.state >= DeliveryState.IN_PROGRESS
            token = token_of(delivery_id, LogPosition.through(state.slot_revisions)) if started else ""
            yield pb.ExportSendLogsResponse(resume_token=token)

    @contextmanager
    def _slot(self) -> Iterator[None]:
        limit = self._settings.exports_max
        if self._running >= limit:
            raise LimitReached(
                "exports_max", limit, "export through another replica, or when one has ended", retry_delay_seconds=5.0
            )
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1

    async def _all(self, delivery: Delivery, filters: Filters) -> AsyncGenerator[list[SendLog]]:
        """Every row that passes, by recipient."""
        after: int | None = 0 if delivery.state in HAS_SEND_LOGS else None
        while after is not None:
            page = await self._send_logs.page(
                delivery.delivery_id, after, filters, self._settings.send_log_page_rows_max
            )
            # Looked at behind the page: rows that were missing from it would be announced by now.
            await self._require_same(delivery)
            yield page.send_logs
            after = page.next_after

    async def _changed(
        self, delivery_id: int, since: LogPosition, state: LogState, filters: Filters
    ) -> AsyncGenerator[list[SendLog]]:
        """The present state of every row with a transition between the position and that state, if it passes."""
        for slot, revision in enumerate(state.slot_revisions):
            place = since.at(slot)
            while place.complete < revision:
                page = await self._transitions.changed(delivery_id, slot, place, revision, filters)
                yield page.send_logs
                place = page.place

    async def _require_same(self, delivery: Delivery) -> None:
        """LogOutOfRange if retention has dropped the rows, DeliveryChanged if a new preparation has replaced them."""
        state = await self._transitions.state(delivery.delivery_id)
        if state.log_dropped_time is not None:
            raise LogOutOfRange(delivery.delivery_id, state.log_dropped_time)
        if delivery.state < DeliveryState.IN_PROGRESS:
            now = await self._deliveries.get(delivery.delivery_id)
            if now.plan != delivery.plan:
                raise DeliveryChanged(delivery.delivery_id, "")


def _exported(send_log: SendLog, delivery: Delivery, mode: FeedbackMode, tolerance: timedelta) -> pb.ExportedSendLog:
    def status(of_mode: FeedbackMode) -> send_log_pb2.SendLogStatus.ValueType:
        return send_log_pb2.SendLogStatus.ValueType(STATUS_OF[of_mode][send_log.outcome])

    return pb.ExportedSendLog(
        send_log=convert.send_log_to_pb(send_log, mode, tolerance),
        status_with_efs=status(FeedbackMode.WITH_EFS)
        if delivery.channel is Channel.EMAIL
        else send_log_pb2.SEND_LOG_STATUS_UNSPECIFIED,
        status_without_efs=status(FeedbackMode.WITHOUT_EFS),
    )
