"""A hand-written MTA side: takes what is relayed, once per message id, and answers as the test tells it to."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from campaign.mta.v1 import relay_service_pb2 as pb
from campaign.mta.v1.relay_service_pb2_grpc import RelayServiceServicer, add_RelayServiceServicer_to_server


@dataclass(frozen=True)
class Answer:
    """What to answer to one message."""

    verdict: "pb.RelayVerdict.ValueType" = pb.RELAY_VERDICT_ACCEPTED
    refusal: pb.RelayRefusal | None = None


ACCEPT = Answer()
WITHDRAWN = Answer(pb.RELAY_VERDICT_WITHDRAWN)
LATER = Answer(pb.RELAY_VERDICT_TRY_LATER)


class MtaSide(RelayServiceServicer):
    """Answers by `decide`; keeps a journal as the contract asks.

    `open` cleared keeps it from answering, `reading` cleared from reading new streams. The next `cuts` batches are
    taken, and their streams cut instead of answered.
    """

    def __init__(self) -> None:
        self.decide: Callable[[pb.RelayMessage], Answer] = lambda _: ACCEPT
        self.journal: dict[str, tuple[Answer, int]] = {}
        self.relayed: Counter[str] = Counter()
        self.addresses: Counter[str] = Counter()
        self.withdrawn: Counter[str] = Counter()
        self.messages: dict[str, pb.RelayMessage] = {}
        self.templates: list[pb.RelayTemplate] = []
        self.subjects: dict[str, str] = {}
        """What each message was taken with: the subject of its delivery's template on its stream."""
        self.open = asyncio.Event()
        self.open.set()
        self.reading = asyncio.Event()
        self.reading.set()
        self.cuts = 0
        self.decides_withdrawals = True
        """Not deciding is against the contract."""
        self.batches_waiting = 0
        self._clock_us = 1_800_000_000_000_000
        self._server: grpc.aio.Server | None = None
        self.port = 0

    async def Relay(  # the contract's name
        self,
        request_iterator: AsyncIterator[pb.RelayRequest],
        context: Any,
    ) -> AsyncIterator[pb.RelayResponse]:
        await self.reading.wait()
        subjects: dict[str, str] = {}
        async for request in request_iterator:
            if request.HasField("template"):
                self.templates.append(request.template)
                subjects[request.template.delivery_id] = request.template.content.subject
                continue
            for message in request.batch.messages:
                self.subjects.setdefault(message.message_id, subjects[request.batch.delivery_id])
            self.batches_waiting += 1
            await self.open.wait()
            self.batches_waiting -= 1
            answer = self._answer(request.batch)
            if self.cuts:
                self.cuts -= 1
                await context.abort(grpc.StatusCode.UNAVAILABLE, "cut")
            yield answer

    async def Withdraw(self, request: pb.WithdrawRequest, context: Any) -> pb.WithdrawResponse:
        await self.open.wait()
        response = pb.WithdrawResponse()
        for index, message_id in enumerate(request.message_ids):
            self.withdrawn[message_id] += 1
            if message_id not in self.journal and self.decides_withdrawals:
                self._clock_us += 1
                self.journal[message_id] = (WITHDRAWN, self._clock_us)
            answer, time_us = self.journal.get(message_id, (LATER, self._clock_us))
            response.verdicts.append(answer.verdict)
            response.answer_times_us.append(time_us)
            if answer.refusal is not None:
                refusal = response.refusals.add()
                refusal.CopyFrom(answer.refusal)
                refusal.index = index
        return response

    def _answer(self, batch: pb.RelayBatch) -> pb.RelayResponse:
        response = pb.RelayResponse(sequence=batch.sequence)
        for index, message in enumerate(batch.messages):
            self.relayed[message.message_id] += 1
            self.messages[message.message_id] = message
            if message.message_id in self.journal:
                answer, time_us = self.journal[message.message_id]
            else:
                self._clock_us += 1
                answer, time_us = self.decide(message), self._clock_us
                if answer.verdict in (pb.RELAY_VERDICT_ACCEPTED, pb.RELAY_VERDICT_REFUSED):
                    self.journal[message.message_id] = (answer, time_us)
                if answer.verdict == pb.RELAY_VERDICT_ACCEPTED:
                    self.addresses[message.address] += 1
            response.verdicts.append(answer.verdict)
            response.answer_times_us.append(time_us)
            if answer.refusal is not None:
                refusal = response.refusals.add()
                refusal.CopyFrom(answer.refusal)
                refusal.index = index
        return response

    async def start(self, port: int = 0) -> int:
        # A small window, as other servers have: what is written beyond it waits until it is read.
        options = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65_535)]
        self._server = grpc.aio.server(options=options)
        add_RelayServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        await self._server.start()
        return self.port

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(0)
            self._server = None
