"""Relaying: whatever the MTA side answers or fails to, every message is accepted once and every row tells the truth."""

import asyncio
from datetime import UTC
from pathlib import Path
from typing import Any

import grpc
import orjson
import pytest

from campaign.delivery.v1 import delivery_pb2, send_log_pb2
from campaign.delivery.v1 import delivery_service_pb2 as pb
from campaign.mta.v1 import relay_service_pb2 as relay_pb
from service_runtime.clock import to_microseconds
from tests.support.delivery_stack import CONTENT, DeliveryStack, Observed, delivery_stack, people
from tests.support.eventually import eventually
from tests.support.invariants import assert_laws
from tests.support.mta_side import ACCEPT, LATER, Answer, MtaSide
from tests.support.postgres import connected

FINISHED, IN_PROGRESS = delivery_pb2.DELIVERY_STATE_FINISHED, delivery_pb2.DELIVERY_STATE_IN_PROGRESS
QUICK: dict[str, Any] = {"relay_retry_seconds": 0.02, "relay_retry_max_seconds": 0.1}
TAKEN_OVER: dict[str, Any] = {**QUICK, "relay_lease_seconds": 3, "shutdown_grace_seconds": 0.1}


def refuse(**fields: Any) -> Answer:
    return Answer(relay_pb.RELAY_VERDICT_REFUSED, relay_pb.RelayRefusal(**fields))


async def confirmed(stack: DeliveryStack, recipients: int, **fields: Any) -> str:
    delivery = await stack.ready(recipients, **fields)
    await stack.confirm(delivery)
    return delivery.delivery_id


async def finished(stack: DeliveryStack, delivery_id: str) -> delivery_pb2.Delivery:
    return await stack.in_state(delivery_id, FINISHED)


def assert_accepted_once(mta: MtaSide, recipients: int) -> None:
    assert len(mta.addresses) == recipients
    assert set(mta.addresses.values()) == {1}


async def test_a_refused_message_is_a_bounce_with_what_the_mta_side_said(stack: DeliveryStack) -> None:
    said = {
        "person1@example.com": refuse(
            smtp_code=550,
            enhanced_code="5.1.1",
            diagnostic="no such user",
            failure_type=send_log_pb2.FAILURE_TYPE_HARD,
            reason=send_log_pb2.REASON_USER_UNKNOWN,
        ),
        "person2@example.com": Answer(relay_pb.RELAY_VERDICT_REFUSED),
        "person3@example.com": refuse(smtp_code=7, enhanced_code="5" * 50, diagnostic="a\x00b" + "x" * 2_000),
    }
    stack.mta.decide = lambda message: said.get(message.address, ACCEPT)

    delivery_id = await stack.sent(4)

    first = (await stack.send_log(delivery_id, 1)).send_log
    assert first.outcome == send_log_pb2.OUTCOME_BOUNCED
    assert (first.smtp_code, first.enhanced_code, first.diagnostic) == (550, "5.1.1", "no such user")
    assert (first.failure_type, first.reason) == (send_log_pb2.FAILURE_TYPE_HARD, send_log_pb2.REASON_USER_UNKNOWN)
    bare = (await stack.send_log(delivery_id, 2)).send_log
    assert (bare.failure_type, bare.reason) == (send_log_pb2.FAILURE_TYPE_SOFT, send_log_pb2.REASON_NOT_DEFINED)
    odd = (await stack.send_log(delivery_id, 3)).send_log
    assert (odd.smtp_code, len(odd.enhanced_code), len(odd.diagnostic)) == (0, 20, 1_000)
    kpis = await stack.kpis(delivery_id)
    assert (kpis.outcomes.bounced, kpis.outcomes.relayed) == (3, 1)


async def test_the_time_of_the_answer_is_the_event_time(stack: DeliveryStack) -> None:
    delivery_id = await stack.sent(1)

    send_log = (await stack.send_log(delivery_id)).send_log
    _, time_us = stack.mta.journal[send_log.message_id]
    assert send_log.event_time.ToMicroseconds() == time_us


async def test_a_message_put_off_stays_prepared_and_is_relayed_again_until_taken(stack: DeliveryStack) -> None:
    put_off = {f"person{n}@example.com" for n in range(1, 4)}
    stack.mta.decide = lambda message: LATER if message.address in put_off else ACCEPT
    delivery_id = await confirmed(stack, 1_500)
    late = f"{delivery_id}-1"

    await eventually(lambda: stack.mta.relayed[late] > 3)
    kpis = await stack.kpis(delivery_id)
    assert kpis.outcomes.prepared >= 3
    assert kpis.state == IN_PROGRESS
    put_off.clear()
    await finished(stack, delivery_id)

    assert_accepted_once(stack.mta, 1_500)
    assert stack.mta.relayed[f"{delivery_id}-10"] == 1  # those taken at once are not sent again


