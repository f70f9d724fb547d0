"""RetryFailed: whom it is for, in which states, once per request, and how its recipients are copied."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import pytest

from campaign.delivery.v1 import (
    audience_pb2,
    commands_pb2,
    delivery_pb2,
    exclusion_pb2,
    retry_pb2,
    send_log_pb2,
    suppression_pb2,
)
from campaign.delivery.v1 import delivery_service_pb2 as pb
from campaign.delivery.v1.schedule_pb2 import Recurrence, Schedule
from delivery_service.domain.identifiers import message_id
from delivery_service.domain.lifecycle import TRANSITIONS, Command, DeliveryState
from delivery_service.domain.outcome import FailureType, Outcome, Reason
from delivery_service.store.queries import query
from tests.support.delivery_stack import DeliveryStack, Observed, delivery_stack, people
from tests.support.eventually import eventually
from tests.support.invariants import assert_laws
from tests.support.mta_side import LATER
from tests.support.postgres import connected
from tests.support.statuses import refused

EXPIRED, BOUNCED, DELIVERED, DEFERRED = (
    send_log_pb2.OUTCOME_EXPIRED,
    send_log_pb2.OUTCOME_BOUNCED,
    send_log_pb2.OUTCOME_DELIVERED,
    send_log_pb2.OUTCOME_DEFERRED,
)
SOFT, HARD = FailureType.SOFT, FailureType.HARD
OVER = (DeliveryState.STOPPED, DeliveryState.FINISHED, DeliveryState.FAILED)


async def retry(stack: DeliveryStack, delivery_id: str, **fields: Any) -> retry_pb2.RetryFailedResponse:
    return await stack.stub.RetryFailed(retry_pb2.RetryFailedRequest(delivery_id=delivery_id, **fields))


async def report(stack: DeliveryStack, delivery_id: str, *reports: tuple[int, int, int, int]) -> None:
    """(recipient, outcome, failure type, reason) each."""
    await stack.apply(
        *(
            Observed(
                message_id(int(delivery_id), recipient),
                send_log_pb2.Outcome.ValueType(outcome),
                failure_type=failure_type,
                reason=reason,
            )
            for recipient, outcome, failure_type, reason in reports
        )
    )


async def with_failures(stack: DeliveryStack, **fields: Any) -> str:
    """A delivery to ten: 1 delivered, 2 deferred, 3 and 4 unknown, 5 full, 6 expired, 7 bounced softly, the others not
    reported on."""
    delivery_id = await stack.sent(10, **fields)
    await report(
        stack,
        delivery_id,
        (1, DELIVERED, 0, 0),
        (2, DEFERRED, SOFT, Reason.MAILBOX_FULL),
        (3, BOUNCED, HARD, Reason.USER_UNKNOWN),
        (4, BOUNCED, HARD, Reason.USER_UNKNOWN),
        (5, BOUNCED, SOFT, Reason.MAILBOX_FULL),
        (6, EXPIRED, SOFT, Reason.UNREACHABLE),
        (7, BOUNCED, SOFT, Reason.REFUSED),
    )
    return delivery_id


async def copied(stack: DeliveryStack, delivery_id: str) -> list[str]:
    """The addresses of a retry once they are all there."""

    async def complete() -> bool:
        async with connected(stack.dsn) as connection:
            sources = "select audience_source_id from delivery where delivery_id = $1"
            return await connection.fetchval(sources, int(delivery_id)) is None

    await eventually(complete)
    async with connected(stack.dsn) as connection:
        rows = await connection.fetch(
            "select recipient, address from recipient where delivery_id = $1 order by recipient", int(delivery_id)
        )
    assert [row["recipient"] for row in rows] == list(range(1, len(rows) + 1))
    assert (await stack.delivery(delivery_id)).recipient_count == len(rows)
    return [row["address"] for row in rows]


def addresses(*recipients: int) -> list[str]:
    return [f"person{number}@example.com" for number in recipients]


# Whom it is for.


async def test_counting_tells_the_failures_by_reason_and_changes_nothing(common: DeliveryStack) -> None:
    delivery_id = await with_failures(common)
    before = await common.delivery(delivery_id)

    told = await retry(common, delivery_id, validate_only=True, request_id="r")

    assert told.recipient_count == 5
    assert [(int(each.failure_type), int(each.reason), each.volume) for each in told.failures] == [
        (HARD, Reason.USER_UNKNOWN, 2),
        (SOFT, Reason.UNREACHABLE, 1),
        (SOFT, Reason.MAILBOX_FULL, 1),
        (SOFT, Reason.REFUSED, 1),
    ]
    assert told.undecided_count == 4  # one is deferred, three were never reported on
    assert not told.HasField("delivery")
    assert not told.earlier_delivery_ids
    assert await common.delivery(delivery_id) == before
    async with connected(common.dsn) as connection:
        assert not await connection.fetchval("select count(*) from retry where delivery_id = $1", int(delivery_id))


async def test_a_retry_is_a_draft_to_the_failed_ones_and_is_sent_like_any_other(common: DeliveryStack) -> None:
    delivery_id = await with_failures(common, feedback_mode=2, validity_period={"seconds": 7_200})
    original = await common.delivery(delivery_id)

    made = (await retry(common, delivery_id, label="once more")).delivery

    assert (made.state, made.label, made.creator) == (delivery_pb2.DELIVERY_STATE_EDITING, "once more", "tester")
    assert made.retry_of_delivery_id == delivery_id
    for field in ("content", "channel", "feedback_mode", "validity_period"):
        assert getattr(made, field) == getattr(original, field), field
    assert await copied(common, made.delivery_id) == addresses(3, 4, 5, 6, 7)
    before = common.mta.addresses.copy()
    assert (await common.delivery(made.delivery_id)).state == delivery_pb2.DELIVERY_STATE_EDITING, "nothing by itself"

    prepared = await common.prepare(made.delivery_id)
    assert prepared.plan.to_deliver == 5
    await common.confirm(prepared)
    await common.in_state(made.delivery_id, delivery_pb2.DELIVERY_STATE_FINISHED)

    assert common.mta.addresses - before == dict.fromkeys(addresses(3, 4, 5, 6, 7), 1)
    first = (await common.send_log(made.delivery_id, 1)).send_log
    assert (first.profile_id, first.address) == ("p3", "person3@example.com")
    assert await common.delivery(delivery_id) == original


@pytest.mark.parametrize(
    ("retry_filter", "expected"),
    [
        ({}, [3, 4, 5, 6, 7]),
        ({"outcomes": [EXPIRED]}, [6]),
        ({"outcomes": [BOUNCED, EXPIRED]}, [3, 4, 5, 6, 7]),
        ({"failure_types": [int(SOFT)]}, [5, 6, 7]),
        ({"failure_types": [int(HARD)]}, [3, 4]),
        ({"reasons": [int(Reason.MAILBOX_FULL), int(Reason.REFUSED)]}, [5, 7]),
        ({"outcomes": [BOUNCED], "failure_types": [int(SOFT)], "reasons": [int(Reason.MAILBOX_FULL)]}, [5]),
        ({"recipient_domains": ["EXAMPLE.com "]}, [3, 4, 5, 6, 7]),
    ],
)
async def test_the_filters_say_which_failed_ones(
    common: DeliveryStack, retry_filter: dict[str, Any], expected: list[int]
) -> None:
    delivery_id = await with_failures(common)
    asked = retry_pb2.RetryFilter(**retry_filter)

    told = await retry(common, delivery_id, filter=asked, validate_only=True)
    made = await retry(common, delivery_id, filter=asked)

    assert told.recipient_count == made.recipient_count == len(expected)
    assert await copied(common, made.delivery.delivery_id) == addresses(*expected)


async def test_only_the_failed_ones_of_a_domain_and_not_of_its_subdomains(common: DeliveryStack) -> None:
    delivery_id = await common.create()
    mails = ["a@one.example", "b@ONE.example", "c@sub.one.example", "d@two.example"]
    await common.add(delivery_id, [pb.NewRecipient(address=each, attributes={"first_name": "x"}) for each in mails])
    await common.confirm(await common.prepare(delivery_id))
    await common.in_state(delivery_id, delivery_pb2.DELIVERY_STATE_FINISHED)
    await report(common, delivery_id, *((number, BOUNCED, SOFT, Reason.REFUSED) for number in range(1, 5)))

    made = await retry(common, delivery_id, filter=retry_pb2.RetryFilter(recipient_domains=["one.example"]))

    assert made.recipient_count == 2
    assert await copied(common, made.delivery.delivery_id) == ["a@one.example", "b@one.example"]


async def test_without_a_failure_there_is_nothing_to_retry(common: DeliveryStack) -> None:
    delivery_id = await with_failures(common)
    nothing = retry_pb2.RetryFilter(failure_types=[send_log_pb2.FAILURE_TYPE_IGNORED])

    for validate_only in (True, False):
        async with refused(grpc.StatusCode.FAILED_PRECONDITION, "NOTHING_TO_RETRY") as problem:
            await retry(common, delivery_id, filter=nothing, validate_only=validate_only)
        assert problem.metadata == {"delivery_id": delivery_id}


async def test_one_who_turns_out_to_have_got_the_message_is_left_out(database: str, tmp_path: Path) -> None:
    async with delivery_stack(database, tmp_path / "1") as stack:
        delivery_id = await with_failures(stack)
    await make(database, int(delivery_id), 77)
    async with held(database, 77) as let_go, delivery_stack(database, tmp_path / "2") as stack:
        await report(stack, delivery_id, (6, DELIVERED, 0, 0))
        await let_go()

        assert await copied(stack, "77") == addresses(3, 4, 5, 7)
    await assert_laws(database)


@asynccontextmanager
async def held(dsn: str, delivery_id: int) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Holds the copying to a draft up, until it is let go: workers leave alone what is locked."""
    async with connected(dsn) as connection:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute("select from delivery where delivery_id = $1 for share", delivery_id)
        yield transaction.rollback


