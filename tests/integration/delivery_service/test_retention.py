"""Retention: whole ranges of deliveries go when their time is over, and everybody is told so; the KPIs stay."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock, patch

import asyncpg
import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask

from campaign.delivery.v1 import (
    before_the_send_pb2,
    commands_pb2,
    delivery_pb2,
    exclusion_pb2,
    explanation_pb2,
    kpis_pb2,
    look_ups_pb2,
    retry_pb2,
    send_log_feed_pb2,
    send_log_pb2,
)
from campaign.delivery.v1 import delivery_service_pb2 as pb
from delivery_service.domain.identifiers import creation_time, first_id_at
from delivery_service.domain.retention import NewRange, RangeKind
from delivery_service.store import database as database_module
from delivery_service.store import migrate as migration
from delivery_service.store.database import DatabaseSettings
from delivery_service.store.migrate import migrate
from delivery_service.store.retention import Retention
from delivery_service.workers.retention import RetentionWorker
from service_runtime.clock import to_microseconds
from tests.support.clock import SetClock
from tests.support.delivery_stack import DeliveryStack, Fact, Observed, delivery_stack, people
from tests.support.eventually import eventually
from tests.support.invariants import assert_laws
from tests.support.postgres import DatabaseFactory, connected, server
from tests.support.statuses import refused

READY, FINISHED = delivery_pb2.DELIVERY_STATE_READY, delivery_pb2.DELIVERY_STATE_FINISHED
DELIVERED, BOUNCED = send_log_pb2.OUTCOME_DELIVERED, send_log_pb2.OUTCOME_BOUNCED
DAY, HOUR = timedelta(days=1), timedelta(hours=1)
OUT_OF_RANGE, PRECONDITION = grpc.StatusCode.OUT_OF_RANGE, grpc.StatusCode.FAILED_PRECONDITION
NOT_FOUND = grpc.StatusCode.NOT_FOUND


class Years:
    """DeliveryService on a clock that a test sets, beginning where the first range ends."""

    def __init__(self, stack: DeliveryStack, clock: SetClock) -> None:
        self.stack = stack
        self.clock = clock

    def pass_by(self, time: timedelta) -> None:
        self.clock.set(self.clock.now() + time)

    async def until(self, look: Callable[[], Awaitable[Any]], step: timedelta = HOUR) -> Any:
        """Looks again and again, an hour of the service's time apart."""

        async def tick() -> Any:
            self.pass_by(step)
            return await look()

        return await eventually(tick, timeout_seconds=60)

    async def settled(self, recipients: int = 3) -> str:
        """A delivery with feedback of all sorts, over, and settled."""
        delivery_id = await self.stack.sent(recipients)
        now_us = to_microseconds(self.clock.now())
        await self.stack.apply(
            Observed(f"{delivery_id}-1", DELIVERED, now_us + 1), Observed(f"{delivery_id}-2", BOUNCED, now_us + 1, 2, 1)
        )
        await self.stack.track(Fact(f"{delivery_id}-1", event_time_us=now_us + 2))
        self.pass_by(15 * DAY)

        async def look() -> bool:
            kpis = await self.stack.kpis(delivery_id)
            return (await self.stack.delivery(delivery_id)).HasField("settled_time") and kpis.engagement.opened == 1

        await self.until(look)
        return delivery_id

    async def dropped(self, delivery_id: str) -> delivery_pb2.Delivery:
        """Waits until its log was dropped to the last row."""

        async def look() -> delivery_pb2.Delivery | None:
            delivery = await self.stack.delivery(delivery_id)
            left = await partitions_of(self.stack.dsn, int(delivery_id), RangeKind.LOG)
            return delivery if delivery.HasField("log_dropped_time") and not left else None

        delivery: delivery_pb2.Delivery = await self.until(look)
        return delivery


async def partitions_of(dsn: str, delivery_id: int, kind: RangeKind) -> list[str]:
    """The partitions, attached or not, of the range that an id is in."""
    async with connected(dsn) as connection:
        suffixes = await connection.fetch(
            "select suffix from retention_range where kind = $2 and begin_id <= $1 and coalesce(end_id > $1, true)",
            delivery_id,
            kind,
        )
        rows = await connection.fetch(
            "select c.relname from pg_class c join retained_table t on c.relname = any ("
            "select t.table_name || '_' || s from unnest($1::text[]) s) where t.kind = $2 and c.relkind = 'r'",
            [row["suffix"] for row in suffixes],
            kind,
        )
    return [row["relname"] for row in rows]


