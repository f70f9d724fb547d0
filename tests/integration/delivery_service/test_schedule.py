"""Schedules: at once or at a contact time; nothing leaves before it, one replica starts it."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from campaign.delivery.v1 import delivery_pb2, schedule_pb2
from campaign.delivery.v1 import delivery_service_pb2 as pb
from campaign.delivery.v1.schedule_pb2 import Schedule
from tests.support.clock import SetClock
from tests.support.delivery_stack import DeliveryStack, delivery_stack
from tests.support.invariants import assert_laws
from tests.support.postgres import connected
from tests.support.statuses import refused

NOW = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
TOMORROW_IN_PARIS = Schedule(local_time="2026-03-03T10:00", time_zone="Europe/Paris")
TOMORROW = datetime(2026, 3, 3, 9, 0, tzinfo=UTC)


@pytest.fixture
def clock() -> SetClock:
    return SetClock(NOW)


@pytest.fixture
async def timed(database: str, tmp_path: Path, clock: SetClock) -> AsyncIterator[DeliveryStack]:
    """A service whose time the test sets."""
    async with delivery_stack(database, tmp_path, clock=clock) as running:
        yield running
    await assert_laws(database)


def change(delivery_id: str, schedule: Schedule | None) -> pb.UpdateDeliveryRequest:
    request = pb.UpdateDeliveryRequest(delivery=delivery_pb2.Delivery(delivery_id=delivery_id, schedule=schedule))
    request.update_mask.paths.append("schedule")
    return request


async def test_a_scheduled_delivery_starts_at_its_time_and_nothing_leaves_before(
    timed: DeliveryStack, clock: SetClock
) -> None:
    delivery = await timed.ready(3, schedule=TOMORROW_IN_PARIS)

    confirmed = await timed.confirm(delivery)
    assert confirmed.start_time.ToDatetime(UTC) == TOMORROW
    assert not [warning for warning in confirmed.warnings if warning.field.startswith("schedule")]
    clock.set(TOMORROW - timedelta(milliseconds=1))
    # Another delivery goes all the way meanwhile: the workers have looked at that time.
    await timed.sent(1)
    waiting = await timed.delivery(delivery.delivery_id)
    assert waiting.state == delivery_pb2.DELIVERY_STATE_START_PENDING
    assert not waiting.HasField("start_time")
    assert len(timed.mta.addresses) == 1

    clock.set(TOMORROW)
    finished = await timed.in_state(delivery.delivery_id, delivery_pb2.DELIVERY_STATE_FINISHED)

    assert finished.start_time.ToDatetime(UTC) == TOMORROW
    assert finished.validity_end_time.ToDatetime(UTC) == TOMORROW + timedelta(days=3.5)
    assert len(timed.mta.addresses) == 3


async def test_a_late_start_is_the_real_start(timed: DeliveryStack, clock: SetClock) -> None:
    delivery = await timed.ready(3, schedule=TOMORROW_IN_PARIS)
    await timed.confirm(delivery)

    clock.set(TOMORROW + timedelta(hours=5))  # nobody was there in between
    started = await timed.in_state(delivery.delivery_id, delivery_pb2.DELIVERY_STATE_FINISHED)

    assert started.start_time.ToDatetime(UTC) == TOMORROW + timedelta(hours=5)
    assert started.validity_end_time.ToDatetime(UTC) == TOMORROW + timedelta(hours=5, days=3.5)


async def test_a_contact_time_that_has_passed_at_the_confirmation_means_at_once_with_a_warning(
    timed: DeliveryStack, clock: SetClock
) -> None:
    delivery = await timed.ready(3, schedule=TOMORROW_IN_PARIS)
    clock.set(TOMORROW + timedelta(seconds=1))

    told = await timed.confirm(delivery, validate_only=True)
    confirmed = await timed.confirm(delivery, request_id="r")
    finished = await timed.in_state(delivery.delivery_id, delivery_pb2.DELIVERY_STATE_FINISHED)
    repeated = await timed.confirm(delivery, request_id="r")

    for answer in (told, confirmed):
        assert answer.start_time.ToDatetime(UTC) == clock.now()
        assert [warning.field for warning in answer.warnings] == ["schedule.local_time"]
    assert repeated == confirmed
    assert finished.start_time == confirmed.start_time


async def test_validate_only_tells_when_it_would_start(timed: DeliveryStack) -> None:
    delivery = await timed.ready(3, schedule=TOMORROW_IN_PARIS)

    told = await timed.confirm(delivery, validate_only=True)

    assert told.start_time.ToDatetime(UTC) == TOMORROW
    assert (await timed.delivery(delivery.delivery_id)).etag == delivery.etag


@pytest.mark.parametrize(
    ("local_time", "instant", "kind"),
    [
        ("2026-03-29T02:30", "2026-03-29T01:00", schedule_pb2.LOCAL_TIME_KIND_GAP),
        ("2026-10-25T02:30", "2026-10-25T00:30", schedule_pb2.LOCAL_TIME_KIND_OVERLAP),
        ("2026-07-01T00:00:01", "2026-06-30T22:00:01", schedule_pb2.LOCAL_TIME_KIND_ORDINARY),
    ],
)
async def test_the_instant_of_the_local_time_is_told(
    timed: DeliveryStack, local_time: str, instant: str, kind: int
) -> None:
    delivery_id = await timed.create(schedule=Schedule(local_time=local_time, time_zone="Europe/Paris"))

    schedule = (await timed.delivery(delivery_id)).schedule

    assert schedule.contact_time.ToDatetime() == datetime.fromisoformat(instant)
    assert schedule.local_time_kind == kind
    assert schedule.local_time.startswith(local_time)


@pytest.mark.parametrize(
    "other", [None, Schedule(local_time="2026-03-03T10:00", time_zone="Europe/London")], ids=["at-once", "elsewhere"]
)
async def test_a_change_of_schedule_wants_a_new_preparation_and_leaves_nothing_of_the_old_one(
    timed: DeliveryStack, other: Schedule | None
) -> None:
    delivery = await timed.ready(3, schedule=TOMORROW_IN_PARIS)

    edited = (await timed.stub.UpdateDelivery(change(delivery.delivery_id, other))).delivery
    async with refused(grpc.StatusCode.FAILED_PRECONDITION, "DELIVERY_STATE"):
        await timed.confirm(delivery)
    again = await timed.prepare(delivery.delivery_id)
    async with refused(grpc.StatusCode.ABORTED, "PLAN_CHANGED"):
        await timed.confirm(delivery)

    assert edited.state == delivery_pb2.DELIVERY_STATE_EDITING
    assert edited.HasField("schedule") == (other is not None)
    confirmed = await timed.confirm(again)
    if other is None:
        assert confirmed.start_time.ToDatetime(UTC) == NOW
        await timed.in_state(delivery.delivery_id, delivery_pb2.DELIVERY_STATE_FINISHED)
    else:
        assert confirmed.start_time.ToDatetime(UTC) == TOMORROW + timedelta(hours=1)


async def test_another_edit_keeps_the_schedule(timed: DeliveryStack) -> None:
    delivery = await timed.ready(3, schedule=TOMORROW_IN_PARIS)
    request = pb.UpdateDeliveryRequest(delivery=delivery_pb2.Delivery(delivery_id=delivery.delivery_id, label="new"))
    request.update_mask.paths.append("label")

    labelled = (await timed.stub.UpdateDelivery(request)).delivery

    assert labelled.schedule == delivery.schedule
    assert labelled.state == delivery_pb2.DELIVERY_STATE_READY
    listed = await timed.stub.ListDeliveries(pb.ListDeliveriesRequest())
    assert listed.deliveries[0].schedule == delivery.schedule


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"local_time": "", "time_zone": "Europe/Paris"}, "local_time"),
        ({"local_time": "2026-03-03T10:00Z", "time_zone": "Europe/Paris"}, "local_time"),
        ({"local_time": "2026-03-03T10:00"}, "time_zone"),
        ({"local_time": "2026-03-03T10:00", "time_zone": "Mars/Olympus"}, "time_zone"),
        ({"local_time": "1901-03-03T10:00", "time_zone": "UTC"}, "local_time"),
        ({"local_time": "9999-12-31T23:59", "time_zone": "America/New_York"}, "local_time"),
        ({"local_time": "2036-03-10T10:00", "time_zone": "UTC"}, "local_time"),  # one day beyond the limit
    ],
)
async def test_a_schedule_that_can_not_be_is_refused_by_field(
    timed: DeliveryStack, fields: dict[str, Any], field: str
) -> None:
    draft = delivery_pb2.Delivery(schedule=Schedule(**fields))

    async with refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD") as problem:
        await timed.stub.CreateDelivery(pb.CreateDeliveryRequest(delivery=draft))

    assert problem.fields == [f"delivery.schedule.{field}"]


async def test_of_two_replicas_one_starts_it_and_a_clock_behind_changes_nothing(database: str, tmp_path: Path) -> None:
    ahead, behind = SetClock(NOW), SetClock(NOW)
    async with (
        delivery_stack(database, tmp_path / "1", clock=ahead) as one,
        delivery_stack(database, tmp_path / "2", clock=behind, mta=one.mta) as two,
    ):
        delivery = await one.ready(2_000, schedule=TOMORROW_IN_PARIS)
        await one.confirm(delivery)
        ahead.set(TOMORROW)
        finished = await two.in_state(delivery.delivery_id, delivery_pb2.DELIVERY_STATE_FINISHED)

        assert finished.start_time.ToDatetime(UTC) == TOMORROW
        assert set(one.mta.addresses.values()) == {1}
        assert len(one.mta.addresses) == 2_000
    await assert_laws(database)


async def test_changes_of_state_are_seen_by_watchers(timed: DeliveryStack, clock: SetClock) -> None:
    delivery = await timed.ready(3, schedule=TOMORROW_IN_PARIS)
    states: list[int] = []

    async def watch() -> None:
        request = pb.WatchKpisRequest(delivery_ids=[delivery.delivery_id])
        request.min_interval.nanos = 1
        async for message in timed.stub.WatchKpis(request):
            if message.HasField("kpis"):
                states.append(message.kpis.state)
                if message.kpis.state == delivery_pb2.DELIVERY_STATE_FINISHED:
                    return

    watching = asyncio.create_task(watch())
    await timed.confirm(delivery)
    clock.set(TOMORROW)
    async with asyncio.timeout(60):
        await watching

    assert states[-1] == delivery_pb2.DELIVERY_STATE_FINISHED
    assert states == sorted(states)


async def test_many_deliveries_for_later_do_not_keep_one_that_is_due_waiting(
    timed: DeliveryStack, clock: SetClock
) -> None:
    later = await timed.ready(1, schedule=TOMORROW_IN_PARIS)
    await timed.confirm(later)
    async with connected(timed.dsn) as connection:
        # As many as a worker looks at in one go, all of them older than the one below.
        await connection.execute(
            """
            insert into delivery (delivery_id, label, channel, feedback_mode, subject, html, body_text, from_address,
                from_name, reply_to_address, validity_period, state, creator, create_time, update_time, contact_time,
                plan, slot_count)
            select n, label, channel, feedback_mode, subject, html, body_text, from_address, from_name,
                reply_to_address, validity_period, state, creator, create_time, update_time, contact_time, plan,
                slot_count
            from delivery, generate_series(1, 1000) as n where delivery_id = $1
            """,
            int(later.delivery_id),
        )

        await timed.sent(1)

        await connection.execute("delete from delivery where delivery_id <= 1000")
