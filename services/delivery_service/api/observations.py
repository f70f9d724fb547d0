"""The Apply stream: FeedbackService pushes batches of observations, and hears of each once it is committed."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Final

from campaign.delivery.v1 import observation_service_pb2 as pb
from campaign.delivery.v1.observation_service_pb2_grpc import ObservationServiceServicer
from delivery_service.api.columns import (
    Columns,
    dead_letter_of_fact,
    dead_letter_of_status,
    read_batch,
    storable_sources,
)
from delivery_service.api.validation import require_valid, text_violation
from delivery_service.domain.problems import LimitReached
from delivery_service.metrics import Metrics
from delivery_service.settings import Settings
from delivery_service.store.apply_writer import ApplyWriter, Refused
from delivery_service.store.feedback import FeedbackStore
from delivery_service.store.requalification import Requalification
from service_runtime.clock import Clock
from service_runtime.problems import InvalidInput

_UNKNOWN: Final = pb.RejectionReason.REJECTION_REASON_UNKNOWN_MESSAGE
_MALFORMED: Final = pb.RejectionReason.REJECTION_REASON_MALFORMED
_UNKNOWN_DETAIL: Final = "message_id: no such message; kept as a dead letter"
_REFUSED_DETAIL: Final = "the database refused it for its data: check its texts"
_REPLICA_ID_CHARACTERS_MAX: Final = 200
_SOURCES_MAX: Final = 1_000


class ObservationCalls(ObservationServiceServicer):
    """Invariant: an ack leaves only after everything in that batch, and all before it, is committed."""

    def __init__(
        self,
        writer: ApplyWriter,
        feedback: FeedbackStore,
        requalification: Requalification,
        settings: Settings,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self._writer = writer
        self._feedback = feedback
        self._requalification = requalification
        self._settings = settings
        self._clock = clock
        self._metrics = metrics
        self._streams = 0

    async def Apply(  # the contract's name
        self, request_iterator: AsyncIterator[pb.ApplyRequest], context: object
    ) -> AsyncIterator[pb.ApplyResponse]:
        """Several batches are in the works at once, and acked in their order."""
        limits = self._settings
        if self._streams >= limits.apply_streams_max:
            raise LimitReached(
                "apply_streams_max", limits.apply_streams_max, "try another replica, or later", retry_delay_seconds=1.0
            )
        self._streams += 1
        inflight: deque[tuple[int, asyncio.Task[list[pb.ObservationRejection]]]] = deque()
        reader: asyncio.Task[None] | None = None
        try:
            first = await anext(request_iterator, None)
            if first is None or first.WhichOneof("request") != "open":
                raise InvalidInput.of("open", "must be the first request of the stream")
            replica_id = first.open.replica_id
            if not replica_id:
                raise InvalidInput.of("open.replica_id", "is empty: name the replica, e.g. by host and process")
            require_valid([text_violation("open.replica_id", replica_id, _REPLICA_ID_CHARACTERS_MAX)])
            yield pb.ApplyResponse(
                accepted=pb.ApplyAccepted(
                    outstanding_batches_max=limits.apply_outstanding_batches_max,
                    batch_size_max=limits.apply_batch_size_max,
                )
            )
            arrived: asyncio.Queue[tuple[int, asyncio.Task[list[pb.ObservationRejection]]] | None] = asyncio.Queue()
            room = asyncio.Semaphore(limits.apply_outstanding_batches_max)
            reader = asyncio.create_task(
                self._read(request_iterator, replica_id, arrived, room, inflight), name="apply-reader"
            )
            while (entry := await arrived.get()) is not None:
                sequence, work = entry
                rejections = await work
                inflight.popleft()
                room.release()
                yield pb.ApplyResponse(ack=pb.ApplyAck(acked_through=sequence, rejections=rejections))
            await reader  # its error, if it ended by one
        finally:
            self._streams -= 1
            tasks = [task for task in (reader, *(work for _, work in inflight)) if task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(
        self,
        requests: AsyncIterator[pb.ApplyRequest],
        replica_id: str,
        arrived: "asyncio.Queue[tuple[int, asyncio.Task[list[pb.ObservationRejection]]] | None]",
        room: asyncio.Semaphore,
        inflight: "deque[tuple[int, asyncio.Task[list[pb.ObservationRejection]]]]",
    ) -> None:
        """Reads ahead by the window, so that batches overlap; beyond it reads nothing: that is the back-pressure."""
        expected = 1
        try:
            async for request in requests:
                match request.WhichOneof("request"):
                    case "batch":
                        batch = request.batch
                        if batch.sequence != expected:
                            raise InvalidInput.of("batch.sequence", f"is {batch.sequence}: send {expected} next")
                        columns = read_batch(batch, self._settings.apply_batch_size_max)
                        expected += 1
                        await room.acquire()
                        work = asyncio.create_task(self._apply(batch, columns), name="apply-batch")
                        inflight.append((batch.sequence, work))
                        arrived.put_nowait((batch.sequence, work))
                    case "source_report":
                        sources = storable_sources(request.source_report.source_ids[:_SOURCES_MAX])
                        await self._feedback.report_sources(replica_id, sources, self._clock.now())
                    case _:
                        raise InvalidInput.of("request", "must be a batch or a source_report after open")
        finally:
            arrived.put_nowait(None)

    async def _apply(self, batch: pb.ObservationBatch, columns: Columns) -> list[pb.ObservationRejection]:
        """Commits one batch, and tells what could not be applied."""
        began = self._clock.monotonic()
        await self._requalification.keep_details(columns.details)
        refused = await self._writer.apply(columns.status) if len(columns.status) else Refused([], [])
        unknown_facts = (
            await self._feedback.apply_tracking(columns.facts, self._clock.now()) if len(columns.facts) else []
        )
        rejections, letters = columns.rejections, columns.dead_letters
        for index in refused.malformed:
            place = columns.status_places[index]
            rejections.append(pb.ObservationRejection(index=place, reason=_MALFORMED, detail=_REFUSED_DETAIL))
        for index in refused.unknown:
            place = columns.status_places[index]
            rejections.append(pb.ObservationRejection(index=place, reason=_UNKNOWN, detail=_UNKNOWN_DETAIL))
            letters.append(dead_letter_of_status(batch, place, _UNKNOWN_DETAIL))
        for index in unknown_facts:
            place = columns.fact_places[index]
            rejections.append(
                pb.ObservationRejection(index=place, tracking=True, reason=_UNKNOWN, detail=_UNKNOWN_DETAIL)
            )
            letters.append(dead_letter_of_fact(batch, place, _UNKNOWN_DETAIL))
        await self._feedback.add_dead_letters(letters, self._clock.now())
        self._metrics.batch_applied(
            observations=len(columns.status),
            facts=len(columns.facts),
            rejections=len(rejections),
            dead_letters=len(letters),
            seconds=self._clock.monotonic() - began,
        )
        return rejections