async def first_open(dsn: str) -> datetime:
    """When the open range of the logs begins: from there on, ranges are of deliveries that a test made alone."""
    async with connected(dsn) as connection:
        begin = await connection.fetchval("select begin_id from retention_range where kind = 1 and end_id is null")
    return creation_time(begin)


@asynccontextmanager
async def years(dsn: str, folder: Path, **settings: Any) -> AsyncIterator[Years]:
    clock = SetClock(await first_open(dsn))
    async with delivery_stack(dsn, folder, clock=clock, **settings) as stack:
        yield Years(stack, clock)
    await assert_laws(dsn)


async def refuses(call: Awaitable[Any], code: grpc.StatusCode, reason: str) -> None:
    async with refused(code, reason):
        await call


async def drain(call: Any) -> list[Any]:
    return [response async for response in call]


async def test_three_years_of_deliveries_by_two_replicas_keep_what_they_should(database: str, tmp_path: Path) -> None:
    async with years(database, tmp_path / "a") as one, delivery_stack(database, tmp_path / "b", clock=one.clock):
        kept: list[tuple[datetime, str, kpis_pb2.Kpis]] = []
        for _ in range(36):
            delivery_id = await one.settled()
            kept.append((one.clock.now(), delivery_id, await one.stack.kpis(delivery_id)))
            one.pass_by(15 * DAY)
        now = one.clock.now()

        async def up_to_date() -> bool:
            async with connected(database) as connection:
                for kind, days in ((1, 182), (2, 730)):
                    due = await connection.fetch(
                        "select r.suffix, d.delivery_id, d.state, d.settled_time, d.log_dropped_time, "
                        "e.stale_since_time, r.drop_time from retention_range r "
                        "left join delivery d on d.delivery_id >= r.begin_id and d.delivery_id < r.end_id "
                        "left join engagement e using (delivery_id) "
                        "where r.kind = $1 and r.end_id < $2",
                        kind,
                        first_id_at(now - (days + 20) * DAY),
                    )
                    assert due == [], due
            return True

        await one.until(up_to_date)
        for settled_time, delivery_id, kpis in kept:
            age = now - settled_time
            if age < 182 * DAY:
                assert len((await drain_logs(one.stack, delivery_id)).send_logs) == 3
            elif age > (182 + 91 + 20) * DAY:
                if age < 730 * DAY:
                    left = await one.stack.kpis(delivery_id)
                    assert left.outcomes == kpis.outcomes
                    assert left.engagement.opened == kpis.engagement.opened == 1
                    await refuses(drain_logs(one.stack, delivery_id), OUT_OF_RANGE, "LOG_OUT_OF_RANGE")
                elif age > (730 + 364 + 20) * DAY:
                    await refuses(one.stack.delivery(delivery_id), NOT_FOUND, "DELIVERY_NOT_FOUND")
    async with connected(database) as connection:
        counts = await connection.fetch("select inhparent, count(*) as n from pg_inherits group by 1")
        assert max(row["n"] for row in counts) <= 7, "ranges pile up"
        assert await connection.fetchval("select count(*) from delivery") < 36
        await connection.execute("select pg_stat_force_next_flush()")
        deleted = "select sum(n_tup_del) from pg_stat_user_tables where relname ~ '^(send_log|transition|recipient)_'"
        assert await connection.fetchval(deleted) == 0


async def drain_logs(stack: DeliveryStack, delivery_id: str) -> pb.ListSendLogsResponse:
    return await stack.stub.ListSendLogs(pb.ListSendLogsRequest(delivery_id=delivery_id))


