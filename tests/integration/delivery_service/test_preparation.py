"""PrepareDelivery: who is excluded and why, what is wrong with the content, and that no crash leaves half a plan."""

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from campaign.delivery.v1 import delivery_pb2
from campaign.delivery.v1 import delivery_service_pb2 as pb
from delivery_service.domain.delivery import ExclusionCause, Plan
from delivery_service.store.database import DatabaseSettings
from delivery_service.store.preparation import Preparation
from delivery_service.workers.preparation import Writers
from service_runtime.clock import SystemClock
from tests.support.delivery_stack import CONTENT, DeliveryStack, delivery_stack, people
from tests.support.eventually import eventually
from tests.support.invariants import assert_laws
from tests.support.postgres import connected
from tests.support.statuses import refused

EDITING, PREPARING, READY = (
    delivery_pb2.DELIVERY_STATE_EDITING,
    delivery_pb2.DELIVERY_STATE_PREPARING,
    delivery_pb2.DELIVERY_STATE_READY,
)
FAILED = delivery_pb2.DELIVERY_STATE_PREPARATION_FAILED
EMPTY, MALFORMED, DUPLICATE = (
    delivery_pb2.EXCLUSION_CAUSE_ADDRESS_EMPTY,
    delivery_pb2.EXCLUSION_CAUSE_ADDRESS_MALFORMED,
    delivery_pb2.EXCLUSION_CAUSE_DUPLICATE,
)
LEASE = timedelta(minutes=5)
SMALL_STEPS: dict[str, Any] = {"preparation_recipients_per_step": 1_024, "slots_per_delivery": 2}


def to(*addresses: str) -> list[pb.NewRecipient]:
    return [pb.NewRecipient(address=address) for address in addresses]


def volumes(delivery: delivery_pb2.Delivery) -> dict[int, int]:
    """By cause; those about the addresses alone, and any other that is not zero."""
    return {
        exclusion.cause: exclusion.volume
        for exclusion in delivery.plan.exclusions
        if exclusion.volume or exclusion.cause in (EMPTY, MALFORMED, DUPLICATE)
    }


async def prepared_rows(dsn: str, delivery_id: str) -> list[int]:
    async with connected(dsn) as connection:
        rows = await connection.fetch(
            "select recipient from send_log where delivery_id = $1 order by recipient", int(delivery_id)
        )
    return [row["recipient"] for row in rows]


async def update(stack: DeliveryStack, delivery_id: str, path: str, **content: str) -> None:
    request = pb.UpdateDeliveryRequest(
        delivery=delivery_pb2.Delivery(delivery_id=delivery_id, content=delivery_pb2.Content(**content))
    )
    request.update_mask.paths.append(path)
    await stack.stub.UpdateDelivery(request)


# Exclusions.


async def test_every_exclusion_is_told_with_its_volume_zeros_included(common: DeliveryStack) -> None:
    delivery = await common.ready(3)

    assert {exclusion.cause: exclusion.volume for exclusion in delivery.plan.exclusions} == {
        cause: 0 for cause in delivery_pb2.ExclusionCause.values() if cause
    }
    assert (delivery.plan.targeted, delivery.plan.to_deliver) == (3, 3)


async def test_empty_malformed_and_duplicate_addresses_are_excluded_and_counted(common: DeliveryStack) -> None:
    delivery_id = await common.create()
    await common.add(
        delivery_id,
        to(
            "one@example.com",
            "",
            "   ",
            "no-at-sign",
            "a@b@example.com",
            "two..dots@example.com",
            "ONE@example.com",  # the local part is the receiving server's own
            "one@EXAMPLE.com",
            " one@example.com ",
            "two@example.com",
            "one@example.com",
        ),
    )

    delivery = await common.prepare(delivery_id)

    assert volumes(delivery) == {EMPTY: 2, MALFORMED: 3, DUPLICATE: 3}
    assert (delivery.plan.targeted, delivery.plan.to_deliver) == (11, 3)
    assert await prepared_rows(common.dsn, delivery_id) == [1, 7, 10]
    async with connected(common.dsn) as connection:
        causes = await connection.fetch(
            "select recipient, cause from exclusion_log where delivery_id = $1 order by recipient", int(delivery_id)
        )
    assert [tuple(row) for row in causes] == [(2, 1), (3, 1), (4, 2), (5, 2), (6, 2), (8, 3), (9, 3), (11, 3)]


