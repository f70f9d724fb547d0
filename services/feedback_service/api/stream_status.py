"""The StreamStatus handler: reads what an MTA reports as long as there is room, and acks what is committed.

A stream has one task that reads and one, grpc's own, that writes acks; nothing is started per batch. Acks are
coalesced: when the writer gets its turn, one message tells everything that was committed meanwhile.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import grpc.aio

from campaign.feedback.v1 import feedback_service_pb2 as feedback_pb
from campaign.feedback.v1 import feedback_service_pb2_grpc as feedback_grpc
from feedback_service.api.errors import LimitReached, OutdatedHere
from feedback_service.delivery_client import DeliveryClient
from feedback_service.domain.rules import RULES_VERSION
from feedback_service.event_budget import EventBudget
from feedback_service.observation_batch import ClientBatch
from feedback_service.settings import Settings
from service_runtime.errors import ShuttingDown
from service_runtime.problems import InvalidInput

PROTOCOL_VERSION = 1
SOURCE_ID_CHARACTERS_MAX = 200

Requests = AsyncIterator[feedback_pb.StreamStatusRequest]


class StreamStatus(feedback_grpc.FeedbackServiceServicer):
    """Serves the streams of all MTAs."""

    def __init__(self, settings: Settings, client: DeliveryClient, budget: EventBudget) -> None:
        self._settings = settings
        self._client = client
        self._budget = budget
        self._streams: set[_MtaStream] = set()
        self._none_open = asyncio.Event()
        self._none_open.set()
        self._draining = False
        self._outdated = False

    @property
    def open_streams(self) -> int:
        """How many streams are open."""
        return len(self._streams)

    async def drain(self) -> None:
        """Stops reading, lets what was read be acked, and ends the streams; at most for `drain_seconds`."""
        self._draining = True
        for stream in self._streams:
            stream.stop_reading()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._settings.drain_seconds):
                await self._none_open.wait()

    def refuse_as_outdated(self) -> None:
        """Ends all streams, and takes no more: MTAs send what is not acked again, to a replica with newer rules."""
        self._outdated = True
        for stream in self._streams:
            stream.give_up()

    async def StreamStatus(
        self,
        request_iterator: Requests,
        context: grpc.aio.ServicerContext[Requests, AsyncIterator[feedback_pb.StreamStatusResponse]],
    ) -> AsyncIterator[feedback_pb.StreamStatusResponse]:
        if self._draining:
            raise ShuttingDown
        if self._outdated:
            raise OutdatedHere(RULES_VERSION)
        if len(self._streams) >= self._settings.streams_max:
            raise LimitReached("streams_max", self._settings.streams_max)
        stream = _MtaStream(self._settings, self._client, self._budget)
        self._streams.add(stream)
        self._none_open.clear()
        stream.start_reading(request_iterator)
        try:
            while (response := await stream.next_response()) is not None:
                yield response
            if self._draining:
                raise ShuttingDown
            if self._outdated:
                raise OutdatedHere(RULES_VERSION)
        finally:
            # What was read and is not acked goes its way without the stream; the MTA will send it again.
            await stream.close()
            self._streams.discard(stream)
            if not self._streams:
                self._none_open.set()


class _MtaStream:
    """One open stream: what was read of it, and what of that is committed."""

    def __init__(self, settings: Settings, client: DeliveryClient, budget: EventBudget) -> None:
        self._settings = settings
        self._client = client
        self._budget = budget
        self._source_id = ""
        self._reader: asyncio.Task[None] | None = None
        self._stopped_reading = False
        self._given_up = False
        self._accepted_sent = False
        self._read_through = 0
        self._committed_through = 0
        self._acked_through = 0
        self._with_rejections: deque[ClientBatch] = deque()
        self._changed = asyncio.Event()
        """There is something to answer, or nothing more to read."""
        self._has_room = asyncio.Event()

    def start_reading(self, requests: Requests) -> None:
        """Begins to read, in a task of its own."""
        self._reader = asyncio.create_task(self._read(requests))
        self._reader.add_done_callback(lambda _: self._changed.set())

    def stop_reading(self) -> None:
        """Reads no more. Responses end once what was read is acked."""
        self._stopped_reading = True
        if self._reader is not None:
            self._reader.cancel()

    def give_up(self) -> None:
        """Reads no more, and waits for no more acks: responses end."""
        self._given_up = True
        self.stop_reading()
        self._changed.set()

    async def close(self) -> None:
        """Ends the reading, and waits for its end."""
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.wait((self._reader,))
            if not self._reader.cancelled():
                self._reader.exception()  # seen, if not by the peer: it may have gone before
        if self._source_id:
            self._client.source_disconnected(self._source_id)

    async def next_response(self) -> feedback_pb.StreamStatusResponse | None:
        """Waits for the next thing to answer. None: the end; whatever ended the reading badly is raised."""
        while True:
            if self._source_id and not self._accepted_sent:
                self._accepted_sent = True
                return feedback_pb.StreamStatusResponse(
                    accepted=feedback_pb.StreamAccepted(
                        batch_size_max=self._settings.batch_size_max,
                        outstanding_batches_max=self._settings.outstanding_batches_max,
                    )
                )
            if self._committed_through > self._acked_through:
                return self._ack()
            if self._reader is not None and self._reader.done():
                if not self._stopped_reading:
                    self._reader.result()
                if self._given_up or self._committed_through == self._read_through:
                    return None
            await self._changed.wait()
            self._changed.clear()

    def _ack(self) -> feedback_pb.StreamStatusResponse:
        rejections: list[feedback_pb.EventRejection] = []
        through = self._committed_through
        while self._with_rejections:
            if len(rejections) >= self._settings.rejections_per_ack_max:
                through = self._with_rejections[0].sequence - 1
                break
            batch = self._with_rejections.popleft()
            rejections += _rejections_of(batch)
        self._acked_through = through
        return feedback_pb.StreamStatusResponse(ack=feedback_pb.StreamAck(acked_through=through, rejections=rejections))

    async def _read(self, requests: Requests) -> None:
        first = await anext(aiter(requests), None)
        if first is None:
            return
        self._open(first)
        settings, budget, client, source_id = self._settings, self._budget, self._client, self._source_id
        batch_size_max, outstanding_max = settings.batch_size_max, settings.outstanding_batches_max
        async for request in requests:
            if not request.HasField("batch"):
                raise InvalidInput.of("request", "is not a batch: after `open`, send only batches")
            batch = request.batch
            sequence, events = batch.sequence, batch.events
            count = len(events)
            if sequence != self._read_through + 1:
                raise InvalidInput.of("batch.sequence", f"is {sequence}: send {self._read_through + 1} next")
            if not 0 < count <= batch_size_max:
                raise InvalidInput.of("batch.events", f"are {count}: send 1 to {batch_size_max} in one batch")
            if not budget.take_now(source_id, count):
                await budget.take(source_id, count)
            self._read_through = sequence
            client.add(ClientBatch(source_id, sequence, count, self._committed), events)
            while self._read_through - self._committed_through >= outstanding_max:
                self._has_room.clear()
                await self._has_room.wait()

    def _open(self, request: feedback_pb.StreamStatusRequest) -> None:
        if not request.HasField("open"):
            raise InvalidInput.of("request", "is not `open`: open the stream first")
        opening = request.open
        if not 0 < len(opening.source_id) <= SOURCE_ID_CHARACTERS_MAX or "\0" in opening.source_id:
            raise InvalidInput.of(
                "open.source_id", f"is not a name of 1 to {SOURCE_ID_CHARACTERS_MAX} characters: send the MTA's own"
            )
        if opening.protocol_version != PROTOCOL_VERSION:
            raise InvalidInput.of(
                "open.protocol_version", f"is {opening.protocol_version}: this server speaks {PROTOCOL_VERSION}"
            )
        self._source_id = opening.source_id
        self._client.source_connected(self._source_id)
        self._changed.set()

    def _committed(self, batch: ClientBatch) -> None:
        # Batches are completed in the order of their sequence: they went into ours in that order.
        self._committed_through = batch.sequence
        if batch.rejections:
            self._with_rejections.append(batch)
        self._changed.set()
        self._has_room.set()


def _rejections_of(batch: ClientBatch) -> list[feedback_pb.EventRejection]:
    rejections: Any = sorted(batch.rejections.items())
    return [
        feedback_pb.EventRejection(sequence=batch.sequence, index=index, reason=reason, detail=detail)
        for index, (reason, detail) in rejections
    ]