async def make(dsn: str, delivery_id: int, retry_id: int, request_id: str = "r") -> None:
    """The draft, with nobody at work on it."""
    async with connected(dsn) as connection:
        made = await connection.fetchval(
            query("retry_failed"), delivery_id, request_id, retry_id, "", "tester", datetime.now(UTC),
            [Outcome.EXPIRED, Outcome.BOUNCED], [], [], [], "[]", 0,
        )  # fmt: skip
    assert made == retry_id


# What of the original it has.


async def test_a_retry_has_the_suppression_lists_but_neither_the_schedule_nor_the_control_group(
    database: str, tmp_path: Path
) -> None:
    async with delivery_stack(database, tmp_path) as stack:
        since = suppression_pb2.SuppressionList(name="since")
        await stack.stub.CreateSuppressionList(suppression_pb2.CreateSuppressionListRequest(suppression_list=since))
        delivery_id = await stack.create(
            schedule=Schedule(local_time="2020-01-01T09:00", time_zone="UTC"),
            requires_approval=False,
            pacing=delivery_pb2.Pacing(first_wave_count=1_000, messages_per_hour=1_000),
            audience_options=audience_pb2.AudienceOptions(
                control_group=audience_pb2.ControlGroup(share=0.5), suppression_lists=["since"]
            ),
        )
        await stack.add(delivery_id, people(40))
        prepared = await stack.prepare(delivery_id)
        assert 0 < prepared.plan.to_deliver < 40
        await stack.confirm(prepared)
        await stack.in_state(delivery_id, delivery_pb2.DELIVERY_STATE_FINISHED)
        excluded = await stack.stub.ListExclusions(exclusion_pb2.ListExclusionsRequest(delivery_id=delivery_id))
        sent = sorted({*range(1, 41)} - {each.recipient for each in excluded.exclusions})
        await report(stack, delivery_id, *((number, BOUNCED, SOFT, Reason.REFUSED) for number in sent))
        entries = suppression_pb2.AddSuppressionEntriesRequest(name="since", addresses=addresses(sent[0]))
        await stack.stub.AddSuppressionEntries(entries)

        made = (await retry(stack, delivery_id)).delivery

        assert not made.HasField("schedule")
        assert made.pacing.messages_per_hour == 1_000
        assert made.audience_options == audience_pb2.AudienceOptions(suppression_lists=["since"])
        plan = (await stack.prepare(made.delivery_id)).plan
        assert (plan.targeted, plan.to_deliver) == (len(sent), len(sent) - 1)
    await assert_laws(database)


