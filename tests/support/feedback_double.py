"""A FeedbackService that remembers everything and answers as it is told."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio

from campaign.delivery.v1 import observation_service_pb2 as observation_pb
from campaign.feedback.v1 import feedback_service_pb2 as feedback_pb
from campaign.feedback.v1 import feedback_service_pb2_grpc as feedback_grpc

OUTSTANDING_BATCHES_MAX = 4


class FeedbackDouble(feedback_grpc.FeedbackServiceServicer):
    """Keeps what is acknowledged apart from what only arrived: an event counts once it is acknowledged."""

    def __init__(self) -> None:
        self.arrived: list[feedback_pb.MtaEvent] = []
        self.committed: list[feedback_pb.MtaEvent] = []
        self.opened: list[feedback_pb.StreamOpen] = []
        self.authorisations: set[str] = set()
        self.faults: list[str] = []
        self.in_flight_max = 0
        self.acknowledging = asyncio.Event()
        self.acknowledging.set()
        self.rejected_kinds: set[int] = set()
        self._server: grpc.aio.Server | None = None
        self.port = 0

    async def start(self) -> None:
        """Listens; after a `stop`, on the same port again."""
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        feedback_grpc.add_FeedbackServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()

    async def stop(self) -> None:
        """Ends at once, as when killed: nothing un-acked is committed."""
        if self._server is not None:
            await self._server.stop(0)
            await self._server.wait_for_termination()
            self._server = None

    async def StreamStatus(
        self,
        request_iterator: AsyncIterator[feedback_pb.StreamStatusRequest],
        context: Any,
    ) -> AsyncIterator[feedback_pb.StreamStatusResponse]:
        self.authorisations |= {str(value) for key, value in context.invocation_metadata() if key == "authorization"}
        first = await anext(request_iterator)
        self._expect(first.HasField("open"), "the first request is not an open")
        self.opened.append(first.open)
        accepted = feedback_pb.StreamAccepted(batch_size_max=5_000, outstanding_batches_max=OUTSTANDING_BATCHES_MAX)
        yield feedback_pb.StreamStatusResponse(accepted=accepted)
        expected = 1
        async for request in request_iterator:
            batch = request.batch
            self._expect(request.HasField("batch") and batch.sequence == expected, f"expected batch {expected}")
            self._expect(1 <= len(batch.events) <= 5_000, "a batch of a wrong size")
            expected = batch.sequence + 1
            self.arrived += batch.events
            await self.acknowledging.wait()
            self.committed += batch.events
            ack = feedback_pb.StreamAck(acked_through=batch.sequence)
            for index, event in enumerate(batch.events):
                if event.kind in self.rejected_kinds:
                    reason = observation_pb.REJECTION_REASON_MALFORMED
                    ack.rejections.add(sequence=batch.sequence, index=index, reason=reason)
            yield feedback_pb.StreamStatusResponse(ack=ack)

    def _expect(self, right: bool, fault: str) -> None:
        if not right:
            self.faults.append(fault)