async def test_a_verdict_of_no_meaning_is_taken_as_later(stack: DeliveryStack) -> None:
    answers = [Answer(relay_pb.RELAY_VERDICT_UNSPECIFIED), Answer(relay_pb.RelayVerdict.ValueType(99))]

    stack.mta.decide = lambda message: answers.pop() if answers else ACCEPT

    delivery_id = await stack.sent(1)

    assert stack.mta.relayed[f"{delivery_id}-1"] == 3


async def test_the_wait_that_the_mta_side_asks_for_is_kept(database: str, tmp_path: Path) -> None:
    async with delivery_stack(database, tmp_path, relay_retry_seconds=0.01) as stack:
        times: list[float] = []

        def decide(message: relay_pb.RelayMessage) -> Answer:
            times.append(asyncio.get_running_loop().time())
            if len(times) == 1:
                return Answer(relay_pb.RELAY_VERDICT_TRY_LATER, relay_pb.RelayRefusal(retry_delay_ms=400))
            return ACCEPT

        stack.mta.decide = decide
        await stack.sent(1)

        assert times[1] - times[0] >= 0.4
    await assert_laws(database)


async def test_an_mta_side_that_is_away_at_first_gets_everything_when_it_comes(database: str, tmp_path: Path) -> None:
    mta = MtaSide()
    await mta.start()
    await mta.stop()  # its port is known, and nobody listens
    async with delivery_stack(database, tmp_path, mta=mta, **QUICK) as stack:
        delivery_id = await confirmed(stack, 1_500)
        await stack.in_state(delivery_id, IN_PROGRESS)

        async def tried() -> bool:
            async with connected(database) as connection:
                return bool(await connection.fetchval("select bool_and(claim_count > 1) from relay_part"))

        await eventually(tried)
        assert (await stack.kpis(delivery_id)).outcomes.prepared == 1_500
        await mta.start(mta.port)
        try:
            await finished(stack, delivery_id)
            assert_accepted_once(mta, 1_500)
        finally:
            await mta.stop()
    await assert_laws(database)


async def test_streams_cut_in_mid_batch_are_relayed_again_under_the_same_ids(stack: DeliveryStack) -> None:
    stack.mta.cuts = 4

    delivery_id = await stack.sent(3_000)

    assert stack.mta.cuts == 0
    assert max(stack.mta.relayed.values()) > 1
    assert set(stack.mta.relayed) == {f"{delivery_id}-{n}" for n in range(1, 3_001)}
    assert_accepted_once(stack.mta, 3_000)
    assert (await stack.kpis(delivery_id)).outcomes.relayed == 3_000


