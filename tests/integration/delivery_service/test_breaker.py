"""The circuit breaker on running deliveries."""

from pathlib import Path
from typing import Any

from campaign.delivery.v1 import delivery_pb2, send_log_pb2
from campaign.delivery.v1 import delivery_service_pb2 as pb
from tests.support.delivery_stack import DeliveryStack, Fact, Observed, delivery_stack
from tests.support.eventually import eventually
from tests.support.invariants import assert_laws
from tests.support.mta_side import ACCEPT, LATER

IN_PROGRESS, PAUSED = delivery_pb2.DELIVERY_STATE_IN_PROGRESS, delivery_pb2.DELIVERY_STATE_PAUSED
BOUNCED, HARD, USER_UNKNOWN = send_log_pb2.OUTCOME_BOUNCED, 2, 2
QUICK: dict[str, Any] = {"breaker_sample_min": 10, "breaker_check_seconds": 0.02}


async def half_sent(stack: DeliveryStack) -> str:
    """A delivery to twenty, ten of whom the MTA side puts off."""
    stack.mta.decide = lambda message: ACCEPT if int(message.message_id.rpartition("-")[2]) <= 10 else LATER
    delivery = await stack.ready(20)
    await stack.confirm(delivery)

    async def ten_left() -> bool:
        return (await stack.kpis(delivery.delivery_id)).outcomes.relayed == 10

    await eventually(ten_left)
    return delivery.delivery_id


async def test_too_many_hard_bounces_pause_a_delivery_until_someone_overrules_it(database: str, tmp_path: Path) -> None:
    async with delivery_stack(database, tmp_path, **QUICK) as stack:
        delivery_id = await half_sent(stack)
        await stack.apply(Observed(f"{delivery_id}-1", BOUNCED, failure_type=HARD, reason=USER_UNKNOWN))

        paused = await stack.in_state(delivery_id, PAUSED)
        assert (paused.pause.pauser, paused.pause.cause) == (
            "circuit breaker",
            delivery_pb2.PAUSE_CAUSE_HARD_BOUNCES,
        )
        assert paused.pause.detail == "1 of 10 bounced hard: the threshold is 5.00%"

        resumed = await stack.stub.ResumeDelivery(pb.ResumeDeliveryRequest(delivery_id=delivery_id))
        assert not resumed.delivery.HasField("pause")
        await stack.apply(Observed(f"{delivery_id}-2", BOUNCED, failure_type=HARD, reason=USER_UNKNOWN))
        await stack.track(Fact(f"{delivery_id}-3", send_log_pb2.TIMELINE_ENTRY_KIND_COMPLAINT))

        again = await stack.in_state(delivery_id, PAUSED)  # for the other cause
        assert again.pause.cause == delivery_pb2.PAUSE_CAUSE_COMPLAINTS
        await stack.stub.ResumeDelivery(pb.ResumeDeliveryRequest(delivery_id=delivery_id))
        stack.mta.decide = lambda _: ACCEPT
        await stack.in_state(delivery_id, delivery_pb2.DELIVERY_STATE_FINISHED)
    await assert_laws(database)


async def test_a_pause_by_command_says_whose_it_is(stack: DeliveryStack) -> None:
    delivery_id = await half_sent(stack)
    paused = (await stack.stub.PauseDelivery(pb.PauseDeliveryRequest(delivery_id=delivery_id))).delivery
    assert (paused.pause.pauser, paused.pause.cause, paused.pause.detail) == (
        "tester",
        delivery_pb2.PAUSE_CAUSE_COMMAND,
        "",
    )
