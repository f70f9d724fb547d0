"""Reports on their way to FeedbackService: whoever brings one learns when it is acknowledged, and not before.

That is what makes the inputs lossless without a store of their own: a mail is answered 250, a place in the log is
remembered, a webhook is answered 2xx, only then; until then, their senders have them and send them again.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

from campaign.delivery.v1 import observation_service_pb2 as observation_pb
from campaign.feedback.v1 import feedback_service_pb2 as feedback_pb
from mta_bridge.domain.reports import FINAL_KINDS, Report
from mta_bridge.metrics import BridgeMetrics
from mta_side.status_stream import Taken
from service_runtime.clock import Clock

log = logging.getLogger(__name__)

LINGER_SECONDS: Final = 0.01
"""How long an event may wait for others to share its batch."""
DIAGNOSTIC_CHARACTERS_MAX: Final = 1_000
ENHANCED_CODE_CHARACTERS_MAX: Final = 20
"""What FeedbackService keeps. A batch that is too large for it would never be acknowledged, nor anything behind it."""


class Delivery:
    """What was brought together, and is acknowledged together."""

    def __init__(self, source: str, reports: Sequence[Report]) -> None:
        self.source = source
        self.reports = reports
        self.left = len(reports)
        self.acknowledged: asyncio.Future[None] = asyncio.get_running_loop().create_future()


Ticket = list[tuple[Delivery, int, int]]
"""Which reports of which deliveries a batch has: from, to."""


class FeedbackQueue:
    """The source of the feedback streams."""

    def __init__(
        self, pending_max: int, metrics: BridgeMetrics, clock: Clock, on_ended: Callable[[list[str]], None] | None
    ) -> None:
        self._pending_max = pending_max
        self._metrics = metrics
        self._clock = clock
        self._on_ended = on_ended
        self._waiting: deque[tuple[Delivery, int]] = deque()
        self._waiting_events = 0
        self.pending = 0
        self._ready = asyncio.Event()
        self._has_room = asyncio.Event()
        metrics.watch_pending(lambda: self.pending)

    async def report(self, source: str, reports: Sequence[Report]) -> None:
        """Returns once all of these are acknowledged. Cancelled before, they may be reported all the same."""
        if not reports:
            return
        delivery = await self.hand_in(source, reports)
        await delivery.acknowledged

    async def hand_in(self, source: str, reports: Sequence[Report]) -> Delivery:
        """Waits for room, and returns at once then: for who brings more before the first is acknowledged."""
        while self.pending >= self._pending_max:
            self._has_room.clear()
            await self._has_room.wait()
        delivery = Delivery(source, reports)
        self.pending += len(reports)
        self._waiting.append((delivery, 0))
        self._waiting_events += len(reports)
        self._ready.set()
        return delivery

    # EventSource

    async def some_ready(self, wanted: int) -> None:
        while not self._waiting:
            self._ready.clear()
            await self._ready.wait()
        if self._waiting_events < wanted:
            await self._clock.sleep(LINGER_SECONDS)

    def take(self, most: int) -> Taken[Ticket] | None:
        events: list[feedback_pb.MtaEvent] = []
        ticket: Ticket = []
        while self._waiting and len(events) < most:
            delivery, begin = self._waiting.popleft()
            end = min(len(delivery.reports), begin + most - len(events))
            events += [_event_of(report) for report in delivery.reports[begin:end]]
            ticket.append((delivery, begin, end))
            if end < len(delivery.reports):
                self._waiting.appendleft((delivery, end))
        self._waiting_events -= len(events)
        return Taken(events, ticket) if events else None

    def acknowledge(self, ticket: Ticket) -> None:
        ended: list[str] = []
        for delivery, begin, end in ticket:
            self.pending -= end - begin
            delivery.left -= end - begin
            self._metrics.count_reported(delivery.source, end - begin)
            if self._on_ended is not None:
                ended += [report.message_id for report in delivery.reports[begin:end] if report.kind in FINAL_KINDS]
            if not delivery.left and not delivery.acknowledged.done():
                delivery.acknowledged.set_result(None)
        if ended and self._on_ended is not None:
            self._on_ended(ended)
        self._has_room.set()

    def rejected(self, event: feedback_pb.MtaEvent, rejection: feedback_pb.EventRejection) -> None:
        reason = observation_pb.RejectionReason.Name(rejection.reason).removeprefix("REJECTION_REASON_")
        self._metrics.rejected.labels(reason).inc()
        told = {"action": "report", "message_id": event.message_id, "reason": reason, "detail": rejection.detail}
        log.warning("an event was not taken", extra=told)


def _event_of(report: Report) -> feedback_pb.MtaEvent:
    return feedback_pb.MtaEvent(
        message_id=report.message_id,
        kind=feedback_pb.MtaEventKind.ValueType(report.kind),
        event_time_us=report.event_time_us,
        smtp_code=report.smtp_code,
        enhanced_code=report.enhanced_code if len(report.enhanced_code) <= ENHANCED_CODE_CHARACTERS_MAX else "",
        diagnostic=report.diagnostic[:DIAGNOSTIC_CHARACTERS_MAX].replace("\0", " "),
        attempt=report.attempt,
        url=report.url[:2_000],
        vendor_class=report.vendor_class[:100],
        feedback_type=report.feedback_type[:100],
    )
