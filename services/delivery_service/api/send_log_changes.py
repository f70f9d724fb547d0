"""WatchSendLogs: the transitions of one delivery in commit order, from any place in its log to its end.

The position of the stream is all the state that it has, and every response names it. So a stream cut anywhere goes on
at any replica: what is behind its position is in the log, in the order of the revisions of each slot.
"""

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from typing import Final

import asyncpg

from campaign.delivery.v1 import send_log_feed_pb2 as pb
from campaign.delivery.v1 import send_log_pb2
from delivery_service.api.resume_tokens import position_of, token_of
from delivery_service.api.send_log_feed import SendLogFeed
from delivery_service.api.send_log_filters import mode_of
from delivery_service.api.validation import delivery_id_of
from delivery_service.convert import OUTCOME_OFFSET, timestamp
from delivery_service.domain.log_position import LogPosition, Place
from delivery_service.domain.outcome import Outcome
from delivery_service.domain.status import STATUS_OF, FeedbackMode, reason_shown
from delivery_service.settings import Settings
from delivery_service.store.deliveries import Deliveries
from delivery_service.store.transition_log import LogState, TransitionLog
from service_runtime.clock import Clock

_ROWS_PER_TURN: Final = 250
"""Rows converted before other calls get their turn of the event loop."""
_CHANGE_OVERHEAD_BYTES: Final = 90
"""About what a change takes beside its texts."""


class SendLogChangeCalls:
    """`watch` serves one stream."""

    def __init__(
        self, deliveries: Deliveries, transitions: TransitionLog, feed: SendLogFeed, settings: Settings, clock: Clock
    ) -> None:
        self._deliveries = deliveries
        self._transitions = transitions
        self._feed = feed
        self._settings = settings
        self._clock = clock

    async def watch(self, request: pb.WatchSendLogsRequest) -> AsyncGenerator[pb.WatchSendLogsResponse]:
        delivery_id = delivery_id_of(request.delivery_id)
        position = position_of(delivery_id, request.resume_token)
        with self._feed.watching(delivery_id) as watch:
            delivery = await self._deliveries.get(delivery_id)
            mode = mode_of(request.feedback_mode, delivery)
            watch.offer(await self._transitions.state(delivery_id))
            while True:
                state = await watch.changed(self._settings.watch_heartbeat_seconds)
                if state is None:
                    yield pb.WatchSendLogsResponse(heartbeat_time=timestamp(self._clock.now()))
                    continue
                state.require_kept(delivery_id, position)
                async with aclosing(self._catch_up(delivery_id, position, state, mode)) as responses:
                    async for changes, behind in responses:
                        position = behind
                        changes.resume_token = token_of(delivery_id, position)
                        changes.revision = position.revision
                        changes.caught_up = position.covers(state.slot_revisions)
                        yield pb.WatchSendLogsResponse(changes=changes)
                if state.settled:
                    return

    async def _catch_up(
        self, delivery_id: int, position: LogPosition, state: LogState, mode: FeedbackMode
    ) -> AsyncGenerator[tuple[pb.SendLogChanges, LogPosition]]:
        """The transitions between a position and a state of the log, each response with the position behind it."""
        told = position
        for slot, revision in enumerate(state.slot_revisions):
            while position.at(slot).complete < revision:
                page = await self._transitions.page(delivery_id, slot, position.at(slot), revision)
                for rows, place in _responses(page.rows, page.place, self._settings.send_log_response_bytes_max):
                    changes = pb.SendLogChanges()
                    for begin in range(0, len(rows), _ROWS_PER_TURN):
                        changes.changes.extend(_change(row, mode) for row in rows[begin : begin + _ROWS_PER_TURN])
                        await asyncio.sleep(0)
                    position = told = position.moved(slot, place)
                    yield changes, position
                position = position.moved(slot, page.place)
        if told != position:
            # Revisions without transitions: only the place has moved.
            yield pb.SendLogChanges(), position


def _responses(
    rows: Sequence[asyncpg.Record], place: Place, bytes_max: int
) -> Iterator[tuple[Sequence[asyncpg.Record], Place]]:
    """Cuts a page into responses of bounded size, each with the place behind it: at the end of a revision where one
    fits, else inside it."""
    begin = 0
    while begin < len(rows):
        end, boundary, used = begin, begin, 0
        while end < len(rows):
            used += _size(rows[end])
            if used > bytes_max and end > begin:
                break
            end += 1
            if end < len(rows) and rows[end]["revision"] != rows[end - 1]["revision"]:
                boundary = end
        if end == len(rows):
            yield rows[begin:], place
            return
        if boundary > begin:
            end = boundary
            yield rows[begin:end], Place(rows[end - 1]["revision"])
        else:
            yield rows[begin:end], Place(rows[end - 1]["revision"], rows[end - 1]["recipient"])
        begin = end


def _size(row: asyncpg.Record) -> int:
    texts = row["profile_id"], row["diagnostic"], row["enhanced_code"]
    return _CHANGE_OVERHEAD_BYTES + sum(len(text.encode()) for text in texts)


def _change(row: asyncpg.Record, mode: FeedbackMode) -> pb.SendLogChange:
    """A row of the query log_page, in one mode's projection: it hides the reason of a message that it shows as sent."""
    before, outcome = Outcome(row["before"]), Outcome(row["outcome"])
    shown = reason_shown(mode, outcome)
    code_shown = shown or outcome is Outcome.DELIVERED
    return pb.SendLogChange(
        recipient=row["recipient"],
        profile_id=row["profile_id"],
        before=send_log_pb2.Outcome.ValueType(before + OUTCOME_OFFSET),
        outcome=send_log_pb2.Outcome.ValueType(outcome + OUTCOME_OFFSET),
        status_before=send_log_pb2.SendLogStatus.ValueType(STATUS_OF[mode][before]),
        status=send_log_pb2.SendLogStatus.ValueType(STATUS_OF[mode][outcome]),
        failure_type=send_log_pb2.FailureType.ValueType(row["failure_type"] if shown else 0),
        reason=send_log_pb2.Reason.ValueType(row["reason"] if shown else 0),
        smtp_code=row["smtp_code"] if code_shown else 0,
        enhanced_code=row["enhanced_code"] if code_shown else "",
        diagnostic=row["diagnostic"] if shown else "",
        attempt=row["attempt"],
        rules_version=row["rules_version"],
        event_time=timestamp(row["event_time"]),
        commit_time=timestamp(row["commit_time"]),
        slot=row["slot"],
        revision=row["revision"],
        correction=row["correction"],
    )
