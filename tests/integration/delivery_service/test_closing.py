"""The end of the validity period and what comes after it, by the service's clock."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from campaign.delivery.v1 import before_the_send_pb2, delivery_pb2, send_log_pb2
from campaign.delivery.v1 import delivery_service_pb2 as pb
from service_runtime.clock import to_microseconds
from tests.support.clock import ManualClock
from tests.support.delivery_stack import DeliveryStack, Observed, delivery_stack, people
from tests.support.eventually import eventually
from tests.support.invariants import assert_laws
from tests.support.mta_side import ACCEPT, LATER, MtaSide

READY, IN_PROGRESS = delivery_pb2.DELIVERY_STATE_READY, delivery_pb2.DELIVERY_STATE_IN_PROGRESS
FINISHED, FAILED = delivery_pb2.DELIVERY_STATE_FINISHED, delivery_pb2.DELIVERY_STATE_FAILED
PAUSED, STOPPED = delivery_pb2.DELIVERY_STATE_PAUSED, delivery_pb2.DELIVERY_STATE_STOPPED
DEFERRED, DELIVERED = send_log_pb2.OUTCOME_DEFERRED, send_log_pb2.OUTCOME_DELIVERED
DAY_SECONDS = 86_400.0
VALIDITY = timedelta(days=3.5)
SOFT, MAILBOX_FULL, IGNORED = 1, 6, 3


class Timed:
    """A DeliveryService on a clock that moves only when a test waits for something."""

    def __init__(self, stack: DeliveryStack, clock: ManualClock) -> None:
        self.stack = stack
        self.clock = clock

    async def until(self, look: Callable[[], Awaitable[Any]]) -> Any:
        """Looks again and again, a twentieth of a second of the service's time apart."""

        async def tick() -> Any:
            await self.clock.advance(0.05)
            return await look()

        return await eventually(tick)

    async def in_state(self, delivery_id: str, state: int) -> delivery_pb2.Delivery:
        async def reached() -> delivery_pb2.Delivery | None:
            delivery = await self.stack.delivery(delivery_id)
            return delivery if delivery.state == state else None

        delivery: delivery_pb2.Delivery = await self.until(reached)
        return delivery

    async def ready(self, recipients: int, **fields: Any) -> str:
        """A prepared delivery to that many."""
        delivery_id = await self.stack.create(**fields)
        await self.stack.add(delivery_id, people(recipients))
        await self.stack.stub.PrepareDelivery(pb.PrepareDeliveryRequest(delivery_id=delivery_id))
        await self.in_state(delivery_id, READY)
        return delivery_id

    async def begun(self, recipients: int, **fields: Any) -> str:
        """A delivery to that many, in progress."""
        return await self.begin(await self.ready(recipients, **fields))

    async def begin(self, delivery_id: str) -> str:
        """Confirms it, and waits until it has begun."""
        await self.stack.confirm(await self.stack.delivery(delivery_id))

        async def begun() -> bool:
            return (await self.stack.delivery(delivery_id)).state not in (
                READY,
                delivery_pb2.DELIVERY_STATE_START_PENDING,
            )

        await self.until(begun)
        return delivery_id

    async def outcomes(self, delivery_id: str) -> list[int]:
        """Counts, in the order of their ranks."""
        outcomes = (await self.stack.kpis(delivery_id)).outcomes
        return [getattr(outcomes, field.name) for field in outcomes.DESCRIPTOR.fields]

    async def validity_closed(self, delivery_id: str) -> delivery_pb2.Delivery:
        async def closed() -> delivery_pb2.Delivery | None:
            delivery = await self.stack.delivery(delivery_id)
            return delivery if delivery.HasField("validity_closed_time") else None

        delivery: delivery_pb2.Delivery = await self.until(closed)
        return delivery

    def pass_by(self, seconds: float) -> None:
        """Time that nobody notices before the next look."""
        self.clock.set(self.clock.now() + timedelta(seconds=seconds))

    async def looked(self) -> None:
        """All workers have looked for work at this time."""
        for _ in range(20):  # each lets the loops run, and the round trip lets what they began go on
            await self.clock.advance(0.05)
            await self.stack.stub.ListDeliveries(pb.ListDeliveriesRequest())

    @property
    def now_us(self) -> int:
        return to_microseconds(self.clock.now())


@asynccontextmanager
async def timed(database: str, folder: Path, **settings: Any) -> AsyncIterator[Timed]:
    clock = ManualClock()
    async with delivery_stack(database, folder, clock=clock, **settings) as stack:
        yield Timed(stack, clock)
    await assert_laws(database)


