"""Relays: hands the messages of deliveries IN_PROGRESS over to the MTA side, in parts claimed with leases.

Invariants:
- A part is read, relayed and committed by whoever holds its lease; two holders at once only repeat each other's
  message ids, and the MTA side's journal gives a repetition the first answer again.
- RELAYED is committed (through the one apply path) only after the MTA side has answered; a crash in between relays
  again what is still PREPARED, under the same message_id.
- A delivery is FINISHED only when no part has a PREPARED row left.
- A message is written to the MTA side only while its delivery was IN_PROGRESS at the last look: parts claimed before a
  pause or a stop give up what they have not written. What had been written by then is in flight.
  The same holds for messages to a recipient domain that is paused: any change of the paused domains has what was read
  before it read again.
- An address that was quarantined or denied since the preparation is not relayed: whoever reads a part sees it in the
  same statement (workers/barred.py).
"""

import asyncio
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from typing import Final

from campaign.delivery.v1 import delivery_pb2
from campaign.mta.v1 import relay_service_pb2 as pb
from delivery_service.convert import content_to_pb
from delivery_service.domain.delivery import VALIDITY_MAX, Delivery
from delivery_service.domain.lifecycle import DeliveryState
from delivery_service.metrics import Metrics
from delivery_service.settings import Settings
from delivery_service.store.apply_writer import ApplyWriter
from delivery_service.store.database import RETRYABLE_ERRORS, UNAVAILABLE_ERRORS
from delivery_service.store.deliveries import Deliveries
from delivery_service.store.relay_parts import Claim, PartMessages, RelayParts
from delivery_service.workers.barred import BarredMessages
from delivery_service.workers.relay_answers import UnsoundAnswer, hand_over, refusals, require_sound
from delivery_service.workers.relay_request import relay_batch
from delivery_service.workers.relay_stream import Halted, RelayBroken, RelayCall, RelayStream
from service_runtime.clock import Clock, to_microseconds

log = logging.getLogger(__name__)

_LISTED_MAX: Final = 1_000
_DECIDED: Final = frozenset((pb.RELAY_VERDICT_ACCEPTED, pb.RELAY_VERDICT_REFUSED))
_PACED_WAIT: Final = timedelta(seconds=1)
"""When to look again at a part of which the pacing holds messages back."""
_MESSAGE_OVERHEAD_BYTES: Final = 100
"""More than the message id, the deadline and the framing take."""
_CHARACTER_BYTES_MAX: Final = 4
"""Of UTF-8."""


