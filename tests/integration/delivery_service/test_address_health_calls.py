"""The RPCs of the quarantine, the denylist and the allowlist: releases, lists, and what they refuse."""

from collections.abc import Sequence
from typing import Any

import grpc
import pytest

from campaign.delivery.v1 import address_health_service_pb2 as pb
from campaign.delivery.v1 import (
    delivery_pb2,
    send_log_pb2,
)
from campaign.delivery.v1.address_health_service_pb2_grpc import AddressHealthServiceStub
from tests.support.delivery_stack import DeliveryStack
from tests.support.quarantine_world import (
    BOUNCED,
    HARD,
    HOUR,
    NONE,
    QUARANTINED,
    START,
    UNKNOWN,
    WITH_ERRORS,
    World,
    observed,
)
from tests.support.statuses import refused


async def test_a_release_forgives_what_was_reported_until_then(world: World) -> None:
    delivery_id = await world.one.sent()
    await world.one.apply(observed(delivery_id, BOUNCED, START, HARD, UNKNOWN))
    await world.becomes(QUARANTINED)

    world.clock.set(START + HOUR)
    addresses = ["person1@example.com", "nobody@example.com"]
    released = await world.two.addresses.ReleaseAddresses(pb.ReleaseAddressesRequest(addresses=addresses))
    assert released.released_count == 1
    assert await world.status() == NONE
    await world.one.apply(observed(delivery_id, BOUNCED, START + HOUR / 2, HARD, UNKNOWN))  # late, and of before
    await world.looked()
    assert await world.status() == NONE
    assert (await world.one.ready(3)).plan.to_deliver == 3

    await world.one.apply(observed(delivery_id, BOUNCED, START + 2 * HOUR, HARD, UNKNOWN))
    await world.becomes(QUARANTINED)


async def test_a_release_in_bulk_takes_those_of_a_time_a_text_and_a_reason_and_counts_first(world: World) -> None:
    delivery_id = await world.one.sent(6)
    said = ["550 5.1.1 gone", "550 5.1.1 Gone", "550 5.1.1 gone", "550 5.1.1 gone", "550 no", "550 5.1.1 gone"]
    hours = [0, 1, 2, 9, 1, 1]
    await world.one.apply(
        *(
            observed(
                delivery_id,
                BOUNCED,
                START + hour * HOUR,
                HARD,
                UNKNOWN if number < 6 else send_log_pb2.REASON_INVALID_DOMAIN,
                number,
                diagnostic=text,
            )
            for number, (text, hour) in enumerate(zip(said, hours, strict=True), start=1)
        )
    )
    for number in range(1, 7):
        await world.becomes(QUARANTINED, f"person{number}@example.com")

    world.clock.set(START + 10 * HOUR)
    request = pb.ReleaseMatchingAddressesRequest(reasons=[UNKNOWN], text="5.1.1 GONE", recipient_domain="Example.COM")
    request.since_time.FromDatetime(START + HOUR)
    request.until_time.FromDatetime(START + 9 * HOUR)
    request.validate_only = True
    counted = await world.two.addresses.ReleaseMatchingAddresses(request)
    assert (counted.released_count, list(counted.examples)) == (2, ["person2@example.com", "person3@example.com"])
    assert await world.status("person2@example.com") == QUARANTINED

    request.validate_only = False
    assert (await world.two.addresses.ReleaseMatchingAddresses(request)).released_count == 2
    assert (await world.two.addresses.ReleaseMatchingAddresses(request)).released_count == 0
    listed = await world.one.addresses.ListAddresses(pb.ListAddressesRequest(statuses=[QUARANTINED]))
    assert [each.address for each in listed.addresses] == [f"person{each}@example.com" for each in (1, 4, 5, 6)]


async def test_an_address_on_the_allowlist_is_never_quarantined_and_begins_anew_when_it_leaves(world: World) -> None:
    delivery_id = await world.one.sent()
    await world.one.apply(observed(delivery_id, BOUNCED, START, HARD, UNKNOWN))
    await world.becomes(QUARANTINED)
    entry = ["Person1@Example.com".replace("P", "p", 1), "not one"]
    added = await world.one.addresses.AddToAllowlist(pb.AddToAllowlistRequest(addresses=entry, note="our test inbox"))
    assert (added.added_count, list(added.malformed)) == (1, ["not one"])
    assert await world.status() == NONE
    by_hand = pb.QuarantineAddressesRequest(addresses=["person1@example.com"])
    assert (await world.one.addresses.QuarantineAddresses(by_hand)).allowlisted == ["person1@example.com"]

    await world.one.apply(observed(delivery_id, BOUNCED, START + HOUR, HARD, UNKNOWN))
    await world.looked()
    assert await world.status() == NONE
    assert (await world.health()).allowlist_entry.note == "our test inbox"

    world.clock.set(START + 2 * HOUR)
    leave = pb.RemoveFromAllowlistRequest(addresses=["person1@example.com"])
    assert (await world.one.addresses.RemoveFromAllowlist(leave)).removed_count == 1
    await world.looked()
    assert await world.status() == NONE
    await world.one.apply(observed(delivery_id, BOUNCED, START + 3 * HOUR, HARD, UNKNOWN))
    await world.becomes(QUARANTINED)


