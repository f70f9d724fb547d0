"""The one stream to DeliveryService: merges what all MTA streams bring, keeps some batches in flight, resends when cut.

Nothing is lost here, since nothing is forgotten before DeliveryService has committed it; and memory is bounded, since
the budget of un-acked events is taken before events come in and given back only then.
"""

import asyncio
import itertools
import logging
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeAlias

import grpc
import grpc.aio

from campaign.delivery.v1 import observation_service_pb2 as observation_pb
from campaign.delivery.v1 import observation_service_pb2_grpc as observation_grpc
from campaign.feedback.v1 import feedback_service_pb2 as feedback_pb
from feedback_service.event_budget import EventBudget
from feedback_service.metrics import FeedbackMetrics
from feedback_service.observation_batch import ClientBatch, ObservationBatch, Piece
from feedback_service.settings import Settings
from service_runtime import backoff
from service_runtime.client import TokenSource
from service_runtime.clock import Clock

log = logging.getLogger(__name__)

SOURCES_REPORTED_MAX = 1_000
REPLICA_ID_CHARACTERS_MAX = 200
# Not INTERNAL: grpc reports that as well when a write meets the end of a stream.
_DEFECTS = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED)
_RULES_OUTDATED = grpc.StatusCode.FAILED_PRECONDITION

ApplyCall: TypeAlias = grpc.aio.StreamStreamCall[observation_pb.ApplyRequest, observation_pb.ApplyResponse]


class _StreamEnded(Exception):
    """The stream is over; its status says why."""


