"""The circuit breaker on running deliveries."""

import asyncio
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from campaign.delivery.v1 import alert_pb2, delivery_pb2, domain_pause_pb2, send_log_pb2
from campaign.delivery.v1 import delivery_service_pb2 as pb
from delivery_service.store.control import Control, DomainFailures
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


def at(domain: str, numbers: range) -> list[pb.NewRecipient]:
    return [pb.NewRecipient(address=f"person{i}@{domain}", attributes={"first_name": "Jo"}) for i in numbers]


async def sent_by_halves(stack: DeliveryStack) -> str:
    """A delivery to a hundred, twenty of them at bad.example; of each domain the MTA side puts every second one off."""
    stack.mta.decide = lambda message: ACCEPT if int(message.message_id.rpartition("-")[2]) % 2 else LATER
    delivery_id = await stack.create()
    await stack.add(delivery_id, [*at("bad.example", range(1, 21)), *at("good.example", range(21, 101))])
    await stack.confirm(await stack.prepare(delivery_id))

    async def half_left() -> bool:
        return (await stack.kpis(delivery_id)).outcomes.relayed == 50

    await eventually(half_left)
    return delivery_id


async def domain_paused(stack: DeliveryStack, delivery_id: str) -> delivery_pb2.Pause:
    async def paused() -> list[delivery_pb2.DomainPause]:
        return list((await stack.delivery(delivery_id)).paused_domains)

    (found,) = await eventually(paused)
    assert found.recipient_domain == "bad.example"
    pause: delivery_pb2.Pause = found.pause
    return pause


async def test_a_domain_that_bounces_hard_is_paused_alone_until_someone_overrules_it(
    database: str, tmp_path: Path
) -> None:
    settings = {**QUICK, "breaker_hard_bounce_share": 0.2, "breaker_complaint_share": 0.1, "alert_check_seconds": 0.02}
    async with (
        delivery_stack(database, tmp_path / "one", **settings) as stack,
        delivery_stack(database, tmp_path / "two", mta=stack.mta, **settings),
    ):
        delivery_id = await sent_by_halves(stack)
        # Of all 50 that left, 4 are not enough; nor is one that was hard and is delivered after all.
        hard = [Observed(f"{delivery_id}-{i}", BOUNCED, failure_type=HARD, reason=USER_UNKNOWN) for i in (1, 3, 51)]
        late = Observed(f"{delivery_id}-5", send_log_pb2.OUTCOME_DEFERRED, failure_type=HARD, reason=USER_UNKNOWN)
        await stack.apply(hard[1], hard[2], late)
        await stack.apply(Observed(f"{delivery_id}-5", send_log_pb2.OUTCOME_DELIVERED))
        await stack.apply(hard[0])

        pause = await domain_paused(stack, delivery_id)
        assert (pause.pauser, pause.cause) == ("circuit breaker", delivery_pb2.PAUSE_CAUSE_HARD_BOUNCES)
        assert pause.detail == "2 of 10 bounced hard: the threshold is 20.00%"
        assert (await stack.delivery(delivery_id)).state == IN_PROGRESS

        async def alerted() -> list[alert_pb2.Alert]:
            listed = await stack.stub.ListAlerts(alert_pb2.ListAlertsRequest(delivery_id=delivery_id))
            return [each for each in listed.alerts if each.cause == alert_pb2.ALERT_CAUSE_PAUSED_BY_BREAKER]

        (alert,) = await eventually(alerted)
        assert f"bad.example: {pause.detail}" in alert.detail

        request = domain_pause_pb2.ResumeDomainRequest(delivery_id=delivery_id, recipient_domain="bad.example")
        await stack.stub.ResumeDomain(request)
        await stack.apply(Observed(f"{delivery_id}-7", BOUNCED, failure_type=HARD, reason=USER_UNKNOWN))
        await stack.track(Fact(f"{delivery_id}-9", send_log_pb2.TIMELINE_ENTRY_KIND_COMPLAINT))

        again = await domain_paused(stack, delivery_id)  # for the other cause
        assert again.cause == delivery_pb2.PAUSE_CAUSE_COMPLAINTS
        stack.mta.decide = lambda _: ACCEPT

        async def good_ones_left() -> bool:
            return sum(address.endswith("@good.example") for address in stack.mta.addresses) == 80

        await eventually(good_ones_left)
        assert sum(address.endswith("@bad.example") for address in stack.mta.addresses) == 10
        await stack.stub.ResumeDomain(request)
        await stack.in_state(delivery_id, delivery_pb2.DELIVERY_STATE_FINISHED)
    await assert_laws(database)


async def test_looks_at_domains_take_no_more_than_their_share_of_the_time(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look at a large delivery that takes a while: the next one comes the later."""
    looks: list[float] = []
    domain_failures = Control.domain_failures

    async def slow(self: Control, *arguments: Any) -> list[DomainFailures]:
        looks.append(asyncio.get_running_loop().time())
        await asyncio.sleep(0.1)
        return await domain_failures(self, *arguments)

    monkeypatch.setattr(Control, "domain_failures", slow)
    settings = {**QUICK, "breaker_hard_bounce_share": 0.5, "breaker_domain_time_share_max": 0.25}
    async with delivery_stack(database, tmp_path, **settings) as stack:
        delivery_id = await sent_by_halves(stack)
        for number in (1, 3, 5, 7, 51, 53, 55, 57):  # something new each time, and never enough
            looked = len(looks)
            await stack.apply(Observed(f"{delivery_id}-{number}", BOUNCED, failure_type=HARD, reason=USER_UNKNOWN))
            if number >= 51:
                await eventually(lambda looked=looked: len(looks) > looked)  # type: ignore[misc]
        assert not (await stack.delivery(delivery_id)).paused_domains
    assert len(looks) >= 3
    assert min(later - earlier for earlier, later in pairwise(looks)) >= 0.1 / 0.25
