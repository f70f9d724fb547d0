"""The denylist: what complaints and unsubscribes do to later sends, and who is barred from a send that is prepared."""

from pathlib import Path

from campaign.delivery.v1 import address_health_service_pb2 as pb
from campaign.delivery.v1 import (
    before_the_send_pb2,
    delivery_pb2,
    send_log_pb2,
)
from campaign.delivery.v1 import delivery_service_pb2 as delivery_pb
from service_runtime.clock import to_microseconds
from tests.support.delivery_stack import Fact, Observed, delivery_stack
from tests.support.eventually import eventually
from tests.support.invariants import assert_laws
from tests.support.mta_side import ACCEPT, LATER
from tests.support.quarantine_world import (
    BOUNCED,
    COMPLAINT,
    FINISHED,
    HARD,
    HOUR,
    QUARANTINED,
    START,
    UNKNOWN,
    UNSUBSCRIBE,
    World,
    excluded,
    volumes,
)


async def test_a_complaint_denies_the_address_and_an_unsubscribe_the_profile_for_that_channel(world: World) -> None:
    delivery_id = await world.one.sent(4)
    await world.one.track(Fact(f"{delivery_id}-1", COMPLAINT), Fact(f"{delivery_id}-2", UNSUBSCRIBE))

    async def both_are_denied() -> bool:
        listed = await world.two.addresses.ListDenials(pb.ListDenialsRequest())
        assert [(each.address or each.profile_id, each.cause, each.delivery_id) for each in listed.denials] == [
            ("person1@example.com", pb.DENIAL_CAUSE_COMPLAINT, delivery_id),
            ("p2", pb.DENIAL_CAUSE_UNSUBSCRIBE, delivery_id),
        ]
        return True

    await eventually(both_are_denied)
    denied = delivery_pb2.EXCLUSION_CAUSE_DENYLISTED
    draft = await world.one.create()
    await world.one.add(
        draft,
        [
            delivery_pb.NewRecipient(profile_id="another", address="person1@Example.com"),
            delivery_pb.NewRecipient(profile_id="p2", address="new@example.com"),
            delivery_pb.NewRecipient(profile_id="p1", address="other@example.com"),
            delivery_pb.NewRecipient(profile_id="p3", address="person2@example.com"),
        ],
    )
    prepared = await world.one.prepare(draft)
    assert await excluded(world.one, draft) == [(1, denied), (2, denied)]
    assert volumes(prepared)[denied] == 2

    push = await world.one.create(channel=delivery_pb2.CHANNEL_PUSH)
    await world.one.add(push, [delivery_pb.NewRecipient(profile_id="p2", address="device")])
    assert (await world.one.prepare(push)).plan.to_deliver == 1


async def test_who_was_taken_off_the_denylist_is_put_back_only_by_what_happens_later(world: World) -> None:
    delivery_id = await world.one.sent()
    complained = Fact(f"{delivery_id}-1", COMPLAINT, to_microseconds(START))
    await world.one.track(complained)

    async def denied() -> bool:
        return (await world.health()).HasField("denial")

    await eventually(denied)
    world.clock.set(START + HOUR)
    removed = await world.one.addresses.RemoveDenials(pb.RemoveDenialsRequest(addresses=["person1@example.com"]))
    assert removed.removed_count == 1

    await world.one.track(complained, Fact(f"{delivery_id}-1", COMPLAINT, to_microseconds(START + HOUR / 2)))
    await world.looked()
    assert not await denied()

    await world.one.track(Fact(f"{delivery_id}-1", COMPLAINT, to_microseconds(START + 2 * HOUR)))
    await eventually(denied)


async def test_an_address_barred_since_the_preparation_is_not_relayed_and_counts_as_bounced(world: World) -> None:
    ready = await world.one.ready(4)
    await world.one.addresses.QuarantineAddresses(
        pb.QuarantineAddressesRequest(addresses=["person1@EXAMPLE.com"], note="asked by phone")
    )
    await world.one.addresses.AddDenials(pb.AddDenialsRequest(addresses=["person2@example.com"], profile_ids=["p3"]))
    world.one.mta.addresses.clear()

    await world.one.confirm(ready)
    await world.one.in_state(ready.delivery_id, FINISHED)

    assert set(world.one.mta.addresses) == {"person4@example.com"}
    reasons = [(await world.one.send_log(ready.delivery_id, each)).send_log.reason for each in (1, 2, 3)]
    assert reasons == [send_log_pb2.REASON_QUARANTINED_ADDRESS, *[send_log_pb2.REASON_DENYLISTED_ADDRESS] * 2]
    kpis = await world.one.kpis(ready.delivery_id)
    assert (kpis.to_deliver, kpis.outcomes.bounced, kpis.outcomes.relayed) == (4, 3, 1)
    await world.looked()
    assert (await world.health()).health.note == "asked by phone"
    assert (await world.health()).reports == []  # what we said ourselves says nothing about the address


async def test_a_message_that_may_have_left_is_decided_by_the_mta_side_before_it_counts_as_barred(
    database: str, tmp_path: Path
) -> None:
    # The part waits for a while after its answer was lost: meanwhile its addresses are barred.
    async with delivery_stack(database, tmp_path, relay_retry_seconds=4.0) as stack:
        ready = await stack.ready(2)
        stack.mta.cuts = 1
        stack.mta.decide = lambda message: ACCEPT if message.address == "person1@example.com" else LATER
        await stack.confirm(ready)
        await eventually(lambda: f"{ready.delivery_id}-1" in stack.mta.journal)
        both = ["person1@example.com", "person2@example.com"]
        await stack.addresses.QuarantineAddresses(pb.QuarantineAddressesRequest(addresses=both))
        await stack.in_state(ready.delivery_id, FINISHED)

        outcomes = [(await stack.send_log(ready.delivery_id, each)).send_log.outcome for each in (1, 2)]
        assert outcomes == [send_log_pb2.OUTCOME_RELAYED, BOUNCED]  # the MTA side had taken the first one
        assert stack.mta.withdrawn[f"{ready.delivery_id}-1"] == 1
    await assert_laws(database)


async def test_a_proof_goes_to_whom_it_is_sent_and_its_bounce_counts(world: World) -> None:
    ready = await world.one.ready(2)
    await world.one.addresses.QuarantineAddresses(pb.QuarantineAddressesRequest(addresses=["seed@example.com"]))
    proof = before_the_send_pb2.TestProfile(address="seed@example.com", attributes={"first_name": "Seed"})
    answer = await world.one.stub.SendProof(
        before_the_send_pb2.SendProofRequest(delivery_id=ready.delivery_id, test_profiles=[proof])
    )
    assert world.one.mta.addresses["seed@example.com"] == 1
    (sent,) = answer.proofs
    await world.one.addresses.ReleaseAddresses(pb.ReleaseAddressesRequest(addresses=["seed@example.com"]))
    await world.one.apply(Observed(sent.message_id, BOUNCED, to_microseconds(START + HOUR), HARD, UNKNOWN))
    await world.becomes(QUARANTINED, "seed@example.com")