def numbered(addresses: Sequence[pb.AddressHealth]) -> list[str]:
    return [each.address for each in addresses]


async def test_the_lists_are_paged_and_filtered(world: World) -> None:
    names = sorted(f"person{number}@example.com" for number in range(1, 6))
    await world.one.addresses.QuarantineAddresses(pb.QuarantineAddressesRequest(addresses=names))
    await world.one.addresses.QuarantineAddresses(
        pb.QuarantineAddressesRequest(channel=delivery_pb2.CHANNEL_SMS, addresses=["+33612345678"])
    )
    request, found = pb.ListAddressesRequest(page_size=2), list[str]()
    while True:
        page = await world.two.addresses.ListAddresses(request)
        found += numbered(page.addresses)
        request.page_token = page.next_page_token
        if not request.page_token:
            break
    assert found == [*names, "+33612345678"]
    sms = await world.two.addresses.ListAddresses(pb.ListAddressesRequest(channel=delivery_pb2.CHANNEL_SMS))
    assert numbered(sms.addresses) == ["+33612345678"]

    await world.one.addresses.AddDenials(pb.AddDenialsRequest(addresses=names[:2], profile_ids=["a", "b"]))
    first = await world.two.addresses.ListDenials(pb.ListDenialsRequest(page_size=3))
    rest = await world.two.addresses.ListDenials(pb.ListDenialsRequest(page_size=3, page_token=first.next_page_token))
    assert [each.address or each.profile_id for each in (*first.denials, *rest.denials)] == [*names[:2], "a", "b"]
    assert not rest.next_page_token

    await world.one.addresses.AddToAllowlist(pb.AddToAllowlistRequest(addresses=names))
    start = await world.two.addresses.ListAllowlist(pb.ListAllowlistRequest(page_size=3))
    end = await world.two.addresses.ListAllowlist(pb.ListAllowlistRequest(page_token=start.next_page_token))
    assert [each.address for each in (*start.entries, *end.entries)] == names


@pytest.mark.parametrize(
    ("call", "request_", "field"),
    [
        ("GetAddress", pb.GetAddressRequest(address="no address"), "address"),
        ("GetAddress", pb.GetAddressRequest(address="x" * 400), "address"),
        (
            "GetAddress",
            pb.GetAddressRequest(channel=delivery_pb2.Channel.ValueType(9), address="a@b.example"),
            "channel",
        ),
        ("QuarantineAddresses", pb.QuarantineAddressesRequest(), "addresses"),
        ("QuarantineAddresses", pb.QuarantineAddressesRequest(addresses=["a@b.example"], note="x" * 201), "note"),
        ("QuarantineAddresses", pb.QuarantineAddressesRequest(addresses=["a@b.example"] * 5_001), "addresses"),
        ("ReleaseAddresses", pb.ReleaseAddressesRequest(addresses=["\x00"]), "addresses[0]"),
        ("ReleaseMatchingAddresses", pb.ReleaseMatchingAddressesRequest(), "since_time"),
        ("ReleaseMatchingAddresses", pb.ReleaseMatchingAddressesRequest(statuses=[WITH_ERRORS]), "statuses[0]"),
        ("ListAddresses", pb.ListAddressesRequest(page_size=-1), "page_size"),
        ("ListAddresses", pb.ListAddressesRequest(page_token="?"), "page_token"),
        ("ListAddresses", pb.ListAddressesRequest(text="x" * 201), "text"),
        ("ListAddresses", pb.ListAddressesRequest(reasons=[send_log_pb2.REASON_UNSPECIFIED]), "reasons[0]"),
        ("AddDenials", pb.AddDenialsRequest(), "addresses"),
        ("AddDenials", pb.AddDenialsRequest(profile_ids=[""]), "profile_ids"),
        ("RemoveDenials", pb.RemoveDenialsRequest(profile_ids=["x" * 201]), "profile_ids[0]"),
        ("ListDenials", pb.ListDenialsRequest(page_token="cQ"), "page_token"),
        ("ListAllowlist", pb.ListAllowlistRequest(page_token="cQ"), "page_token"),
        ("AddToAllowlist", pb.AddToAllowlistRequest(), "addresses"),
        ("RemoveFromAllowlist", pb.RemoveFromAllowlistRequest(), "addresses"),
    ],
)
async def test_what_is_asked_wrongly_is_refused_by_its_field(
    common: DeliveryStack, call: str, request_: Any, field: str
) -> None:
    async with refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD") as refusal:
        await getattr(common.addresses, call)(request_)
    assert refusal.fields == [field]


async def test_only_administration_may_look_and_change(common: DeliveryStack) -> None:
    async with (
        common.one_channel("start-deliveries") as channel,
        refused(grpc.StatusCode.PERMISSION_DENIED, "ROLE_MISSING"),
    ):
        await AddressHealthServiceStub(channel).ListAddresses(pb.ListAddressesRequest())