# In which state.


async def put_in_state(connection: asyncpg.Connection, delivery_id: str, state: DeliveryState) -> None:
    """Leases and a time that never end keep the workers from moving it on."""
    await connection.execute(
        "update relay_part set done = $2, available_time = 'infinity' where delivery_id = $1",
        int(delivery_id),
        state in OVER,
    )
    await connection.execute(
        "update delivery set state = $2, preparation_token = gen_random_uuid(), preparation_lease_time = 'infinity', "
        "contact_time = 'infinity', finish_time = 'infinity' where delivery_id = $1",
        int(delivery_id),
        state,
    )


@pytest.mark.parametrize("state", DeliveryState, ids=lambda state: state.name)
async def test_only_a_delivery_that_is_over_can_be_retried_also_while_messages_are_undecided(
    common: DeliveryStack, state: DeliveryState
) -> None:
    delivery_id = await with_failures(common)
    async with connected(common.dsn) as connection:
        await put_in_state(connection, delivery_id, state)
        try:
            if state in OVER:
                assert state in TRANSITIONS[Command.RETRY_FAILED]
                assert (await retry(common, delivery_id)).undecided_count == 4
            else:
                for validate_only in (True, False):
                    async with refused(grpc.StatusCode.FAILED_PRECONDITION, "DELIVERY_STATE") as problem:
                        await retry(common, delivery_id, validate_only=validate_only)
                    assert problem.metadata["state"] == state.name
                    assert problem.metadata["allowed_states"] == "STOPPED, FINISHED, FAILED"
        finally:
            await put_in_state(connection, delivery_id, DeliveryState.FINISHED)