async def test_once_the_log_is_dropped_every_call_says_so_and_the_kpis_stay(database: str, tmp_path: Path) -> None:
    async with years(database, tmp_path) as time:
        delivery_id = await time.settled()
        before = await time.stack.kpis(delivery_id)
        time.pass_by(300 * DAY)
        delivery = await time.dropped(delivery_id)

        stub = time.stack.stub
        one: dict[str, Any] = {"delivery_id": delivery_id, "recipient": 1}
        reads: list[Awaitable[Any]] = [
            stub.ListSendLogs(pb.ListSendLogsRequest(delivery_id=delivery_id)),
            stub.GetSendLog(pb.GetSendLogRequest(**one)),
            stub.RenderMessage(look_ups_pb2.RenderMessageRequest(**one)),
            stub.ExplainRecipient(explanation_pb2.ExplainRecipientRequest(**one)),
            stub.ListTrackingEvents(look_ups_pb2.ListTrackingEventsRequest(delivery_id=delivery_id)),
            stub.ListExclusions(exclusion_pb2.ListExclusionsRequest(delivery_id=delivery_id)),
            stub.GetKpiBreakdown(
                look_ups_pb2.GetKpiBreakdownRequest(delivery_id=delivery_id, by=look_ups_pb2.KPI_BREAKDOWN_BY_REASON)
            ),
            drain(stub.WatchSendLogs(send_log_feed_pb2.WatchSendLogsRequest(delivery_id=delivery_id))),
            drain(stub.ExportSendLogs(send_log_feed_pb2.ExportSendLogsRequest(delivery_id=delivery_id))),
        ]
        for read in reads:
            await refuses(read, OUT_OF_RANGE, "LOG_OUT_OF_RANGE")
        commands: list[Awaitable[Any]] = [
            stub.ComputeStatistics(pb.ComputeStatisticsRequest(delivery_id=delivery_id)),
            stub.RetryFailed(retry_pb2.RetryFailedRequest(delivery_id=delivery_id)),
            stub.DuplicateDelivery(commands_pb2.DuplicateDeliveryRequest(delivery_id=delivery_id, with_audience=True)),
        ]
        for command in commands:
            await refuses(command, PRECONDITION, "LOG_DROPPED")
        messages = await stub.ListProfileMessages(look_ups_pb2.ListProfileMessagesRequest(profile_id="p1"))
        assert not messages.messages
        await stub.ExplainDelivery(explanation_pb2.ExplainDeliveryRequest(delivery_id=delivery_id))
        await stub.DuplicateDelivery(commands_pb2.DuplicateDeliveryRequest(delivery_id=delivery_id))
        token = before.resume_token
        watched = await drain(
            stub.WatchSendLogs(send_log_feed_pb2.WatchSendLogsRequest(delivery_id=delivery_id, resume_token=token))
        )
        assert sum(len(each.changes.changes) for each in watched) == 0  # who has seen all is told the end
        after = await time.stack.kpis(delivery_id)
        assert (after.outcomes, after.engagement, after.revision) == (
            before.outcomes,
            before.engagement,
            before.revision,
        )
        assert delivery.log_dropped_time.ToDatetime(UTC) <= time.clock.now()


async def test_what_comes_in_for_a_dropped_log_becomes_dead_letters(database: str, tmp_path: Path) -> None:
    async with years(database, tmp_path) as time:
        delivery_id = await time.settled()
        before = await time.stack.kpis(delivery_id)
        time.pass_by(300 * DAY)
        await time.dropped(delivery_id)

        await time.stack.apply(
            Observed(f"{delivery_id}-1", BOUNCED, to_microseconds(time.clock.now()), 2, 1),
            Observed(f"{delivery_id}-3", DELIVERED, to_microseconds(time.clock.now())),
        )
        await time.stack.track(Fact(f"{delivery_id}-3", event_time_us=to_microseconds(time.clock.now())))

        letters = (await time.stack.stub.ListDeadLetters(pb.ListDeadLettersRequest())).dead_letters
        assert sorted(letter.message_id for letter in letters) == [
            f"{delivery_id}-1",
            f"{delivery_id}-3",
            f"{delivery_id}-3",
        ]
        assert await time.stack.kpis(delivery_id) == before


