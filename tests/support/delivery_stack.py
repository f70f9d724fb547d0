"""DeliveryService in this process: the real composition root, Postgres and gRPC, with a hand-written MTA side."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc.aio

from campaign.delivery.v1 import delivery_pb2, kpis_pb2, send_log_pb2
from campaign.delivery.v1 import delivery_service_pb2 as pb
from campaign.delivery.v1 import observation_service_pb2 as observation_pb
from campaign.delivery.v1.address_health_service_pb2_grpc import AddressHealthServiceStub
from campaign.delivery.v1.delivery_service_pb2_grpc import DeliveryServiceStub
from campaign.delivery.v1.observation_service_pb2_grpc import ObservationServiceStub
from campaign.delivery.v1.requalification_service_pb2_grpc import RequalificationServiceStub
from delivery_service.app import App
from delivery_service.settings import Settings
from service_runtime.client import StaticToken, open_channel
from service_runtime.clock import Clock
from service_runtime.development_keys import DevelopmentKeys
from tests.support.eventually import eventually
from tests.support.mta_side import MtaSide

CONTENT = delivery_pb2.Content(
    subject="Hello {{ first_name }}",
    html="<p>Hi {{ first_name }}</p><a href='https://example.com/unsubscribe'>unsubscribe</a>",
    from_address="news@example.com",
)
ALL_ROLES = ("start-deliveries", "administration", "feedback")
WAIT_SECONDS = 60.0
TOKEN_SECONDS = 10**9
"""Longer than any time that a test lets pass by its own clock."""


@dataclass
class Applied:
    """One Apply stream, used by a test as FeedbackService uses it."""

    call: Any
    sequences: Iterable[int] = field(default_factory=lambda: count(1))

    async def send(self, batch: observation_pb.ObservationBatch) -> observation_pb.ApplyAck:
        """Sends one batch, waits for its ack."""
        batch.sequence = next(iter(self.sequences))
        await self.call.write(observation_pb.ApplyRequest(batch=batch))
        response = await self.call.read()
        assert response.ack.acked_through == batch.sequence
        ack: observation_pb.ApplyAck = response.ack
        return ack


class DeliveryStack:
    """One running DeliveryService, and clients of it."""

    def __init__(self, app: App, keys: DevelopmentKeys, mta: MtaSide, dsn: str) -> None:
        self.app = app
        self.keys = keys
        self.mta = mta
        self.dsn = dsn
        assert app.server is not None
        self.target = f"127.0.0.1:{app.server.port}"
        self._channels: list[grpc.aio.Channel] = []
        self.stub = self.client(*ALL_ROLES)
        feedback = self.channel("feedback")
        self.observations = ObservationServiceStub(feedback)
        self.requalification = RequalificationServiceStub(feedback)
        self.addresses = AddressHealthServiceStub(self.channel("administration"))

    def channel(self, *roles: str) -> grpc.aio.Channel:
        channel = open_channel(self.target, StaticToken(self.keys.sign("tester", roles, TOKEN_SECONDS)))
        self._channels.append(channel)
        return channel

    @asynccontextmanager
    async def one_channel(self, *roles: str) -> AsyncIterator[grpc.aio.Channel]:
        """A channel of its own, closed at the end."""
        async with open_channel(self.target, StaticToken(self.keys.sign("tester", roles, TOKEN_SECONDS))) as channel:
            yield channel

    def person(self, subject: str, *roles: str) -> DeliveryServiceStub:
        """A client for someone else than the tester."""
        channel = open_channel(self.target, StaticToken(self.keys.sign(subject, roles, TOKEN_SECONDS)))
        self._channels.append(channel)
        return DeliveryServiceStub(channel)

    def client(self, *roles: str) -> DeliveryServiceStub:
        return DeliveryServiceStub(self.channel(*roles))

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()

    async def create(self, **fields: Any) -> str:
        draft = delivery_pb2.Delivery(**{"label": "a test", "content": CONTENT, **fields})
        response = await self.stub.CreateDelivery(pb.CreateDeliveryRequest(delivery=draft))
        return response.delivery.delivery_id

    async def add(self, delivery_id: str, recipients: Sequence[pb.NewRecipient], chunk_size: int = 5_000) -> None:
        async def requests() -> AsyncIterator[pb.AddRecipientsRequest]:
            opened = pb.RecipientUploadOpen(delivery_id=delivery_id, upload_id=str(uuid4()))
            yield pb.AddRecipientsRequest(open=opened)
            for number, begin in enumerate(range(0, len(recipients), chunk_size), start=1):
                chunk = pb.RecipientChunk(number=number, recipients=recipients[begin : begin + chunk_size])
                yield pb.AddRecipientsRequest(chunk=chunk)

        await self.stub.AddRecipients(requests())

    async def delivery(self, delivery_id: str) -> delivery_pb2.Delivery:
        return (await self.stub.GetDelivery(pb.GetDeliveryRequest(delivery_id=delivery_id))).delivery

    async def in_state(
        self, delivery_id: str, *states: "delivery_pb2.DeliveryState.ValueType"
    ) -> delivery_pb2.Delivery:
        """Waits until the delivery is in one of these states."""

        async def reached() -> delivery_pb2.Delivery:
            delivery = await self.delivery(delivery_id)
            assert delivery.state in states, f"is {delivery_pb2.DeliveryState.Name(delivery.state)}"
            return delivery

        return await eventually(reached, timeout_seconds=WAIT_SECONDS)

    async def prepare(self, delivery_id: str) -> delivery_pb2.Delivery:
        await self.stub.PrepareDelivery(pb.PrepareDeliveryRequest(delivery_id=delivery_id))
        return await self.in_state(
            delivery_id, delivery_pb2.DELIVERY_STATE_READY, delivery_pb2.DELIVERY_STATE_PREPARATION_FAILED
        )

    async def confirm(self, delivery: delivery_pb2.Delivery, **fields: Any) -> pb.ConfirmSendResponse:
        return await self.stub.ConfirmSend(
            pb.ConfirmSendRequest(
                **{
                    "delivery_id": delivery.delivery_id,
                    "plan_digest": delivery.plan.plan_digest,
                    "request_id": str(uuid4()),
                    **fields,
                }
            )
        )

    async def ready(self, recipients: int = 3, **fields: Any) -> delivery_pb2.Delivery:
        """A prepared delivery to that many."""
        delivery_id = await self.create(**fields)
        await self.add(delivery_id, people(recipients))
        return await self.prepare(delivery_id)

    async def sent(self, recipients: int = 3, **fields: Any) -> str:
        """A delivery that has been relayed to that many."""
        delivery = await self.ready(recipients, **fields)
        await self.confirm(delivery)
        await self.in_state(delivery.delivery_id, delivery_pb2.DELIVERY_STATE_FINISHED)
        return delivery.delivery_id

    async def kpis(self, delivery_id: str) -> kpis_pb2.Kpis:
        return (await self.stub.GetKpis(pb.GetKpisRequest(delivery_id=delivery_id))).kpis

    async def send_log(self, delivery_id: str, recipient: int = 1, mode: int = 0) -> pb.GetSendLogResponse:
        return await self.stub.GetSendLog(
            pb.GetSendLogRequest(
                delivery_id=delivery_id,
                recipient=recipient,
                feedback_mode=delivery_pb2.FeedbackMode.ValueType(mode),
            )
        )

    @asynccontextmanager
    async def apply_stream(self) -> AsyncIterator[Applied]:
        """An open Apply stream."""
        call: Any = self.observations.Apply()
        try:
            opened = observation_pb.ApplyOpen(replica_id="test")
            await call.write(observation_pb.ApplyRequest(open=opened))
            response = await call.read()
            assert response.HasField("accepted")
            yield Applied(call)
            await call.done_writing()
        finally:
            call.cancel()

    async def apply(self, *observations: "Observed") -> observation_pb.ApplyAck:
        """Applies these in one batch."""
        async with self.apply_stream() as stream:
            return await stream.send(batch_of(observations))

    async def track(self, *facts: "Fact") -> observation_pb.ApplyAck:
        """Applies these tracking facts in one batch."""
        async with self.apply_stream() as stream:
            return await stream.send(facts_of(facts))


@dataclass(frozen=True)
class Observed:
    """One status observation as a test writes it."""

    message_id: str
    outcome: "send_log_pb2.Outcome.ValueType"
    event_time_us: int = 1_800_000_100_000_000
    failure_type: int = 0
    reason: int = 0
    smtp_code: int = 0
    enhanced_code: str = ""
    diagnostic: str = ""
    attempt: int = 0


def batch_of(observed: Iterable[Observed]) -> observation_pb.ObservationBatch:
    """The columns of some observations."""
    rows = observation_pb.StatusObservations()
    for one in observed:
        rows.message_ids.append(one.message_id)
        rows.outcomes.append(one.outcome)
        rows.event_times_us.append(one.event_time_us)
        rows.failure_types.append(send_log_pb2.FailureType.ValueType(one.failure_type))
        rows.reasons.append(send_log_pb2.Reason.ValueType(one.reason))
        rows.smtp_codes.append(one.smtp_code)
        rows.enhanced_codes.append(one.enhanced_code)
        rows.diagnostics.append(one.diagnostic)
        rows.attempts.append(one.attempt)
        rows.sources.append(0)
    return observation_pb.ObservationBatch(rules_version=1, source_ids=["mta-1"], observations=rows)


@dataclass(frozen=True)
class Fact:
    """One tracking fact as a test writes it."""

    message_id: str
    kind: "send_log_pb2.TimelineEntryKind.ValueType" = send_log_pb2.TIMELINE_ENTRY_KIND_OPEN
    event_time_us: int = 1_790_000_200_000_000
    url: str = ""


def facts_of(facts: Iterable[Fact]) -> observation_pb.ObservationBatch:
    """The columns of some tracking facts."""
    rows = observation_pb.TrackingFacts()
    for fact in facts:
        rows.message_ids.append(fact.message_id)
        rows.kinds.append(fact.kind)
        rows.event_times_us.append(fact.event_time_us)
        rows.urls.append(fact.url)
        rows.sources.append(0)
    return observation_pb.ObservationBatch(rules_version=1, source_ids=["mta-1"], tracking_facts=rows)


def people(number: int, first: int = 1) -> list[pb.NewRecipient]:
    """That many distinct recipients."""
    return [
        pb.NewRecipient(profile_id=f"p{i}", address=f"person{i}@example.com", attributes={"first_name": f"Name{i}"})
        for i in range(first, first + number)
    ]


@asynccontextmanager
async def delivery_stack(
    dsn: str, folder: Path, *, clock: Clock | None = None, mta: MtaSide | None = None, **settings: Any
) -> AsyncIterator[DeliveryStack]:
    """Runs DeliveryService on a database. With an `mta` given, that one is used and left running."""
    keys = DevelopmentKeys.generate(clock)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "public.pem").write_bytes(keys.public_pem)
    (folder / "relay.token").write_text(keys.sign("delivery", ["relay"], 10**6))
    side = mta or MtaSide()
    if mta is None:
        await side.start()
    faults: list[str] = []
    app = App(
        Settings(
            **{
                "database_url": dsn,
                "listen": "127.0.0.1:0",
                "admin_listen": "127.0.0.1:0",
                "relay_target": f"127.0.0.1:{side.port}",
                "token_file": folder / "relay.token",
                "jwt_public_key_file": folder / "public.pem",
                # Commands and new times wake the workers: looking more often would only keep a CPU busy.
                "worker_poll_seconds": 0.1,
                "relay_retry_seconds": 0.02,
                "shutdown_notice_seconds": 0.0,
                "shutdown_grace_seconds": 2.0,
                # Off, unless a test turns it on: many let the same addresses bounce again and again.
                "quarantine_check_seconds": 1e6,
                **settings,
            }
        ),
        faults.append,
        clock,
    )
    await app.start()
    stack = DeliveryStack(app, keys, side, dsn)
    try:
        yield stack
    finally:
        await stack.close()
        await app.stop()
        if mta is None:
            await side.stop()
        await asyncio.sleep(0)
    assert not faults, f"background tasks died: {faults}"


StackFactory = Callable[..., Any]
