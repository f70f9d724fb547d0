"""ExplainDelivery and ExplainRecipient against a running service: each cause of waiting made to happen."""

from pathlib import Path
from typing import Any

import grpc
import pytest

from campaign.delivery.v1 import delivery_pb2, explanation_pb2, send_log_pb2
from campaign.delivery.v1 import delivery_service_pb2 as pb
from campaign.delivery.v1.schedule_pb2 import Schedule
from tests.support.delivery_stack import DeliveryStack, Fact, Observed, delivery_stack, people
from tests.support.eventually import eventually
from tests.support.mta_side import ACCEPT, LATER, MtaSide
from tests.support.postgres import connected
from tests.support.statuses import refused

Kind = explanation_pb2.DeliveryFactKind
SOFT = send_log_pb2.FAILURE_TYPE_SOFT
TIME_US = 1_790_000_100_000_000


async def explained(stack: DeliveryStack, delivery_id: str) -> dict[str, explanation_pb2.DeliveryFact]:
    """The facts by kind."""
    request = explanation_pb2.ExplainDeliveryRequest(delivery_id=delivery_id)
    response = await stack.stub.ExplainDelivery(request)
    assert response.state == (await stack.delivery(delivery_id)).state
    assert all(fact.sentence for fact in response.facts)
    return {Kind.Name(fact.kind).removeprefix("DELIVERY_FACT_KIND_"): fact for fact in response.facts}


async def recipient(
    stack: DeliveryStack, delivery_id: str, number: int = 1, **fields: Any
) -> explanation_pb2.ExplainRecipientResponse:
    request = explanation_pb2.ExplainRecipientRequest(delivery_id=delivery_id, recipient=number, **fields)
    return await stack.stub.ExplainRecipient(request)


async def test_a_delivery_is_explained_from_draft_to_finish(common: DeliveryStack) -> None:
    delivery_id = await common.create()
    await common.add(delivery_id, people(4))
    assert (await explained(common, delivery_id))["NOT_PREPARED"].count == 4

    ready = await common.prepare(delivery_id)
    assert list(await explained(common, delivery_id)) == ["NOT_CONFIRMED"]

    await common.confirm(ready)
    await common.in_state(delivery_id, delivery_pb2.DELIVERY_STATE_FINISHED)
    await common.apply(
        Observed(f"{delivery_id}-1", send_log_pb2.OUTCOME_DELIVERED, TIME_US),
        Observed(f"{delivery_id}-2", send_log_pb2.OUTCOME_DEFERRED, TIME_US, SOFT),
    )
    facts = await explained(common, delivery_id)
    assert facts["MESSAGES_WITHOUT_FEEDBACK"].count == 2
    assert facts["MESSAGES_RETRIED"].count == 1
    assert facts["NEWEST_FEEDBACK"].HasField("since_time")
    assert facts["VALIDITY_OPEN"].until_time == (await common.delivery(delivery_id)).validity_end_time
    assert "NOT_SETTLED" in facts
    assert "MESSAGES_PREPARED" not in facts


async def test_a_delivery_confirmed_for_later_tells_when_it_starts(common: DeliveryStack) -> None:
    later = Schedule(local_time="2030-01-01T09:00", time_zone="Europe/Paris")
    ready = await common.ready(2, schedule=later)
    await common.confirm(ready)

    facts = await explained(common, ready.delivery_id)

    assert list(facts) == ["WAITING_FOR_CONTACT_TIME"]
    assert facts["WAITING_FOR_CONTACT_TIME"].until_time.ToJsonString() == "2030-01-01T08:00:00Z"


async def test_a_failed_preparation_is_explained_by_its_errors(common: DeliveryStack) -> None:
    delivery_id = await common.create(content=delivery_pb2.Content(subject="s"))
    await common.add(delivery_id, people(1))
    failed = await common.prepare(delivery_id)

    facts = await explained(common, delivery_id)

    assert failed.plan.errors[0].description in facts["PREPARATION_FAILED"].sentence