async def test_what_a_stop_canceled_is_not_retried_and_what_bounced_before_it_is(common: DeliveryStack) -> None:
    accept, common.mta.decide = common.mta.decide, lambda _: LATER
    try:
        delivery = await common.ready(4)
        await common.confirm(delivery)
        await common.in_state(delivery.delivery_id, delivery_pb2.DELIVERY_STATE_IN_PROGRESS)
        await report(common, delivery.delivery_id, (2, BOUNCED, HARD, Reason.USER_UNKNOWN))
        await common.stub.StopDelivery(pb.StopDeliveryRequest(delivery_id=delivery.delivery_id))
    finally:
        common.mta.decide = accept

    async def canceled() -> bool:
        return (await common.kpis(delivery.delivery_id)).outcomes.canceled == 3

    await eventually(canceled)

    made = await retry(common, delivery.delivery_id)

    assert made.undecided_count == 0
    assert await copied(common, made.delivery.delivery_id) == addresses(2)


async def test_a_recurring_delivery_is_retried_by_its_children(common: DeliveryStack) -> None:
    rule = Schedule(local_time="2030-01-01T09:00", time_zone="UTC", recurrence=Recurrence(rule="FREQ=DAILY"))
    recurring = await common.ready(3, schedule=rule)
    async with refused(grpc.StatusCode.FAILED_PRECONDITION, "DELIVERY_KIND") as problem:
        await retry(common, recurring.delivery_id)
    assert problem.metadata["kind"] == "RECURRING"
    assert problem.metadata["allowed_kinds"] == "PLAIN, CHILD"

    child = await with_failures(common)
    async with connected(common.dsn) as connection:
        await connection.execute(
            "update delivery set parent_id = $2, occurrence_local_time = now(), confirm_by_time = now() "
            "where delivery_id = $1",
            int(child),
            int(recurring.delivery_id),
        )
    made = (await retry(common, child)).delivery
    assert not made.HasField("parent_occurrence"), "a plain draft, which can be edited"


# Once per request.


async def test_the_same_request_id_gets_the_same_answer_again_and_one_draft(common: DeliveryStack) -> None:
    delivery_id = await with_failures(common)
    asked = retry_pb2.RetryFilter(failure_types=[send_log_pb2.FAILURE_TYPE_SOFT])

    first = await retry(common, delivery_id, request_id="once", filter=asked)
    await copied(common, first.delivery.delivery_id)
    await report(common, delivery_id, (8, BOUNCED, SOFT, Reason.REFUSED))  # since then
    again = await retry(common, delivery_id, request_id="once", filter=asked)
    other = await retry(common, delivery_id, request_id="twice", filter=asked)

    assert again.delivery.delivery_id == first.delivery.delivery_id
    assert (again.recipient_count, again.failures, again.undecided_count) == (
        first.recipient_count, first.failures, first.undecided_count,
    )  # fmt: skip
    assert (first.recipient_count, other.recipient_count) == (3, 4)
    assert other.delivery.delivery_id != first.delivery.delivery_id
    assert list(other.earlier_delivery_ids) == [first.delivery.delivery_id]


