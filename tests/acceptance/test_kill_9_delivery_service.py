"""kill -9 of DeliveryService in mid relay, while it closes a delivery and while it prepares one."""

from pathlib import Path

import pytest

from campaign.delivery.v1 import delivery_pb2
from campaign.delivery.v1 import delivery_service_pb2 as pb
from tests.support.eventually import eventually
from tests.support.invariants import assert_laws
from tests.support.process_stack import MISBEHAVIOUR, ProcessStack, process_stack

pytestmark = pytest.mark.timeout(600)

RECIPIENTS = 6_000


async def test_delivery_service_killed_in_mid_relay_and_mid_apply_loses_nothing_and_sends_nothing_twice(
    stack: ProcessStack,
) -> None:
    delivery = await stack.prepared(RECIPIENTS)
    await stack.confirm(delivery)
    for handed_over in (1, 1_500, 3_000):
        await stack.until(delivery.delivery_id, handed_over=handed_over)
        await stack.kill("delivery_service")
        await stack.start("delivery_service")
    await stack.until(delivery.delivery_id, reported=4_000)
    await stack.kill("delivery_service")
    await stack.start("delivery_service")

    kpis = await stack.truth_reached(delivery.delivery_id)

    assert kpis.to_deliver == RECIPIENTS


async def test_a_stop_whose_service_is_killed_cancels_exactly_what_never_left(database: str, tmp_path: Path) -> None:
    """Killed right after it has answered, and again in mid-closing: messages were on their way both times."""
    one_part = {"DELIVERY_RELAY_PARTS_IN_FLIGHT_MAX": "1"}
    async with process_stack(tmp_path, database, *MISBEHAVIOUR, **one_part) as stack:
        delivery = await stack.prepared(20_000)
        delivery_id = delivery.delivery_id
        await stack.confirm(delivery)
        await stack.until(delivery_id, handed_over=2_000)

        await stack.stub.StopDelivery(pb.StopDeliveryRequest(delivery_id=delivery_id))
        await stack.kill("delivery_service")
        await stack.start("delivery_service")
        await stack.kill("delivery_service")
        await stack.start("delivery_service")

        async def decided() -> bool:
            stopped = await stack.in_state(delivery_id, delivery_pb2.DELIVERY_STATE_STOPPED)
            outcomes = (await stack.kpis(delivery_id)).outcomes
            assert stack.truth is not None
            assert stack.truth.idle
            assert stack.truth.answered == 20_000 - outcomes.canceled
            counted = {field.name: getattr(outcomes, field.name) for field in outcomes.DESCRIPTOR.fields}
            told = stack.truth.outcomes
            assert {**counted, "canceled": 0} == {**told, "canceled": 0}
            assert told["canceled"] <= counted["canceled"]  # withdrawn: some of those that never left
            assert counted["prepared"] == 0
            return stopped.stop.complete

        await eventually(decided)
        assert stack.truth is not None
        assert stack.truth.duplicates_sent == 0
        assert stack.truth.answered < 20_000
    await assert_laws(database)


async def test_delivery_service_killed_while_preparing_ends_in_the_same_plan(database: str, tmp_path: Path) -> None:
    small_steps = {"DELIVERY_PREPARATION_RECIPIENTS_PER_STEP": "1024"}
    async with process_stack(tmp_path, database, **small_steps) as stack:
        plain = await stack.prepared(40_000)
        await stack.stub.PrepareDelivery(pb.PrepareDeliveryRequest(delivery_id=plain.delivery_id))
        await stack.kill("delivery_service")
        await stack.start("delivery_service")
        again = await stack.in_state(plain.delivery_id, delivery_pb2.DELIVERY_STATE_READY)

        assert again.plan.plan_digest == plain.plan.plan_digest
        assert again.plan.to_deliver == 40_000
    await assert_laws(database)