async def test_a_preparation_tells_who_holds_it_until_when(common: DeliveryStack) -> None:
    delivery_id = await common.create()
    async with connected(common.dsn) as connection:
        hold = "update delivery set state = 2, preparation_token = gen_random_uuid(), preparation_lease_time = $2 "
        now = await connection.fetchval("select now()")
        later = await connection.fetchval("select now() + interval '1 hour'")
        await connection.execute(hold + "where delivery_id = $1", int(delivery_id), later)
        assert (await explained(common, delivery_id))["PREPARATION_RUNNING"].until_time.ToMicroseconds() == int(
            later.timestamp() * 1e6
        )
        await connection.execute(
            "update delivery set preparation_lease_time = $2 where delivery_id = $1", int(delivery_id), now
        )
    await common.in_state(
        delivery_id, delivery_pb2.DELIVERY_STATE_READY, delivery_pb2.DELIVERY_STATE_PREPARATION_FAILED
    )


async def test_parts_in_flight_and_put_off_are_told_with_their_holder(stack: DeliveryStack) -> None:
    delivery = await stack.ready(3_000)
    delivery_id = delivery.delivery_id
    stack.mta.open.clear()
    await stack.confirm(delivery)

    async def in_flight() -> explanation_pb2.DeliveryFact:
        facts = await explained(stack, delivery_id)
        assert "PARTS_LEASED" in facts
        assert facts["PARTS_LEASED"].count == 3
        assert facts["MESSAGES_PREPARED"].count == 3_000
        return facts["PARTS_LEASED"]

    leased = await eventually(in_flight)
    assert leased.holder
    assert leased.HasField("until_time")
    stack.mta.decide = lambda _: LATER
    stack.mta.open.set()

    async def put_off() -> bool:
        return "PARTS_PUT_OFF" in await explained(stack, delivery_id)

    await eventually(put_off)
    stack.mta.decide = lambda _: ACCEPT
    await stack.in_state(delivery_id, delivery_pb2.DELIVERY_STATE_FINISHED)


async def test_an_mta_side_that_is_away_is_told_by_every_replica(database: str, tmp_path: Path) -> None:
    side = MtaSide()
    await side.start()
    async with (
        delivery_stack(database, tmp_path / "one", mta=side, mta_contact_report_seconds=0.05) as one,
        delivery_stack(database, tmp_path / "two", mta=side) as two,
    ):
        await one.sent()
        await side.stop()
        delivery = await one.ready(2)
        await one.confirm(delivery)

        async def away() -> explanation_pb2.DeliveryFact:
            facts = await explained(two, delivery.delivery_id)
            assert "MTA_SIDE_AWAY" in facts
            return facts["MTA_SIDE_AWAY"]

        fact = await eventually(away)
        assert fact.holder
        assert fact.HasField("since_time")
        await side.start(side.port)
        await one.in_state(delivery.delivery_id, delivery_pb2.DELIVERY_STATE_FINISHED)
        await side.stop()


async def test_feedback_is_silent_until_a_source_is_connected(common: DeliveryStack) -> None:
    delivery_id = await common.sent(1)
    assert "FEEDBACK_SILENT" in await explained(common, delivery_id)
    async with connected(common.dsn) as connection:
        await connection.execute("insert into feedback_source values ('r', 'mta-1', now()), ('r', 'mta-2', now())")
        facts = await explained(common, delivery_id)
        await connection.execute("delete from feedback_source")

    assert facts["FEEDBACK_SOURCES"].count == 2


async def test_a_delivery_that_does_not_exist_is_not_explained(common: DeliveryStack) -> None:
    async with refused(grpc.StatusCode.NOT_FOUND, "DELIVERY_NOT_FOUND"):
        await explained(common, "12345")