async def test_when_the_validity_is_over_nothing_waits_any_more(database: str, tmp_path: Path) -> None:
    async with timed(database, tmp_path) as service:
        stack = service.stack
        stack.mta.decide = lambda message: LATER if message.address == "person6@example.com" else ACCEPT
        delivery_id = await service.begun(6)

        async def five_left() -> bool:
            return await service.outcomes(delivery_id) == [1, 0, 5, 0, 0, 0, 0]

        await service.until(five_left)
        event_us = service.now_us
        await stack.apply(
            Observed(f"{delivery_id}-1", DELIVERED, event_us),
            Observed(
                f"{delivery_id}-2", DEFERRED, event_us, SOFT, MAILBOX_FULL, 452, "4.2.2", "mailbox is full", attempt=3
            ),
            Observed(f"{delivery_id}-3", DEFERRED, event_us, SOFT, MAILBOX_FULL),
        )
        service.pass_by(3.5 * DAY_SECONDS + 3_000)  # within the grace: reports of that time may still come in
        await service.looked()
        assert not (await stack.delivery(delivery_id)).HasField("validity_closed_time")
        service.pass_by(601)

        closed = await service.validity_closed(delivery_id)

        assert closed.state == FINISHED
        assert await service.outcomes(delivery_id) == [0, 0, 2, 0, 3, 1, 0]
        kpis = await stack.kpis(delivery_id)
        assert kpis.unresolved == 2  # handed over, never reported on: not guessed at
        assert kpis.with_efs.final
        assert kpis.without_efs.final
        deadline = closed.start_time.ToDatetime(UTC) + VALIDITY
        assert closed.validity_end_time.ToDatetime(UTC) == deadline
        deferred = (await stack.send_log(delivery_id, 2)).send_log
        assert deferred.event_time.ToDatetime(UTC) == deadline
        assert (deferred.failure_type, deferred.reason, deferred.smtp_code) == (SOFT, MAILBOX_FULL, 452)
        assert (deferred.diagnostic, deferred.attempt) == ("mailbox is full", 3)
        unsent = (await stack.send_log(delivery_id, 6)).send_log
        assert unsent.failure_type == IGNORED  # it says nothing about the address
        assert "before the MTA had taken" in unsent.diagnostic
        assert stack.mta.withdrawn[f"{delivery_id}-6"] == 1


async def test_a_late_true_report_still_wins(database: str, tmp_path: Path) -> None:
    async with timed(database, tmp_path) as service:
        delivery_id = await service.begun(2)
        await service.in_state(delivery_id, FINISHED)
        await service.stack.apply(Observed(f"{delivery_id}-1", DEFERRED, service.now_us, SOFT))
        service.pass_by(3.6 * DAY_SECONDS)
        await service.validity_closed(delivery_id)
        assert await service.outcomes(delivery_id) == [0, 0, 1, 0, 1, 0, 0]

        await service.stack.apply(Observed(f"{delivery_id}-1", DELIVERED, service.now_us))
        await service.stack.apply(Observed(f"{delivery_id}-2", DELIVERED, service.now_us))

        assert await service.outcomes(delivery_id) == [0, 0, 0, 0, 0, 2, 0]
        assert (await service.stack.kpis(delivery_id)).unresolved == 0


@pytest.mark.parametrize("paused", [False, True], ids=["in progress", "paused"])
async def test_a_delivery_of_which_nothing_was_ever_handed_over_has_failed(
    database: str, tmp_path: Path, paused: bool
) -> None:
    async with timed(database, tmp_path) as service:
        stack = service.stack
        stack.mta.decide = lambda _: LATER
        delivery_id = await service.begun(3_000)
        if paused:
            await stack.stub.PauseDelivery(pb.PauseDeliveryRequest(delivery_id=delivery_id))
        service.pass_by(3.6 * DAY_SECONDS)

        assert (await service.validity_closed(delivery_id)).state == FAILED
        assert await service.outcomes(delivery_id) == [0, 0, 0, 0, 3_000, 0, 0]


async def test_a_proof_is_no_hand_over_of_a_delivery_that_has_failed(database: str, tmp_path: Path) -> None:
    async with timed(database, tmp_path) as service:
        stack = service.stack
        delivery_id = await service.ready(3)
        profile = before_the_send_pb2.TestProfile(profile_id="colleague", address="proof@example.com")
        sent = await stack.stub.SendProof(
            before_the_send_pb2.SendProofRequest(delivery_id=delivery_id, test_profiles=[profile])
        )
        assert [proof.verdict for proof in sent.proofs] == [before_the_send_pb2.PROOF_VERDICT_ACCEPTED]
        stack.mta.decide = lambda _: LATER
        await service.begin(delivery_id)
        service.pass_by(3.6 * DAY_SECONDS)

        assert (await service.validity_closed(delivery_id)).state == FAILED