async def test_a_request_id_is_of_one_filter(common: DeliveryStack) -> None:
    delivery_id = await with_failures(common)
    await retry(common, delivery_id, request_id="mine")

    async with refused(grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_ID_REUSED") as problem:
        await retry(common, delivery_id, request_id="mine", filter=retry_pb2.RetryFilter(outcomes=[EXPIRED]))

    assert problem.metadata == {"delivery_id": delivery_id, "request_id": "mine"}
    assert problem.fields == ["request_id"]


async def test_without_a_request_id_each_call_makes_a_draft(common: DeliveryStack) -> None:
    delivery_id = await with_failures(common)

    first, second = await retry(common, delivery_id), await retry(common, delivery_id)

    assert first.delivery.delivery_id != second.delivery.delivery_id


async def test_many_calls_at_once_with_one_request_id_on_two_replicas_make_one_draft(
    database: str, tmp_path: Path
) -> None:
    async with (
        delivery_stack(database, tmp_path / "one") as one,
        delivery_stack(database, tmp_path / "two", mta=one.mta) as two,
    ):
        delivery_id = await with_failures(one)

        async def call(stack: DeliveryStack) -> str:
            while True:
                try:
                    return (await retry(stack, delivery_id, request_id="many")).delivery.delivery_id
                except grpc.aio.AioRpcError as error:  # another one counts the delivery: repeat
                    if error.code() is not grpc.StatusCode.ABORTED:
                        raise

        made = await asyncio.gather(*(call(stack) for stack in [one, two] * 5))

        assert len(set(made)) == 1
        assert await copied(one, made[0]) == addresses(3, 4, 5, 6, 7)
        async with connected(database) as connection:
            assert await connection.fetchval("select count(*) from delivery") == 2
    await assert_laws(database)


async def test_a_draft_that_was_deleted_is_not_made_again_by_its_request(common: DeliveryStack) -> None:
    delivery_id = await with_failures(common)
    made = (await retry(common, delivery_id, request_id="gone")).delivery.delivery_id
    await common.stub.DeleteDelivery(commands_pb2.DeleteDeliveryRequest(delivery_id=made))

    async with refused(grpc.StatusCode.NOT_FOUND, "DELIVERY_NOT_FOUND") as problem:
        await retry(common, delivery_id, request_id="gone")

    assert problem.metadata["delivery_id"] == made
    assert not (await retry(common, delivery_id, validate_only=True)).earlier_delivery_ids


async def test_an_unknown_delivery_is_not_found(common: DeliveryStack) -> None:
    async with refused(grpc.StatusCode.NOT_FOUND, "DELIVERY_NOT_FOUND"):
        await retry(common, "12345")


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"filter": {"outcomes": [0]}}, "filter.outcomes[0]"),
        ({"filter": {"outcomes": [BOUNCED, DEFERRED]}}, "filter.outcomes[1]"),
        ({"filter": {"failure_types": [0]}}, "filter.failure_types[0]"),
        ({"filter": {"reasons": [999]}}, "filter.reasons[0]"),
        ({"filter": {"recipient_domains": ["a.example", "none"]}}, "filter.recipient_domains[1]"),
        ({"filter": {"recipient_domains": ["a.example"] * 101}}, "filter.recipient_domains"),
        ({"label": "x" * 201}, "label"),
        ({"request_id": "x" * 101}, "request_id"),
        ({"request_id": "a\0"}, "request_id"),
    ],
)
async def test_what_makes_no_sense_is_refused_naming_the_field(
    common: DeliveryStack, fields: dict[str, Any], field: str
) -> None:
    delivery_id = await common.sent(1)
    async with refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD") as problem:
        await retry(common, delivery_id, **fields)
    assert problem.fields == [field]


# How the recipients are copied.


async def large(stack: DeliveryStack, recipients: int) -> tuple[str, list[int]]:
    """A delivery of which every third bounced."""
    delivery_id = await stack.sent(recipients)
    failed = list(range(3, recipients + 1, 3))
    for begin in range(0, len(failed), 1_000):
        batch = failed[begin : begin + 1_000]
        await report(stack, delivery_id, *((number, BOUNCED, SOFT, Reason.REFUSED) for number in batch))
    return delivery_id, failed