async def test_a_delivery_that_is_not_over_keeps_its_whole_range(database: str, tmp_path: Path) -> None:
    async with years(database, tmp_path) as time:
        settled_id = await time.settled()
        draft = await time.stack.ready(2)
        time.pass_by(300 * DAY)
        await time.stack.stub.UpdateDelivery(
            pb.UpdateDeliveryRequest(
                delivery=delivery_pb2.Delivery(delivery_id=draft.delivery_id, label="still wanted"),
                update_mask=FieldMask(paths=["label"]),
            )
        )
        for _ in range(5):
            time.pass_by(2 * HOUR)
            await asyncio.sleep(0.1)

            assert not (await time.stack.delivery(settled_id)).HasField("log_dropped_time")
            assert len((await drain_logs(time.stack, settled_id)).send_logs) == 3

        time.pass_by(300 * DAY)  # nobody has touched the draft since: it is abandoned
        await time.dropped(settled_id)
        abandoned = await time.stack.delivery(draft.delivery_id)
        assert abandoned.state == READY
        stub, delivery_id = time.stack.stub, draft.delivery_id
        refused: list[Coroutine[Any, Any, Any] | Any] = [
            time.stack.confirm(draft),
            stub.PrepareDelivery(pb.PrepareDeliveryRequest(delivery_id=delivery_id)),
            time.stack.add(delivery_id, people(1)),
            stub.SendProof(
                before_the_send_pb2.SendProofRequest(
                    delivery_id=delivery_id, test_profiles=[before_the_send_pb2.TestProfile(address="a@example.com")]
                )
            ),
            time.stack.person("second", "start-deliveries").ApproveDelivery(
                before_the_send_pb2.ApproveDeliveryRequest(
                    delivery_id=delivery_id, plan_digest=abandoned.plan.plan_digest
                )
            ),
            stub.UpdateDelivery(
                pb.UpdateDeliveryRequest(
                    delivery=delivery_pb2.Delivery(
                        delivery_id=delivery_id, content=delivery_pb2.Content(subject="another")
                    ),
                    update_mask=FieldMask(paths=["content.subject"]),
                )
            ),
        ]
        for call in refused:
            await refuses(call, PRECONDITION, "LOG_DROPPED")
        await stub.DeleteDelivery(commands_pb2.DeleteDeliveryRequest(delivery_id=delivery_id))


async def test_a_reader_during_the_drop_sees_all_or_is_told(database: str, tmp_path: Path) -> None:
    async with years(database, tmp_path) as time:
        delivery_id = await time.settled(recipients=2_000)
        stub, told, whole = time.stack.stub, asyncio.Event(), 0

        async def read_on() -> None:
            nonlocal whole
            while not told.is_set():
                try:
                    rows = await stub.ListSendLogs(pb.ListSendLogsRequest(delivery_id=delivery_id, page_size=1_000))
                    assert len(rows.send_logs) == 1_000
                    exported = await drain(
                        stub.ExportSendLogs(send_log_feed_pb2.ExportSendLogsRequest(delivery_id=delivery_id))
                    )
                    assert sum(len(each.send_logs) for each in exported) == 2_000
                    await time.stack.send_log(delivery_id, 7)
                    whole += 1
                except grpc.aio.AioRpcError as error:
                    if error.code() is not OUT_OF_RANGE:
                        raise
                    told.set()

        readers = [asyncio.create_task(read_on()) for _ in range(3)]
        await eventually(lambda: _is(whole > 2))
        time.pass_by(300 * DAY)
        await time.dropped(delivery_id)
        await asyncio.gather(*readers)


async def range_has_ended(dsn: str, delivery_id: str) -> bool:
    """Whether a next one was made, for which a busy table lets the worker wait."""
    async with connected(dsn) as connection:
        ended = "select exists (select from retention_range where kind = $1 and begin_id <= $2 and end_id > $2)"
        return bool(await connection.fetchval(ended, RangeKind.LOG, int(delivery_id)))