async def test_what_was_accepted_without_our_knowing_is_found_out_at_the_end(database: str, tmp_path: Path) -> None:
    async with timed(database, tmp_path, relay_answer_timeout_seconds=600.0) as service:
        stack = service.stack
        stack.mta.cuts = 10**6  # takes everything, and no answer ever comes through
        delivery_id = await service.begun(5)

        async def taken() -> bool:
            return len(stack.mta.journal) == 5

        await service.until(taken)
        assert await service.outcomes(delivery_id) == [5, 0, 0, 0, 0, 0, 0]
        service.pass_by(3.6 * DAY_SECONDS)

        assert (await service.validity_closed(delivery_id)).state == FINISHED
        assert await service.outcomes(delivery_id) == [0, 0, 5, 0, 0, 0, 0]


async def test_nothing_is_relayed_after_the_end_of_the_validity(database: str, tmp_path: Path) -> None:
    async with timed(database, tmp_path, validity_grace_seconds=10**6) as service:
        stack = service.stack
        stack.mta.decide = lambda _: LATER
        delivery_id = await service.begun(3, validity_period=Duration(seconds=60))

        async def tried() -> bool:
            return len(stack.mta.relayed) == 3

        await service.until(tried)
        service.pass_by(61)
        await service.looked()
        stack.mta.decide = lambda _: ACCEPT
        service.pass_by(1_000)
        await service.looked()

        assert await service.outcomes(delivery_id) == [3, 0, 0, 0, 0, 0, 0]
        assert stack.mta.addresses == {}


async def test_a_delivery_is_settled_a_week_after_the_last_hand_over_and_its_watch_ends(
    database: str, tmp_path: Path
) -> None:
    async with timed(database, tmp_path) as service:
        delivery_id = await service.begun(1)
        await service.in_state(delivery_id, FINISHED)
        service.pass_by(6.9 * DAY_SECONDS)
        closed = await service.validity_closed(delivery_id)
        await service.looked()
        assert not (await service.stack.delivery(delivery_id)).HasField("settled_time")
        watch: Any = service.stack.stub.WatchKpis(pb.WatchKpisRequest(delivery_ids=[delivery_id]))
        before = (await watch.read()).kpis.revision
        service.pass_by(0.2 * DAY_SECONDS)

        async def settled() -> bool:
            return (await service.stack.delivery(delivery_id)).HasField("settled_time")

        await service.until(settled)
        assert (await watch.read()).kpis.revision > before
        assert await watch.read() is grpc.aio.EOF
        assert await watch.code() is grpc.StatusCode.OK
        assert closed.settled_time.ToSeconds() == 0


async def test_the_rows_of_a_stopped_delivery_that_wait_for_a_retry_expire_too(database: str, tmp_path: Path) -> None:
    async with timed(database, tmp_path) as service:
        stack = service.stack
        stack.mta.decide = lambda message: LATER if message.address == "person3@example.com" else ACCEPT
        delivery_id = await service.begun(3)

        async def two_left() -> bool:
            return (await service.outcomes(delivery_id))[2] == 2

        await service.until(two_left)
        await stack.apply(Observed(f"{delivery_id}-1", DEFERRED, service.now_us, SOFT))
        await stack.stub.StopDelivery(pb.StopDeliveryRequest(delivery_id=delivery_id))
        service.pass_by(3.6 * DAY_SECONDS)

        assert (await service.validity_closed(delivery_id)).state == STOPPED
        assert await service.outcomes(delivery_id) == [0, 1, 1, 0, 1, 0, 0]


async def test_replicas_close_a_delivery_together_as_one_would(database: str, tmp_path: Path) -> None:
    mta = MtaSide()
    await mta.start()
    clock = ManualClock()
    try:
        async with (
            delivery_stack(database, tmp_path / "a", clock=clock, mta=mta) as one,
            delivery_stack(database, tmp_path / "b", clock=clock, mta=mta),
        ):
            service = Timed(one, clock)
            mta.decide = lambda message: LATER if message.message_id.endswith("1") else ACCEPT
            delivery_id = await service.begun(20_000)

            async def rest_left() -> bool:
                return (await service.outcomes(delivery_id))[2] == 18_000

            await service.until(rest_left)
            service.pass_by(3.6 * DAY_SECONDS)
            assert (await service.validity_closed(delivery_id)).state == FINISHED
            assert await service.outcomes(delivery_id) == [0, 0, 18_000, 0, 2_000, 0, 0]
            assert max(mta.withdrawn.values()) == 1
            await asyncio.sleep(0)
    finally:
        await mta.stop()
    await assert_laws(database)
