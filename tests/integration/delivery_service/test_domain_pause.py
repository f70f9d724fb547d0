"""Pause and Resume of one recipient domain: its messages wait, the rest of the delivery goes on."""

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from campaign.delivery.v1 import delivery_pb2, domain_pause_pb2, explanation_pb2, schedule_pb2, send_log_pb2
from campaign.delivery.v1 import delivery_service_pb2 as pb
from delivery_service.domain.identifiers import RECIPIENTS_PER_PART
from delivery_service.workers.relay import RelayWorker
from tests.support.clock import SetClock
from tests.support.delivery_stack import DeliveryStack, delivery_stack
from tests.support.eventually import eventually
from tests.support.invariants import assert_laws
from tests.support.mta_side import ACCEPT, LATER
from tests.support.postgres import connected
from tests.support.statuses import refused

IN_PROGRESS, PAUSED = delivery_pb2.DELIVERY_STATE_IN_PROGRESS, delivery_pb2.DELIVERY_STATE_PAUSED
STOPPED, FINISHED = delivery_pb2.DELIVERY_STATE_STOPPED, delivery_pb2.DELIVERY_STATE_FINISHED
BOUNCED, HARD = send_log_pb2.OUTCOME_BOUNCED, send_log_pb2.FAILURE_TYPE_HARD
HELD, OTHER = "held.example", "other.example"
START = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)


def people(number: int) -> list[pb.NewRecipient]:
    """Every second one at each of two domains, beginning with HELD. Their messages are not small."""
    return [
        pb.NewRecipient(address=f"person{i}@{HELD if i % 2 else OTHER}", attributes={"padding": "x" * 500})
        for i in range(1, number + 1)
    ]


async def ready(stack: DeliveryStack, number: int, **fields: Any) -> delivery_pb2.Delivery:
    content = delivery_pb2.Content(subject="Hello", text="Hi", from_address="news@example.com")
    delivery_id = await stack.create(content=content, **fields)
    await stack.add(delivery_id, people(number))
    return await stack.prepare(delivery_id)


async def pause_domain(
    stack: DeliveryStack, delivery_id: str, domain: str = HELD
) -> domain_pause_pb2.PauseDomainResponse:
    request = domain_pause_pb2.PauseDomainRequest(delivery_id=delivery_id, recipient_domain=domain)
    return await stack.stub.PauseDomain(request)


async def resume_domain(stack: DeliveryStack, delivery_id: str, domain: str = HELD) -> delivery_pb2.Delivery:
    request = domain_pause_pb2.ResumeDomainRequest(delivery_id=delivery_id, recipient_domain=domain)
    return (await stack.stub.ResumeDomain(request)).delivery


async def held_before_it_leaves(stack: DeliveryStack, number: int, **fields: Any) -> str:
    """A delivery that is being sent, with HELD paused before any message could leave."""
    delivery = await ready(stack, number, **fields)
    stack.mta.decide = lambda _: LATER
    await stack.confirm(delivery)
    await stack.in_state(delivery.delivery_id, IN_PROGRESS)
    await stack.stub.PauseDelivery(pb.PauseDeliveryRequest(delivery_id=delivery.delivery_id))

    async def nothing_in_flight() -> bool:
        again = await stack.stub.PauseDelivery(pb.PauseDeliveryRequest(delivery_id=delivery.delivery_id))
        return not again.in_flight_count

    await eventually(nothing_in_flight)
    await pause_domain(stack, delivery.delivery_id)
    stack.mta.decide = lambda _: ACCEPT
    await stack.stub.ResumeDelivery(pb.ResumeDeliveryRequest(delivery_id=delivery.delivery_id))
    return delivery.delivery_id


async def relayed(stack: DeliveryStack, delivery_id: str, number: int) -> None:
    async def reached() -> bool:
        found = (await stack.kpis(delivery_id)).outcomes.relayed
        assert found == number
        return True

    await eventually(reached)


async def relayed_beside(stack: DeliveryStack, delivery_id: str, domain: str, number: int) -> None:
    """Waits until that many messages to a domain have left."""

    async def reached() -> bool:
        async with connected(stack.dsn) as connection:
            count = (
                "select count(*) from send_log join recipient using (delivery_id, recipient) "
                "where delivery_id = $1 and outcome = 2 and split_part(address, '@', 2) = $2"
            )
            assert await connection.fetchval(count, int(delivery_id), domain) == number
            return True

    await eventually(reached)


