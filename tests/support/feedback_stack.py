"""FeedbackService in this process: the real composition root between a hand-written DeliveryService and MTA clients."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from campaign.feedback.v1 import feedback_service_pb2 as pb
from campaign.feedback.v1.feedback_service_pb2_grpc import FeedbackServiceStub
from feedback_service.app import App
from feedback_service.settings import Settings
from service_runtime.client import StaticToken, open_channel
from service_runtime.development_keys import DevelopmentKeys
from tests.support.eventually import eventually
from tests.support.observation_double import ObservationDouble

TIME_US = 1_795_415_948_000_000
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def delivered(*message_ids: str) -> list[pb.MtaEvent]:
    """A DELIVERY event for each."""
    return [
        pb.MtaEvent(message_id=i, kind=pb.MTA_EVENT_KIND_DELIVERY, event_time_us=TIME_US, smtp_code=250)
        for i in message_ids
    ]


def numbered(prefix: str, count: int) -> list[str]:
    """Message ids."""
    return [f"{prefix}-{number}" for number in range(count)]


class MtaClient:
    """One StreamStatus stream, used as an MTA uses it. A task collects what is answered."""

    def __init__(self, stub: FeedbackServiceStub) -> None:
        self.call: Any = stub.StreamStatus()
        self.accepted = pb.StreamAccepted()
        self.acked_through = 0
        self.ack_count = 0
        self.rejections: list[pb.EventRejection] = []
        self.sequence = 0
        self._collecting: asyncio.Task[None] | None = None

    async def open(self, source_id: str) -> None:
        """Opens the stream and waits for its terms."""
        opening = pb.StreamOpen(source_id=source_id, protocol_version=1)
        await self.call.write(pb.StreamStatusRequest(open=opening))
        response = await self.call.read()
        assert response is not grpc.aio.EOF, await self.call.code()
        self.accepted = response.accepted
        self._collecting = asyncio.create_task(self._collect())

    async def send(self, events: Iterable[pb.MtaEvent]) -> int:
        """Sends a batch and returns its sequence."""
        self.sequence += 1
        batch = pb.MtaEventBatch(sequence=self.sequence, events=events)
        await self.call.write(pb.StreamStatusRequest(batch=batch))
        return self.sequence

    async def acked(self, sequence: int | None = None, *, timeout_seconds: float = 60.0) -> None:
        """Waits until that batch, by default the last one, is acked."""
        wanted = self.sequence if sequence is None else sequence
        await eventually(lambda: self.acked_through >= wanted, timeout_seconds=timeout_seconds)

    async def close(self) -> None:
        """Cuts the stream."""
        self.call.cancel()
        if self._collecting is not None:
            await asyncio.wait((self._collecting,))

    async def _collect(self) -> None:
        try:
            while (response := await self.call.read()) is not grpc.aio.EOF:
                assert response.ack.acked_through > self.acked_through
                self.ack_count += 1
                self.acked_through = response.ack.acked_through
                self.rejections += response.ack.rejections
        except (grpc.aio.AioRpcError, asyncio.CancelledError):
            pass


class FeedbackStack:
    """The running service, the double behind it, and its clients."""

    def __init__(self, app: App, delivery: ObservationDouble, keys: DevelopmentKeys, clients: AsyncExitStack) -> None:
        self.app = app
        self.delivery = delivery
        self.keys = keys
        self._clients = clients

    def channel(self, *roles: str) -> grpc.aio.Channel:
        """A channel whose token has these roles."""
        channel = open_channel(self.app.address, StaticToken(self.keys.sign("tester", roles)))
        self._clients.push_async_callback(channel.close)
        return channel

    def stub(self, *roles: str) -> FeedbackServiceStub:
        """A client with these roles."""
        return FeedbackServiceStub(self.channel(*roles))

    async def mta(self, source_id: str, stub: FeedbackServiceStub | None = None) -> MtaClient:
        """An open stream."""
        client = MtaClient(stub or self.stub("mta"))
        self._clients.push_async_callback(client.close)
        await client.open(source_id)
        return client

    async def health(self) -> int:
        """What a health checker sees."""
        stub: Any = health_pb2_grpc.HealthStub(self.channel())
        status: int = (await stub.Check(health_pb2.HealthCheckRequest())).status
        return status

    async def is_connected(self) -> None:
        """Waits until DeliveryService is connected."""
        await eventually(lambda: self.app.client.is_connected)


QUICK = {
    "listen": "127.0.0.1:0",
    "admin_listen": "127.0.0.1:0",
    "reconnect_seconds_min": 0.01,
    "reconnect_seconds_max": 0.1,
    "defect_pause_seconds": 0.05,
    "drain_seconds": 2.0,
    "shutdown_notice_seconds": 0.0,
    "shutdown_grace_seconds": 4.0,
}
"""Quick waits, and none that a test would have to sit out."""


class RealFeedback:
    """A running FeedbackService in front of a running DeliveryService, and its clients."""

    def __init__(self, app: App, keys: DevelopmentKeys, clients: AsyncExitStack) -> None:
        self.app = app
        self._keys = keys
        self._clients = clients

    def channel(self, *roles: str) -> grpc.aio.Channel:
        """A channel whose token has these roles."""
        channel = open_channel(self.app.address, StaticToken(self._keys.sign("tester", roles)))
        self._clients.push_async_callback(channel.close)
        return channel

    async def mta(self, source_id: str) -> MtaClient:
        """An open stream."""
        client = MtaClient(FeedbackServiceStub(self.channel("mta")))
        self._clients.push_async_callback(client.close)
        await client.open(source_id)
        return client


@asynccontextmanager
async def feedback_before(
    delivery_target: str, keys: DevelopmentKeys, folder: Path, **settings: Any
) -> AsyncIterator[RealFeedback]:
    """Runs FeedbackService in front of a DeliveryService that trusts these keys."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "feedback.pem").write_bytes(keys.public_pem)
    (folder / "feedback.token").write_text(keys.sign("feedback-service", ["feedback"]))
    faults: list[str] = []
    files = {"token_file": folder / "feedback.token", "jwt_public_key_file": folder / "feedback.pem"}
    app = App(Settings(**{**QUICK, **files, "delivery_target": delivery_target, **settings}), faults.append)
    async with AsyncExitStack() as clients:
        await app.start()
        try:
            await eventually(lambda: app.client.is_connected)
            yield RealFeedback(app, keys, clients)
            await clients.aclose()
        finally:
            await app.stop()
    assert faults == []


@asynccontextmanager
async def feedback_stack(folder: Path, *, delivery_away: bool = False, **settings: Any) -> AsyncIterator[FeedbackStack]:
    """Runs it in front of a double of DeliveryService."""
    keys = DevelopmentKeys.generate()
    key_file, token_file = folder / "key.pem", folder / "token"
    key_file.write_bytes(keys.public_pem)
    token_file.write_text(keys.sign("feedback-service", ["feedback"]))
    delivery, faults = ObservationDouble(), list[str]()
    await delivery.start()
    if delivery_away:
        await delivery.stop()
    chosen = {
        **QUICK,
        "delivery_target": delivery.target,
        "token_file": token_file,
        "jwt_public_key_file": key_file,
        **settings,
    }
    app = App(Settings(**chosen), faults.append)
    async with AsyncExitStack() as clients:
        await app.start()
        try:
            stack = FeedbackStack(app, delivery, keys, clients)
            if not delivery_away:
                await stack.is_connected()
            yield stack
            await clients.aclose()
        finally:
            delivery.acking.set()
            await app.stop()
            await delivery.stop()
    assert faults == []
