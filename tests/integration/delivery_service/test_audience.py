"""Who gets no message by choice: control groups and suppression lists at the preparation; and the exclusion log."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from campaign.delivery.v1 import audience_pb2, commands_pb2, delivery_pb2, exclusion_pb2, suppression_pb2
from campaign.delivery.v1 import before_the_send_pb2 as before_pb
from campaign.delivery.v1 import delivery_service_pb2 as pb
from campaign.delivery.v1.schedule_pb2 import Recurrence, Schedule
from tests.support.clock import SetClock
from tests.support.delivery_stack import DeliveryStack, delivery_stack, people
from tests.support.eventually import eventually
from tests.support.invariants import assert_laws
from tests.support.postgres import connected
from tests.support.statuses import refused

READY, EDITING, FAILED = (
    delivery_pb2.DELIVERY_STATE_READY,
    delivery_pb2.DELIVERY_STATE_EDITING,
    delivery_pb2.DELIVERY_STATE_PREPARATION_FAILED,
)
EMPTY, MALFORMED, DUPLICATE, CONTROL, ADDRESS, DOMAIN = (
    delivery_pb2.EXCLUSION_CAUSE_ADDRESS_EMPTY,
    delivery_pb2.EXCLUSION_CAUSE_ADDRESS_MALFORMED,
    delivery_pb2.EXCLUSION_CAUSE_DUPLICATE,
    delivery_pb2.EXCLUSION_CAUSE_CONTROL_GROUP,
    delivery_pb2.EXCLUSION_CAUSE_SUPPRESSED_ADDRESS,
    delivery_pb2.EXCLUSION_CAUSE_SUPPRESSED_DOMAIN,
)
Options = audience_pb2.AudienceOptions


def share(value: float) -> audience_pb2.ControlGroup:
    return audience_pb2.ControlGroup(share=value)


def profiles(*profile_ids: str) -> audience_pb2.ControlGroup:
    return audience_pb2.ControlGroup(profiles=audience_pb2.ProfileList(profile_ids=profile_ids))


async def suppress(
    stack: DeliveryStack, name: str, *, addresses: tuple[str, ...] = (), domains: tuple[str, ...] = (), channel: int = 1
) -> str:
    """A new list with these entries."""
    made = suppression_pb2.SuppressionList(name=name, channel=delivery_pb2.Channel.ValueType(channel))
    await stack.stub.CreateSuppressionList(suppression_pb2.CreateSuppressionListRequest(suppression_list=made))
    if addresses or domains:
        await stack.stub.AddSuppressionEntries(
            suppression_pb2.AddSuppressionEntriesRequest(name=name, addresses=addresses, domains=domains)
        )
    return name


async def update(stack: DeliveryStack, delivery_id: str, options: Options, path: str) -> delivery_pb2.Delivery:
    request = pb.UpdateDeliveryRequest(
        delivery=delivery_pb2.Delivery(delivery_id=delivery_id, audience_options=options)
    )
    request.update_mask.paths.append(path)
    return (await stack.stub.UpdateDelivery(request)).delivery


async def exclusions(stack: DeliveryStack, delivery_id: str, *causes: int, size: int = 0) -> list[tuple[int, int]]:
    """(recipient, cause) over all pages."""
    found: list[tuple[int, int]] = []
    request = exclusion_pb2.ListExclusionsRequest(
        delivery_id=delivery_id, causes=map(delivery_pb2.ExclusionCause.ValueType, causes), page_size=size
    )
    while True:
        page = await stack.stub.ListExclusions(request)
        assert len(page.exclusions) <= (size or 100)
        found += [(each.recipient, each.cause) for each in page.exclusions]
        request.page_token = page.next_page_token
        if not page.next_page_token:
            return found


async def control_group(stack: DeliveryStack, delivery_id: str) -> set[int]:
    return {recipient for recipient, _ in await exclusions(stack, delivery_id, CONTROL, size=1_000)}


def volumes(delivery: delivery_pb2.Delivery) -> dict[int, int]:
    return {each.cause: each.volume for each in delivery.plan.exclusions if each.volume}


def to(*addresses: str) -> list[pb.NewRecipient]:
    return [pb.NewRecipient(profile_id=f"of {address}", address=address) for address in addresses]


# The rules and their order.


async def test_each_recipient_is_excluded_under_the_first_cause_that_matches(common: DeliveryStack) -> None:
    await suppress(
        common,
        "first-cause",
        addresses=("c@example.com", "s@example.com", "u@bad.example"),
        domains=("bad.example",),
    )
    delivery_id = await common.create(
        audience_options=Options(
            control_group=profiles("of ", "of no address", "of c@example.com", "of v@bad.example"),
            suppression_lists=["first-cause"],
        )
    )
    await common.add(
        delivery_id,
        to(
            "", "no address", "c@example.com", "c@example.com", "s@example.com", "s@example.com", "u@bad.example",
            "v@bad.example", "w@bad.example", "kept@example.com",
        ),
    )  # fmt: skip

    delivery = await common.prepare(delivery_id)

    assert await exclusions(common, delivery_id) == [
        (1, EMPTY),
        (2, MALFORMED),
        (3, CONTROL),
        (4, DUPLICATE),
        (5, ADDRESS),
        (6, DUPLICATE),
        (7, ADDRESS),
        (8, CONTROL),
        (9, DOMAIN),
    ]
    assert volumes(delivery) == {EMPTY: 1, MALFORMED: 1, DUPLICATE: 2, CONTROL: 2, ADDRESS: 2, DOMAIN: 1}
    assert (delivery.plan.targeted, delivery.plan.to_deliver) == (10, 1)
    told = [each.cause for each in delivery.plan.exclusions if each.volume]
    assert told == [EMPTY, MALFORMED, DUPLICATE, CONTROL, ADDRESS, DOMAIN], "in the order of evaluation"


async def test_nobody_of_a_control_group_or_a_suppression_list_is_written_to(common: DeliveryStack) -> None:
    await suppress(common, "not-written-to", addresses=("person2@example.com",), domains=("never.example",))
    delivery_id = await common.create(
        audience_options=Options(control_group=profiles("p1"), suppression_lists=["not-written-to"])
    )
    await common.add(delivery_id, [*people(3), *to("one@never.example", "one@mail.never.example")])
    before = common.mta.addresses.copy()

    await common.confirm(await common.prepare(delivery_id))
    await common.in_state(delivery_id, delivery_pb2.DELIVERY_STATE_FINISHED)

    assert common.mta.addresses - before == {"person3@example.com": 1}
    first = (await common.stub.ListExclusions(exclusion_pb2.ListExclusionsRequest(delivery_id=delivery_id))).exclusions[
        0
    ]
    assert (first.recipient, first.profile_id, first.address) == (1, "p1", "person1@example.com")


async def test_a_proof_makes_nobody_a_duplicate_and_is_in_no_control_group(common: DeliveryStack) -> None:
    delivery = await common.ready(2)
    profile = before_pb.TestProfile(profile_id="p1", address="person1@example.com", attributes={"first_name": "Eve"})
    proof = before_pb.SendProofRequest(delivery_id=delivery.delivery_id, test_profiles=[profile])
    await common.stub.SendProof(proof)

    again = await common.prepare(delivery.delivery_id)
    assert volumes(again) == {}
    assert again.plan.plan_digest == delivery.plan.plan_digest

    await update(common, delivery.delivery_id, Options(control_group=profiles("p1")), "audience_options")
    assert volumes(await common.prepare(delivery.delivery_id)) == {CONTROL: 1}
    assert await exclusions(common, delivery.delivery_id) == [(1, CONTROL)]


# A share.


@pytest.mark.parametrize("wanted", [0.001, 0.05, 0.1, 0.5, 0.9])
async def test_a_share_is_hit_within_the_rounding_of_statistics(common: DeliveryStack, wanted: float) -> None:
    recipients = 5_000
    delivery = await common.ready(recipients, audience_options=Options(control_group=share(wanted)))

    drawn = volumes(delivery).get(CONTROL, 0)

    # Five standard deviations of a draw of each by itself: of 1,700,000 runs, one fails.
    assert abs(drawn - recipients * wanted) <= 5 * (recipients * wanted * (1 - wanted)) ** 0.5
    assert delivery.plan.to_deliver == recipients - drawn


async def test_a_repeated_preparation_draws_the_same_ones_and_another_delivery_draws_others(
    common: DeliveryStack,
) -> None:
    options = Options(control_group=share(0.3))
    one, other = [await common.ready(1_000, audience_options=options) for _ in range(2)]
    first = await control_group(common, one.delivery_id)

    again = await common.prepare(one.delivery_id)

    assert again.plan.plan_digest == one.plan.plan_digest
    assert await control_group(common, one.delivery_id) == first
    assert await control_group(common, other.delivery_id) != first


async def test_a_larger_share_draws_those_of_a_smaller_one_and_more(common: DeliveryStack) -> None:
    delivery = await common.ready(1_000, audience_options=Options(control_group=share(0.1)))
    smaller = await control_group(common, delivery.delivery_id)

    await update(common, delivery.delivery_id, Options(control_group=share(0.4)), "audience_options.control_group")
    await common.prepare(delivery.delivery_id)

    assert smaller < await control_group(common, delivery.delivery_id)


async def test_a_share_draws_people_and_those_without_a_profile_by_their_address(common: DeliveryStack) -> None:
    """Two addresses of one profile are in or out together; who has no profile is drawn by the address."""
    delivery_id = await common.create(audience_options=Options(control_group=share(0.5)))
    await common.add(
        delivery_id,
        [
            *(pb.NewRecipient(profile_id=f"p{i // 2}", address=f"a{i}@example.com") for i in range(400)),
            *(pb.NewRecipient(address=f"b{i}@example.com") for i in range(400)),
        ],
    )

    await common.prepare(delivery_id)

    drawn = await control_group(common, delivery_id)
    pairs = [{first, first + 1} for first in range(1, 401, 2)]
    assert all(pair <= drawn or not pair & drawn for pair in pairs)
    assert 130 <= len([each for each in drawn if each > 400]) <= 270


async def test_two_replicas_draw_the_same_ones(database: str, tmp_path: Path) -> None:
    small: dict[str, Any] = {"preparation_recipients_per_step": 1_024}
    async with (
        delivery_stack(database, tmp_path / "one", **small) as one,
        delivery_stack(database, tmp_path / "two", mta=one.mta, **small) as two,
    ):
        await suppress(one, "shared", domains=("example.org",))
        options = Options(control_group=share(0.2), suppression_lists=["shared"])
        ids = [await one.create(audience_options=options) for _ in range(4)]
        for delivery_id in ids:
            await one.add(delivery_id, [*people(2_500), *to("x@example.org")])
        plans, drawn = [], []
        for asked in (one, two, one):
            plans.append([each.plan.plan_digest for each in await asyncio.gather(*map(asked.prepare, ids))])
            drawn.append([await control_group(two, each) for each in ids])

        assert plans[0] == plans[1] == plans[2]
        assert drawn[0] == drawn[1] == drawn[2]
    await assert_laws(database)


# Suppressed domains.


async def test_a_domain_stands_for_its_subdomains_and_for_no_other_domain(common: DeliveryStack) -> None:
    await suppress(common, "domains", domains=("Example.ORG", "deep.sub.example.net"))
    delivery_id = await common.create(audience_options=Options(suppression_lists=["domains"]))
    suppressed = ["a@example.org", "a@EXAMPLE.org", "b@mail.example.org", "a@x.y.example.org", "a@deep.sub.example.net"]
    kept = [
        "a@notexample.org",
        "a@example.org.net",
        "a@sub.example.net",
        "a@org.example.com",
        "example.org@example.com",
    ]
    await common.add(delivery_id, to(*suppressed, *kept))

    await common.prepare(delivery_id)

    assert await exclusions(common, delivery_id) == [(1, DOMAIN), (2, DUPLICATE), (3, DOMAIN), (4, DOMAIN), (5, DOMAIN)]


async def test_addresses_are_compared_as_the_duplicates_are(common: DeliveryStack) -> None:
    await suppress(common, "addresses", addresses=(" Someone@EXAMPLE.com ", "other@example.com"))
    delivery_id = await common.create(audience_options=Options(suppression_lists=["addresses"]))
    await common.add(delivery_id, to("Someone@example.com", "someone@example.com", "other@EXAMPLE.COM"))

    await common.prepare(delivery_id)

    assert await exclusions(common, delivery_id) == [(1, ADDRESS), (3, ADDRESS)]


async def test_an_address_on_two_lists_is_excluded_once(common: DeliveryStack) -> None:
    lists = [await suppress(common, f"twice-{i}", addresses=("person1@example.com",)) for i in range(2)]

    delivery = await common.ready(2, audience_options=Options(suppression_lists=lists))

    assert volumes(delivery) == {ADDRESS: 1}


async def test_an_sms_goes_by_lists_of_its_own_channel(common: DeliveryStack) -> None:
    await suppress(common, "numbers", addresses=("+33612345678",), channel=2)
    delivery_id = await common.create(
        channel=delivery_pb2.CHANNEL_SMS,
        content=delivery_pb2.Content(text="Hi"),
        audience_options=Options(suppression_lists=["numbers"]),
    )
    await common.add(delivery_id, to("+33612345678", "+33612345679"))

    assert volumes(await common.prepare(delivery_id)) == {ADDRESS: 1}


async def test_a_list_counts_as_it_is_when_the_delivery_is_prepared(common: DeliveryStack) -> None:
    await suppress(common, "growing")
    delivery = await common.ready(3, audience_options=Options(suppression_lists=["growing"]))
    entries = suppression_pb2.AddSuppressionEntriesRequest(name="growing", addresses=["person2@example.com"])
    await common.stub.AddSuppressionEntries(entries)

    assert await common.delivery(delivery.delivery_id) == delivery
    again = await common.prepare(delivery.delivery_id)

    assert (volumes(delivery), volumes(again)) == ({}, {ADDRESS: 1})
    assert again.plan.plan_digest != delivery.plan.plan_digest


async def test_a_list_that_is_missing_or_of_another_channel_fails_the_preparation(common: DeliveryStack) -> None:
    await suppress(common, "of-sms", channel=2)
    delivery_id = await common.create(audience_options=Options(suppression_lists=["of-sms", "missing"]))
    await common.add(delivery_id, people(1))

    failed = await common.prepare(delivery_id)

    assert failed.state == FAILED
    assert [(each.field, each.description) for each in failed.plan.errors] == [
        ("audience_options.suppression_lists", "'of-sms' is of channel SMS: take it out of the delivery"),
        ("audience_options.suppression_lists",
         "'missing' does not exist: create it, or take it out of the delivery"),
    ]  # fmt: skip
    assert (await update(common, delivery_id, Options(), "audience_options")).state == EDITING
    assert (await common.prepare(delivery_id)).state == READY


async def test_a_list_that_goes_between_the_look_and_the_exclusion_lets_nobody_through(
    database: str, tmp_path: Path
) -> None:
    async with delivery_stack(database, tmp_path, preparation_lease_seconds=0.5) as stack:
        await suppress(stack, "going", addresses=("person1@example.com",))
        delivery_id = await stack.create(audience_options=Options(suppression_lists=["going"]))
        await stack.add(delivery_id, people(2))
        async with connected(database) as connection, connection.transaction():
            # As DeleteSuppressionList does it; the preparation finds the list, and then waits for it.
            await connection.execute("select from suppression_list where name = 'going' for update")
            await stack.stub.PrepareDelivery(pb.PrepareDeliveryRequest(delivery_id=delivery_id))

            async def waits() -> bool:
                return bool(await connection.fetchval("select count(*) from pg_locks where not granted"))

            await eventually(waits)
            await connection.execute("delete from suppression_list where name = 'going'")

        failed = await stack.in_state(delivery_id, FAILED, READY)
        assert failed.state == FAILED
        assert "does not exist" in failed.plan.errors[0].description
    await assert_laws(database)


# The options of a draft.


async def test_options_are_kept_and_shown_and_a_list_of_deliveries_leaves_the_profiles_out(
    common: DeliveryStack,
) -> None:
    options = Options(control_group=profiles("p1", "p2"), suppression_lists=["a", "b.c-d_9"])

    delivery_id = await common.create(audience_options=options)

    assert (await common.delivery(delivery_id)).audience_options == options
    listed = await common.stub.ListDeliveries(pb.ListDeliveriesRequest(page_size=1))
    shown = listed.deliveries[0].audience_options
    assert shown.suppression_lists == ["a", "b.c-d_9"]
    assert shown.control_group.WhichOneof("selection") == "profiles"
    assert not shown.control_group.profiles.profile_ids


async def test_any_change_of_the_options_takes_a_ready_delivery_back_and_changes_the_digest(
    common: DeliveryStack,
) -> None:
    await suppress(common, "unmatched", addresses=("nobody@example.com",))
    delivery = await common.ready(10)
    seen = {delivery.plan.plan_digest}
    for options, path in (
        (Options(control_group=profiles("p-unknown")), "audience_options"),
        (Options(control_group=profiles("p-other")), "audience_options.control_group"),
        (Options(control_group=share(1e-9)), "audience_options.control_group"),
        (Options(suppression_lists=["unmatched"]), "audience_options.suppression_lists"),
        (Options(), "audience_options.control_group"),
    ):
        assert (await update(common, delivery.delivery_id, options, path)).state == EDITING
        async with refused(grpc.StatusCode.FAILED_PRECONDITION, "DELIVERY_STATE"):
            await common.confirm(delivery)
        delivery = await common.prepare(delivery.delivery_id)
        # Nobody is excluded by any of these: it is the options themselves that the digest covers.
        assert delivery.plan.to_deliver == 10
        assert delivery.plan.plan_digest not in seen
        seen.add(delivery.plan.plan_digest)
    assert delivery.audience_options == Options(suppression_lists=["unmatched"])


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (Options(control_group=share(0)), "control_group.share"),
        (Options(control_group=share(1)), "control_group.share"),
        (Options(control_group=share(-0.1)), "control_group.share"),
        (Options(control_group=share(float("nan"))), "control_group.share"),
        (Options(control_group=audience_pb2.ControlGroup()), "control_group"),
        (Options(control_group=profiles()), "control_group.profiles.profile_ids"),
        (Options(control_group=profiles("a", "")), "control_group.profiles.profile_ids[1]"),
        (Options(control_group=profiles("a" * 201)), "control_group.profiles.profile_ids[0]"),
        (Options(control_group=profiles("a\0")), "control_group.profiles.profile_ids[0]"),
        (Options(suppression_lists=["a", "b", "a"]), "suppression_lists"),
        (Options(suppression_lists=["a", "no name"]), "suppression_lists[1]"),
        (Options(suppression_lists=[""]), "suppression_lists[0]"),
        (Options(suppression_lists=["x" * 101]), "suppression_lists[0]"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_options_that_make_no_sense_are_refused_naming_the_field(
    common: DeliveryStack, options: Options, field: str
) -> None:
    async with refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD") as problem:
        await common.create(audience_options=options)
    assert problem.fields == [f"delivery.audience_options.{field}"]

    delivery_id = await common.create()
    async with refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD") as problem:
        await update(common, delivery_id, options, "audience_options")
    assert problem.fields == [f"delivery.audience_options.{field}"]


async def test_the_options_have_limits(database: str, tmp_path: Path) -> None:
    limits: dict[str, Any] = {"control_group_bytes_max": 200, "suppression_lists_per_delivery_max": 2}
    async with delivery_stack(database, tmp_path, **limits) as stack:
        await stack.create(audience_options=Options(control_group=profiles("é" * 100), suppression_lists=["a", "b"]))
        for options, field in (
            (Options(control_group=profiles("é" * 100, "x")), "control_group.profiles.profile_ids"),
            (Options(suppression_lists=["a", "b", "c"]), "suppression_lists"),
        ):
            async with refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD") as problem:
                await stack.create(audience_options=options)
            assert problem.fields == [f"delivery.audience_options.{field}"]


# Who else has them.


async def test_a_duplicate_has_its_originals_options(common: DeliveryStack) -> None:
    for group in (share(0.25), profiles("p1", "p2")):
        options = Options(control_group=group, suppression_lists=["whatever"])
        original = await common.create(audience_options=options)

        request = commands_pb2.DuplicateDeliveryRequest(delivery_id=original)
        copy = (await common.stub.DuplicateDelivery(request)).delivery

        assert copy.audience_options == options


async def test_children_have_their_parents_options_and_draw_the_same_people(database: str, tmp_path: Path) -> None:
    clock = SetClock(datetime(2029, 12, 31, tzinfo=UTC))
    async with delivery_stack(database, tmp_path, clock=clock) as stack:
        await suppress(stack, "of-parent", addresses=("person7@example.com",))
        options = Options(control_group=share(0.4), suppression_lists=["of-parent"])
        parent = await stack.ready(
            200,
            audience_options=options,
            schedule=Schedule(
                local_time="2030-01-01T09:00", time_zone="UTC", recurrence=Recurrence(rule="FREQ=DAILY;COUNT=2")
            ),
        )
        await stack.confirm(parent)
        spawned: list[delivery_pb2.Delivery] = []
        for day in (1, 2):
            clock.set(datetime(2030, 1, day, 9, tzinfo=UTC) + timedelta(seconds=1))

            async def children(wanted: int = day) -> list[delivery_pb2.Delivery]:
                request = pb.ListDeliveriesRequest(parent_delivery_id=parent.delivery_id)
                found = list((await stack.stub.ListDeliveries(request)).deliveries)
                assert len(found) == wanted
                assert all(each.state == delivery_pb2.DELIVERY_STATE_FINISHED for each in found)
                return found

            spawned = await eventually(children)

        drawn = await control_group(stack, parent.delivery_id)
        for child in spawned:
            assert child.audience_options == options
            assert await control_group(stack, child.delivery_id) == drawn
            assert volumes(child) == volumes(parent)
    await assert_laws(database)


# The exclusion log.


async def test_the_exclusion_log_is_paged_and_filtered_by_cause(database: str, tmp_path: Path) -> None:
    async with delivery_stack(database, tmp_path, rows_scanned_per_page_max=100) as stack:
        delivery_id = await stack.create(audience_options=Options(control_group=profiles("p5", "p900")))
        await stack.add(delivery_id, people(1_000))
        await stack.add(delivery_id, [*people(450), *to(*[""] * 30)])
        await stack.prepare(delivery_id)

        everybody = await exclusions(stack, delivery_id, size=70)
        assert [recipient for recipient, _ in everybody] == [5, 900, *range(1_001, 1_481)]
        for cause in (EMPTY, MALFORMED, DUPLICATE, CONTROL):
            wanted = [each for each in everybody if each[1] == cause]
            assert await exclusions(stack, delivery_id, cause, size=7) == wanted
        both = [each for each in everybody if each[1] in (CONTROL, EMPTY)]
        assert await exclusions(stack, delivery_id, CONTROL, EMPTY) == both
    await assert_laws(database)


async def test_the_exclusion_log_is_empty_before_ready_and_after_an_edit(common: DeliveryStack) -> None:
    delivery_id = await common.create(audience_options=Options(control_group=profiles("p1")))
    await common.add(delivery_id, people(2))
    assert await exclusions(common, delivery_id) == []
    await common.prepare(delivery_id)
    assert await exclusions(common, delivery_id) == [(1, CONTROL)]

    await update(common, delivery_id, Options(), "audience_options")

    assert await exclusions(common, delivery_id) == []


async def test_a_wrong_question_about_exclusions_is_refused(common: DeliveryStack) -> None:
    async with refused(grpc.StatusCode.NOT_FOUND, "DELIVERY_NOT_FOUND"):
        await exclusions(common, "12345")
    delivery_id = await common.create()
    async with refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD") as problem:
        await exclusions(common, delivery_id, 0)
    assert problem.fields == ["causes[0]"]
    for token in ("!", "cA", "p"):
        async with refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD") as problem:
            await common.stub.ListExclusions(
                exclusion_pb2.ListExclusionsRequest(delivery_id=delivery_id, page_token=token)
            )
        assert problem.fields == ["page_token"]