async def _is(value: bool) -> bool:
    return value


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 9])
async def test_what_was_stopped_half_way_is_finished_by_another(database: str, tmp_path: Path, steps: int) -> None:
    """After so many statements; then one more is cut in the middle, which leaves a partition half detached."""
    async with years(database, tmp_path / "a") as time:
        delivery_id = await time.settled()
        await time.until(lambda: range_has_ended(database, delivery_id))
        now = time.clock.now() + 300 * DAY
    retention = Retention(DatabaseSettings(database), 0.2, concurrently=True)
    async with retention.held() as held:
        assert held is not None
        (due, *_) = [r for r in await held.before(RangeKind.LOG, first_id_at(now)) if r.end_id > int(delivery_id)]
        assert await held.announce(due, now - 182 * DAY, now) is None
        for _ in range(steps):
            assert await held.drop_step()
        async with connected(database) as old:
            transaction = old.transaction()
            await transaction.start()
            await old.fetch(
                "select from send_log, recipient, transition, late_observation, observation_detail, "
                "tracking_log, exclusion_log, relay_part limit 1"
            )
            with pytest.raises(asyncpg.LockNotAvailableError):
                while await held.drop_step():  # waits for that transaction, in vain
                    pass
            assert await old.fetchval("select count(*) from pg_inherits where inhdetachpending") == 1
            await transaction.rollback()

    clock = SetClock(now)
    async with delivery_stack(database, tmp_path / "b", clock=clock) as stack:
        await Years(stack, clock).dropped(delivery_id)
    await assert_laws(database)


SHORT_LIVED = {"alert", "deleted_delivery", "address_news"}
"""Tables by delivery that others clear, soon."""
BY_ADDRESS = {"address_health", "address_event", "denylist"}
"""Tables that name a delivery, and are not of it."""


async def test_every_table_with_a_row_per_delivery_is_dropped_by_ranges(database: str) -> None:
    async with connected(database) as connection:
        tables = await connection.fetch(
            "select c.relname as name, c.relkind from pg_class c join pg_attribute a on a.attrelid = c.oid "
            "where a.attname = 'delivery_id' and c.relkind in ('r', 'p') and not c.relispartition "
            "and c.relnamespace = 'public'::regnamespace"
        )
        retained = await connection.fetch("select table_name as name from retained_table")
    partitioned = {row["name"] for row in tables if row["relkind"] == b"p"}
    assert partitioned == {row["name"] for row in retained}
    assert {row["name"] for row in tables} - partitioned == SHORT_LIVED | BY_ADDRESS


async def test_of_two_replicas_one_is_at_it(database: str) -> None:
    retention = Retention(DatabaseSettings(database), 0.2, concurrently=True)
    async with retention.held() as one, retention.held() as other:
        assert one is not None
        assert other is None
    async with retention.held() as next_one:
        assert next_one is not None


async def test_without_a_range_for_it_a_delivery_is_made_all_the_same(database: str, tmp_path: Path) -> None:
    """Nobody has made ranges for years: the last one is open, and is bounded behind what is in it."""
    clock = SetClock(await first_open(database) + 3_000 * DAY)
    async with delivery_stack(
        database, tmp_path, clock=clock, retention_check_seconds=10**9, retention_lock_timeout_seconds=30
    ) as stack:
        await eventually(lambda: _range_count(database, 4))  # its first look
        clock.set(clock.now() + 800 * DAY)
        delivery_id = await stack.sent(3)
        before = await stack.kpis(delivery_id)
    async with connected(database) as connection:
        attached = "select tableoid::regclass::text from send_log limit 1"
        partition = await connection.fetchval(attached)
        end = first_id_at(clock.now() + 30 * DAY)
        assert await connection.fetchval("select add_range(1::smallint, $1, 'from_20990101')", end)
        assert not await connection.fetchval("select add_range(1::smallint, $1, 'from_20990102')", end)
        assert await connection.fetchval(attached) == partition
        assert await connection.fetchval("select end_id from retention_range where $1 like '%' || suffix", partition)
    async with delivery_stack(database, tmp_path, clock=clock) as stack:
        assert (await stack.kpis(delivery_id)).outcomes == before.outcomes
    await assert_laws(database)


async def _range_count(dsn: str, count: int) -> bool:
    async with connected(dsn) as connection:
        return (
            int(
                await connection.fetchval(
                    "select count(*) from retention_range where end_id is null or suffix <> 'first'"
                )
            )
            >= count
        )


