"""Closes deliveries: what a stop leaves behind, the end of the validity period, and settling.

Invariants:
- A message that may have left is decided by the MTA side alone: those of a part that was ever claimed are withdrawn
  first, and what the MTA side had accepted or refused is committed as that. Only what it will never send is canceled
  (stopped) or expired (out of time). While it can't be reached, they stay PREPARED.
- A part is closed under its own lease, as it is relayed: by one holder at a time. Closing a delivery is leased besides,
  so that replicas don't do the same work; every step may be repeated.
- All of it goes through the one apply path, as observations: a true report that comes later still wins.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Final

import grpc.aio

from campaign.mta.v1 import relay_service_pb2 as pb
from delivery_service.domain.delivery import Delivery
from delivery_service.domain.identifiers import message_ids
from delivery_service.domain.lifecycle import DeliveryState
from delivery_service.domain.outcome import FailureType, Outcome, Reason
from delivery_service.settings import Settings
from delivery_service.store.apply_writer import ApplyWriter
from delivery_service.store.closing import Closing
from delivery_service.store.deliveries import Deliveries
from delivery_service.store.observations import ObservationColumns
from delivery_service.store.relay_parts import Claim, RelayParts
from delivery_service.workers.relay_answers import UnsoundAnswer, observations, require_sound
from service_runtime.clock import Clock, to_microseconds

log = logging.getLogger(__name__)

_LISTED_MAX: Final = 100
_PARTS_AT_ONCE: Final = 8
_NEVER_TAKEN: Final = "the validity period ended before the MTA had taken the message"
_DECIDED: Final = frozenset((pb.RELAY_VERDICT_ACCEPTED, pb.RELAY_VERDICT_REFUSED, pb.RELAY_VERDICT_WITHDRAWN))

Withdraw = Callable[[pb.WithdrawRequest], Awaitable[pb.WithdrawResponse]]


class ClosingWorker:
    """`withdraw` is the MTA side's verb. `changed` is called with each delivery changed, to wake watchers."""

    def __init__(
        self,
        deliveries: Deliveries,
        closing: Closing,
        parts: RelayParts,
        withdraw: Withdraw,
        writer: ApplyWriter,
        settings: Settings,
        clock: Clock,
        changed: Callable[[int], None],
    ) -> None:
        self._deliveries = deliveries
        self._closing = closing
        self._parts = parts
        self._withdraw = withdraw
        self._writer = writer
        self._settings = settings
        self._clock = clock
        self._changed = changed

    async def work(self) -> bool:
        """Closes and settles what is due; True if there may be more."""
        grace = timedelta(seconds=self._settings.validity_grace_seconds)
        due = await self._closing.due(self._clock.now(), grace, _LISTED_MAX)
        closed = 0
        for delivery_id in due:
            if await self._closing.claim(delivery_id) and await self._close(await self._deliveries.get(delivery_id)):
                closed += 1
                self._changed(delivery_id)
        period = timedelta(seconds=self._settings.settle_seconds)
        settled = await self._closing.settle(self._clock.now(), period, _LISTED_MAX)
        for delivery_id in settled:
            self._changed(delivery_id)
        return closed == _LISTED_MAX or len(settled) == _LISTED_MAX

    async def _close(self, delivery: Delivery) -> bool:
        """Decides all that is undecided. False: some of it can't be yet."""
        stopping = delivery.state is DeliveryState.STOPPED and delivery.finish_time is None
        while claims := await self._parts.claim_to_close(delivery.delivery_id, _PARTS_AT_ONCE):
            decided = await asyncio.gather(*(self._close_part(delivery, claim, stopping) for claim in claims))
            if not (all(decided) and await self._closing.claim(delivery.delivery_id)):
                return False
        if await self._closing.has_open_parts(delivery.delivery_id):
            return False  # someone holds one: a relay worker that gives it up soon, or whose lease will end
        if stopping:
            return await self._closing.finish_stop(delivery.delivery_id, self._clock.now())
        await self._expire_deferred(delivery)
        return await self._closing.close_validity(delivery.delivery_id, self._clock.now())

    async def _close_part(self, delivery: Delivery, claim: Claim, stopping: bool) -> bool:
        """Decides the messages of one part that have not left. False: the MTA side could not be asked."""
        recipients = await self._parts.not_left(claim)
        if recipients and claim.claim_count > 1:  # someone had it before us
            answer = await self._withdrawn(delivery.delivery_id, recipients)
            if answer is None:
                await self._parts.release(claim, timedelta(seconds=self._settings.relay_retry_seconds))
                return False
            had_left = observations(delivery.delivery_id, recipients, answer)
            if len(had_left):
                await self._writer.apply(had_left)
            recipients = [
                recipient
                for recipient, verdict in zip(recipients, answer.verdicts, strict=True)
                if verdict == pb.RELAY_VERDICT_WITHDRAWN
            ]
        if recipients:
            await self._writer.apply(
                _canceled(delivery, recipients) if stopping else _expired_unsent(delivery, recipients)
            )
        await self._parts.release(claim, timedelta())
        return True

    async def _withdrawn(self, delivery_id: int, recipients: Sequence[int]) -> pb.WithdrawResponse | None:
        """What became of messages that must not leave any more, decided for each of them; None: unknown for now."""
        ids = message_ids(delivery_id, recipients)
        try:
            answer = await self._withdraw(pb.WithdrawRequest(delivery_id=str(delivery_id), message_ids=ids))
            require_sound(answer, len(recipients))
            if not _DECIDED.issuperset(answer.verdicts):
                raise UnsoundAnswer("the MTA side did not decide about a withdrawal")
        except (grpc.aio.AioRpcError, UnsoundAnswer) as error:
            detail = error.code().name if isinstance(error, grpc.aio.AioRpcError) else str(error)
            log.warning(
                "messages could not be withdrawn; trying again",
                extra={"action": "withdraw", "delivery_id": delivery_id, "error": detail},
            )
            return None
        return answer

    async def _expire_deferred(self, delivery: Delivery) -> None:
        """Messages that wait for a retry which will not come: they keep what their last failure was."""
        step = self._settings.apply_batch_size_max
        last_recipient = await self._closing.last_recipient(delivery.delivery_id)
        for first in range(1, last_recipient + 1, step):
            rows = await self._closing.deferred(delivery.delivery_id, first, first + step - 1)
            if rows:
                size = len(rows)
                await self._writer.apply(
                    ObservationColumns(
                        delivery_ids=[delivery.delivery_id] * size,
                        recipients=[row.recipient for row in rows],
                        outcomes=[Outcome.EXPIRED] * size,
                        event_times_us=[_deadline_us(delivery)] * size,
                        failure_types=[row.failure_type for row in rows],
                        reasons=[row.reason for row in rows],
                        smtp_codes=[row.smtp_code for row in rows],
                        enhanced_codes=[row.enhanced_code for row in rows],
                        diagnostics=[row.diagnostic for row in rows],
                        attempts=[row.attempt for row in rows],
                        rules_versions=[0] * size,
                    )
                )


def _canceled(delivery: Delivery, recipients: list[int]) -> ObservationColumns:
    assert delivery.stop_time is not None
    times_us = [to_microseconds(delivery.stop_time)] * len(recipients)
    return ObservationColumns.without_detail(delivery.delivery_id, recipients, Outcome.CANCELED, times_us)


def _expired_unsent(delivery: Delivery, recipients: list[int]) -> ObservationColumns:
    """Expired without ever having been handed over: it says nothing about the address."""
    size = len(recipients)
    columns = ObservationColumns.without_detail(
        delivery.delivery_id, recipients, Outcome.EXPIRED, [_deadline_us(delivery)] * size
    )
    columns.failure_types = [FailureType.IGNORED] * size
    columns.reasons = [Reason.NOT_DEFINED] * size
    columns.diagnostics = [_NEVER_TAKEN] * size
    return columns


def _deadline_us(delivery: Delivery) -> int:
    assert delivery.validity_end_time is not None
    return to_microseconds(delivery.validity_end_time)
