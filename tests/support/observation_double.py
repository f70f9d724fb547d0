"""A hand-written ObservationService behind a real grpc.aio server: records what it gets, and misbehaves on demand."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio

from campaign.delivery.v1 import observation_service_pb2 as pb
from campaign.delivery.v1.observation_service_pb2_grpc import (
    ObservationServiceServicer,
    add_ObservationServiceServicer_to_server,
)

Rejecter = Callable[[pb.ObservationBatch], list[pb.ObservationRejection]]


class ObservationDouble(ObservationServiceServicer):
    """What a test sees and sets of the DeliveryService that it plays."""

    def __init__(self) -> None:
        self.batches: list[pb.ObservationBatch] = []
        """Every batch that came, repetitions included."""
        self.committed: list[str] = []
        """The message ids of every batch that was acked."""
        self.reports: list[list[str]] = []
        self.tokens: list[str] = []
        self.replica_ids: list[str] = []
        self.streams_opened = 0
        self.outstanding_batches_max = 4
        self.batch_size_max = 5_000
        self.refuse_with: grpc.StatusCode | None = None
        self.reject: Rejecter = lambda _: []
        self.acking = asyncio.Event()
        """Cleared, batches are taken and not acked."""
        self.acking.set()
        self.port = 0
        self._server: grpc.aio.Server | None = None
        self._cuts: set[asyncio.Event] = set()
        self._writing = asyncio.Lock()

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def received(self) -> list[str]:
        """Message ids of status rows and facts, in the order of their arrival."""
        return [
            i for batch in self.batches for i in (*batch.observations.message_ids, *batch.tracking_facts.message_ids)
        ]

    async def start(self) -> None:
        """Listens; after the first time, where it did before."""
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        add_ObservationServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()

    async def stop(self) -> None:
        """Disappears."""
        if self._server is not None:
            await self._server.stop(0)
            self._server = None

    def cut(self) -> None:
        """Ends every open stream with UNAVAILABLE."""
        for cut in self._cuts:
            cut.set()

    async def Apply(  # type: ignore[override]  # reads and writes, where the generated stub expects a generator
        self, request_iterator: AsyncIterator[pb.ApplyRequest], context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> None:
        self.streams_opened += 1
        self.tokens += [str(value) for key, value in context.invocation_metadata() or () if key == "authorization"]
        if self.refuse_with is not None:
            await context.abort(self.refuse_with, "refused by the double")
        cut = asyncio.Event()
        self._cuts.add(cut)
        serving = asyncio.create_task(self._serve(request_iterator, context))
        cutting = asyncio.create_task(cut.wait())
        try:
            await asyncio.wait((serving, cutting), return_when=asyncio.FIRST_COMPLETED)
            if cut.is_set():
                async with self._writing:  # a status beside a pending write would be lost
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "cut by the double")
            await serving
        finally:
            self._cuts.discard(cut)
            serving.cancel()
            cutting.cancel()
            await asyncio.wait((serving, cutting))

    async def _serve(self, requests: AsyncIterator[pb.ApplyRequest], context: Any) -> None:
        first = await anext(aiter(requests))
        assert first.HasField("open")
        self.replica_ids.append(first.open.replica_id)
        accepted = pb.ApplyAccepted(
            outstanding_batches_max=self.outstanding_batches_max, batch_size_max=self.batch_size_max
        )
        async with self._writing:
            await context.write(pb.ApplyResponse(accepted=accepted))
        unacked: asyncio.Queue[pb.ObservationBatch] = asyncio.Queue()
        acking = asyncio.create_task(self._ack(unacked, context))
        expected = 1
        try:
            async for request in requests:
                if request.HasField("source_report"):
                    self.reports.append(list(request.source_report.source_ids))
                    continue
                batch = request.batch
                assert batch.sequence == expected, "sequences grow by one from 1 on each stream"
                assert unacked.qsize() < self.outstanding_batches_max, "more un-acked than was agreed"
                rows = len(batch.observations.message_ids)
                assert 0 < rows + len(batch.tracking_facts.message_ids) <= self.batch_size_max
                assert {len(column) for _, column in batch.observations.ListFields()} <= {rows}
                expected += 1
                self.batches.append(batch)
                unacked.put_nowait(batch)
        finally:
            acking.cancel()
            await asyncio.wait((acking,))

    async def _ack(self, unacked: "asyncio.Queue[pb.ObservationBatch]", context: Any) -> None:
        while True:
            batch = await unacked.get()
            await self.acking.wait()
            self.committed += [*batch.observations.message_ids, *batch.tracking_facts.message_ids]
            ack = pb.ApplyAck(acked_through=batch.sequence, rejections=self.reject(batch))
            async with self._writing:
                await context.write(pb.ApplyResponse(ack=ack))