async def test_a_table_in_use_is_not_waited_for_longer_than_said(database: str) -> None:
    retention = Retention(DatabaseSettings(database), 0.1, concurrently=True)
    async with connected(database) as busy, retention.held() as held:
        assert held is not None
        transaction = busy.transaction()
        await transaction.start()
        await busy.fetch("select from send_log")
        (opened, _) = await held.open_ranges()
        with pytest.raises(asyncpg.LockNotAvailableError):
            await held.add(RangeKind.LOG, NewRange(opened.begin_id + (1 << 50), "from_20990101"))
        await transaction.rollback()
        assert await held.add(RangeKind.LOG, NewRange(opened.begin_id + (1 << 50), "from_20990101"))


@pytest.mark.expects_errors
async def test_what_keeps_a_partition_from_being_dropped_ends_no_process(
    database: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with years(database, tmp_path) as time:
        delivery_id = await time.settled()
        (partition, *_) = [p for p in await partitions_of(database, int(delivery_id), RangeKind.LOG) if "send_log" in p]
        async with connected(database) as connection:
            await connection.execute(f"create view somebodys as select * from {partition}")
        time.pass_by(300 * DAY)

        await time.until(lambda: _is("retention failed" in caplog.messages))
        assert (await time.stack.delivery(delivery_id)).HasField("log_dropped_time")
        assert await partitions_of(database, int(delivery_id), RangeKind.LOG)
        async with connected(database) as connection:
            await connection.execute("drop view somebodys")
        await time.dropped(delivery_id)


async def test_ranges_are_dropped_without_concurrency_where_there_is_none(database: str, tmp_path: Path) -> None:
    async with years(database, tmp_path, retention_detach_concurrently=False) as time:
        delivery_id = await time.settled()
        time.pass_by(300 * DAY)
        await time.dropped(delivery_id)


async def test_a_database_with_data_is_upgraded_to_partitions_and_nothing_is_lost(tmp_path: Path) -> None:
    older = {number: script for number, script in migration.migrations().items() if number < 31}
    with (
        server() as server_dsn,
        patch.object(migration, "migrations", lambda: older),
        patch.object(database_module, "migrations", lambda: older),
        patch.object(RetentionWorker, "work", AsyncMock(return_value=False)),
    ):
        async with DatabaseFactory.on(server_dsn) as databases, databases.fresh() as dsn:
            async with connected(dsn) as connection:
                # The service that fills it is the one of today: it calls functions that came later.
                await connection.execute(_MIGRATIONS()[34])
            async with delivery_stack(dsn, tmp_path) as stack:
                sent = await stack.sent(3_000)
                now_us = to_microseconds(datetime.now(UTC))
                await stack.apply(
                    Observed(f"{sent}-1", DELIVERED, now_us + 1), Observed(f"{sent}-2", BOUNCED, now_us + 1, 2, 1)
                )
                await stack.track(Fact(f"{sent}-1"))
                draft = await stack.ready(5)
                kpis, logs = await stack.kpis(sent), await drain_logs(stack, sent)
            with patch.object(migration, "migrations", _MIGRATIONS):
                assert await migrate(dsn) == max(_MIGRATIONS())
            await assert_laws(dsn)
            with patch.object(database_module, "migrations", _MIGRATIONS):
                async with delivery_stack(dsn, tmp_path) as stack:
                    after = await stack.kpis(sent)
                    assert (after.outcomes, after.resume_token) == (kpis.outcomes, kpis.resume_token)
                    assert await drain_logs(stack, sent) == logs
                    await stack.apply(Observed(f"{sent}-3", DELIVERED, now_us + 5))
                    await stack.confirm(draft)
                    await stack.in_state(draft.delivery_id, FINISHED)
                    counted = await stack.stub.ComputeStatistics(pb.ComputeStatisticsRequest(delivery_id=sent))
                    assert (counted.drift, counted.recounted) == (0, 3_000)
            await assert_laws(dsn)
            async with connected(dsn) as connection:
                partition = "select distinct tableoid::regclass::text from send_log"
                assert await connection.fetchval(partition) == "send_log_first"
                loose = await connection.fetch(
                    "select indexrelid::regclass::text from pg_index join pg_inherits t on t.inhrelid = indrelid "
                    "where not exists (select from pg_inherits i where i.inhrelid = indexrelid)"
                )
                assert loose == [], "indexes of a partition that are not those of the table"


_MIGRATIONS = migration.migrations