class RelayWorker:
    """Keeps a bounded number of parts in flight, over all deliveries in turn. `changed`: wakes watchers."""

    def __init__(
        self,
        deliveries: Deliveries,
        parts: RelayParts,
        open_call: Callable[[], RelayCall],
        writer: ApplyWriter,
        barred: BarredMessages,
        settings: Settings,
        clock: Clock,
        metrics: Metrics,
        changed: Callable[[int], None],
    ) -> None:
        self._deliveries = deliveries
        self._parts = parts
        self._open_call = open_call
        self._writer = writer
        self._barred = barred
        self._settings = settings
        self._clock = clock
        self._metrics = metrics
        self._changed = changed
        self._stream: RelayStream | None = None
        self._in_flight: dict[asyncio.Task[None], Claim] = {}
        self._halted: set[int] = set()
        self._domain_pause_versions: dict[int, int] = {}
        self._failures = 0

    async def work(self) -> bool:
        """Claims and begins parts while there is room, finishes deliveries that are through. True: more may be free.

        Claims for half of the room at a time: one statement for several parts.
        """
        progressing = await self._deliveries.in_state(DeliveryState.IN_PROGRESS, _LISTED_MAX)
        random.shuffle(progressing)  # no delivery waits for another to end
        claimed = False
        for delivery_id in progressing:
            room = self._settings.relay_parts_in_flight_max - len(self._in_flight)
            if room <= 0:
                break
            share = max(1, room // len(progressing))
            claims = await self._parts.claim(delivery_id, share, self._clock.now())
            if claims:
                claimed = True
                delivery = await self._deliveries.get(delivery_id)
                for claim in claims:
                    task = asyncio.create_task(self._relay_part(delivery, claim), name=f"relay-part-{claim.part}")
                    self._in_flight[task] = claim
                    task.add_done_callback(self._part_ended)
            elif all(claim.delivery_id != delivery_id for claim in self._in_flight.values()) and (
                await self._deliveries.finish(delivery_id, self._clock.now())
            ):
                self._changed(delivery_id)
        full = len(self._in_flight) >= self._settings.relay_parts_in_flight_max
        while full and len(self._in_flight) > self._settings.relay_parts_in_flight_max // 2:
            await asyncio.wait(self._in_flight, return_when=asyncio.FIRST_COMPLETED)
        return full or claimed

    async def look_at_states(self) -> bool:
        """Halts what is in flight of deliveries that are no longer to be relayed: paused, stopped, or out of time."""
        in_flight = {claim.delivery_id for claim in self._in_flight.values()}
        # With nothing in flight nothing is halted: what is claimed next, after a resume, is not to be given up again.
        relayable = await self._deliveries.relayable(in_flight, self._clock.now()) if in_flight else {}
        self._domain_pause_versions = relayable
        self._halted = in_flight - relayable.keys()
        return False

    async def run_leases(self) -> None:
        """Prolongs the leases of what is in flight, until cancelled."""
        while True:
            await self._clock.sleep(self._settings.relay_lease_seconds / 3)
            by_delivery: dict[int, list[int]] = {}
            for claim in self._in_flight.values():
                by_delivery.setdefault(claim.delivery_id, []).append(claim.part)
            try:
                for delivery_id, parts in by_delivery.items():
                    await self._parts.renew(delivery_id, parts)
            except (*UNAVAILABLE_ERRORS, *RETRYABLE_ERRORS, TimeoutError) as error:
                log.warning("leases not renewed", extra={"action": "relay_leases", "error": type(error).__name__})

    async def close(self) -> None:
        """Cancels what is in flight: its leases end by themselves, and what was not answered is relayed again."""
        tasks = list(self._in_flight)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._stream is not None:
            await self._stream.close()

    def _part_ended(self, task: asyncio.Task[None]) -> None:
        claim = self._in_flight.pop(task)
        if not self._in_flight:
            self._changed(claim.delivery_id)  # it may be finished, and another one may have waited for the room
        if not task.cancelled() and (error := task.exception()) is not None:
            # A defect. The part's lease ends by itself, and it is tried again.
            log.error(
                "a part failed",
                extra={"action": "relay", "delivery_id": claim.delivery_id, "part": claim.part},
                exc_info=error,
            )

    async def _relay_part(self, delivery: Delivery, claim: Claim) -> None:
        """Relays one claimed part, and releases it: done, or free again after a back-off."""
        available_after, held, decided = timedelta(), 0, 0
        try:
            part = await self._parts.read(claim, delivery.channel)
            if part.barred and not await self._barred.settle(claim, part.barred):
                available_after = self._backoff()
            batches = _batches(part, self._settings.relay_batch_size_max, self._settings.relay_batch_bytes_max)
            # All are waited for before an error counts: none may go on behind the part's back.
            ended = await asyncio.gather(
                *(self._relay_batch(delivery, claim, batch) for batch in batches), return_exceptions=True
            )
            errors = [error for error in ended if isinstance(error, BaseException)]
            for error in sorted(errors, key=lambda error: isinstance(error, Halted)):  # a real one counts first
                raise error
            relayed = [batch for batch in ended if isinstance(batch, _Relayed)]
            if any(batch.handed_over.claim_ended for batch in relayed):
                self._failures = 0
                return
            available_after = max([available_after, *(batch.wait for batch in relayed)])
            decided = sum(batch.handed_over.decided for batch in relayed)
            if claim.held_back:
                available_after = max(available_after, _PACED_WAIT)
            held = part.held
            self._failures = 0
        except Halted:
            pass  # its unwritten messages stay PREPARED
        except (RelayBroken, UnsoundAnswer) as error:
            self._failures += 1
            available_after = self._backoff()
            log.warning(
                "a part is relayed again later",
                extra={"action": "relay", "delivery_id": claim.delivery_id, "part": claim.part, "error": str(error)},
            )
        except (*UNAVAILABLE_ERRORS, *RETRYABLE_ERRORS, TimeoutError) as error:
            # The lease ends by itself.
            log.warning("a part was given up", extra={"action": "relay", "error": type(error).__name__})
            return
        try:
            await self._parts.release(claim, available_after, held, decided)
        except (*UNAVAILABLE_ERRORS, *RETRYABLE_ERRORS, TimeoutError) as error:
            log.warning("a part was not released", extra={"action": "relay", "error": type(error).__name__})

    def _may_leave(self, claim: Claim) -> bool:
        """Whether messages that were read under this claim may be written, as far as the last look tells."""
        version = self._domain_pause_versions.get(claim.delivery_id, 0)
        return claim.delivery_id not in self._halted and version <= claim.domain_pause_version

    async def _relay_batch(self, delivery: Delivery, claim: Claim, messages: PartMessages) -> "_Relayed":
        """Relays some messages and commits the answers."""
        may_end = claim.claim_count if len(messages.recipients) == claim.prepared_count else 0
        handed_over = await self._hand_over(delivery, messages, lambda: self._may_leave(claim), may_end)
        verdicts = list(handed_over.answer.verdicts)
        different = set(verdicts)
        for verdict in different:
            self._count(verdict, verdicts.count(verdict))
        if different <= _DECIDED:
            return _Relayed(handed_over, timedelta())
        asked = max((refusal.retry_delay_ms for refusal in handed_over.answer.refusals), default=0)
        seconds = max(asked / 1_000, self._settings.relay_retry_seconds)
        return _Relayed(handed_over, timedelta(seconds=min(seconds, self._settings.relay_retry_max_seconds)))

    async def send_proof(self, delivery: Delivery, messages: PartMessages) -> pb.RelayResponse:
        """Relays a proof now. ConnectionError if the MTA side does not answer as it should."""
        try:
            return (await self._hand_over(delivery, messages, lambda: True)).answer
        except (RelayBroken, UnsoundAnswer) as error:
            raise ConnectionError(str(error)) from error

    async def _hand_over(
        self, delivery: Delivery, messages: PartMessages, may_leave: Callable[[], bool], claim_count: int = 0
    ) -> "_HandedOver":
        """Relays messages that fit into one batch and commits the answers. `claim_count`: the claim that may end with
        them. RelayBroken, UnsoundAnswer, or Halted if they may not leave any more when their turn comes.
        """
        batch = relay_batch(delivery.delivery_id, messages, self._deadline_us(delivery))
        plan_digest = delivery.plan.plan_digest if delivery.plan else ""
        answer = await self._open_stream().relay(
            delivery.delivery_id, plan_digest, lambda: _template(delivery), batch, may_leave
        )
        require_sound(answer, len(messages.recipients))
        decided, claim_ended = 0, False
        accepted = hand_over(delivery.delivery_id, messages.recipients, answer, claim_count)
        if accepted.recipients:
            not_applied, claim_ended = await self._writer.apply_hand_over(accepted)
            decided += len(accepted.recipients) - not_applied.count
        if len(accepted.recipients) < len(messages.recipients):
            refused = refusals(delivery.delivery_id, messages.recipients, answer)
            if len(refused):
                not_applied = await self._writer.apply(refused)
                decided += len(refused) - not_applied.count
        return _HandedOver(answer, decided, claim_ended)

    def _open_stream(self) -> RelayStream:
        if self._stream is None or self._stream.broken:
            self._stream = RelayStream(self._open_call(), self._settings.relay_answer_timeout_seconds)
        return self._stream

    def _deadline_us(self, delivery: Delivery) -> int:
        """min(end of validity, hand-over + 3.5 days)."""
        latest = self._clock.now() + VALIDITY_MAX
        return to_microseconds(min(delivery.validity_end_time or latest, latest))

    def _backoff(self) -> timedelta:
        ceiling = min(
            self._settings.relay_retry_seconds * 2 ** min(max(self._failures - 1, 0), 10),
            self._settings.relay_retry_max_seconds,
        )
        return timedelta(seconds=ceiling * (0.5 + random.random() / 2))

    def _count(self, verdict: pb.RelayVerdict.ValueType, messages: int) -> None:
        known = verdict if verdict in pb.RelayVerdict.values() else pb.RELAY_VERDICT_UNSPECIFIED
        self._metrics.relayed.labels(pb.RelayVerdict.Name(known)).inc(messages)


@dataclass(frozen=True, slots=True)
class _HandedOver:
    """A batch whose answer is committed."""

    answer: pb.RelayResponse
    decided: int
    """How many of its messages are not PREPARED any more."""
    claim_ended: bool
    """It was all of its part, which is done: there is nothing to release."""


@dataclass(frozen=True, slots=True)
class _Relayed:
    """What became of a batch of a part."""

    handed_over: _HandedOver
    wait: timedelta
    """How long those put off want to wait; 0: none were."""


def _batches(part: PartMessages, size_max: int, bytes_max: int) -> list[PartMessages]:
    """Splits a part into batches that fit into one message, whatever its recipients' attributes."""
    characters = sum(map(len, part.addresses)) + sum(map(len, part.attributes))
    most_bytes = _CHARACTER_BYTES_MAX * characters + _MESSAGE_OVERHEAD_BYTES * len(part.recipients)
    if len(part.recipients) <= size_max and most_bytes <= bytes_max:  # nearly always: not even to be measured
        return [part] if part.recipients else []
    ends: list[int] = []
    begin = used = 0
    for index, (address, attributes) in enumerate(zip(part.addresses, part.attributes, strict=True)):
        size = len(attributes.encode()) + len(address.encode()) + _MESSAGE_OVERHEAD_BYTES
        if index > begin and (index - begin == size_max or used + size > bytes_max):
            ends.append(index)
            begin, used = index, 0
        used += size
    if part.recipients:
        ends.append(len(part.recipients))
    return [
        PartMessages(part.recipients[begin:end], part.addresses[begin:end], part.attributes[begin:end])
        for begin, end in pairwise((0, *ends))
    ]


def _template(delivery: Delivery) -> pb.RelayTemplate:
    return pb.RelayTemplate(
        delivery_id=str(delivery.delivery_id),
        channel=delivery_pb2.Channel.ValueType(delivery.channel),
        content=content_to_pb(delivery.content),
    )
