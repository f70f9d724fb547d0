"""The feedback streams: batches out, cumulative acknowledgements in, and everything un-acked again after a cut."""

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Sequence
from random import Random
from typing import Final, NamedTuple, TypeAlias

import grpc.aio

from campaign.delivery.v1 import observation_service_pb2 as observation_pb
from campaign.feedback.v1 import feedback_service_pb2 as feedback_pb
from campaign.feedback.v1 import feedback_service_pb2_grpc as feedback_grpc
from mta_simulator.misbehaviour import Misbehaviour, PlayedEvent
from mta_simulator.playback import Playback
from mta_simulator.truth import Truth
from service_runtime.backoff import delays
from service_runtime.client import TokenSource
from service_runtime.clock import Clock

log = logging.getLogger(__name__)

PROTOCOL_VERSION: Final = 1
BATCH_EVENTS: Final = 500
OUTSTANDING_BATCHES_MAX: Final = 16
"""Whatever the server allows: each is kept for resending."""
BACKOFF_SECONDS: Final = (0.1, 5.0)


_Call: TypeAlias = "grpc.aio.StreamStreamCall[feedback_pb.StreamStatusRequest, feedback_pb.StreamStatusResponse]"


class Frame(NamedTuple):
    """A batch that is not acknowledged yet."""

    batch: feedback_pb.MtaEventBatch
    ranges: Counter[int]
    """How many of its events belong to each range of the journal."""


class StatusStream:
    """One feedback stream, reopened for ever. Its un-acked batches belong to it, whichever call carries them."""

    def __init__(
        self,
        source_id: str,
        stub: feedback_grpc.FeedbackServiceStub,
        token_source: TokenSource,
        playback: Playback,
        misbehaviour: Misbehaviour,
        truth: Truth,
        clock: Clock,
    ) -> None:
        self._source_id = source_id
        self._stub = stub
        self._token_source = token_source
        self._playback = playback
        self._misbehaviour = misbehaviour
        self._truth = truth
        self._clock = clock
        self._random = Random(source_id)
        self._unacked: deque[Frame] = deque()
        self._acked_through = 0
        self._sent_through = 0
        self._resent_through = 0
        self._window = 0
        self._batch_events = BATCH_EVENTS
        self._moved = asyncio.Event()
        self._cut = False

    async def run(self) -> None:
        """Keeps the stream open, until cancelled."""
        waits = delays(*BACKOFF_SECONDS, self._random.random)
        extra = {"action": "stream_status", "source_id": self._source_id}
        while True:
            try:
                await self._session()
            except grpc.aio.AioRpcError as error:
                told = {**extra, "code": error.code().name, "details": error.details()}
                log.info("feedback stream ended, will be reopened", extra=told)
            except OSError:
                log.warning("token can't be read, will be tried again", extra=extra, exc_info=True)
            if self._acked_through:
                waits = delays(*BACKOFF_SECONDS, self._random.random)
            await self._clock.sleep(next(waits))

    async def _session(self) -> None:
        """One call, from its opening to its end."""
        self._resent_through = len(self._unacked)
        self._acked_through = self._sent_through = 0
        self._window = 0
        self._cut = False
        # The token is given here and not by the channel's interceptors: these put a queue in front of every write.
        call = self._stub.StreamStatus(metadata=(("authorization", f"Bearer {self._token_source.token()}"),))
        writer = asyncio.create_task(self._send(call), name=f"{self._source_id} writer")
        try:
            await self._receive(call)
        finally:
            # The writer must be gone before another call: both number the same batches.
            writer.cancel()
            await asyncio.wait([writer])
            call.cancel()
        if not writer.cancelled() and (error := writer.exception()) is not None:
            raise error

    async def _receive(self, call: _Call) -> None:
        try:
            while isinstance(response := await call.read(), feedback_pb.StreamStatusResponse):
                match response.WhichOneof("response"):
                    case "accepted":
                        self._on_accepted(response.accepted)
                    case "ack":
                        self._on_ack(response.ack)
        except asyncio.CancelledError:
            # A call cancelled by ourselves looks to its reader like a cancelled task.
            task = asyncio.current_task()
            if not self._cut or (task is not None and task.cancelling()):
                raise

    async def _send(self, call: _Call) -> None:
        try:
            opening = feedback_pb.StreamOpen(source_id=self._source_id, protocol_version=PROTOCOL_VERSION)
            await call.write(feedback_pb.StreamStatusRequest(open=opening))
            until_cut = self._misbehaviour.batches_until_cut()
            while until_cut is None or self._sent_through < until_cut:
                frame = await self._next_frame()
                self._sent_through += 1
                frame.batch.sequence = self._sent_through
                if self._sent_through <= self._resent_through:
                    self._truth.batches_resent += 1
                await call.write(feedback_pb.StreamStatusRequest(batch=frame.batch))
            self._truth.streams_cut += 1
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return  # the call has ended: its reader learns why
        finally:
            # By then it has ended, or is to be cut here, or the reader must not wait for what is never sent.
            self._cut = True
            call.cancel()

    async def _next_frame(self) -> Frame:
        """The next frame to send, as soon as the window allows: those that an earlier call has sent, then new ones."""
        while True:
            in_flight = self._sent_through - self._acked_through
            if in_flight >= self._window:
                self._moved.clear()
                await self._moved.wait()
            elif in_flight < len(self._unacked):
                return self._unacked[in_flight]
            else:
                await self._playback.some_ready(self._batch_events)
                # Nothing may come between taking the events and keeping them: a cut can hit any await.
                if events := self._playback.take(self._batch_events):
                    self._unacked.append(_frame_of(events))
                    self._truth.events_played += len(events)

    def _on_accepted(self, accepted: feedback_pb.StreamAccepted) -> None:
        self._window = max(1, min(accepted.outstanding_batches_max, OUTSTANDING_BATCHES_MAX))
        self._batch_events = max(1, min(accepted.batch_size_max, BATCH_EVENTS))
        self._moved.set()

    def _on_ack(self, ack: feedback_pb.StreamAck) -> None:
        for rejection in ack.rejections:
            name = observation_pb.RejectionReason.Name(rejection.reason)
            self._truth.events_rejected[name.removeprefix("REJECTION_REASON_")] += 1
        while self._acked_through < min(ack.acked_through, self._sent_through):
            self._acked_through += 1
            self._playback.acknowledge(self._unacked.popleft().ranges)
        self._moved.set()


def _frame_of(events: Sequence[PlayedEvent]) -> Frame:
    batch = feedback_pb.MtaEventBatch(
        events=[
            feedback_pb.MtaEvent(
                message_id=message_id,
                kind=report.kind,
                event_time_us=event_time_us,
                smtp_code=report.smtp_code,
                enhanced_code=report.enhanced_code,
                diagnostic=report.diagnostic,
                attempt=attempt,
                url=report.url,
                vendor_class=report.vendor_class,
            )
            for message_id, event_time_us, report, attempt, _ in events
        ]
    )
    return Frame(batch, Counter(event.range_id for event in events))