async def test_of_equal_addresses_the_lowest_number_stays_over_parts_and_chunks(common: DeliveryStack) -> None:
    delivery_id = await common.create()
    await common.add(delivery_id, people(2_100))
    await common.add(delivery_id, people(2_100))

    delivery = await common.prepare(delivery_id)

    assert volumes(delivery)[DUPLICATE] == 2_100
    assert await prepared_rows(common.dsn, delivery_id) == list(range(1, 2_101))


async def test_repeated_malformed_addresses_are_malformed_not_duplicates(common: DeliveryStack) -> None:
    delivery_id = await common.create()
    await common.add(delivery_id, to("x", "x", "", ""))

    assert volumes(await common.prepare(delivery_id)) == {EMPTY: 2, MALFORMED: 2, DUPLICATE: 0}


async def test_an_sms_wants_phone_numbers_and_neither_subject_nor_sender(common: DeliveryStack) -> None:
    delivery_id = await common.create(
        channel=delivery_pb2.CHANNEL_SMS, content=delivery_pb2.Content(text="Hi {{ first_name }}")
    )
    await common.add(delivery_id, to("+33612345678", "0612345678", "person@example.com", "+33612345678", "12"))

    delivery = await common.prepare(delivery_id)

    assert delivery.state == READY
    assert volumes(delivery) == {EMPTY: 0, MALFORMED: 2, DUPLICATE: 1}
    assert not delivery.plan.warnings


# Control rules.


def changed(**fields: str) -> delivery_pb2.Content:
    content = delivery_pb2.Content()
    content.CopyFrom(CONTENT)
    for name, value in fields.items():
        setattr(content, name, value)
    return content


