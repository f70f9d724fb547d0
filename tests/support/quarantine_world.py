"""Two replicas that both read the log for the quarantine, on a clock that a test sets, and what a test tells them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from campaign.delivery.v1 import address_health_service_pb2 as pb
from campaign.delivery.v1 import (
    delivery_pb2,
    exclusion_pb2,
    send_log_pb2,
)
from service_runtime.clock import to_microseconds
from tests.support.clock import SetClock
from tests.support.delivery_stack import DeliveryStack, Observed, delivery_stack
from tests.support.eventually import eventually
from tests.support.invariants import assert_laws
from tests.support.postgres import connected

START = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
SOFT, HARD, IGNORED = (
    send_log_pb2.FAILURE_TYPE_SOFT,
    send_log_pb2.FAILURE_TYPE_HARD,
    send_log_pb2.FAILURE_TYPE_IGNORED,
)
DEFERRED, EXPIRED = send_log_pb2.OUTCOME_DEFERRED, send_log_pb2.OUTCOME_EXPIRED
DELIVERED, BOUNCED = send_log_pb2.OUTCOME_DELIVERED, send_log_pb2.OUTCOME_BOUNCED
UNKNOWN, FULL = send_log_pb2.REASON_USER_UNKNOWN, send_log_pb2.REASON_MAILBOX_FULL
UNREACHABLE, REFUSED = send_log_pb2.REASON_UNREACHABLE, send_log_pb2.REASON_REFUSED
FINISHED = delivery_pb2.DELIVERY_STATE_FINISHED
NONE, WITH_ERRORS = pb.ADDRESS_STATUS_UNSPECIFIED, pb.ADDRESS_STATUS_WITH_ERRORS
PROVISIONAL, QUARANTINED = pb.ADDRESS_STATUS_PROVISIONAL, pb.ADDRESS_STATUS_QUARANTINED
COMPLAINT, UNSUBSCRIBE = send_log_pb2.TIMELINE_ENTRY_KIND_COMPLAINT, send_log_pb2.TIMELINE_ENTRY_KIND_UNSUBSCRIBE


@dataclass
class World:
    """Two replicas on one database, and their clock."""

    one: DeliveryStack
    two: DeliveryStack
    clock: SetClock

    async def health(self, address: str = "person1@example.com") -> pb.GetAddressResponse:
        return await self.two.addresses.GetAddress(pb.GetAddressRequest(address=address))

    async def status(self, address: str = "person1@example.com") -> "pb.AddressStatus.ValueType":
        return (await self.health(address)).health.status

    async def becomes(self, status: int, address: str = "person1@example.com", count: int | None = None) -> None:
        """Waits until an address has this status, and this number of errors."""

        async def is_so() -> bool:
            health = (await self.health(address)).health
            assert health.status == status, pb.AddressStatus.Name(health.status)
            assert count is None or health.error_count == count, health.error_count
            return True

        await eventually(is_so)

    async def looked(self) -> None:
        """Waits until both replicas' workers have nothing left to take up or to judge."""
        async with connected(self.one.dsn) as connection:

            async def nothing_is_left() -> bool:
                left = await connection.fetchval(
                    "select (select count(*) from delivery_counter c left join address_scan s using (delivery_id, slot)"
                    " where c.revision > coalesce(s.revision, 0)) + (select count(*) from address_news)"
                    " + (select count(*) from address_health where fact_version <> judged_version)"
                )
                return bool(left == 0)

            await eventually(nothing_is_left)


@asynccontextmanager
async def quarantine_world(dsn: str, folder: Path, **settings: Any) -> AsyncIterator[World]:
    """Runs both replicas."""
    clock = SetClock(START)
    settings = {"quarantine_check_seconds": 0.02, **settings}
    async with (
        delivery_stack(dsn, folder / "one", clock=clock, **settings) as one,
        delivery_stack(dsn, folder / "two", clock=clock, mta=one.mta, **settings) as two,
    ):
        yield World(one, two, clock)
    await assert_laws(dsn)


def observed(
    delivery_id: str,
    outcome: "send_log_pb2.Outcome.ValueType",
    at: datetime = START,
    failure_type: int = 0,
    reason: int = 0,
    recipient: int = 1,
    **fields: Any,
) -> Observed:
    return Observed(f"{delivery_id}-{recipient}", outcome, to_microseconds(at), failure_type, reason, **fields)


def soft(delivery_id: str, at: datetime, reason: int = UNREACHABLE, recipient: int = 1) -> Observed:
    return observed(delivery_id, DEFERRED, at, SOFT, reason, recipient)


async def excluded(stack: DeliveryStack, delivery_id: str) -> list[tuple[int, int]]:
    """The recipients that a preparation has excluded, with the cause."""
    listed = await stack.stub.ListExclusions(exclusion_pb2.ListExclusionsRequest(delivery_id=delivery_id))
    return [(each.recipient, each.cause) for each in listed.exclusions]


def volumes(delivery: delivery_pb2.Delivery) -> dict[int, int]:
    return {each.cause: each.volume for each in delivery.plan.exclusions}
