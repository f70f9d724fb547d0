"""ComputeStatistics: the drift is 0, and if it ever is not, it is found, told and repaired."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from campaign.delivery.v1 import delivery_pb2, send_log_pb2
from campaign.delivery.v1 import delivery_service_pb2 as pb
from tests.support.clock import ManualClock
from tests.support.delivery_stack import DeliveryStack, Fact, Observed, batch_of, delivery_stack
from tests.support.eventually import eventually
from tests.support.invariants import assert_laws
from tests.support.postgres import connected
from tests.support.statuses import refused

CLICK = send_log_pb2.TIMELINE_ENTRY_KIND_CLICK
DEFERRED, DELIVERED = send_log_pb2.OUTCOME_DEFERRED, send_log_pb2.OUTCOME_DELIVERED
BOUNCED = send_log_pb2.OUTCOME_BOUNCED
TIME_US = 1_790_000_100_000_000


async def compute(stack: DeliveryStack, delivery_id: str) -> pb.ComputeStatisticsResponse:
    return await stack.stub.ComputeStatistics(pb.ComputeStatisticsRequest(delivery_id=delivery_id))


async def test_there_is_no_drift(common: DeliveryStack) -> None:
    delivery_id = await common.sent(2_500)
    await common.apply(
        Observed(f"{delivery_id}-1", BOUNCED, failure_type=2),
        Observed(f"{delivery_id}-1024", BOUNCED, failure_type=3),
        Observed(f"{delivery_id}-2048", DEFERRED, failure_type=1),
    )
    before = await common.kpis(delivery_id)

    response = await compute(common, delivery_id)

    assert (response.drift, response.recounted) == (0, 2_500)
    assert response.kpis.outcomes == before.outcomes
    assert response.kpis.with_efs.failures == before.with_efs.failures


@pytest.mark.parametrize("slots", [1, 2, 3, 4, 7, 64])
@pytest.mark.expects_errors  # the drift is logged as what it is
async def test_rows_are_counted_by_slot_whatever_the_number_of_slots(database: str, tmp_path: Path, slots: int) -> None:
    async with delivery_stack(database, tmp_path, slots_per_delivery=slots) as stack:
        delivery_id = await stack.sent(9_500)
        await stack.apply(
            *(Observed(f"{delivery_id}-{n}", BOUNCED, failure_type=1 + n % 3) for n in range(100, 9_500, 500))
        )
        assert ((answer := await compute(stack, delivery_id)).drift, answer.recounted) == (0, 9_500)

        async with connected(database) as connection:
            await connection.execute(
                "update delivery_counter set bounced_hard = bounced_hard + 1, relayed = relayed - 1 "
                "where delivery_id = $1 and slot = $2",
                int(delivery_id),
                slots - 1,
            )
            assert (await compute(stack, delivery_id)).drift == 2
            assert (await compute(stack, delivery_id)).drift == 0
            slots_of = await connection.fetch("delete from counter_correction returning slot")
        assert {row["slot"] for row in slots_of} == {slots - 1}
    await assert_laws(database)


async def test_there_is_no_drift_while_observations_are_applied(common: DeliveryStack) -> None:
    delivery_id = await common.sent(3_000)

    async def play(outcome: "send_log_pb2.Outcome.ValueType", failure_type: int) -> None:
        async with common.apply_stream() as stream:
            for begin in range(1, 3_001, 200):
                observed = [
                    Observed(f"{delivery_id}-{n}", outcome, TIME_US + begin, failure_type)
                    for n in range(begin, min(begin + 200, 3_001))
                ]
                await stream.send(batch_of(observed))

    playing = asyncio.gather(play(DEFERRED, 1), play(DELIVERED, 0), play(DEFERRED, 2))
    drifts = []
    while not playing.done():
        drifts.append((await compute(common, delivery_id)).drift)
    await playing

    assert len(drifts) > 3
    assert set(drifts) == {0}


@pytest.mark.parametrize(
    ("change", "drift"),
    [
        ("delivered = delivered + 3", 3),
        ("relayed = relayed - 1, delivered = delivered + 1", 2),
        ("bounced_hard = bounced_hard + 5", 5),
        ("deferred_ignored = 7, expired = 2, prepared = 4", 13),
    ],
)
@pytest.mark.expects_errors  # the drift is logged as what it is
async def test_a_drift_is_found_told_repaired_and_logged(common: DeliveryStack, change: str, drift: int) -> None:
    delivery_id = await common.sent(2_500)
    await common.apply(Observed(f"{delivery_id}-1", DELIVERED))
    truth = await common.kpis(delivery_id)
    async with connected(common.dsn) as connection:
        await connection.execute(
            f"update delivery_counter set {change} where delivery_id = $1 and slot = 1", int(delivery_id)
        )

        first, second = await compute(common, delivery_id), await compute(common, delivery_id)

        assert (first.drift, second.drift) == (drift, 0)
        assert first.kpis.outcomes == truth.outcomes
        assert first.kpis.with_efs.failures == truth.with_efs.failures
        assert first.kpis.revision > truth.revision
        corrections = await connection.fetch(
            "select slot, counter, counted - found as added from counter_correction where delivery_id = $1",
            int(delivery_id),
        )
        assert sum(abs(row["added"]) for row in corrections) == drift
        assert {row["slot"] for row in corrections} == {1}
        # The laws say that there must be none: this one was ours.
        await connection.execute("delete from counter_correction where delivery_id = $1", int(delivery_id))


@pytest.mark.expects_errors
async def test_a_repair_keeps_what_is_applied_meanwhile(common: DeliveryStack) -> None:
    delivery_id = await common.sent(1_000)

    async def play() -> None:
        async with common.apply_stream() as stream:
            for begin in range(1, 1_001, 50):
                observed = [Observed(f"{delivery_id}-{n}", DELIVERED) for n in range(begin, begin + 50)]
                await stream.send(batch_of(observed))

    async with connected(common.dsn) as connection:
        playing = asyncio.create_task(play())
        for _ in range(5):
            await connection.execute(
                "update delivery_counter set bounced = bounced + 2 where delivery_id = $1 and slot = 0",
                int(delivery_id),
            )
            assert (await compute(common, delivery_id)).drift == 2
        await playing
        await connection.execute("delete from counter_correction where delivery_id = $1", int(delivery_id))

    assert (await common.kpis(delivery_id)).outcomes.delivered == 1_000
    assert (await compute(common, delivery_id)).drift == 0


async def test_one_run_at_a_time_per_delivery(common: DeliveryStack) -> None:
    delivery_id, other = await common.sent(1), await common.sent(1)

    async with connected(common.dsn) as connection, connection.transaction():
        await connection.execute(
            "select pg_advisory_xact_lock(hashtextextended('compute_statistics', $1))", int(delivery_id)
        )
        async with refused(grpc.StatusCode.ABORTED, "ALREADY_RUNNING") as problem:
            await compute(common, delivery_id)
        assert (await compute(common, other)).drift == 0

    assert problem.metadata == {"delivery_id": delivery_id}
    assert (await compute(common, delivery_id)).drift == 0


async def test_of_runs_at_once_each_succeeds_or_is_told_of_the_other(common: DeliveryStack) -> None:
    delivery_id = await common.sent(2_000)

    answers: list[Any] = await asyncio.gather(*(compute(common, delivery_id) for _ in range(8)), return_exceptions=True)

    done = [answer for answer in answers if isinstance(answer, pb.ComputeStatisticsResponse)]
    told = [answer.code() for answer in answers if isinstance(answer, grpc.aio.AioRpcError)]
    assert len(done) >= 1
    assert len(done) + len(told) == 8
    assert set(told) <= {grpc.StatusCode.ABORTED}
    assert {answer.drift for answer in done} == {0}


async def test_before_it_is_ready_a_delivery_has_nothing_to_count(common: DeliveryStack) -> None:
    draft = await common.create()
    edited = (await common.ready(2)).delivery_id
    await common.add(edited, [pb.NewRecipient(address="another@example.com")])

    for delivery_id in (draft, edited):
        async with refused(grpc.StatusCode.FAILED_PRECONDITION, "DELIVERY_STATE") as problem:
            await compute(common, delivery_id)
        assert problem.metadata["state"] == "EDITING"
    assert (await compute(common, (await common.ready(2)).delivery_id)).recounted == 2


async def test_an_unknown_delivery_is_not_found(common: DeliveryStack) -> None:
    async with refused(grpc.StatusCode.NOT_FOUND, "DELIVERY_NOT_FOUND"):
        await compute(common, "12345")


async def test_opens_and_clicks_are_refreshed_at_once_with_their_time(common: DeliveryStack) -> None:
    delivery_id = await common.sent(3)
    await common.track(Fact(f"{delivery_id}-1"), Fact(f"{delivery_id}-2", CLICK))
    before = await common.kpis(delivery_id)

    response = await compute(common, delivery_id)

    totals = response.kpis.engagement
    assert (totals.opened, totals.clicked, totals.opens, totals.clicks) == (2, 1, 1, 1)
    assert totals.HasField("as_of_time")
    assert response.kpis.revision > before.revision


async def test_a_recount_may_take_longer_than_other_statements(database: str, tmp_path: Path) -> None:
    async with delivery_stack(database, tmp_path, statement_timeout_seconds=0.3) as stack:
        delivery_id = await stack.sent(2)
        async with connected(database) as connection:
            transaction = connection.transaction()
            await transaction.start()
            # As long as this is held, the refresh waits.
            await connection.execute("select from engagement for update")
            computing = asyncio.create_task(compute(stack, delivery_id))

            async def waits() -> bool:
                async with connected(database) as other:
                    return bool(
                        await other.fetchval(
                            "select count(*) from pg_stat_activity where datname = current_database() "
                            "and wait_event_type = 'Lock' and now() - query_start > interval '0.5 s'"
                        )
                    )

            await eventually(waits)
            await transaction.rollback()
            assert (await computing).drift == 0
    await assert_laws(database)


# By itself.


async def test_by_default_opens_wait_for_the_hourly_refresh(database: str, tmp_path: Path) -> None:
    """By the service's clock: nothing at first beyond the first count, then once an hour."""
    clock = ManualClock()
    async with delivery_stack(database, tmp_path, clock=clock) as stack:

        async def turned(state: int, delivery_id: str) -> bool:
            await clock.advance(0.05)
            return (await stack.delivery(delivery_id)).state == state

        delivery_id = await stack.create()
        await stack.add(delivery_id, [pb.NewRecipient(address=f"person{n}@example.com") for n in range(3)])
        await stack.stub.PrepareDelivery(pb.PrepareDeliveryRequest(delivery_id=delivery_id))
        await eventually(lambda: turned(delivery_pb2.DELIVERY_STATE_READY, delivery_id))
        await stack.confirm(await stack.delivery(delivery_id))
        await eventually(lambda: turned(delivery_pb2.DELIVERY_STATE_FINISHED, delivery_id))

        async def opens_are(number: int) -> bool:
            await clock.advance(0.05)
            return (await stack.kpis(delivery_id)).engagement.opens == number

        await stack.track(Fact(f"{delivery_id}-1"))
        await eventually(lambda: opens_are(1))  # never counted before: at once
        counted = (await stack.kpis(delivery_id)).engagement.as_of_time.ToDatetime()
        await stack.track(Fact(f"{delivery_id}-2"))
        for _ in range(10):
            assert not await opens_are(2)
        clock.set(clock.now().replace(hour=clock.now().hour + 1))
        await eventually(lambda: opens_are(2))

        assert (await stack.kpis(delivery_id)).engagement.as_of_time.ToDatetime() > counted
    await assert_laws(database)


async def test_with_a_period_of_zero_opens_are_live_and_watched(database: str, tmp_path: Path) -> None:
    async with delivery_stack(database, tmp_path, engagement_refresh_seconds=0) as stack:
        delivery_id = await stack.sent(3)
        call: Any = stack.stub.WatchKpis(pb.WatchKpisRequest(delivery_ids=[delivery_id]))
        assert (await call.read()).kpis.engagement.opens == 0

        for number in (1, 2, 3):
            await stack.track(Fact(f"{delivery_id}-{number}"))
            async with asyncio.timeout(60):
                while (await call.read()).kpis.engagement.opens < number:
                    pass
        call.cancel()
    await assert_laws(database)