async def everything_else_left(stack: DeliveryStack, delivery_id: str, number: int) -> None:
    """Waits until all parts have nothing left but messages to paused domains."""
    await relayed(stack, delivery_id, number)

    async def at_rest() -> bool:
        async with connected(stack.dsn) as connection:
            return bool(
                await connection.fetchval(
                    "select bool_and(p.done or p.held_version = d.domain_pause_version) from relay_part p "
                    "join delivery d using (delivery_id) where delivery_id = $1",
                    int(delivery_id),
                )
            )

    await eventually(at_rest)


def left(stack: DeliveryStack) -> set[str]:
    """The domains that anything has been accepted for."""
    return {address.rpartition("@")[2] for address in stack.mta.addresses}


async def facts(stack: DeliveryStack, delivery_id: str) -> dict[int, explanation_pb2.DeliveryFact]:
    answer = await stack.stub.ExplainDelivery(explanation_pb2.ExplainDeliveryRequest(delivery_id=delivery_id))
    return {fact.kind: fact for fact in answer.facts}


async def test_messages_to_a_paused_domain_wait_while_the_rest_goes_on_and_finished_waits_for_them(
    database: str, tmp_path: Path
) -> None:
    async with delivery_stack(database, tmp_path) as stack:
        delivery_id = await held_before_it_leaves(stack, 5_000)
        await everything_else_left(stack, delivery_id, 2_500)

        delivery = await stack.delivery(delivery_id)
        assert delivery.state == IN_PROGRESS
        ((domain, pause),) = [(each.recipient_domain, each.pause) for each in delivery.paused_domains]
        assert (domain, pause.pauser, pause.cause) == (HELD, "tester", delivery_pb2.PAUSE_CAUSE_COMMAND)
        assert pause.HasField("pause_time")
        listed = await stack.stub.ListDeliveries(pb.ListDeliveriesRequest())
        assert [each.paused_domains for each in listed.deliveries] == [delivery.paused_domains]
        assert left(stack) == {OTHER}
        told = await facts(stack, delivery_id)
        assert HELD in told[explanation_pb2.DELIVERY_FACT_KIND_DOMAIN_PAUSED].sentence
        assert told[explanation_pb2.DELIVERY_FACT_KIND_PARTS_HELD].count == 2_500
        assert explanation_pb2.DELIVERY_FACT_KIND_PARTS_FREE not in told

        resumed = await resume_domain(stack, delivery_id)
        assert not resumed.paused_domains
        await stack.in_state(delivery_id, FINISHED)
        assert len(stack.mta.addresses) == 5_000
        assert max(stack.mta.addresses.values()) == 1
    await assert_laws(database)


async def test_held_parts_are_not_claimed_again_and_again(stack: DeliveryStack) -> None:
    delivery_id = await held_before_it_leaves(stack, 3_000)
    await everything_else_left(stack, delivery_id, 1_500)

    async def claims() -> int:
        async with connected(stack.dsn) as connection:
            return int(await connection.fetchval("select sum(claim_count) from relay_part"))

    before = await claims()
    another = await stack.sent(3)  # the relay worker has been through its deliveries meanwhile
    async with connected(stack.dsn) as connection:
        of_another = "select sum(claim_count) from relay_part where delivery_id = $1"
        assert await claims() - await connection.fetchval(of_another, int(another)) == before


