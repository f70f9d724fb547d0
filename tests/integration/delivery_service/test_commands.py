"""Unconfirm, CancelPreparation, Decline, DeleteDelivery, DuplicateDelivery: in which state, against whom, how often."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import grpc
import pytest

from campaign.delivery.v1 import before_the_send_pb2 as before_pb2
from campaign.delivery.v1 import commands_pb2, delivery_pb2
from campaign.delivery.v1 import delivery_service_pb2 as pb
from campaign.delivery.v1.schedule_pb2 import Schedule
from delivery_service.domain.lifecycle import TRANSITIONS, Command, DeliveryState
from delivery_service.store.preparation import Preparation
from delivery_service.store.queries import query
from tests.support.clock import SetClock
from tests.support.delivery_stack import DeliveryStack, delivery_stack, people
from tests.support.eventually import eventually
from tests.support.invariants import assert_laws
from tests.support.postgres import connected
from tests.support.statuses import refused

State = delivery_pb2.DeliveryState
LATER = Schedule(local_time="2030-01-01T09:00", time_zone="UTC")
TABLES = ("recipient", "send_log", "relay_part", "exclusion_log", "recipient_upload", "confirmation", "engagement",
          "delivery_counter", "delivery", "deleted_delivery")  # fmt: skip


async def unconfirm(stack: DeliveryStack, delivery_id: str) -> delivery_pb2.Delivery:
    return (await stack.stub.Unconfirm(commands_pb2.UnconfirmRequest(delivery_id=delivery_id))).delivery


async def cancel(stack: DeliveryStack, delivery_id: str) -> delivery_pb2.Delivery:
    request = commands_pb2.CancelPreparationRequest(delivery_id=delivery_id)
    return (await stack.stub.CancelPreparation(request)).delivery


async def decline(stack: DeliveryStack, delivery_id: str) -> delivery_pb2.Delivery:
    return (await stack.stub.Decline(commands_pb2.DeclineRequest(delivery_id=delivery_id))).delivery


async def delete(stack: DeliveryStack, delivery_id: str, etag: str = "") -> None:
    await stack.stub.DeleteDelivery(commands_pb2.DeleteDeliveryRequest(delivery_id=delivery_id, etag=etag))


async def duplicate(stack: DeliveryStack, delivery_id: str, **fields: Any) -> delivery_pb2.Delivery:
    request = commands_pb2.DuplicateDeliveryRequest(delivery_id=delivery_id, **fields)
    return (await stack.stub.DuplicateDelivery(request)).delivery


async def approve(stack: DeliveryStack, delivery_id: str) -> None:
    plan = (await stack.delivery(delivery_id)).plan
    request = before_pb2.ApproveDeliveryRequest(delivery_id=delivery_id, plan_digest=plan.plan_digest or "none")
    await stack.person("second", "start-deliveries").ApproveDelivery(request)


async def send_proof(stack: DeliveryStack, delivery_id: str) -> None:
    profile = before_pb2.TestProfile(address="proof@example.com", attributes={"first_name": "Eve"})
    await stack.stub.SendProof(before_pb2.SendProofRequest(delivery_id=delivery_id, test_profiles=[profile]))


CALLS: dict[Command, Callable[[DeliveryStack, str], Awaitable[Any]]] = {
    Command.UNCONFIRM: unconfirm,
    Command.CANCEL_PREPARATION: cancel,
    Command.DECLINE: decline,
    Command.DELETE: delete,
    Command.APPROVE: approve,
    Command.SEND_PROOF: send_proof,
}


async def put_in_state(connection: asyncpg.Connection, delivery_id: str, state: DeliveryState) -> None:
    """Leases and a time that never end keep the workers from moving it on."""
    await connection.execute(
        "update relay_part set available_time = 'infinity' where delivery_id = $1", int(delivery_id)
    )
    await connection.execute(
        "update delivery set state = $2, preparation_token = gen_random_uuid(), preparation_lease_time = 'infinity', "
        "contact_time = 'infinity', occurrence_local_time = now(), confirm_by_time = 'infinity' where delivery_id = $1",
        int(delivery_id),
        state,
    )


@pytest.mark.parametrize("state", DeliveryState, ids=lambda state: state.name)
@pytest.mark.parametrize("command", CALLS, ids=lambda command: command.name)
async def test_a_command_is_carried_out_in_the_states_of_the_table_and_refused_in_all_others(
    common: DeliveryStack, state: DeliveryState, command: Command
) -> None:
    delivery_id = (await common.ready(3)).delivery_id
    async with connected(common.dsn) as connection:
        await put_in_state(connection, delivery_id, state)
        if command is Command.DECLINE:
            await connection.execute("update delivery set parent_id = 1 where delivery_id = $1", int(delivery_id))
        revision = (await common.kpis(delivery_id)).revision

        if state in TRANSITIONS[command]:
            await CALLS[command](common, delivery_id)
            if command is Command.DELETE:
                async with refused(grpc.StatusCode.NOT_FOUND, "DELIVERY_NOT_FOUND"):
                    await common.delivery(delivery_id)
                return
            after = TRANSITIONS[command][state]
            assert int((await common.delivery(delivery_id)).state) == after
            assert (await common.kpis(delivery_id)).revision > revision, "watchers see it"
        else:
            async with refused(grpc.StatusCode.FAILED_PRECONDITION, "DELIVERY_STATE") as problem:
                await CALLS[command](common, delivery_id)
            assert problem.metadata["state"] == state.name
            assert problem.metadata["allowed_states"] == ", ".join(s.name for s in TRANSITIONS[command])
            assert int((await common.delivery(delivery_id)).state) == state
            assert (await common.kpis(delivery_id)).revision == revision
        await connection.execute("update delivery set state = 1 where delivery_id = $1", int(delivery_id))


@pytest.mark.parametrize("command", CALLS, ids=lambda command: command.name)
async def test_an_unknown_delivery_is_not_found(common: DeliveryStack, command: Command) -> None:
    async with refused(grpc.StatusCode.NOT_FOUND, "DELIVERY_NOT_FOUND"):
        await CALLS[command](common, "12345")
    async with refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"):
        await CALLS[command](common, "no id")


# Unconfirm.


async def test_a_confirmation_taken_back_can_be_given_again(common: DeliveryStack) -> None:
    delivery = await common.ready(3, schedule=LATER)
    first = await common.confirm(delivery, request_id="first")

    back = await unconfirm(common, delivery.delivery_id)
    # An old call that arrives again confirms nothing: it gets its old answer.
    assert await common.confirm(delivery, request_id="first") == first
    assert (await common.delivery(delivery.delivery_id)).state == delivery_pb2.DELIVERY_STATE_READY
    second = await common.confirm(delivery)

    assert not back.HasField("confirmation")
    assert back.plan == delivery.plan
    assert second.confirmation.request_id != "first"
    assert (await common.delivery(delivery.delivery_id)).confirmation == second.confirmation


async def test_of_unconfirming_and_starting_exactly_one_happens(database: str, tmp_path: Path) -> None:
    start = datetime(2029, 12, 31, tzinfo=UTC)
    clock = SetClock(start)
    async with delivery_stack(database, tmp_path, clock=clock) as stack:
        ids = []
        for _ in range(30):
            delivery = await stack.ready(1, schedule=LATER)
            await stack.confirm(delivery)
            ids.append(delivery.delivery_id)
        clock.set(start + timedelta(days=1, hours=9))

        answers = await asyncio.gather(*(unconfirm(stack, each) for each in ids), return_exceptions=True)

        for delivery_id, answer in zip(ids, answers, strict=True):
            if isinstance(answer, grpc.aio.AioRpcError):
                assert answer.code() is grpc.StatusCode.FAILED_PRECONDITION
                await stack.in_state(delivery_id, delivery_pb2.DELIVERY_STATE_FINISHED)
            else:
                assert (await stack.delivery(delivery_id)).state == delivery_pb2.DELIVERY_STATE_READY
        started = sum(isinstance(answer, BaseException) for answer in answers)
        assert stack.mta.addresses["person1@example.com"] == started
    await assert_laws(database)


async def test_the_start_after_an_unconfirmation_changes_nothing(common: DeliveryStack) -> None:
    delivery = await common.ready(3, schedule=LATER)
    await common.confirm(delivery)
    late_start = datetime(2031, 1, 1, tzinfo=UTC)

    await unconfirm(common, delivery.delivery_id)
    async with connected(common.dsn) as connection:
        assert await connection.fetchval(query("start_delivery"), int(delivery.delivery_id), late_start) is None

    assert (await common.delivery(delivery.delivery_id)).state == delivery_pb2.DELIVERY_STATE_READY


# CancelPreparation.


async def test_a_preparation_is_broken_off_while_a_worker_holds_its_lease(common: DeliveryStack) -> None:
    delivery_id = await common.create()
    await common.add(delivery_id, people(3))
    token = uuid4()
    async with connected(common.dsn) as connection:
        # A worker that has taken it, and is somewhere between two steps.
        await connection.execute(
            "update delivery set state = 2, preparation_token = $2, preparation_lease_time = 'infinity' "
            "where delivery_id = $1",
            int(delivery_id),
            token,
        )

        assert (await cancel(common, delivery_id)).state == delivery_pb2.DELIVERY_STATE_EDITING

        now = datetime.now(UTC)
        assert not await connection.fetchval(query("prepare_exclusions"), int(delivery_id), token)
        assert not await connection.fetchval(query("write_range"), int(delivery_id), token, 0, 0, 1023, now)
        assert not await connection.fetchval(query("end_step"), int(delivery_id), token, 0, 1023)
        assert not await connection.fetchval(query("finish_preparation"), int(delivery_id), token, 4, "{}", now)
        lease = timedelta(minutes=1)
        # Nor does it hold up the preparation that is begun anew, by prolonging what is not its own any more.
        assert await connection.execute(query("renew_preparation"), int(delivery_id), token, lease) == "UPDATE 0"

    prepared = await common.prepare(delivery_id)
    assert prepared.state == delivery_pb2.DELIVERY_STATE_READY
    assert prepared.plan.to_deliver == 3


async def test_canceling_real_preparations_leaves_them_editable_or_lets_them_end(common: DeliveryStack) -> None:
    delivery_id = await common.create()
    await common.add(delivery_id, people(2_000))
    for _ in range(5):
        await common.stub.PrepareDelivery(pb.PrepareDeliveryRequest(delivery_id=delivery_id))
        (answer,) = await asyncio.gather(cancel(common, delivery_id), return_exceptions=True)
        after = await common.delivery(delivery_id)
        if isinstance(answer, grpc.aio.AioRpcError):  # it was faster
            assert answer.code() is grpc.StatusCode.FAILED_PRECONDITION
            assert after.state == delivery_pb2.DELIVERY_STATE_READY
        else:
            assert after.state == delivery_pb2.DELIVERY_STATE_EDITING
            assert (await common.kpis(delivery_id)).to_deliver == 0

    prepared = await common.prepare(delivery_id)

    assert prepared.plan.to_deliver == 2_000


# Decline.


async def test_only_a_child_can_be_declined(common: DeliveryStack) -> None:
    delivery = await common.ready(1)

    async with refused(grpc.StatusCode.FAILED_PRECONDITION, "DELIVERY_KIND") as problem:
        await decline(common, delivery.delivery_id)

    assert problem.metadata["kind"] == "PLAIN"
    assert problem.metadata["allowed_kinds"] == "CHILD"


# DeleteDelivery.


async def rows_of(dsn: str, delivery_id: str) -> dict[str, int]:
    async with connected(dsn) as connection:
        counted = {
            table: await connection.fetchval(f"select count(*) from {table} where delivery_id = $1", int(delivery_id))
            for table in TABLES
        }
    return {table: rows for table, rows in counted.items() if rows}


async def test_a_deleted_draft_is_gone_at_once_and_its_rows_go_in_bounded_steps(database: str, tmp_path: Path) -> None:
    async with delivery_stack(database, tmp_path, deletion_rows_per_step=700) as stack:
        kept = await stack.ready(5)
        delivery = await stack.ready(3_000)
        await stack.confirm(await stack.ready(1, schedule=LATER))
        assert (await rows_of(database, delivery.delivery_id))["send_log"] == 3_000

        await delete(stack, delivery.delivery_id)

        async with refused(grpc.StatusCode.NOT_FOUND, "DELIVERY_NOT_FOUND"):
            await stack.delivery(delivery.delivery_id)
        async with refused(grpc.StatusCode.NOT_FOUND, "DELIVERY_NOT_FOUND"):
            await delete(stack, delivery.delivery_id)
        listed = (await stack.stub.ListDeliveries(pb.ListDeliveriesRequest())).deliveries
        assert delivery.delivery_id not in [each.delivery_id for each in listed]

        async def purged() -> bool:
            return not await rows_of(database, delivery.delivery_id)

        await eventually(purged)
        assert (await rows_of(database, kept.delivery_id))["send_log"] == 5
    await assert_laws(database)


async def test_a_step_of_a_deletion_removes_no_more_than_its_limit_and_may_be_repeated(database: str) -> None:
    async with connected(database) as connection:
        await connection.execute(
            """
            insert into recipient (delivery_id, recipient, address_problem, profile_id, address, attributes)
            select d, n, 0, '', '', '{}' from generate_series(1, 2) d, generate_series(1, 250) n;
            insert into deleted_delivery values (1, now())
            """
        )
        left = []
        complete = False
        while not complete:
            complete = await connection.fetchval(query("purge_deleted"), 1, 100)
            left.append(await connection.fetchval("select count(*) from recipient where delivery_id = 1"))

        assert left == [150, 50, 0]
        assert await connection.fetchval(query("purge_deleted"), 1, 100) is None
        assert await connection.fetchval("select count(*) from recipient") == 250
        assert await connection.fetchval("select count(*) from deleted_delivery") == 0


async def test_a_deletion_that_was_stopped_half_way_goes_on_in_another_process(database: str, tmp_path: Path) -> None:
    async with delivery_stack(database, tmp_path / "1") as stack:
        delivery = await stack.ready(100)
    async with connected(database) as connection:
        # Only what the call itself does: the process died right after it.
        gone = await connection.fetchval(
            query("delete_draft"), int(delivery.delivery_id), int(delivery.etag), datetime.now(UTC)
        )
        assert gone == 0
    assert (await rows_of(database, delivery.delivery_id))["recipient"] == 100

    async with delivery_stack(database, tmp_path / "2"):

        async def purged() -> bool:
            return not await rows_of(database, delivery.delivery_id)

        await eventually(purged)


async def test_a_draft_is_not_deleted_over_a_change_that_the_caller_has_not_seen(common: DeliveryStack) -> None:
    delivery = await common.ready(1)
    request = pb.UpdateDeliveryRequest(delivery=delivery_pb2.Delivery(delivery_id=delivery.delivery_id, label="new"))
    request.update_mask.paths.append("label")
    await common.stub.UpdateDelivery(request)

    async with refused(grpc.StatusCode.ABORTED, "DELIVERY_CHANGED"):
        await delete(common, delivery.delivery_id, etag=delivery.etag)

    await delete(common, delivery.delivery_id, etag=(await common.delivery(delivery.delivery_id)).etag)


async def test_recipients_that_arrive_while_a_draft_is_deleted_are_not_left_behind(common: DeliveryStack) -> None:
    for _ in range(5):
        delivery_id = await common.create()
        ended = await asyncio.gather(
            common.add(delivery_id, people(3_000), chunk_size=300), delete(common, delivery_id), return_exceptions=True
        )
        assert ended[1] is None
        if isinstance(ended[0], grpc.aio.AioRpcError):
            assert ended[0].code() is grpc.StatusCode.NOT_FOUND
            await eventually_no_rows(common, delivery_id)


async def eventually_no_rows(stack: DeliveryStack, delivery_id: str) -> None:
    async def gone() -> bool:
        return not await rows_of(stack.dsn, delivery_id)

    await eventually(gone)


# DuplicateDelivery.


async def test_a_copy_has_everything_but_the_schedule(common: DeliveryStack) -> None:
    original = await common.ready(3, schedule=LATER, feedback_mode=2, validity_period={"seconds": 3_600})

    copy = await duplicate(common, original.delivery_id, label="again")

    assert copy.delivery_id != original.delivery_id
    assert copy.state == delivery_pb2.DELIVERY_STATE_EDITING
    assert copy.label == "again"
    assert copy.creator == "tester"
    for field in ("content", "channel", "feedback_mode", "validity_period"):
        assert getattr(copy, field) == getattr(original, field), field
    assert copy.recipient_count == 0
    assert not copy.HasField("schedule")
    assert not copy.HasField("plan")
    assert not copy.HasField("confirmation")
    assert (await duplicate(common, copy.delivery_id)).label == "again"


async def test_a_copy_of_the_audience_is_sent_to_the_same_recipients(database: str, tmp_path: Path) -> None:
    async with delivery_stack(database, tmp_path, audience_copy_recipients_per_step=700) as stack:
        original = await stack.sent(2_500)
        copy = await duplicate(stack, original, with_audience=True)
        copy_of_copy = await duplicate(stack, copy.delivery_id, with_audience=True)
        assert copy.recipient_count == copy_of_copy.recipient_count == 2_500
        await stack.add(copy.delivery_id, people(10, first=5_001))  # goes on behind what is being copied

        for delivery_id, expected in ((copy_of_copy.delivery_id, 2_500), (copy.delivery_id, 2_510)):
            prepared = await stack.prepare(delivery_id)
            assert prepared.plan.to_deliver == expected
            await stack.confirm(prepared)
            await stack.in_state(delivery_id, delivery_pb2.DELIVERY_STATE_FINISHED)

        assert set(stack.mta.addresses.values()) == {3, 1}
        one = (await stack.send_log(copy.delivery_id, 2_222)).send_log
        assert (one.profile_id, one.address) == ("p2222", "person2222@example.com")
    await assert_laws(database)


async def test_a_copy_of_an_audience_goes_on_after_a_crash(database: str, tmp_path: Path) -> None:
    async with delivery_stack(database, tmp_path / "1") as stack:
        original = await stack.ready(1_000)
    async with connected(database) as connection:
        made = await connection.fetchval(
            query("duplicate_delivery"), 77, int(original.delivery_id), "", "tester", datetime.now(UTC), True
        )
        assert made == 77
        assert await connection.fetchval(query("copy_audience"), 77, 300) is False
        # Its source stays until it is complete.
        assert (
            await connection.fetchval(
                query("delete_draft"), int(original.delivery_id), int(original.etag), datetime.now(UTC)
            )
            == 2
        )

    async with delivery_stack(database, tmp_path / "2") as stack:
        assert (await stack.prepare("77")).plan.to_deliver == 1_000
        await delete(stack, original.delivery_id)
    await assert_laws(database)


async def test_a_draft_whose_audience_is_being_copied_can_not_be_deleted_yet(common: DeliveryStack) -> None:
    original = await common.ready(3)
    async with connected(common.dsn) as connection:
        await connection.execute(
            # A copy that never ends: its own source is incomplete too.
            "insert into delivery (delivery_id, label, channel, feedback_mode, subject, html, body_text, from_address, "
            "from_name, reply_to_address, validity_period, state, creator, create_time, update_time, "
            "audience_source_id) select 5, '', 1, 1, '', '', '', '', '', '', '1 hour', 1, '', now(), now(), 5"
        )
        await connection.execute(
            "update delivery set audience_source_id = 5 where delivery_id = $1", int(original.delivery_id)
        )
        waiting = await duplicate(common, original.delivery_id, with_audience=True)

        async with refused(grpc.StatusCode.ABORTED, "ALREADY_RUNNING"):
            await delete(common, original.delivery_id)

        await connection.execute("delete from delivery where delivery_id = 5")
        await connection.execute(
            "update delivery set audience_source_id = null where delivery_id in ($1, $2)",
            int(original.delivery_id),
            int(waiting.delivery_id),
        )
    await delete(common, original.delivery_id)


async def test_an_unknown_original_is_not_found(common: DeliveryStack) -> None:
    async with refused(grpc.StatusCode.NOT_FOUND, "DELIVERY_NOT_FOUND"):
        await duplicate(common, "12345", with_audience=True)


async def test_a_label_that_is_too_long_is_refused(common: DeliveryStack) -> None:
    delivery_id = await common.create()

    async with refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD") as problem:
        await duplicate(common, delivery_id, label="x" * 201)

    assert problem.fields == ["label"]


async def test_a_draft_that_is_deleted_while_a_worker_takes_up_its_preparation_is_no_fault_of_the_worker(
    stack: DeliveryStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Claimed, canceled, deleted: then the worker reads what it has claimed."""
    delivery_id = await stack.create()
    await stack.add(delivery_id, people(1))
    claim = Preparation.claim
    deleted = asyncio.Event()

    async def claim_and_lose(self: Preparation, claimed_id: int, *args: Any) -> int | None:
        through = await claim(self, claimed_id, *args)
        if claimed_id == int(delivery_id) and not deleted.is_set():
            await cancel(stack, delivery_id)
            await delete(stack, delivery_id)
            deleted.set()
        return through

    monkeypatch.setattr(Preparation, "claim", claim_and_lose)
    await stack.stub.PrepareDelivery(pb.PrepareDeliveryRequest(delivery_id=delivery_id))
    await deleted.wait()

    await stack.ready(1)  # the worker goes on with others