@pytest.mark.parametrize(
    ("content", "field", "says"),
    [
        (changed(subject=" "), "content.subject", "empty"),
        (changed(from_address=""), "content.from_address", "not an email address"),
        (changed(from_address="no address"), "content.from_address", "not an email address"),
        (changed(reply_to_address="no address"), "content.reply_to_address", "not an email address"),
        (changed(html="", text=" \n"), "content", "neither html nor text"),
        (changed(subject="{{ first_name"), "content.subject", "line 1"),
        (changed(html="a\nb\n{% if x %}"), "content.html", "line 3"),
        (changed(text="\n{{ ''.__class__ }}"), "content.text", "line 2"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_wrong_content_fails_the_preparation_naming_the_field_until_it_is_repaired(
    common: DeliveryStack, content: delivery_pb2.Content, field: str, says: str
) -> None:
    delivery_id = await common.create(content=content)
    await common.add(delivery_id, people(2))

    failed = await common.prepare(delivery_id)

    assert failed.state == FAILED
    assert [error.field for error in failed.plan.errors] == [field]
    assert says in failed.plan.errors[0].description
    assert (failed.plan.plan_digest, failed.plan.to_deliver, failed.plan.targeted) == ("", 0, 2)
    async with refused(grpc.StatusCode.FAILED_PRECONDITION, "DELIVERY_STATE"):
        await common.confirm(failed, plan_digest="0")

    request = pb.UpdateDeliveryRequest(delivery=delivery_pb2.Delivery(delivery_id=delivery_id, content=CONTENT))
    request.update_mask.paths.append("content")
    assert (await common.stub.UpdateDelivery(request)).delivery.state == EDITING
    assert (await common.prepare(delivery_id)).state == READY


async def test_a_failed_preparation_can_be_asked_for_again_and_fails_again(common: DeliveryStack) -> None:
    failed = await common.prepare(await common.create(content=delivery_pb2.Content()))

    again = await common.prepare(failed.delivery_id)

    assert again.state == FAILED
    assert {error.field for error in again.plan.errors} == {"content.subject", "content.from_address", "content"}


async def test_what_is_odd_but_possible_is_a_warning(common: DeliveryStack) -> None:
    delivery_id = await common.create(
        content=changed(html="<p>Hi</p>", text="Hi"), validity_period=Duration(seconds=5 * 86_400)
    )

    delivery = await common.prepare(delivery_id)

    assert delivery.state == READY
    assert [warning.field for warning in delivery.plan.warnings] == [
        "validity_period",
        "content.html",
        "content.text",
        "recipients",
    ]
    assert delivery.validity_period.seconds == 5 * 86_400  # shown as it was given; the warning says what is in force


async def test_a_clamped_validity_ends_after_three_days_and_a_half(common: DeliveryStack) -> None:
    delivery = await common.ready(1, validity_period=Duration(seconds=30 * 86_400))

    await common.confirm(delivery)
    finished = await common.in_state(delivery.delivery_id, delivery_pb2.DELIVERY_STATE_FINISHED)

    assert finished.validity_end_time.ToDatetime() - finished.start_time.ToDatetime() == timedelta(days=3.5)


async def test_the_plan_says_who_asked_and_when(common: DeliveryStack) -> None:
    delivery = await common.ready(1)

    assert delivery.plan.preparer == "tester"
    assert delivery.plan.prepare_time == delivery.update_time
    assert len(delivery.plan.plan_digest) == 64


# Commands on the way.


async def test_preparing_an_unknown_delivery_is_not_found(common: DeliveryStack) -> None:
    async with refused(grpc.StatusCode.NOT_FOUND, "DELIVERY_NOT_FOUND"):
        await common.stub.PrepareDelivery(pb.PrepareDeliveryRequest(delivery_id="12345"))


async def test_a_delivery_that_was_sent_cannot_be_prepared_again(common: DeliveryStack) -> None:
    delivery_id = await common.sent(1)

    async with refused(grpc.StatusCode.FAILED_PRECONDITION, "DELIVERY_STATE") as problem:
        await common.stub.PrepareDelivery(pb.PrepareDeliveryRequest(delivery_id=delivery_id))

    assert problem.metadata["state"] == "FINISHED"


async def test_asked_for_again_while_it_runs_it_changes_nothing(database: str, tmp_path: Path) -> None:
    async with delivery_stack(database, tmp_path, worker_poll_seconds=0.02) as stack:
        delivery_id = await stack.create()
        await stack.add(delivery_id, people(3))
        async with connected(database) as connection, connection.transaction():
            await connection.execute("lock table exclusion_log in access exclusive mode")
            first = await stack.stub.PrepareDelivery(pb.PrepareDeliveryRequest(delivery_id=delivery_id))
            again = await stack.stub.PrepareDelivery(pb.PrepareDeliveryRequest(delivery_id=delivery_id))
            assert first.delivery.state == again.delivery.state == PREPARING
            assert again.delivery.etag == first.delivery.etag
            logs = await stack.stub.ListSendLogs(pb.ListSendLogsRequest(delivery_id=delivery_id))
            assert not logs.send_logs
            async with refused(grpc.StatusCode.NOT_FOUND, "SEND_LOG_NOT_FOUND"):
                await stack.send_log(delivery_id)
        await stack.in_state(delivery_id, READY)
        logs = await stack.stub.ListSendLogs(pb.ListSendLogsRequest(delivery_id=delivery_id))
        assert len(logs.send_logs) == 3
    await assert_laws(database)


async def test_send_logs_of_an_edited_delivery_are_not_shown_until_it_is_prepared_again(common: DeliveryStack) -> None:
    delivery = await common.ready(3)
    listed = pb.ListSendLogsRequest(delivery_id=delivery.delivery_id)
    assert len((await common.stub.ListSendLogs(listed)).send_logs) == 3

    await update(common, delivery.delivery_id, "content.subject", subject="another")

    assert not (await common.stub.ListSendLogs(listed)).send_logs
    async with refused(grpc.StatusCode.NOT_FOUND, "SEND_LOG_NOT_FOUND"):
        await common.send_log(delivery.delivery_id)
    await common.prepare(delivery.delivery_id)
    assert len((await common.stub.ListSendLogs(listed)).send_logs) == 3


async def test_the_revision_grows_with_every_edit_and_preparation(common: DeliveryStack) -> None:
    delivery_id = await common.create()
    seen = [(await common.kpis(delivery_id)).revision]

    async def look() -> None:
        seen.append((await common.kpis(delivery_id)).revision)

    await common.add(delivery_id, people(3))
    await common.prepare(delivery_id)
    await look()
    await update(common, delivery_id, "content.subject", subject="b")
    await look()
    await common.prepare(delivery_id)
    await look()
    await common.add(delivery_id, people(1, first=9))
    await look()
    await update(common, delivery_id, "content.subject", subject="{{ broken")
    await look()
    await common.prepare(delivery_id)
    await look()
    await update(common, delivery_id, "content.subject", subject="mended")
    await look()
    await common.confirm(await common.prepare(delivery_id))
    await common.in_state(delivery_id, delivery_pb2.DELIVERY_STATE_FINISHED)
    await look()

    assert seen == sorted(set(seen))


async def test_preparing_again_after_more_recipients_leaves_no_stale_row(stack: DeliveryStack) -> None:
    delivery_id = await stack.create()
    await stack.add(delivery_id, people(1_500))
    await stack.prepare(delivery_id)
    await stack.add(delivery_id, [*people(10), *people(1_500, first=1_501)])

    delivery = await stack.prepare(delivery_id)

    assert (delivery.plan.targeted, delivery.plan.to_deliver, volumes(delivery)[DUPLICATE]) == (3_010, 3_000, 10)
    assert await prepared_rows(stack.dsn, delivery_id) == [*range(1, 1_501), *range(1_511, 3_011)]
    await assert_parts(stack.dsn, delivery_id)
    await stack.confirm(delivery)
    await stack.in_state(delivery_id, delivery_pb2.DELIVERY_STATE_FINISHED)
    assert len(stack.mta.addresses) == 3_000


async def assert_parts(dsn: str, delivery_id: str) -> None:
    """Relay parts and counters say what the send logs say."""
    async with connected(dsn) as connection:
        slots = await connection.fetchval("select slot_count from delivery where delivery_id = $1", int(delivery_id))
        parts = await connection.fetch(
            "select part, prepared_count from relay_part where delivery_id = $1 order by part", int(delivery_id)
        )
        counted = await connection.fetch(
            "select recipient / 1024 as part, count(*) as n from send_log where delivery_id = $1 group by 1 order by 1",
            int(delivery_id),
        )
        counters = await connection.fetch(
            "select slot, prepared from delivery_counter where delivery_id = $1 order by slot", int(delivery_id)
        )
    assert [tuple(row) for row in parts] == [tuple(row) for row in counted]
    by_slot = [sum(row["n"] for row in counted if row["part"] % slots == slot) for slot in range(slots)]
    assert [row["prepared"] for row in counters] == by_slot


# In steps, and through crashes.


@pytest.mark.parametrize("recipients", [1, 1_023, 1_024, 2_047, 2_048, 5_000])
async def test_any_number_of_recipients_is_prepared_whole_in_small_steps(
    database: str, tmp_path: Path, recipients: int
) -> None:
    async with delivery_stack(database, tmp_path, **SMALL_STEPS) as stack:
        delivery = await stack.ready(recipients)

        assert delivery.plan.to_deliver == recipients
        assert await prepared_rows(database, delivery.delivery_id) == list(range(1, recipients + 1))
        await assert_parts(database, delivery.delivery_id)
    await assert_laws(database)


async def drafted(dsn: str, folder: Path, recipients: int) -> str:
    """A delivery that stands at PREPARING, with nobody at work on it."""
    async with delivery_stack(dsn, folder) as stack:
        delivery_id = await stack.create()
        await stack.add(delivery_id, people(recipients))
    async with connected(dsn) as connection:
        await connection.execute(
            "update delivery set state = 2, prepared_through = -1, version = version + 1, preparer = 'tester'"
        )
    return delivery_id


RANGES = [(0, 1_023), (1_023, 2_047), (2_047, 3_071)]


@pytest.mark.parametrize(
    ("steps", "astray"), [(0, None), (1, None), (1, 0), (1, 1), (2, None), (2, 0), (2, 1), (3, None), (3, 0), (4, None)]
)
async def test_another_worker_goes_on_where_a_crashed_one_stopped(
    database: str, tmp_path: Path, steps: int, astray: int | None
) -> None:
    """After so many steps; and in the next one, with one range of it written: the first or the second."""
    delivery_id = await drafted(database, tmp_path / "draft", 3_000)
    token, lost = uuid4(), Plan(9, {}, 9, (), (), "lost", SystemClock().now(), "")
    async with connected(database) as connection:
        # The steps of the worker that crashes, by hand; its lease is about to end.
        preparation = Preparation(connection)
        lease = timedelta(microseconds=1)
        assert await preparation.claim(int(delivery_id), token, lease) == -1
        if steps:
            assert await preparation.exclude(int(delivery_id), token)
        for after, through in RANGES[: max(steps - 1, 0)]:
            now = SystemClock().now()
            assert await preparation.write_range(int(delivery_id), token, after, after, through, now)
            assert await preparation.end_step(int(delivery_id), token, after, through)
        if astray is not None:
            done, _ = RANGES[steps - 1]
            after, through = RANGES[steps - 1 + astray]
            now = SystemClock().now()
            assert await preparation.write_range(int(delivery_id), token, done, after, through, now)

        async with delivery_stack(database, tmp_path, **SMALL_STEPS) as stack:
            delivery = await stack.in_state(delivery_id, READY)
            # It was not dead, only slow: now it can do no harm.
            assert not await preparation.exclude(int(delivery_id), token)
            for after, through in RANGES:
                now = SystemClock().now()
                assert not await preparation.write_range(int(delivery_id), token, after, after, through, now)
                assert not await preparation.end_step(int(delivery_id), token, after, through)
            assert not await preparation.finish(int(delivery_id), token, 4, lost, SystemClock().now())
            assert not await preparation.fail(int(delivery_id), token, lost, SystemClock().now())

            assert await stack.delivery(delivery_id) == delivery
            assert delivery.plan.to_deliver == 3_000
            assert await prepared_rows(database, delivery_id) == list(range(1, 3_001))
            await assert_parts(database, delivery_id)
    await assert_laws(database)


@pytest.mark.parametrize("writers", [1, 2, 3])
async def test_ranges_are_written_side_by_side_by_so_many_connections(
    database: str, tmp_path: Path, writers: int
) -> None:
    delivery_id = await drafted(database, tmp_path / "draft", 7_000)
    seen: list[int] = []
    options: dict[str, Any] = {"preparation_writers": writers, "preparation_recipients_per_step": 1_024}
    async with connected(database) as holder, connected(database) as watcher:

        async def all_wait() -> bool:
            waiting = (
                "select count(*) from pg_locks "
                "where not granted and mode = 'RowExclusiveLock' and relation = 'send_log'::regclass"
            )
            seen.append(await watcher.fetchval(waiting))
            return seen[-1] == writers

        transaction = holder.transaction()
        await transaction.start()
        # None may be written for now: who is to write some waits, and is seen.
        await holder.execute("set idle_in_transaction_session_timeout = 0; lock table send_log in exclusive mode")
        async with delivery_stack(database, tmp_path, **options) as stack:
            await eventually(all_wait)
            await transaction.rollback()
            delivery = await stack.in_state(delivery_id, READY)

    assert max(seen) == writers
    assert delivery.plan.to_deliver == 7_000
    assert await prepared_rows(database, delivery_id) == list(range(1, 7_001))
    await assert_parts(database, delivery_id)
    await assert_laws(database)


async def test_a_stop_while_the_connections_of_a_preparation_are_closed_leaves_none_open(database: str) -> None:
    writers = Writers(DatabaseSettings(database))
    await writers.first(3)
    closing = asyncio.create_task(writers.close())
    await asyncio.sleep(0)  # it waits for the first one
    closing.cancel()
    await asyncio.gather(closing, return_exceptions=True)

    async with connected(database) as connection:
        others = "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"

        async def all_gone() -> bool:
            return bool(await connection.fetchval(others) == 0)

        await eventually(all_gone)


async def test_a_replica_of_the_version_before_goes_on_with_a_step_that_was_half_done(
    database: str, tmp_path: Path
) -> None:
    delivery_id = await drafted(database, tmp_path / "draft", 3_000)
    token, now = uuid4(), SystemClock().now()
    async with connected(database) as connection:
        preparation = Preparation(connection)
        assert await preparation.claim(int(delivery_id), token, LEASE) == -1
        assert await preparation.exclude(int(delivery_id), token)
        assert await preparation.write_range(int(delivery_id), token, 0, *RANGES[1], now)

        for after, through in RANGES:
            arguments = (int(delivery_id), token, after, through, now)
            assert await connection.fetchval("select prepare_range($1, $2, $3, $4, $5)", *arguments)
            assert not await connection.fetchval("select prepare_range($1, $2, $3, $4, $5)", *arguments)

    assert await prepared_rows(database, delivery_id) == list(range(1, 3_001))


async def test_a_lease_that_has_not_ended_is_respected(database: str, tmp_path: Path) -> None:
    delivery_id = await drafted(database, tmp_path / "draft", 10)
    async with connected(database) as connection:
        preparation, ours, theirs = Preparation(connection), uuid4(), uuid4()
        assert await preparation.claim(int(delivery_id), ours, LEASE) == -1
        assert await preparation.claim(int(delivery_id), theirs, LEASE) is None
        assert await preparation.claim(int(delivery_id), ours, LEASE) == -1  # renews
        assert not await preparation.exclude(int(delivery_id), theirs)


async def test_an_app_stopped_in_mid_preparation_is_taken_over_by_the_next(database: str, tmp_path: Path) -> None:
    short = {**SMALL_STEPS, "preparation_lease_seconds": 0.5, "shutdown_grace_seconds": 0.1}
    async with connected(database) as connection:
        async with delivery_stack(database, tmp_path / "one", **short) as stack:
            delivery_id = await stack.create()
            await stack.add(delivery_id, people(4_000))
            transaction = connection.transaction()
            await transaction.start()
            await connection.execute("lock table relay_part in share mode")  # the first range waits here
            await stack.stub.PrepareDelivery(pb.PrepareDeliveryRequest(delivery_id=delivery_id))
            await eventually(lambda: _waiting(database))
        await transaction.rollback()

        async with delivery_stack(database, tmp_path / "two", **short) as stack:
            delivery = await stack.in_state(delivery_id, READY)
            assert delivery.plan.to_deliver == 4_000
            assert await prepared_rows(database, delivery_id) == list(range(1, 4_001))
            await assert_parts(database, delivery_id)
    await assert_laws(database)


async def _waiting(dsn: str) -> bool:
    async with connected(dsn) as connection:
        found: int = await connection.fetchval(
            "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
        )
    return found > 0


async def test_two_replicas_prepare_each_delivery_once(database: str, tmp_path: Path) -> None:
    async with (
        delivery_stack(database, tmp_path / "one", **SMALL_STEPS) as one,
        delivery_stack(database, tmp_path / "two", mta=one.mta, **SMALL_STEPS) as two,
    ):
        ids = [await one.create() for _ in range(4)]
        for delivery_id in ids:
            await one.add(delivery_id, people(2_500))
        before = [(await one.kpis(delivery_id)).revision for delivery_id in ids]
        prepared = await asyncio.gather(
            *(stack.prepare(delivery_id) for delivery_id, stack in zip(ids, (one, two, one, two), strict=True))
        )

        for delivery, earlier in zip(prepared, before, strict=True):
            assert (delivery.state, delivery.plan.to_deliver) == (READY, 2_500)
            # PREPARING raised slot 0; READY raised it once more and made the other slot, at 1.
            assert (await two.kpis(delivery.delivery_id)).revision == earlier + 3
            await assert_parts(database, delivery.delivery_id)
    await assert_laws(database)


async def test_the_number_of_slots_is_frozen_by_the_first_preparation(database: str, tmp_path: Path) -> None:
    async with delivery_stack(database, tmp_path / "one", slots_per_delivery=4) as stack:
        delivery_id = (await stack.ready(3_000)).delivery_id
        revision = (await stack.kpis(delivery_id)).revision
    async with delivery_stack(database, tmp_path / "two", slots_per_delivery=2) as stack:
        delivery = await stack.prepare(delivery_id)
        assert (await stack.kpis(delivery_id)).revision > revision
        await assert_parts(database, delivery_id)
        await stack.confirm(delivery)
        await stack.in_state(delivery_id, delivery_pb2.DELIVERY_STATE_FINISHED)
    async with connected(database) as connection:
        assert await connection.fetchval("select count(*) from delivery_counter") == 4
    await assert_laws(database)


async def test_a_preparation_survives_the_loss_of_its_connections(database: str, tmp_path: Path) -> None:
    async with delivery_stack(database, tmp_path, **SMALL_STEPS, preparation_lease_seconds=2) as stack:
        delivery_id = await stack.create()
        await stack.add(delivery_id, people(3_000))
        async with connected(database) as connection:
            transaction = connection.transaction()
            await transaction.start()
            await connection.execute("lock table relay_part in share mode")
            await stack.stub.PrepareDelivery(pb.PrepareDeliveryRequest(delivery_id=delivery_id))
            await eventually(lambda: _waiting(database))
            await _terminate(connection)
            await transaction.rollback()

        async def ready() -> bool:
            try:
                return (await stack.delivery(delivery_id)).state == READY
            except grpc.aio.AioRpcError:
                return False

        await eventually(ready)
        assert await prepared_rows(database, delivery_id) == list(range(1, 3_001))
    await assert_laws(database)


async def _terminate(connection: asyncpg.Connection) -> None:
    await connection.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity "
        "where datname = current_database() and application_name = 'delivery_service'"
    )


def test_every_cause_of_the_contract_is_evaluated() -> None:
    causes = {cause for cause in delivery_pb2.ExclusionCause.values() if cause}
    assert causes == {int(cause) for cause in ExclusionCause}
