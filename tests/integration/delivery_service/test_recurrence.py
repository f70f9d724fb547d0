"""Recurring deliveries: each occurrence once, whoever runs, dies or tells another time."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import grpc
import pytest

from campaign.delivery.v1 import commands_pb2, delivery_pb2, occurrence_pb2, schedule_pb2, send_log_pb2
from campaign.delivery.v1 import delivery_service_pb2 as pb
from campaign.delivery.v1.schedule_pb2 import Recurrence, Schedule
from delivery_service.store.queries import query
from tests.support.clock import SetClock
from tests.support.delivery_stack import DeliveryStack, Fact, Observed, delivery_stack, people
from tests.support.eventually import eventually
from tests.support.invariants import assert_laws
from tests.support.mta_side import MtaSide
from tests.support.postgres import connected
from tests.support.statuses import refused

NOW = datetime(2026, 3, 2, 8, 0, tzinfo=UTC)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
SPAWNED = occurrence_pb2.OCCURRENCE_STATE_SPAWNED
SKIPPED = occurrence_pb2.OCCURRENCE_STATE_SKIPPED
AGGREGATED = occurrence_pb2.OCCURRENCE_STATE_AGGREGATED


def recurring(
    rule: str = "FREQ=DAILY", local_time: str = "2026-03-02T09:00", zone: str = "UTC", **fields: Any
) -> Schedule:
    return Schedule(local_time=local_time, time_zone=zone, recurrence=Recurrence(**{"rule": rule, **fields}))


@pytest.fixture
def clock() -> SetClock:
    return SetClock(NOW)


@pytest.fixture
async def timed(database: str, tmp_path: Path, clock: SetClock) -> AsyncIterator[DeliveryStack]:
    """A service whose time the test sets."""
    async with delivery_stack(database, tmp_path, clock=clock) as running:
        yield running
    await assert_laws(database)


async def confirmed(stack: DeliveryStack, recipients: int = 3, **fields: Any) -> str:
    """A recurring delivery that is confirmed."""
    parent = await stack.ready(recipients, **fields)
    await stack.confirm(parent)
    return parent.delivery_id


async def occurrences_of(stack: DeliveryStack, parent_id: str, **fields: Any) -> list[occurrence_pb2.Occurrence]:
    request = occurrence_pb2.ListOccurrencesRequest(delivery_id=parent_id, page_size=1_000, **fields)
    return list((await stack.stub.ListOccurrences(request)).occurrences)


async def dealt_with(stack: DeliveryStack, parent_id: str, number: int) -> list[occurrence_pb2.Occurrence]:
    """Waits until so many occurrences have come, none of which waits for its child; the oldest first."""

    async def look() -> list[occurrence_pb2.Occurrence]:
        found = await occurrences_of(stack, parent_id)
        assert len(found) == number, f"{len(found)} of {number}"
        assert all(each.state != occurrence_pb2.OCCURRENCE_STATE_DUE for each in found)
        return found[::-1]

    return await eventually(look)


async def finished_child(stack: DeliveryStack, occurrence: occurrence_pb2.Occurrence) -> delivery_pb2.Delivery:
    return await stack.in_state(occurrence.child_delivery_id, delivery_pb2.DELIVERY_STATE_FINISHED)


async def test_each_occurrence_is_sent_to_the_standing_audience_by_a_child_of_its_own(
    timed: DeliveryStack, clock: SetClock
) -> None:
    parent_id = await confirmed(timed, schedule=recurring("FREQ=DAILY;COUNT=2"))
    assert (await timed.delivery(parent_id)).state == delivery_pb2.DELIVERY_STATE_START_PENDING

    clock.set(NOW + HOUR)
    (first,) = await dealt_with(timed, parent_id, 1)
    child = await finished_child(timed, first)
    assert (await timed.delivery(parent_id)).state == delivery_pb2.DELIVERY_STATE_IN_PROGRESS

    assert child.parent_occurrence.delivery_id == parent_id
    assert child.parent_occurrence.local_time == first.local_time == "2026-03-02T09:00:00"
    assert child.confirmation.confirmer == "system"
    assert child.start_time.ToDatetime(UTC) == NOW + HOUR
    assert child.validity_end_time.ToDatetime(UTC) == NOW + HOUR + timedelta(days=3.5)
    assert child.content == (await timed.delivery(parent_id)).content
    assert (await timed.kpis(child.delivery_id)).outcomes.relayed == 3

    clock.set(NOW + HOUR + DAY)
    _, second = await dealt_with(timed, parent_id, 2)
    await finished_child(timed, second)
    ended = await timed.in_state(parent_id, delivery_pb2.DELIVERY_STATE_FINISHED)

    assert not ended.HasField("validity_end_time")
    assert set(timed.mta.addresses.values()) == {2}
    assert first.child_delivery_id != second.child_delivery_id
    assert (await timed.kpis(parent_id)).to_deliver == 0, "the parent sends nothing itself"


async def test_the_plan_of_a_recurring_delivery_tells_what_each_occurrence_would_send(timed: DeliveryStack) -> None:
    delivery_id = await timed.create(schedule=recurring())
    await timed.add(delivery_id, [*people(3), *people(1), pb.NewRecipient(address="nobody")])

    prepared = await timed.prepare(delivery_id)

    assert (prepared.plan.targeted, prepared.plan.to_deliver) == (5, 3)
    told = await timed.confirm(prepared, validate_only=True)
    assert told.start_time.ToDatetime(UTC) == NOW + HOUR
    assert told.to_deliver == 3


async def test_send_logs_of_an_earlier_preparation_are_gone_when_a_delivery_becomes_recurring(
    timed: DeliveryStack,
) -> None:
    delivery = await timed.ready(3)
    request = pb.UpdateDeliveryRequest(
        delivery=delivery_pb2.Delivery(delivery_id=delivery.delivery_id, schedule=recurring())
    )
    request.update_mask.paths.append("schedule")
    await timed.stub.UpdateDelivery(request)

    await timed.prepare(delivery.delivery_id)

    logs = await timed.stub.ListSendLogs(pb.ListSendLogsRequest(delivery_id=delivery.delivery_id))
    assert not logs.send_logs
    recounted = await timed.stub.ComputeStatistics(pb.ComputeStatisticsRequest(delivery_id=delivery.delivery_id))
    assert (recounted.drift, recounted.recounted) == (0, 0)


async def test_children_are_listed_under_their_parent_and_not_among_the_others(
    timed: DeliveryStack, clock: SetClock
) -> None:
    parent_id = await confirmed(timed, schedule=recurring())
    clock.set(NOW + HOUR)
    (first,) = await dealt_with(timed, parent_id, 1)
    await finished_child(timed, first)

    all_of_them = await timed.stub.ListDeliveries(pb.ListDeliveriesRequest())
    children = await timed.stub.ListDeliveries(pb.ListDeliveriesRequest(parent_delivery_id=parent_id))

    assert [each.delivery_id for each in all_of_them.deliveries] == [parent_id]
    assert [each.delivery_id for each in children.deliveries] == [first.child_delivery_id]
    assert children.deliveries[0].parent_occurrence.delivery_id == parent_id


async def sent_to_all(stack: DeliveryStack, times: int) -> None:
    """Waits until person 1 has got so many messages."""

    async def look() -> bool:
        return stack.mta.addresses["person1@example.com"] >= times

    await eventually(look)


@pytest.mark.timeout(300)
async def test_a_year_of_a_daily_delivery_over_both_changes_of_the_clocks_with_two_replicas(
    database: str, tmp_path: Path
) -> None:
    zone = ZoneInfo("Europe/Paris")
    clocks = [SetClock(datetime(2026, 1, 1, tzinfo=UTC)), SetClock(datetime(2026, 1, 1, tzinfo=UTC))]
    async with (
        delivery_stack(database, tmp_path / "1", clock=clocks[0]) as one,
        delivery_stack(database, tmp_path / "2", clock=clocks[1], mta=one.mta) as two,
    ):
        schedule = recurring(
            "FREQ=DAILY;BYHOUR=2;BYMINUTE=30", "2026-01-02T00:00", "Europe/Paris", local_end_time="2026-12-31T23:59"
        )
        schedule.recurrence.max_lateness.FromTimedelta(timedelta(days=30))
        parent_id = await confirmed(one, recipients=1, schedule=schedule)

        for day in range(2, 366):
            midnight = (datetime(2026, 1, 1, tzinfo=zone) + timedelta(days=day)).astimezone(UTC)
            # The replicas' clocks differ by a minute; which one is ahead changes.
            clocks[day % 2].set(midnight)
            clocks[1 - day % 2].set(midnight - timedelta(minutes=1))
            if day % 20 == 0:  # or the first of them would be too late
                await sent_to_all(one, day - 1)
        found = await dealt_with(two, parent_id, 364)
        await one.in_state(parent_id, delivery_pb2.DELIVERY_STATE_FINISHED)

        await sent_to_all(one, 364)
        for each in found:
            await finished_child(two, each)

    assert one.mta.addresses == {"person1@example.com": 364}
    expected = [datetime(2026, 1, 2, 2, 30) + timedelta(days=day) for day in range(364)]  # noqa: DTZ001
    assert [each.local_time for each in found] == [moment.isoformat() for moment in expected]
    assert all(each.state == SPAWNED for each in found)
    assert len({each.child_delivery_id for each in found}) == 364
    instants = {each.local_time[:10]: each.due_time.ToDatetime(UTC) for each in found}
    assert instants["2026-03-28"].hour == 1
    assert instants["2026-03-29"] == datetime(2026, 3, 29, 1, 0, tzinfo=UTC)  # 02:30 does not exist
    assert instants["2026-03-30"].hour == 0
    assert instants["2026-10-25"] == datetime(2026, 10, 25, 0, 30, tzinfo=UTC)  # the earlier 02:30
    assert instants["2026-10-26"].hour == 1
    await assert_laws(database)


async def test_an_occurrence_whose_child_was_never_made_gets_it_once_when_someone_is_back(
    database: str, tmp_path: Path
) -> None:
    clock, mta, due = SetClock(NOW), MtaSide(), NOW + HOUR
    await mta.start()
    async with delivery_stack(database, tmp_path / "1", clock=clock, mta=mta) as stack:
        parent_id = await confirmed(stack, schedule=recurring("FREQ=DAILY;COUNT=1"))
    recorded = [[due.replace(tzinfo=None)], [due], [1], [None], [4_711], None, due]
    async with connected(database) as connection:
        # A process that starts the parent, does the first of the two steps, and is killed.
        await connection.execute(query("start_delivery"), int(parent_id), due)
        assert await connection.fetchval(query("record_occurrences"), int(parent_id), None, *recorded)
        # And one that did the same at the same time.
        assert not await connection.fetchval(query("record_occurrences"), int(parent_id), None, *recorded)

    clock.set(due)
    async with AsyncExitStack() as replicas:
        stacks = [
            await replicas.enter_async_context(
                delivery_stack(database, tmp_path / f"then-{number}", clock=clock, mta=mta)
            )
            for number in range(2)
        ]
        (occurrence,) = await dealt_with(stacks[0], parent_id, 1)
        await finished_child(stacks[0], occurrence)
        await stacks[0].in_state(parent_id, delivery_pb2.DELIVERY_STATE_FINISHED)
    await mta.stop()

    assert occurrence.child_delivery_id == "4711"
    assert mta.addresses == Counter({f"person{n}@example.com": 1 for n in range(1, 4)})
    await assert_laws(database)


async def test_many_replicas_at_once_make_one_child(timed: DeliveryStack, clock: SetClock) -> None:
    parent_id = await confirmed(timed, schedule=recurring())
    async with connected(timed.dsn) as connection:
        await connection.execute(query("start_delivery"), int(parent_id), NOW + HOUR)
        await connection.execute(
            "insert into occurrence values ($1, '2026-03-02T09:00', $2, 1, null, 99, $2)", int(parent_id), NOW + HOUR
        )

    async def spawn() -> int | None:
        async with connected(timed.dsn) as connection:
            nominal = datetime(2026, 3, 2, 9, 0)  # noqa: DTZ001
            state: int | None = await connection.fetchval(query("spawn_child"), int(parent_id), nominal, NOW + HOUR)
            return state

    answers = await asyncio.gather(*(spawn() for _ in range(10)))

    assert sum(answer is not None for answer in answers) <= 1  # the service's own worker may have been first
    async with connected(timed.dsn) as connection:
        assert await connection.fetchval("select count(*) from delivery where parent_id = $1", int(parent_id)) == 1
    clock.set(NOW + HOUR)
    await timed.in_state("99", delivery_pb2.DELIVERY_STATE_FINISHED)


async def test_what_was_missed_runs_once_if_it_is_not_too_late_and_is_recorded_as_skipped_otherwise(
    timed: DeliveryStack, clock: SetClock
) -> None:
    schedule = recurring("FREQ=HOURLY")
    schedule.recurrence.max_lateness.FromTimedelta(timedelta(hours=3))
    parent_id = await confirmed(timed, recipients=1, schedule=schedule)

    clock.set(NOW + 10 * HOUR + timedelta(minutes=30))  # 09:00 to 18:00 were missed
    found = await dealt_with(timed, parent_id, 10)
    for each in found[-3:]:
        await finished_child(timed, each)

    assert [each.state for each in found] == [SKIPPED] * 7 + [SPAWNED] * 3
    assert not any(each.child_delivery_id for each in found[:7])
    assert timed.mta.addresses["person1@example.com"] == 3
    assert len(await occurrences_of(timed, parent_id, states=[SKIPPED])) == 7


async def test_a_long_downtime_is_recorded_in_bounded_steps(database: str, tmp_path: Path) -> None:
    clock = SetClock(NOW)
    async with delivery_stack(database, tmp_path, clock=clock, occurrences_recorded_per_step_max=7) as stack:
        parent_id = await confirmed(stack, recipients=1, schedule=recurring("FREQ=HOURLY"))
        clock.set(NOW + 100 * HOUR)

        found = await dealt_with(stack, parent_id, 100)
        await finished_child(stack, found[-1])

    assert [each.state for each in found] == [SKIPPED] * 98 + [SPAWNED] * 2  # an hour late is still in time
    assert len({each.local_time for each in found}) == 100
    await assert_laws(database)


async def test_occurrences_before_the_confirmation_are_not_made_up_for(timed: DeliveryStack, clock: SetClock) -> None:
    parent = await timed.ready(1, schedule=recurring("FREQ=HOURLY;COUNT=6"))
    clock.set(NOW + timedelta(hours=3, minutes=30))

    confirmation = await timed.confirm(parent)
    clock.set(NOW + 4 * HOUR)
    (found,) = await dealt_with(timed, parent.delivery_id, 1)

    assert confirmation.start_time.ToDatetime(UTC) == NOW + 4 * HOUR
    assert [warning.field for warning in confirmation.warnings] == ["schedule.recurrence"]
    assert found.local_time == "2026-03-02T12:00:00"


async def test_a_rule_that_is_over_when_it_is_confirmed_sends_nothing_and_says_so(
    timed: DeliveryStack, clock: SetClock
) -> None:
    parent = await timed.ready(1, schedule=recurring("FREQ=HOURLY;COUNT=2"))
    clock.set(NOW + 5 * HOUR)

    confirmation = await timed.confirm(parent)
    await timed.in_state(parent.delivery_id, delivery_pb2.DELIVERY_STATE_FINISHED)

    assert not confirmation.HasField("start_time")
    assert [warning.field for warning in confirmation.warnings] == ["schedule.recurrence"]
    assert await occurrences_of(timed, parent.delivery_id) == []
    assert not timed.mta.addresses


# Confirmation of each child.


async def waiting_child(timed: DeliveryStack, clock: SetClock) -> delivery_pb2.Delivery:
    parent_id = await confirmed(timed, schedule=recurring(request_confirmation=True))
    clock.set(NOW + HOUR)
    (occurrence,) = await dealt_with(timed, parent_id, 1)
    return await timed.in_state(occurrence.child_delivery_id, delivery_pb2.DELIVERY_STATE_READY)


async def test_with_request_confirmation_a_child_waits_for_a_person(timed: DeliveryStack, clock: SetClock) -> None:
    child = await waiting_child(timed, clock)
    await timed.sent(1)  # the workers have all had their turn
    assert (await timed.delivery(child.delivery_id)).state == delivery_pb2.DELIVERY_STATE_READY
    assert not child.parent_occurrence.confirmed_by_system

    await timed.confirm(child)
    sent = await timed.in_state(child.delivery_id, delivery_pb2.DELIVERY_STATE_FINISHED)

    assert sent.confirmation.confirmer == "tester"


async def test_a_child_that_is_not_confirmed_in_time_is_stopped(timed: DeliveryStack, clock: SetClock) -> None:
    child = await waiting_child(timed, clock)
    assert child.parent_occurrence.confirm_by_time.ToDatetime(UTC) == NOW + 2 * HOUR

    clock.set(NOW + 2 * HOUR + timedelta(seconds=1))
    await timed.in_state(child.delivery_id, delivery_pb2.DELIVERY_STATE_STOPPED)

    async with refused(grpc.StatusCode.FAILED_PRECONDITION, "DELIVERY_STATE"):
        await timed.confirm(child)
    assert not timed.mta.addresses


async def test_a_declined_child_is_stopped_and_the_next_one_comes_all_the_same(
    timed: DeliveryStack, clock: SetClock
) -> None:
    child = await waiting_child(timed, clock)

    declined = await timed.stub.Decline(commands_pb2.DeclineRequest(delivery_id=child.delivery_id))
    clock.set(NOW + HOUR + DAY)
    _, following = await dealt_with(timed, child.parent_occurrence.delivery_id, 2)
    await timed.in_state(following.child_delivery_id, delivery_pb2.DELIVERY_STATE_READY)

    assert declined.delivery.state == delivery_pb2.DELIVERY_STATE_STOPPED
    assert not timed.mta.addresses


async def test_a_confirmation_of_the_system_that_is_taken_back_leaves_the_child_to_a_person(
    timed: DeliveryStack, clock: SetClock
) -> None:
    child = await waiting_child(timed, clock)
    async with connected(timed.dsn) as connection:
        # As it is between the system's confirmation and the start, which is too short to be met.
        await connection.execute(
            "update delivery set state = 5, system_confirms = true, contact_time = 'infinity' where delivery_id = $1",
            int(child.delivery_id),
        )

    back = await timed.stub.Unconfirm(commands_pb2.UnconfirmRequest(delivery_id=child.delivery_id))
    await timed.sent(1)  # the workers have all had their turn

    assert not back.delivery.parent_occurrence.confirmed_by_system
    assert (await timed.delivery(child.delivery_id)).state == delivery_pb2.DELIVERY_STATE_READY


async def test_a_child_is_its_parents_and_can_not_be_changed(timed: DeliveryStack, clock: SetClock) -> None:
    child = await waiting_child(timed, clock)
    edit = pb.UpdateDeliveryRequest(delivery=delivery_pb2.Delivery(delivery_id=child.delivery_id, label="mine"))
    edit.update_mask.paths.append("content.subject")

    for call in (
        timed.stub.UpdateDelivery(edit),
        timed.add(child.delivery_id, people(1)),
        timed.stub.DeleteDelivery(commands_pb2.DeleteDeliveryRequest(delivery_id=child.delivery_id)),
        timed.stub.CancelPreparation(commands_pb2.CancelPreparationRequest(delivery_id=child.delivery_id)),
    ):
        async with refused(grpc.StatusCode.FAILED_PRECONDITION, "DELIVERY_KIND") as problem:
            await call
        assert problem.metadata["kind"] == "CHILD"
    del edit.update_mask.paths[:]
    edit.update_mask.paths.append("label")
    assert (await timed.stub.UpdateDelivery(edit)).delivery.label == "mine"
    copy = await timed.stub.DuplicateDelivery(commands_pb2.DuplicateDeliveryRequest(delivery_id=child.delivery_id))
    assert not copy.delivery.HasField("parent_occurrence")


# Aggregation.


@pytest.mark.parametrize(
    ("period", "hours", "states"),
    [
        (schedule_pb2.AGGREGATION_PERIOD_DAY, 12, [SPAWNED, AGGREGATED, SPAWNED, AGGREGATED, SPAWNED]),
        (schedule_pb2.AGGREGATION_PERIOD_WEEK, 4 * 24, [SPAWNED, AGGREGATED, SPAWNED, AGGREGATED, SPAWNED]),
        (schedule_pb2.AGGREGATION_PERIOD_MONTH, 12 * 24, [SPAWNED, AGGREGATED, AGGREGATED, SPAWNED, AGGREGATED]),
    ],
)
async def test_a_period_has_one_child_which_its_later_occurrences_share(
    timed: DeliveryStack,
    clock: SetClock,
    period: "schedule_pb2.AggregationPeriod.ValueType",
    hours: int,
    states: list[int],
) -> None:
    # From Monday, 2 March, 09:00 on.
    rule = f"FREQ=HOURLY;INTERVAL={hours}"
    parent_id = await confirmed(timed, recipients=1, schedule=recurring(rule, aggregation_period=period))

    found: list[occurrence_pb2.Occurrence] = []
    for number in range(5):
        clock.set(NOW + HOUR + number * hours * HOUR)
        found = await dealt_with(timed, parent_id, number + 1)
        await finished_child(timed, found[-1])

    assert [each.state for each in found] == states
    for before, each in pairwise(found):
        assert (each.child_delivery_id == before.child_delivery_id) == (each.state == AGGREGATED)
    assert timed.mta.addresses["person1@example.com"] == states.count(SPAWNED)


async def test_a_skipped_occurrence_does_not_use_its_period_up(timed: DeliveryStack, clock: SetClock) -> None:
    schedule = recurring("FREQ=HOURLY;INTERVAL=6", aggregation_period=schedule_pb2.AGGREGATION_PERIOD_DAY)
    parent_id = await confirmed(timed, recipients=1, schedule=schedule)

    clock.set(NOW + 7 * HOUR)  # 09:00 is six hours late
    found = await dealt_with(timed, parent_id, 2)

    assert [each.state for each in found] == [SKIPPED, SPAWNED]


# What is refused.


async def test_confirmations_can_be_requested_only_without_aggregation(timed: DeliveryStack) -> None:
    schedule = recurring(request_confirmation=True, aggregation_period=schedule_pb2.AGGREGATION_PERIOD_DAY)

    async with refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD") as problem:
        await timed.create(schedule=schedule)

    assert problem.fields == [
        "delivery.schedule.recurrence.request_confirmation",
        "delivery.schedule.recurrence.aggregation_period",
    ]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"rule": ""}, "rule"),
        ({"rule": "FREQ=MINUTELY"}, "rule"),
        ({"rule": "FREQ=DAILY;BYMONTH=2;BYMONTHDAY=30"}, "rule"),
        ({"rule": "FREQ=DAILY;COUNT=10001"}, "rule"),
        ({"rule": "FREQ=DAILY;BYHOUR=" + ",".join(["9"] * 300)}, "rule"),
        ({"local_end_time": "2026-03-01T09:00"}, "rule"),
        ({"local_end_time": "soon"}, "local_end_time"),
        ({"aggregation_period": 9}, "aggregation_period"),
        ({"max_lateness": {"seconds": 59}}, "max_lateness"),
        ({"max_lateness": {"seconds": 30 * 86_400 + 1}}, "max_lateness"),
    ],
)
async def test_a_recurrence_that_can_not_be_is_refused_by_field(
    timed: DeliveryStack, fields: dict[str, Any], field: str
) -> None:
    async with refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD") as problem:
        await timed.create(schedule=recurring(**fields))

    assert problem.fields == [f"delivery.schedule.recurrence.{field}"]


# Preview and lists.


async def test_a_preview_tells_local_times_and_changes_of_the_clocks(timed: DeliveryStack) -> None:
    schedule = recurring("FREQ=DAILY", "2026-03-27T02:30", "Europe/Paris")
    request = occurrence_pb2.PreviewOccurrencesRequest(schedule=schedule, count=4)

    given = list((await timed.stub.PreviewOccurrences(request)).occurrences)
    stored = await timed.stub.PreviewOccurrences(
        occurrence_pb2.PreviewOccurrencesRequest(delivery_id=await timed.create(schedule=schedule), count=4)
    )

    assert list(stored.occurrences) == given
    assert [each.local_time[8:10] for each in given] == ["27", "28", "29", "30"]
    assert [each.utc_offset_seconds for each in given] == [3_600, 3_600, 7_200, 7_200]
    assert [each.offset_changed for each in given] == [False, False, True, False]
    assert [each.local_time_kind for each in given] == [
        schedule_pb2.LOCAL_TIME_KIND_ORDINARY,
        schedule_pb2.LOCAL_TIME_KIND_ORDINARY,
        schedule_pb2.LOCAL_TIME_KIND_GAP,
        schedule_pb2.LOCAL_TIME_KIND_ORDINARY,
    ]
    assert given[2].due_time.ToDatetime(UTC) == datetime(2026, 3, 29, 1, 0, tzinfo=UTC)


async def test_a_preview_begins_where_it_is_asked_to_and_is_bounded(timed: DeliveryStack) -> None:
    request = occurrence_pb2.PreviewOccurrencesRequest(schedule=recurring("FREQ=HOURLY"), count=5_000)
    request.after_time.FromDatetime(NOW + 24 * HOUR)

    found = (await timed.stub.PreviewOccurrences(request)).occurrences

    assert len(found) == 100
    assert found[0].due_time.ToDatetime(UTC) == NOW + 25 * HOUR
    request.count = 0
    assert len((await timed.stub.PreviewOccurrences(request)).occurrences) == 10


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({}, "source"),
        ({"delivery_id": "x"}, "delivery_id"),
        ({"schedule": Schedule(local_time="2026-03-27T02:30", time_zone="UTC")}, "schedule.recurrence"),
        ({"schedule": recurring(zone="Nowhere")}, "schedule.time_zone"),
        ({"schedule": recurring(), "count": -1}, "count"),
        ({"schedule": recurring(), "after_time": {"seconds": -(10**15)}}, "after_time"),
        ({"schedule": recurring(), "after_time": {"seconds": 10**11}}, "after_time"),
    ],
)
async def test_a_malformed_preview_is_refused_by_field(
    timed: DeliveryStack, fields: dict[str, Any], field: str
) -> None:
    async with refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD") as problem:
        await timed.stub.PreviewOccurrences(occurrence_pb2.PreviewOccurrencesRequest(**fields))

    assert problem.fields == [field]


async def test_only_a_recurring_delivery_has_occurrences_and_totals(timed: DeliveryStack) -> None:
    plain = await timed.create()

    for call in (
        timed.stub.PreviewOccurrences(occurrence_pb2.PreviewOccurrencesRequest(delivery_id=plain)),
        timed.stub.ListOccurrences(occurrence_pb2.ListOccurrencesRequest(delivery_id=plain)),
        timed.stub.GetRecurrenceTotals(occurrence_pb2.GetRecurrenceTotalsRequest(delivery_id=plain)),
    ):
        async with refused(grpc.StatusCode.FAILED_PRECONDITION, "DELIVERY_KIND") as problem:
            await call
        assert problem.metadata["kind"] == "PLAIN"


async def test_occurrences_are_listed_newest_first_in_pages(timed: DeliveryStack, clock: SetClock) -> None:
    parent_id = await confirmed(timed, recipients=1, schedule=recurring("FREQ=HOURLY"))
    clock.set(NOW + 5 * HOUR)
    every = await dealt_with(timed, parent_id, 5)

    seen: list[occurrence_pb2.Occurrence] = []
    request = occurrence_pb2.ListOccurrencesRequest(delivery_id=parent_id, page_size=2)
    while True:
        page = await timed.stub.ListOccurrences(request)
        assert len(page.occurrences) <= 2
        seen += page.occurrences
        request.page_token = page.next_page_token
        if not request.page_token:
            break

    assert [each.local_time for each in seen[::-1]] == [each.local_time for each in every]
    async with refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"):
        await timed.stub.ListOccurrences(
            occurrence_pb2.ListOccurrencesRequest(delivery_id=parent_id, page_token="nonsense")
        )


# Totals.


async def test_totals_add_messages_and_count_people_once(timed: DeliveryStack, clock: SetClock) -> None:
    delivery_id = await timed.create(schedule=recurring("FREQ=DAILY;COUNT=2"))
    nameless = pb.NewRecipient(address="nameless@example.com")
    await timed.add(delivery_id, [*people(2), nameless])
    await timed.confirm(await timed.prepare(delivery_id))
    children = []
    for number in range(2):
        clock.set(NOW + HOUR + number * DAY)
        children.append((await dealt_with(timed, delivery_id, number + 1))[-1])
        await finished_child(timed, children[-1])
    first, second = (each.child_delivery_id for each in children)
    click = send_log_pb2.TIMELINE_ENTRY_KIND_CLICK
    await timed.apply(
        Observed(f"{first}-1", send_log_pb2.OUTCOME_DELIVERED), Observed(f"{second}-1", send_log_pb2.OUTCOME_BOUNCED)
    )
    await timed.track(
        Fact(f"{first}-1"),
        Fact(f"{first}-1", event_time_us=1_790_000_300_000_000),
        Fact(f"{second}-1"),
        Fact(f"{first}-3"),
        Fact(f"{second}-3", kind=click, url="https://example.com"),
    )

    request = occurrence_pb2.GetRecurrenceTotalsRequest(delivery_id=delivery_id)
    totals = (await timed.stub.GetRecurrenceTotals(request)).totals

    assert (totals.children, totals.to_deliver, totals.skipped_occurrences) == (2, 6, 0)
    assert (totals.outcomes.relayed, totals.outcomes.delivered, totals.outcomes.bounced) == (4, 1, 1)
    assert (totals.with_efs.delivered.count, totals.with_efs.delivered.base) == (1, 6)
    assert (totals.without_efs.delivered.count, totals.without_efs.bounces_and_errors.count) == (5, 1)
    assert (totals.unique_opened, totals.unique_clicked) == (2, 1), "person 1 and the nameless one, each once"
    assert (totals.opens, totals.clicks) == (4, 1)
    assert totals.children_without_log == 0

    for child in (first, second):
        await timed.stub.ComputeStatistics(pb.ComputeStatisticsRequest(delivery_id=child))
    async with connected(timed.dsn) as connection:
        dropped = "update delivery set log_dropped_time = now() where delivery_id = $1"
        await connection.execute(dropped, int(first))
    after = (await timed.stub.GetRecurrenceTotals(request)).totals

    assert after.children_without_log == 1
    assert (after.unique_opened, after.unique_clicked) == (2, 1), "the people of the second alone"
    after.children_without_log = 0
    after.as_of_time.CopyFrom(totals.as_of_time)
    assert after == totals


async def test_totals_of_a_recurring_delivery_without_children_are_nothing(timed: DeliveryStack) -> None:
    delivery_id = await timed.create(schedule=recurring())

    request = occurrence_pb2.GetRecurrenceTotalsRequest(delivery_id=delivery_id)
    totals = (await timed.stub.GetRecurrenceTotals(request)).totals

    assert (totals.children, totals.to_deliver, totals.unique_opened) == (0, 0, 0)
    assert not totals.with_efs.delivered.HasField("rate")


@pytest.mark.parametrize(
    ("name", "index", "arguments"),
    [
        ("deliveries_to_start", "delivery_to_start", "now(), 100"),
        ("recurring_due", "delivery_recurring", "now(), 100"),
        ("children_to_confirm", "delivery_child_ready", "now(), 100"),
        ("children_out_of_time", "delivery_child_ready", "now(), 100"),
        ("audiences_to_copy", "delivery_copying", "100"),
        ("list_deliveries", "delivery_children", "9223372036854775807, '{}', 100, 7"),
    ],
)
async def test_what_the_workers_look_for_is_found_by_an_index(
    database: str, name: str, index: str, arguments: str
) -> None:
    async with connected(database) as connection:
        await connection.execute(
            """
            insert into delivery (delivery_id, label, channel, feedback_mode, subject, html, body_text, from_address,
                from_name, reply_to_address, validity_period, state, creator, create_time, update_time, contact_time,
                parent_id, recurring, next_occurrence_time)
            select n, '', 1, 1, '', '', '', '', '', '', '1 hour', (array[5, 6, 9, 9])[n % 4 + 1], '', now(), now(),
                now() + interval '1 day', case when n % 7 = 0 then n % 1000 end, n % 4 = 1,
                now() + interval '1 day'
            from generate_series(1, 20000) n;
            analyze delivery
            """
        )
        await connection.execute(f"prepare looked_at as {query(name)}")
        plan = await connection.fetch(f"explain execute looked_at ({arguments})")

        assert index in "\n".join(line[0] for line in plan)