async def test_two_replicas_copy_each_failed_one_once_while_others_are_added(database: str, tmp_path: Path) -> None:
    small: dict[str, Any] = {"audience_copy_recipients_per_step": 50}
    async with (
        delivery_stack(database, tmp_path / "one", **small) as one,
        delivery_stack(database, tmp_path / "two", mta=one.mta, **small) as two,
    ):
        delivery_id, failed = await large(one, 3_000)
        drafts = [(await retry(stack, delivery_id)).delivery.delivery_id for stack in (one, two)]

        await asyncio.gather(*(two.add(each, people(100, first=9_001), chunk_size=10) for each in drafts))

        for draft in drafts:
            found = await copied(one, draft)
            assert [each for each in found if "person9" not in each or len(each) < len("person9001@example.com")] == (
                addresses(*failed)
            ), "once each, in order"
            assert len(found) == len(failed) + 100
            prepared = await two.prepare(draft)
            assert prepared.plan.to_deliver == len(found)
    await assert_laws(database)


async def test_a_copy_goes_on_after_a_crash_and_the_preparation_waits_for_its_end(
    database: str, tmp_path: Path
) -> None:
    async with delivery_stack(database, tmp_path / "1") as stack:
        delivery_id, failed = await large(stack, 1_000)
    await make(database, int(delivery_id), 77)
    async with connected(database) as connection:
        assert await connection.fetchval(query("copy_audience"), 77, 300) is False
        assert await connection.fetchval(query("copy_audience"), 77, 1) is False
        half = await connection.fetchval("select recipient_count from delivery where delivery_id = 77")
        assert half == len([each for each in failed if each <= 301])

    async with delivery_stack(database, tmp_path / "2") as stack:
        prepared = await stack.prepare("77")
        assert (prepared.plan.targeted, prepared.plan.to_deliver) == (len(failed), len(failed))
        assert await copied(stack, "77") == addresses(*failed)
    await assert_laws(database)


async def test_while_it_is_being_copied_a_retry_can_be_deleted_but_not_duplicated_with_its_audience(
    database: str, tmp_path: Path
) -> None:
    async with delivery_stack(database, tmp_path / "1") as stack:
        delivery_id = await with_failures(stack)
    await make(database, int(delivery_id), 77)
    async with held(database, 77) as let_go, delivery_stack(database, tmp_path / "2") as stack:
        with_audience = commands_pb2.DuplicateDeliveryRequest(delivery_id="77", with_audience=True)
        async with refused(grpc.StatusCode.ABORTED, "ALREADY_RUNNING"):
            await stack.stub.DuplicateDelivery(with_audience)
        without = commands_pb2.DuplicateDeliveryRequest(delivery_id="77")
        assert (await stack.stub.DuplicateDelivery(without)).delivery.recipient_count == 0
        await let_go()
        await copied(stack, "77")
        duplicate = (await stack.stub.DuplicateDelivery(with_audience)).delivery
        assert duplicate.retry_of_delivery_id == ""
        assert (await stack.prepare(duplicate.delivery_id)).plan.to_deliver == 5
    await make(database, int(delivery_id), 78, "another")
    async with held(database, 78) as let_go, delivery_stack(database, tmp_path / "3") as stack:
        deletion = commands_pb2.DeleteDeliveryRequest(delivery_id="78")
        deleting = asyncio.ensure_future(stack.stub.DeleteDelivery(deletion))
        await let_go()
        await deleting
        async with refused(grpc.StatusCode.NOT_FOUND, "DELIVERY_NOT_FOUND"):
            await stack.delivery("78")
    await assert_laws(database)


async def test_the_plan_of_a_retry_is_bound_to_whom_it_is_for(common: DeliveryStack) -> None:
    delivery_id = await with_failures(common)
    digests = set()
    for reason in (send_log_pb2.REASON_USER_UNKNOWN, send_log_pb2.REASON_MAILBOX_FULL):
        made = await retry(common, delivery_id, filter=retry_pb2.RetryFilter(reasons=[reason]))
        await copied(common, made.delivery.delivery_id)
        async with connected(common.dsn) as connection:
            digests.add(
                await connection.fetchval(
                    "select audience_digest from delivery where delivery_id = $1", int(made.delivery.delivery_id)
                )
            )
    assert len(digests) == 2
    assert all(len(digest) == 32 for digest in digests)
