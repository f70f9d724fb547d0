"""The feedback stream of an MTA side: batches out, cumulative acks in, and everything un-acked again after a cut."""

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from random import Random
from typing import Final, Generic, NamedTuple, Protocol, TypeAlias, TypeVar

import grpc.aio

from campaign.feedback.v1 import feedback_service_pb2 as feedback_pb
from campaign.feedback.v1 import feedback_service_pb2_grpc as feedback_grpc
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
TicketT = TypeVar("TicketT")
TicketT_co = TypeVar("TicketT_co", covariant=True)


class Taken(NamedTuple, Generic[TicketT_co]):
    """Events that the stream answers for from now on, and what their source wants back once they are acknowledged."""

    events: Sequence[feedback_pb.MtaEvent]
    ticket: TicketT_co


class EventSource(Protocol[TicketT]):
    """Where the events come from. Several streams may share one."""

    async def some_ready(self, wanted: int) -> None:
        """Returns when there is something to report: `wanted` events, or fewer after a short wait for more."""
        ...

    def take(self, most: int) -> Taken[TicketT] | None:
        """Up to that many events, at least one; None if another stream was faster."""
        ...

    def acknowledge(self, ticket: TicketT) -> None:
        """The events of this ticket are committed, or were rejected singly: they are done with."""
        ...

    def rejected(self, event: feedback_pb.MtaEvent, rejection: feedback_pb.EventRejection) -> None:
        """One event was not taken. Called before its ticket is acknowledged."""
        ...


class StreamHooks:
    """What a misbehaving MTA side changes; this one behaves."""

    def batches_until_cut(self) -> int | None:
        """After how many batches the next call is cut by ourselves; None: never."""
        return None

    def on_resent(self) -> None:
        """A batch is sent again."""

    def on_cut(self) -> None:
        """A call was cut by ourselves."""


class _Frame(NamedTuple, Generic[TicketT_co]):
    """A batch that is not acknowledged yet."""

    batch: feedback_pb.MtaEventBatch
    ticket: TicketT_co


class StatusStream(Generic[TicketT]):
    """One feedback stream, reopened for ever. Its un-acked batches belong to it, whichever call carries them."""

    def __init__(
        self,
        source_id: str,
        stub: feedback_grpc.FeedbackServiceStub,
        token_source: TokenSource,
        source: EventSource[TicketT],
        clock: Clock,
        hooks: StreamHooks | None = None,
        backoff_seconds: tuple[float, float] = BACKOFF_SECONDS,
    ) -> None:
        self._source_id = source_id
        self._stub = stub
        self._token_source = token_source
        self._source = source
        self._clock = clock
        self._hooks = hooks or StreamHooks()
        self._backoff_seconds = backoff_seconds
        self._random = Random(source_id)
        self._unacked: deque[_Frame[TicketT]] = deque()
        self._acked_through = 0
        self._sent_through = 0
        self._resent_through = 0
        self._window = 0
        self._batch_events = BATCH_EVENTS
        self._moved = asyncio.Event()
        self._cut = False
        self.connected = False
        """Whether FeedbackService has accepted the present call."""

    async def run(self) -> None:
        """Keeps the stream open, until cancelled."""
        waits = delays(*self._backoff_seconds, self._random.random)
        extra = {"action": "stream_status", "source_id": self._source_id}
        while True:
            try:
                await self._session()
            except grpc.aio.AioRpcError as error:
                told = {**extra, "code": error.code().name, "details": error.details()}
                log.info("feedback stream ended, will be reopened", extra=told)
            except OSError:
                log.warning("token can't be read, will be tried again", extra=extra, exc_info=True)
            self.connected = False
            if self._acked_through:
                waits = delays(*self._backoff_seconds, self._random.random)
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
            until_cut = self._hooks.batches_until_cut()
            while until_cut is None or self._sent_through < until_cut:
                frame = await self._next_frame()
                self._sent_through += 1
                frame.batch.sequence = self._sent_through
                if self._sent_through <= self._resent_through:
                    self._hooks.on_resent()
                await call.write(feedback_pb.StreamStatusRequest(batch=frame.batch))
            self._hooks.on_cut()
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return  # the call has ended: its reader learns why
        finally:
            # By then it has ended, or is to be cut here, or the reader must not wait for what is never sent.
            self._cut = True
            call.cancel()

    async def _next_frame(self) -> _Frame[TicketT]:
        """The next frame to send, as soon as the window allows: those that an earlier call has sent, then new ones."""
        while True:
            in_flight = self._sent_through - self._acked_through
            if in_flight >= self._window:
                self._moved.clear()
                await self._moved.wait()
            elif in_flight < len(self._unacked):
                return self._unacked[in_flight]
            else:
                await self._source.some_ready(self._batch_events)
                # Nothing may come between taking the events and keeping them: a cut can hit any await.
                if taken := self._source.take(self._batch_events):
                    self._unacked.append(_Frame(feedback_pb.MtaEventBatch(events=taken.events), taken.ticket))

    def _on_accepted(self, accepted: feedback_pb.StreamAccepted) -> None:
        self._window = max(1, min(accepted.outstanding_batches_max, OUTSTANDING_BATCHES_MAX))
        self._batch_events = max(1, min(accepted.batch_size_max, BATCH_EVENTS))
        self.connected = True
        self._moved.set()

    def _on_ack(self, ack: feedback_pb.StreamAck) -> None:
        for rejection in ack.rejections:
            self._on_rejection(rejection)
        while self._acked_through < min(ack.acked_through, self._sent_through):
            self._acked_through += 1
            self._source.acknowledge(self._unacked.popleft().ticket)
        self._moved.set()

    def _on_rejection(self, rejection: feedback_pb.EventRejection) -> None:
        place = rejection.sequence - self._acked_through - 1
        if 0 <= place < len(self._unacked):
            events = self._unacked[place].batch.events
            if 0 <= rejection.index < len(events):
                self._source.rejected(events[rejection.index], rejection)