class DeliveryClient:
    """Pushes observations to DeliveryService. `add` takes events at any time; `run` sends them."""

    def __init__(
        self,
        settings: Settings,
        open_channel: Callable[[], grpc.aio.Channel],
        token_source: TokenSource,
        budget: EventBudget,
        metrics: FeedbackMetrics,
        clock: Clock,
        random: Callable[[], float],
        *,
        replica_id: str,
        on_connection: Callable[[bool], Awaitable[None]],
        on_outdated: Callable[[], None],
    ) -> None:
        """`open_channel`: a new channel each time, so that the back-off between connections is ours alone.

        `on_connection` is told when the stream is open (True) and when it is lost (False); `on_outdated`, once, when
        DeliveryService refuses what the rules of this process have read, as it then always will.
        """
        self._settings = settings
        self._open_channel = open_channel
        self._token_source = token_source
        self._budget = budget
        self._metrics = metrics
        self._clock = clock
        self._random = random
        self._replica_id = replica_id[:REPLICA_ID_CHARACTERS_MAX]
        self._on_connection = on_connection
        self._on_outdated = on_outdated
        self._open = ObservationBatch()
        self._open_begun = asyncio.Event()
        self._sealed: deque[ObservationBatch] = deque()
        self._pieces: deque[Piece] = deque()
        self._in_flight: deque[Piece] = deque()
        self._work = asyncio.Event()
        self._sources: Counter[str] = Counter()
        self._report_due = False
        self._acked_since_open = False
        self.is_connected = False

    def add(self, client_batch: ClientBatch, events: Sequence[feedback_pb.MtaEvent]) -> None:
        """Takes the events of a client's batch, whose share of the budget has been taken. Never waits."""
        size, left, first_index = self._settings.apply_batch_size_preferred, len(events), 0
        source = iter(events)
        while left:
            batch = self._open
            if not batch.parts:
                self._open_begun.set()
            taken = min(left, size - len(batch))
            batch.add(client_batch, first_index, itertools.islice(source, taken))
            left -= taken
            first_index += taken
            if len(batch) >= size:
                self._sealed.append(self._seal())
                self._work.set()

    def _seal(self) -> ObservationBatch:
        batch, self._open = self._open, ObservationBatch()
        self._metrics.count_received(batch.received, batch.malformed, batch.not_defined)
        return batch

    def source_connected(self, source_id: str) -> None:
        """A stream of this source was opened."""
        self._sources[source_id] += 1
        self._report_soon()

    def source_disconnected(self, source_id: str) -> None:
        """A stream of this source has ended."""
        self._sources[source_id] -= 1
        if not self._sources[source_id]:
            del self._sources[source_id]
        self._report_soon()

    async def run(self) -> None:
        """Sends until it is cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._flush_by_time())
            group.create_task(self._report_by_time())
            group.create_task(self._keep_streaming())

    async def _flush_by_time(self) -> None:
        # It marks and does not seal: while nothing can be sent, the batch had better go on growing.
        while True:
            await self._open_begun.wait()
            self._open_begun.clear()
            batch = self._open
            await self._clock.sleep(self._settings.flush_interval_ms / 1_000)
            if batch.parts:
                batch.due = True
                self._work.set()

    async def _report_by_time(self) -> None:
        while True:
            await self._clock.sleep(self._settings.source_report_seconds)
            self._report_soon()

    def _report_soon(self) -> None:
        self._report_due = True
        self._work.set()

    async def _keep_streaming(self) -> None:
        settings = self._settings
        waits = backoff.delays(settings.reconnect_seconds_min, settings.reconnect_seconds_max, self._random)
        while True:
            self._acked_since_open = False
            code, details = await self._stream_once()
            self._metrics.apply_streams_ended.labels(code.name).inc()
            extra = {"action": "apply_observations", "code": code.name, "details": details}
            if code is _RULES_OUTDATED:
                # No pause helps. What is un-acked stays so: its MTAs send it again, to a process with newer rules.
                log.error("the rules of this process are outdated: it takes no more events", extra=extra)
                self._metrics.rules_outdated.set(1)
                self._on_outdated()
                return
            if code in _DEFECTS:
                log.error("DeliveryService refuses what it is sent", extra=extra)
                await self._clock.sleep(settings.defect_pause_seconds)
                continue
            log.warning("the stream to DeliveryService ended", extra=extra)
            if self._acked_since_open:
                waits = backoff.delays(settings.reconnect_seconds_min, settings.reconnect_seconds_max, self._random)
            await self._clock.sleep(next(waits))

    async def _stream_once(self) -> tuple[grpc.StatusCode, str]:
        """Opens a stream and uses it until it ends. Returns how it ended."""
        self._requeue()
        channel = self._open_channel()
        try:
            call: ApplyCall = observation_grpc.ObservationServiceStub(channel).Apply(metadata=self._metadata())
            try:
                await self._use(call)
            except (grpc.RpcError, asyncio.InvalidStateError, _StreamEnded):
                pass
            finally:
                call.cancel()
                await self._set_connected(False)
            return await call.code(), str(await call.details())
        except (OSError, ValueError) as error:  # the token file
            log.exception("no token for DeliveryService", extra={"action": "apply_observations"})
            return grpc.StatusCode.UNAUTHENTICATED, str(error)
        finally:
            await channel.close()

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        # Not by an interceptor: those put a queue and a task between us and the stream.
        return (("authorization", f"Bearer {self._token_source.token()}"),)

    async def _use(self, call: ApplyCall) -> None:
        await call.write(observation_pb.ApplyRequest(open=observation_pb.ApplyOpen(replica_id=self._replica_id)))
        first: Any = await call.read()
        if first is grpc.aio.EOF:
            raise _StreamEnded
        terms: observation_pb.ApplyAccepted = first.accepted
        await self._set_connected(True)
        # One task writes: two writes at a time on one stream fail. Not a task group: before Python 3.13 one that is
        # ending because of an error swallows a cancellation, and a stop in that moment would be lost.
        writing = self._write(call, max(terms.outstanding_batches_max, 1), max(terms.batch_size_max, 1))
        tasks = [asyncio.create_task(work) for work in (writing, self._read(call), self._watch())]
        try:
            ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in ended:
            if not task.cancelled():
                task.result()

    async def _set_connected(self, value: bool) -> None:
        if value != self.is_connected:
            self.is_connected = value
            self._metrics.delivery_service_connected.set(value)
            log.info(
                "the stream to DeliveryService changed", extra={"action": "apply_observations", "connected": value}
            )
            await self._on_connection(value)

    async def _write(self, call: ApplyCall, in_flight_max: int, batch_size_max: int) -> None:
        self._report_due = True
        self._work.set()
        sequence, bytes_max = 0, self._settings.apply_batch_bytes_max
        while True:
            await self._work.wait()
            self._work.clear()
            if self._report_due:
                self._report_due = False
                ids = list(itertools.islice(self._sources, SOURCES_REPORTED_MAX))
                report = observation_pb.SourceReport(source_ids=ids)
                await call.write(observation_pb.ApplyRequest(source_report=report))
            while len(self._in_flight) < in_flight_max and (piece := self._next_piece()) is not None:
                piece.sequence, piece.sent_seconds = sequence + 1, self._clock.monotonic()
                request = piece.request()
                if len(piece) > batch_size_max or (len(piece) > 1 and request.ByteSize() > bytes_max):
                    self._pieces.extendleft(reversed(piece.halves()))
                    continue
                sequence += 1
                self._in_flight.append(piece)
                self._metrics.apply_batch_observations.observe(len(piece))
                await call.write(request)

    def _next_piece(self) -> Piece | None:
        if self._pieces:
            return self._pieces.popleft()
        batch = self._next_batch()
        return None if batch is None else Piece.whole(batch)

    def _next_batch(self) -> ObservationBatch | None:
        if self._sealed:
            return self._sealed.popleft()
        if not self._open.due:
            return None
        batch = self._seal()
        if batch:
            return batch
        # Nothing of it is to be sent, but its acks come after those of everything before.
        if self._in_flight:
            self._in_flight[-1].batch.followers.extend(batch.parts)
        else:
            self._commit(batch)
        return None

    async def _watch(self) -> None:
        """Ends the stream if DeliveryService lives and yet never answers: another replica may."""
        limit_seconds = self._settings.ack_seconds_max
        while True:
            await self._clock.sleep(limit_seconds / 4)
            if self._in_flight and self._clock.monotonic() - self._in_flight[0].sent_seconds > limit_seconds:
                log.warning("DeliveryService does not acknowledge", extra={"action": "apply_observations"})
                raise _StreamEnded

    async def _read(self, call: ApplyCall) -> None:
        while True:
            response: Any = await call.read()
            if response is grpc.aio.EOF:
                raise _StreamEnded
            self._acked(response.ack)

    def _acked(self, ack: observation_pb.ApplyAck) -> None:
        in_flight, now_seconds = self._in_flight, self._clock.monotonic()
        while in_flight and in_flight[0].sequence <= ack.acked_through:
            piece = in_flight.popleft()
            if ack.rejections and piece.sequence == ack.acked_through:
                self._note_rejections(piece, ack)
            self._metrics.apply_seconds.observe(now_seconds - piece.sent_seconds)
            if piece.completes:
                self._commit(piece.batch)
        self._acked_since_open = True
        self._work.set()

    def _note_rejections(self, piece: Piece, ack: observation_pb.ApplyAck) -> None:
        for rejection in ack.rejections:
            try:
                piece.reject(rejection)
            except IndexError:
                log.error(
                    "DeliveryService rejected an observation that was not sent",
                    extra={"action": "apply_observations", "index": rejection.index, "tracking": rejection.tracking},
                )
                continue
            self._metrics.count_rejection(rejection.reason)

    def _commit(self, batch: ObservationBatch) -> None:
        events = 0
        for client_batch in batch.committed():
            events += client_batch.event_count
            self._budget.release(client_batch.source_id, client_batch.event_count)
            client_batch.on_committed(client_batch)
        self._metrics.acked.inc(events)
        self._budget.grant()

    def _requeue(self) -> None:
        """Puts all that was sent and not acked before what was not sent, in its order."""
        batches = {id(piece.batch): piece.batch for piece in (*self._in_flight, *self._pieces)}
        self._sealed.extendleft(reversed(batches.values()))
        self._in_flight.clear()
        self._pieces.clear()