@pytest.mark.parametrize("fault", ["too few", "no times", "absurd time", "unknown type", "unknown reason"])
async def test_an_unsound_answer_is_not_taken_and_the_batch_is_relayed_again(
    stack: DeliveryStack, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    sound, faults = stack.mta._answer, [fault] * 2

    def unsound(batch: relay_pb.RelayBatch) -> relay_pb.RelayResponse:
        answer = sound(batch)
        match faults.pop() if faults else "":
            case "too few":
                del answer.verdicts[-1]
            case "no times":
                del answer.answer_times_us[:]
            case "absurd time":
                answer.answer_times_us[0] = -(2**63)
            case "unknown type":
                answer.refusals.add(failure_type=send_log_pb2.FailureType.ValueType(99))
            case "unknown reason":
                answer.refusals.add(reason=send_log_pb2.Reason.ValueType(99))
        return answer

    monkeypatch.setattr(stack.mta, "_answer", unsound)

    delivery_id = await stack.sent(5)

    assert not faults
    assert stack.mta.relayed[f"{delivery_id}-1"] == 3
    assert (await stack.kpis(delivery_id)).outcomes.relayed == 5
    assert_accepted_once(stack.mta, 5)


async def test_an_mta_side_that_never_answers_is_left_for_a_new_stream(database: str, tmp_path: Path) -> None:
    async with delivery_stack(database, tmp_path, relay_answer_timeout_seconds=0.2, **QUICK) as stack:
        stack.mta.open.clear()
        delivery_id = await confirmed(stack, 5)
        await eventually(lambda: len(stack.mta.templates) > 2)  # one stream after another
        assert (await stack.kpis(delivery_id)).outcomes.prepared == 5
        stack.mta.open.set()
        await finished(stack, delivery_id)
        assert_accepted_once(stack.mta, 5)
    await assert_laws(database)


async def test_an_mta_side_that_does_not_read_is_left_for_a_new_stream(database: str, tmp_path: Path) -> None:
    """More is written than the transport takes: the write itself waits, and it too has its limit."""
    content = delivery_pb2.Content()
    content.CopyFrom(CONTENT)
    content.html = "<p>unsubscribe</p>" + "x" * 500_000
    content.text = "unsubscribe" + "y" * 500_000
    async with delivery_stack(database, tmp_path, relay_answer_timeout_seconds=0.2, **QUICK) as stack:
        stack.mta.reading.clear()
        delivery_id = await confirmed(stack, 5, content=content)

        async def tried_twice() -> bool:
            async with connected(database) as connection:
                return bool(await connection.fetchval("select claim_count > 1 from relay_part"))

        await eventually(tried_twice)
        stack.mta.reading.set()
        await finished(stack, delivery_id)
        assert_accepted_once(stack.mta, 5)
    await assert_laws(database)


async def test_feedback_that_overtakes_the_answer_stays_and_the_answer_is_kept_as_late(stack: DeliveryStack) -> None:
    stack.mta.open.clear()
    delivery_id = await confirmed(stack, 2)
    await eventually(lambda: stack.mta.batches_waiting == 1)

    assert not (await stack.apply(Observed(f"{delivery_id}-1", send_log_pb2.OUTCOME_DELIVERED))).rejections
    kpis = await stack.kpis(delivery_id)
    assert (kpis.outcomes.prepared, kpis.outcomes.delivered) == (1, 1)
    stack.mta.open.set()
    await finished(stack, delivery_id)

    response = await stack.send_log(delivery_id)
    assert response.send_log.outcome == send_log_pb2.OUTCOME_DELIVERED
    kinds = {entry.kind: entry.outcome for entry in response.timeline}
    assert kinds == {
        send_log_pb2.TIMELINE_ENTRY_KIND_TRANSITION: send_log_pb2.OUTCOME_DELIVERED,
        send_log_pb2.TIMELINE_ENTRY_KIND_LATE_OBSERVATION: send_log_pb2.OUTCOME_RELAYED,
    }
    kpis = await stack.kpis(delivery_id)
    assert (kpis.outcomes.relayed, kpis.outcomes.delivered, kpis.handed_over) == (1, 1, 2)


async def test_messages_carry_address_attributes_and_deadline_and_the_template_comes_once(stack: DeliveryStack) -> None:
    # Two parts, six batches.
    delivery_id = await confirmed(stack, 2_000)
    delivery = await finished(stack, delivery_id)

    assert len(stack.mta.templates) == 1
    template = stack.mta.templates[0]
    assert (template.delivery_id, template.channel, template.content) == (delivery_id, 1, CONTENT)
    message = stack.mta.messages[f"{delivery_id}-1024"]
    assert message.address == "person1024@example.com"
    assert orjson.loads(message.attributes_json) == {"first_name": "Name1024"}
    assert {m.deadline_us for m in stack.mta.messages.values()} == {delivery.validity_end_time.ToMicroseconds()}


async def test_a_short_validity_is_the_deadline(stack: DeliveryStack) -> None:
    delivery = await stack.ready(1, validity_period={"seconds": 60})
    response = await stack.confirm(delivery)
    await finished(stack, delivery.delivery_id)

    (message,) = stack.mta.messages.values()
    assert message.deadline_us == to_microseconds(response.start_time.ToDatetime(tzinfo=UTC)) + 60_000_000


async def test_each_delivery_of_a_stream_gets_its_own_template(stack: DeliveryStack) -> None:
    ids = [await stack.sent(1), await stack.sent(1), await stack.sent(1)]

    assert [template.delivery_id for template in stack.mta.templates] == ids


async def test_nothing_leaves_before_the_confirmation(stack: DeliveryStack) -> None:
    await stack.ready(5)
    other = await stack.sent(1)  # the workers have looked

    assert set(stack.mta.relayed) == {f"{other}-1"}


async def test_batches_fit_into_a_message_whatever_the_attributes(database: str, tmp_path: Path) -> None:
    async with delivery_stack(database, tmp_path, relay_batch_bytes_max=64 * 1_024) as stack:
        delivery_id = await stack.create()
        big = [pb.NewRecipient(address=f"person{n}@example.com", attributes={"a": "é" * 8_000}) for n in range(1, 21)]
        await stack.add(delivery_id, big)
        await stack.confirm(await stack.prepare(delivery_id))
        await finished(stack, delivery_id)
        assert_accepted_once(stack.mta, 20)
    await assert_laws(database)


async def test_the_parts_in_flight_are_bounded(database: str, tmp_path: Path) -> None:
    async with delivery_stack(database, tmp_path, relay_parts_in_flight_max=2) as stack:
        stack.mta.open.clear()
        ids = [await confirmed(stack, 3_000), await confirmed(stack, 1_500)]

        async def claimed() -> int:
            async with connected(database) as connection:
                return int(await connection.fetchval("select count(*) from relay_part where lease_holder <> ''"))

        async def started() -> bool:
            return await claimed() == 2

        await eventually(started)
        await eventually(lambda: stack.mta.batches_waiting > 0)
        assert await claimed() == 2
        stack.mta.open.set()
        for delivery_id in ids:
            await finished(stack, delivery_id)
        assert len(stack.mta.journal) == 4_500
    await assert_laws(database)


async def test_two_replicas_relay_every_message_once(database: str, tmp_path: Path) -> None:
    async with (
        delivery_stack(database, tmp_path / "one") as one,
        delivery_stack(database, tmp_path / "two", mta=one.mta) as two,
    ):
        deliveries = [await one.ready(n) for n in (5_000, 1_023, 1)]
        for delivery, stack in zip(deliveries, (one, two, one), strict=True):
            await stack.confirm(delivery)
        for delivery in deliveries:
            await finished(two, delivery.delivery_id)

        assert set(one.mta.relayed.values()) == {1}  # the leases kept them apart: not even a repetition
        assert len(one.mta.journal) == 6_024
    await assert_laws(database)


async def test_another_process_finishes_what_a_stopped_one_began(database: str, tmp_path: Path) -> None:
    mta = MtaSide()
    await mta.start()
    try:
        async with delivery_stack(database, tmp_path / "one", mta=mta, **TAKEN_OVER) as stack:
            mta.open.clear()
            delivery_id = await confirmed(stack, 3_000)
            await eventually(lambda: mta.batches_waiting > 0)
        mta.open.set()
        async with delivery_stack(database, tmp_path / "two", mta=mta, **TAKEN_OVER) as stack:
            await finished(stack, delivery_id)
            assert_accepted_once(mta, 3_000)
            assert (await stack.kpis(delivery_id)).outcomes.relayed == 3_000
    finally:
        await mta.stop()
    await assert_laws(database)


async def test_a_long_wait_keeps_its_lease(database: str, tmp_path: Path) -> None:
    """A part in flight for longer than a lease is not taken by the other replica."""
    async with delivery_stack(database, tmp_path / "one", **TAKEN_OVER) as one:
        one.mta.open.clear()
        delivery_id = await confirmed(one, 10)
        await eventually(lambda: one.mta.batches_waiting == 1)
        async with delivery_stack(database, tmp_path / "two", mta=one.mta, **TAKEN_OVER):

            async def renewed() -> bool:
                async with connected(database) as connection:
                    return bool(
                        await connection.fetchval(
                            "select available_time > d.start_time + interval '6.2 s' from relay_part p "
                            "join delivery d using (delivery_id)"
                        )
                    )

            await eventually(renewed)
            async with connected(database) as connection:
                assert await connection.fetchval("select claim_count from relay_part") == 1
            one.mta.open.set()
            await finished(one, delivery_id)
        assert set(one.mta.relayed.values()) == {1}
    await assert_laws(database)


async def test_finished_waits_for_the_last_prepared_row(stack: DeliveryStack) -> None:
    stack.mta.decide = lambda message: LATER if message.address == "person2500@example.com" else ACCEPT
    delivery_id = await confirmed(stack, 2_500)

    async def all_but_one() -> bool:
        return (await stack.kpis(delivery_id)).outcomes.relayed == 2_499

    await eventually(all_but_one)
    await eventually(lambda: stack.mta.relayed[f"{delivery_id}-2500"] > 3)
    delivery = await stack.delivery(delivery_id)
    assert delivery.state == IN_PROGRESS
    assert not delivery.HasField("finish_time")
    stack.mta.decide = lambda message: ACCEPT
    assert (await finished(stack, delivery_id)).HasField("finish_time")


async def test_the_loss_of_all_connections_in_mid_relay_loses_nothing(database: str, tmp_path: Path) -> None:
    async with delivery_stack(database, tmp_path, **TAKEN_OVER) as stack:
        stack.mta.open.clear()
        delivery_id = await confirmed(stack, 3_000)
        await eventually(lambda: stack.mta.batches_waiting > 0)
        async with connected(database) as connection:
            await connection.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity "
                "where datname = current_database() and application_name = 'delivery_service'"
            )
        stack.mta.open.set()

        async def through() -> bool:
            try:
                return (await stack.delivery(delivery_id)).state == FINISHED
            except grpc.aio.AioRpcError:
                return False

        await eventually(through)
        assert_accepted_once(stack.mta, 3_000)
    await assert_laws(database)


async def test_an_excluded_recipient_is_not_relayed(stack: DeliveryStack) -> None:
    delivery_id = await stack.create()
    await stack.add(delivery_id, [*people(2), *people(2), pb.NewRecipient(address="none")])
    await stack.confirm(await stack.prepare(delivery_id))
    await finished(stack, delivery_id)

    assert set(stack.mta.relayed) == {f"{delivery_id}-1", f"{delivery_id}-2"}