async def test_a_pause_of_a_domain_reaches_what_waits_for_the_stream_on_every_replica(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The MTA side reads no further than it can take: most of what is in flight has not been written yet."""
    looks: Counter[RelayWorker] = Counter()
    look_at_states = RelayWorker.look_at_states

    async def counted(self: RelayWorker) -> bool:
        again = await look_at_states(self)
        looks[self] += 1
        return again

    monkeypatch.setattr(RelayWorker, "look_at_states", counted)
    async with (
        delivery_stack(database, tmp_path / "one", relay_batch_size_max=20) as one,
        delivery_stack(database, tmp_path / "two", mta=one.mta, relay_batch_size_max=20) as other,
    ):
        delivery = await ready(one, 2 * RECIPIENTS_PER_PART - 1)
        one.mta.open.clear()
        await one.confirm(delivery)

        async def all_claimed() -> bool:
            async with connected(database) as connection:
                return bool(await connection.fetchval("select bool_and(lease_holder <> '') from relay_part"))

        await eventually(all_claimed)
        await eventually(lambda: one.mta.batches_waiting > 0)
        paused = await pause_domain(other, delivery.delivery_id)
        assert paused.in_flight_count == RECIPIENTS_PER_PART
        looked = Counter(looks)
        # Of each replica, a look that began after the pause has ended.
        await eventually(lambda: len(looks) == 2 and all(looks[each] >= looked[each] + 2 for each in looks))

        one.mta.open.set()
        await relayed_beside(one, delivery.delivery_id, OTHER, RECIPIENTS_PER_PART - 1)
        held_left = [address for address in one.mta.addresses if address.endswith(HELD)]
        assert len(held_left) < RECIPIENTS_PER_PART / 2, "what had been written"
        await resume_domain(other, delivery.delivery_id)
        await one.in_state(delivery.delivery_id, FINISHED)
        assert max(one.mta.addresses.values()) == 1
    await assert_laws(database)


async def test_a_stop_cancels_what_a_paused_domain_held(stack: DeliveryStack) -> None:
    delivery_id = await held_before_it_leaves(stack, 100)
    await everything_else_left(stack, delivery_id, 50)
    await stack.stub.StopDelivery(pb.StopDeliveryRequest(delivery_id=delivery_id))

    async def decided() -> bool:
        return (await stack.delivery(delivery_id)).stop.complete

    await eventually(decided)
    outcomes = (await stack.kpis(delivery_id)).outcomes
    assert (outcomes.relayed, outcomes.canceled) == (50, 50)
    assert [each.recipient_domain for each in (await stack.delivery(delivery_id)).paused_domains] == [HELD]


async def test_the_end_of_the_validity_expires_what_a_paused_domain_held(database: str, tmp_path: Path) -> None:
    clock = SetClock(START)
    async with delivery_stack(database, tmp_path, clock=clock, validity_grace_seconds=1) as stack:
        delivery_id = await held_before_it_leaves(stack, 100)
        await everything_else_left(stack, delivery_id, 50)
        clock.set(START + timedelta(days=4))
        await stack.in_state(delivery_id, FINISHED)
        outcomes = (await stack.kpis(delivery_id)).outcomes
        assert (outcomes.relayed, outcomes.expired) == (50, 50)
        assert left(stack) == {OTHER}
    await assert_laws(database)


async def test_both_pauses_hold_each_by_itself(stack: DeliveryStack) -> None:
    delivery_id = await held_before_it_leaves(stack, 20)
    await everything_else_left(stack, delivery_id, 10)
    await stack.stub.PauseDelivery(pb.PauseDeliveryRequest(delivery_id=delivery_id))
    await resume_domain(stack, delivery_id)
    assert (await stack.delivery(delivery_id)).state == PAUSED
    await pause_domain(stack, delivery_id, OTHER)
    await stack.stub.ResumeDelivery(pb.ResumeDeliveryRequest(delivery_id=delivery_id))
    await stack.in_state(delivery_id, FINISHED)  # of OTHER nothing was left
    assert len(stack.mta.addresses) == 20


async def test_pausing_and_resuming_a_domain_again_changes_nothing(stack: DeliveryStack) -> None:
    delivery_id = await held_before_it_leaves(stack, 10)
    await everything_else_left(stack, delivery_id, 5)
    before = await stack.delivery(delivery_id)
    again = await pause_domain(stack, delivery_id, f" {HELD.upper()} ")  # in any case
    assert (again.delivery, again.in_flight_count) == (before, 0)
    assert await resume_domain(stack, delivery_id, OTHER) == before
    await resume_domain(stack, delivery_id)
    await stack.in_state(delivery_id, FINISHED)


async def test_a_paused_domain_is_seen_by_watchers(stack: DeliveryStack) -> None:
    delivery = await ready(stack, 2)
    stack.mta.decide = lambda _: LATER
    await stack.confirm(delivery)
    await stack.in_state(delivery.delivery_id, IN_PROGRESS)
    watch: Any = stack.stub.WatchKpis(pb.WatchKpisRequest(delivery_ids=[delivery.delivery_id]))
    try:
        first = (await watch.read()).kpis.revision
        await pause_domain(stack, delivery.delivery_id)
        assert (await watch.read()).kpis.revision > first
    finally:
        watch.cancel()


async def test_what_cannot_be_paused_is_refused(database: str, tmp_path: Path) -> None:
    async with delivery_stack(database, tmp_path, paused_domains_max=2) as stack:
        stack.mta.decide = lambda _: LATER
        email = await ready(stack, 2)
        await stack.confirm(email)
        await stack.in_state(email.delivery_id, IN_PROGRESS)
        for no_domain in ("", "@", "person@held.example", "held", "held.example\x00"):
            async with refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD") as problem:
                await pause_domain(stack, email.delivery_id, no_domain)
            assert problem.fields == ["recipient_domain"]
        await pause_domain(stack, email.delivery_id, HELD)
        await pause_domain(stack, email.delivery_id, OTHER)
        async with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "LIMIT_REACHED") as problem:
            await pause_domain(stack, email.delivery_id, "third.example")
        assert problem.metadata == {"limit": "paused_domains_max", "value": "2"}

        sms_id = await stack.create(
            channel=delivery_pb2.CHANNEL_SMS,
            content=delivery_pb2.Content(text="Hi"),
        )
        await stack.add(sms_id, [pb.NewRecipient(address="+33612345678")])
        await stack.confirm(await stack.prepare(sms_id))
        await stack.in_state(sms_id, IN_PROGRESS)
        async with refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"):
            await pause_domain(stack, sms_id)

        daily = schedule_pb2.Schedule(
            local_time="2030-01-01T09:00:00",
            time_zone="Europe/Paris",
            recurrence=schedule_pb2.Recurrence(
                rule="FREQ=DAILY", aggregation_period=schedule_pb2.AGGREGATION_PERIOD_NONE
            ),
        )
        recurring = await ready(stack, 2, schedule=daily)
        await stack.confirm(recurring)
        async with refused(grpc.StatusCode.FAILED_PRECONDITION, "DELIVERY_KIND") as problem:
            await pause_domain(stack, recurring.delivery_id)
        assert problem.metadata["kind"] == "RECURRING"
        async with refused(grpc.StatusCode.NOT_FOUND, "DELIVERY_NOT_FOUND"):
            await pause_domain(stack, "12345")


async def test_of_pauses_and_resumes_of_many_domains_at_once_none_is_lost(common: DeliveryStack) -> None:
    delivery = await ready(common, 4)
    common.mta.decide = lambda _: LATER
    await common.confirm(delivery)
    await common.in_state(delivery.delivery_id, IN_PROGRESS)
    names = [f"domain{i}.example" for i in range(10)]
    await asyncio.gather(*(pause_domain(common, delivery.delivery_id, name) for name in names))
    await asyncio.gather(
        *(resume_domain(common, delivery.delivery_id, name) for name in names[:5]),
        pause_domain(common, delivery.delivery_id),
    )
    paused = (await common.delivery(delivery.delivery_id)).paused_domains
    assert [each.recipient_domain for each in paused] == sorted([*names[5:], HELD])
    common.mta.decide = lambda _: ACCEPT
    await resume_domain(common, delivery.delivery_id)
    await common.in_state(delivery.delivery_id, FINISHED)


async def test_a_paused_domain_does_not_hold_a_paced_delivery_up_and_leaves_by_its_rate_later(
    database: str, tmp_path: Path
) -> None:
    clock = SetClock(START)
    pacing = delivery_pb2.Pacing(first_wave_count=2, messages_per_hour=2)  # no more than 2 are ever let go in advance
    async with delivery_stack(database, tmp_path, clock=clock) as stack:
        delivery_id = await held_before_it_leaves(stack, 100, pacing=pacing)
        await relayed(stack, delivery_id, 1)

        async def let_go(number: int) -> None:
            async def granted() -> bool:
                return (await facts(stack, delivery_id))[explanation_pb2.DELIVERY_FACT_KIND_PACED].count == number

            clock.set(clock.now() + timedelta(minutes=30))
            await eventually(granted)

        for number in range(3, 7):
            await let_go(number)
            await relayed(stack, delivery_id, number // 2)
        assert left(stack) == {OTHER}

        await resume_domain(stack, delivery_id)
        for number in (4, 5):  # three were held: no rush
            await let_go(number)
            await relayed(stack, delivery_id, number)
        held_left = sorted(address for address in stack.mta.addresses if address.endswith(HELD))
        assert held_left == [f"person{i}@{HELD}" for i in (1, 3)]
    await assert_laws(database)