async def test_each_report_about_a_message_is_explained(common: DeliveryStack) -> None:
    delivery_id = await common.sent(1)
    message_id = f"{delivery_id}-1"
    await common.apply(Observed(message_id, send_log_pb2.OUTCOME_DEFERRED, TIME_US, SOFT, 6))
    await common.apply(Observed(message_id, send_log_pb2.OUTCOME_DEFERRED, TIME_US + 20, SOFT, 6))
    delivered = Observed(message_id, send_log_pb2.OUTCOME_DELIVERED, TIME_US + 30)
    await common.apply(delivered)
    await common.apply(delivered)  # a repetition
    await common.apply(Observed(message_id, send_log_pb2.OUTCOME_DEFERRED, TIME_US + 40, SOFT, 6))
    await common.track(Fact(message_id, event_time_us=TIME_US + 50))

    found = await recipient(common, delivery_id)

    assert (found.recipient, found.profile_id, found.address) == (1, "p1", "person1@example.com")
    assert found.exclusion_cause == 0
    assert found.send_log == (await common.send_log(delivery_id)).send_log
    assert found.sentence == "SENT: the greatest fact known about the message is DELIVERED."
    applied, late, ignored = (
        explanation_pb2.EVENT_VERDICT_APPLIED,
        explanation_pb2.EVENT_VERDICT_LATE,
        explanation_pb2.EVENT_VERDICT_IGNORED,
    )
    rank, event_time = explanation_pb2.DECIDED_BY_RANK, explanation_pb2.DECIDED_BY_EVENT_TIME
    by_time = [
        (event.verdict, event.decided_by, event.compared_outcome, event.entry.rules_version) for event in found.events
    ]
    assert by_time == [
        (applied, rank, send_log_pb2.OUTCOME_RELAYED, 1),
        (applied, event_time, send_log_pb2.OUTCOME_DEFERRED, 1),
        (applied, rank, send_log_pb2.OUTCOME_DEFERRED, 1),
        (late, rank, send_log_pb2.OUTCOME_DELIVERED, 1),
        (ignored, 0, 0, 0),
        (applied, rank, send_log_pb2.OUTCOME_PREPARED, 0),  # the relay's answer, by the double's clock
    ]
    assert found.events[1].compared_event_time.ToMicroseconds() == TIME_US
    assert not found.events[5].HasField("compared_event_time")
    assert "Qualified by version 1 of the rules." in found.events[3].sentence
    assert found.events[4].sentence.startswith("Open:")


async def test_who_was_excluded_is_explained_by_the_cause(common: DeliveryStack) -> None:
    delivery_id = await common.create()
    await common.add(delivery_id, [*people(1), *people(1), pb.NewRecipient(profile_id="x", address="nothing")])
    async with refused(grpc.StatusCode.FAILED_PRECONDITION, "DELIVERY_STATE"):
        await recipient(common, delivery_id, 2)
    await common.prepare(delivery_id)

    duplicate, malformed = await recipient(common, delivery_id, 2), await recipient(common, delivery_id, 3)

    assert duplicate.exclusion_cause == delivery_pb2.EXCLUSION_CAUSE_DUPLICATE
    assert "duplicate" in duplicate.sentence
    assert not duplicate.HasField("send_log")
    assert (malformed.profile_id, malformed.address) == ("x", "nothing")
    assert malformed.exclusion_cause == delivery_pb2.EXCLUSION_CAUSE_ADDRESS_MALFORMED
    async with refused(grpc.StatusCode.NOT_FOUND, "SEND_LOG_NOT_FOUND"):
        await recipient(common, delivery_id, 4)


@pytest.mark.parametrize(("fields", "field"), [({"feedback_mode": 9}, "feedback_mode"), ({"number": 0}, "recipient")])
async def test_a_malformed_request_to_explain_is_refused(
    common: DeliveryStack, fields: dict[str, Any], field: str
) -> None:
    delivery_id = await common.sent(1)
    async with refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD") as problem:
        await recipient(common, delivery_id, **fields)

    assert problem.fields == [field]


async def test_a_long_story_is_cut_and_says_so(database: str, tmp_path: Path) -> None:
    async with delivery_stack(database, tmp_path, timeline_entries_max=3) as stack:
        delivery_id = await stack.sent(1)
        for n in range(5):
            await stack.apply(Observed(f"{delivery_id}-1", send_log_pb2.OUTCOME_DEFERRED, TIME_US + n, SOFT))

        found = await recipient(stack, delivery_id)

    assert len(found.events) == 3
    assert found.truncated
