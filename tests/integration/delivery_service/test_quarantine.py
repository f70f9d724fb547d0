"""The quarantine and the denylist: what bounces, complaints and unsubscribes do to later sends, through the RPCs, with
two replicas that both read the log."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import grpc
import pytest

from campaign.delivery.v1 import address_health_service_pb2 as pb
from campaign.delivery.v1 import (
    alert_pb2,
    before_the_send_pb2,
    delivery_pb2,
    erasure_pb2,
    exclusion_pb2,
    requalification_service_pb2,
    send_log_pb2,
)
from campaign.delivery.v1 import delivery_service_pb2 as delivery_pb
from campaign.delivery.v1.address_health_service_pb2_grpc import AddressHealthServiceStub
from delivery_service.domain.outcome import FailureType, Reason
from delivery_service.domain.quarantine import AddressStatus, QuarantineRules, Report, judge
from delivery_service.store.migrate import migrate, migrations
from delivery_service.store.queries import query
from service_runtime.clock import to_microseconds
from tests.support.clock import SetClock
from tests.support.delivery_stack import DeliveryStack, Fact, Observed, delivery_stack
from tests.support.eventually import eventually
from tests.support.invariants import assert_laws
from tests.support.mta_side import ACCEPT, LATER
from tests.support.postgres import connected
from tests.support.seeding import seed_delivery
from tests.support.statuses import refused

START = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
SOFT, HARD, IGNORED = (
    send_log_pb2.FAILURE_TYPE_SOFT,
    send_log_pb2.FAILURE_TYPE_HARD,
    send_log_pb2.FAILURE_TYPE_IGNORED,
)
DEFERRED, EXPIRED = send_log_pb2.OUTCOME_DEFERRED, send_log_pb2.OUTCOME_EXPIRED
DELIVERED, BOUNCED = send_log_pb2.OUTCOME_DELIVERED, send_log_pb2.OUTCOME_BOUNCED
UNKNOWN, FULL = send_log_pb2.REASON_USER_UNKNOWN, send_log_pb2.REASON_MAILBOX_FULL
UNREACHABLE, REFUSED = send_log_pb2.REASON_UNREACHABLE, send_log_pb2.REASON_REFUSED
FINISHED = delivery_pb2.DELIVERY_STATE_FINISHED
NONE, WITH_ERRORS = pb.ADDRESS_STATUS_UNSPECIFIED, pb.ADDRESS_STATUS_WITH_ERRORS
PROVISIONAL, QUARANTINED = pb.ADDRESS_STATUS_PROVISIONAL, pb.ADDRESS_STATUS_QUARANTINED
COMPLAINT, UNSUBSCRIBE = send_log_pb2.TIMELINE_ENTRY_KIND_COMPLAINT, send_log_pb2.TIMELINE_ENTRY_KIND_UNSUBSCRIBE
RULES = QuarantineRules()


@dataclass
class World:
    """Two replicas on one database, and their clock."""

    one: DeliveryStack
    two: DeliveryStack
    clock: SetClock

    async def health(self, address: str = "person1@example.com") -> pb.GetAddressResponse:
        return await self.two.addresses.GetAddress(pb.GetAddressRequest(address=address))

    async def status(self, address: str = "person1@example.com") -> "pb.AddressStatus.ValueType":
        return (await self.health(address)).health.status

    async def becomes(self, status: int, address: str = "person1@example.com", count: int | None = None) -> None:
        """Waits until an address has this status, and this number of errors."""

        async def is_so() -> bool:
            health = (await self.health(address)).health
            assert health.status == status, pb.AddressStatus.Name(health.status)
            assert count is None or health.error_count == count, health.error_count
            return True

        await eventually(is_so)

    async def looked(self) -> None:
        """Waits until both replicas' workers have nothing left to take up or to judge."""
        async with connected(self.one.dsn) as connection:

            async def nothing_is_left() -> bool:
                left = await connection.fetchval(
                    "select (select count(*) from delivery_counter c left join address_scan s using (delivery_id, slot)"
                    " where c.revision > coalesce(s.revision, 0)) + (select count(*) from address_news)"
                    " + (select count(*) from address_health where fact_version <> judged_version)"
                )
                return bool(left == 0)

            await eventually(nothing_is_left)


@pytest.fixture
async def world(database: str, tmp_path: Path) -> AsyncIterator[World]:
    clock = SetClock(START)
    async with (
        delivery_stack(database, tmp_path / "one", clock=clock, quarantine_check_seconds=0.02) as one,
        delivery_stack(database, tmp_path / "two", clock=clock, mta=one.mta, quarantine_check_seconds=0.02) as two,
    ):
        yield World(one, two, clock)
    await assert_laws(database)


def observed(
    delivery_id: str,
    outcome: "send_log_pb2.Outcome.ValueType",
    at: datetime = START,
    failure_type: int = 0,
    reason: int = 0,
    recipient: int = 1,
    **fields: Any,
) -> Observed:
    return Observed(f"{delivery_id}-{recipient}", outcome, to_microseconds(at), failure_type, reason, **fields)


def soft(delivery_id: str, at: datetime, reason: int = UNREACHABLE, recipient: int = 1) -> Observed:
    return observed(delivery_id, DEFERRED, at, SOFT, reason, recipient)


async def excluded(stack: DeliveryStack, delivery_id: str) -> list[tuple[int, int]]:
    """The recipients that a preparation has excluded, with the cause."""
    listed = await stack.stub.ListExclusions(exclusion_pb2.ListExclusionsRequest(delivery_id=delivery_id))
    return [(each.recipient, each.cause) for each in listed.exclusions]


def volumes(delivery: delivery_pb2.Delivery) -> dict[int, int]:
    return {each.cause: each.volume for each in delivery.plan.exclusions}


async def test_a_hard_bounce_quarantines_at_once_and_the_next_preparation_leaves_the_address_out(world: World) -> None:
    before = await world.one.sent()
    await world.one.apply(
        observed(before, BOUNCED, START, HARD, UNKNOWN, smtp_code=550, diagnostic="550 5.1.1 no such user")
    )

    await world.becomes(QUARANTINED)
    health = (await world.health()).health
    assert (health.failure_type, health.reason, health.diagnostic) == (HARD, UNKNOWN, "550 5.1.1 no such user")
    assert (health.delivery_id, health.recipient) == (before, 1)
    assert health.error_time.ToDatetime(UTC) == START

    after = await world.two.ready(3)
    assert volumes(after) == {
        delivery_pb2.EXCLUSION_CAUSE_ADDRESS_EMPTY: 0,
        delivery_pb2.EXCLUSION_CAUSE_ADDRESS_MALFORMED: 0,
        delivery_pb2.EXCLUSION_CAUSE_DENYLISTED: 0,
        delivery_pb2.EXCLUSION_CAUSE_QUARANTINED: 1,
        delivery_pb2.EXCLUSION_CAUSE_DUPLICATE: 0,
        delivery_pb2.EXCLUSION_CAUSE_CONTROL_GROUP: 0,
        delivery_pb2.EXCLUSION_CAUSE_SUPPRESSED_ADDRESS: 0,
        delivery_pb2.EXCLUSION_CAUSE_SUPPRESSED_DOMAIN: 0,
    }
    assert after.plan.to_deliver == 2
    assert await excluded(world.two, after.delivery_id) == [(1, delivery_pb2.EXCLUSION_CAUSE_QUARANTINED)]


async def test_the_fifth_soft_error_a_day_apart_quarantines_whatever_order_they_come_in(world: World) -> None:
    deliveries = [await world.one.sent() for _ in range(5)]
    errors = [soft(each, START + index * DAY) for index, each in enumerate(deliveries)]
    errors.insert(3, soft(deliveries[0], START + 2 * HOUR))  # a retry: too soon to count

    for error in reversed(errors[1:]):
        await world.one.apply(error)
        await world.two.apply(error)
    await world.looked()
    await world.becomes(WITH_ERRORS, count=4)

    await world.one.apply(errors[0])
    await world.becomes(QUARANTINED, count=5)


async def test_a_success_starts_the_count_anew_also_if_it_was_there_before_the_error_was_known(world: World) -> None:
    failing, working = await world.one.sent(), await world.one.sent()
    await world.one.apply(observed(working, DELIVERED, START + HOUR))
    await world.looked()  # nothing is known of the address yet

    await world.two.apply(soft(failing, START))
    await world.looked()
    assert await world.status() == NONE

    await world.two.apply(soft(failing, START + 2 * HOUR))
    await world.becomes(WITH_ERRORS, count=1)


async def test_an_error_of_ten_days_ago_counts_no_more_and_a_full_mailbox_for_thirty(world: World) -> None:
    one, two = await world.one.sent(), await world.one.sent()
    await world.one.apply(soft(one, START), soft(one, START, FULL, recipient=2))
    await world.becomes(WITH_ERRORS)
    await world.becomes(WITH_ERRORS, "person2@example.com")

    world.clock.set(START + 11 * DAY)
    assert await world.status() == NONE
    assert await world.status("person2@example.com") == WITH_ERRORS

    await world.one.apply(soft(two, START + 11 * DAY), soft(two, START + 11 * DAY, recipient=2))
    await world.becomes(WITH_ERRORS, count=1)
    await world.becomes(WITH_ERRORS, "person2@example.com", count=2)


async def test_ignored_failures_never_count_and_blocks_of_the_sender_do_not_quarantine_at_once(world: World) -> None:
    delivery_id = await world.one.sent()
    await world.one.apply(
        observed(delivery_id, BOUNCED, START, IGNORED, recipient=1),
        observed(delivery_id, BOUNCED, START, HARD, REFUSED, recipient=2),
    )
    await world.becomes(WITH_ERRORS, "person2@example.com", count=1)
    assert await world.status() == NONE


async def test_the_end_of_the_validity_period_is_no_error_of_its_own(world: World) -> None:
    delivery_id = await world.one.sent()
    await world.one.apply(soft(delivery_id, START))
    world.clock.set(START + 5 * DAY)

    async def expired() -> bool:
        return (await world.one.send_log(delivery_id)).send_log.outcome == EXPIRED

    await eventually(expired)
    await world.looked()
    assert (await world.health()).health.error_count == 1


async def test_a_late_report_counts_too(world: World) -> None:
    """An asynchronous bounce came first: the soft and hard ones before it lose, and are known all the same."""
    delivery_id = await world.one.sent()
    await world.one.apply(observed(delivery_id, BOUNCED, START + HOUR, SOFT, UNREACHABLE))
    await world.becomes(WITH_ERRORS, count=1)

    await world.one.apply(observed(delivery_id, BOUNCED, START, HARD, UNKNOWN))
    await world.becomes(QUARANTINED)


@pytest.mark.parametrize("late", [False, True], ids=["where the row stands", "beside the log"])
async def test_a_correction_corrects_the_quarantine_in_both_directions(world: World, late: bool) -> None:
    delivery_id = await world.one.sent()
    await world.one.apply(observed(delivery_id, BOUNCED, START, HARD, UNKNOWN, diagnostic="what it said"))
    if late:
        await world.one.apply(observed(delivery_id, BOUNCED, START + HOUR, IGNORED, diagnostic="another"))
    await world.becomes(QUARANTINED)

    for version, failure_type, status in ((2, SOFT, WITH_ERRORS), (3, IGNORED, NONE), (4, HARD, QUARANTINED)):
        report = requalification_service_pb2.QualifiedReport(
            recipient=1,
            outcome=BOUNCED,
            event_time_us=to_microseconds(START),
            diagnostic="what it said",
            failure_type=failure_type,
            reason=UNKNOWN,
        )
        await world.one.requalification.CorrectReports(
            requalification_service_pb2.CorrectReportsRequest(
                delivery_id=delivery_id, rules_version=version, reports=[report]
            )
        )
        await world.becomes(status)


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


@dataclass
class Cuts:
    """How many statements of the workers were cut off in their middle."""

    number: int = 0


@asynccontextmanager
async def cutting_off_the_workers(dsn: str) -> AsyncIterator[Cuts]:
    """Ends database sessions that are at a step of the quarantine's, as if their process was killed in it."""
    cuts = Cuts()

    async def cut() -> None:
        async with connected(dsn) as connection:
            while True:
                ended = await connection.fetch(
                    "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() "
                    "and state = 'active' and pid <> pg_backend_pid() "
                    "and query ~ 'collect_address_facts|take_address_news|judged_version|address_scan'"
                )
                cuts.number += len(ended)
                await asyncio.sleep(0.05 if ended else 0.001)

    cutting = asyncio.create_task(cut())
    try:
        yield cuts
    finally:
        cutting.cancel()
        await asyncio.gather(cutting, return_exceptions=True)


async def test_whatever_is_reported_in_whatever_order_each_address_is_judged_by_all_of_it_once(world: World) -> None:
    """Random reports, each sent several times, shuffled, in batches of random sizes, to both replicas, whose
    statements are cut off: against the rules, applied to all of them at once."""
    random = Random(20_260_302)
    people_count = 12
    deliveries = [await world.one.sent(people_count) for _ in range(4)]
    known: dict[int, set[Report]] = {number: set() for number in range(1, people_count + 1)}
    sent: list[Observed] = []
    for _ in range(400):
        recipient = random.randint(1, people_count)
        at = START + random.randrange(0, 20 * 24) * HOUR
        outcome, failure_type, reason = random.choice(
            [
                (DEFERRED, SOFT, UNREACHABLE),
                (DEFERRED, SOFT, FULL),
                (DEFERRED, SOFT, UNREACHABLE),
                (DELIVERED, 0, 0),
                (BOUNCED, IGNORED, UNKNOWN),
                (BOUNCED, HARD, REFUSED),
                *([(BOUNCED, HARD, UNKNOWN)] if recipient % 4 == 0 else []),
            ]
        )
        delivery_id = random.choice(deliveries)
        report = Report(at, FailureType(failure_type), Reason(reason), int(delivery_id), recipient, outcome - 1)
        if any((each.event_time, each.outcome, each.delivery_id) == (at, outcome - 1, int(delivery_id))
               for each in known[recipient]):  # fmt: skip
            continue  # of two verdicts on one report, one would count
        known[recipient].add(report)
        sent += [observed(delivery_id, outcome, at, failure_type, reason, recipient)] * random.randint(1, 3)
    random.shuffle(sent)
    async with cutting_off_the_workers(world.one.dsn) as cuts:
        while sent:
            size = random.randint(1, 40)
            batch, sent = sent[:size], sent[size:]
            await random.choice((world.one, world.two)).apply(*batch)
        await eventually(lambda: cuts.number >= 3)
    await world.looked()

    statuses = set()
    for recipient, reports in known.items():
        expected = judge(reports, RULES)
        health = (await world.health(f"person{recipient}@example.com")).health
        stored = await _stored(world, f"person{recipient}@example.com")
        assert stored == (expected.status, expected.error_count), f"person {recipient}"
        assert int(health.status) in (int(expected.status), int(AddressStatus.NONE))
        statuses.add(expected.status)
    assert len(statuses) > 1


async def _stored(world: World, address: str) -> tuple[int, int]:
    async with connected(world.one.dsn) as connection:
        row = await connection.fetchrow("select status, error_count from address_health where address = $1", address)
    return (row["status"], row["error_count"]) if row else (0, 0)


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


async def test_an_outage_makes_quarantines_provisional_and_raises_one_alert_a_day(
    database: str, tmp_path: Path
) -> None:
    clock = SetClock(START)
    settings: dict[str, Any] = {
        "quarantine_check_seconds": 0.02,
        "outage_guard_hard_bounces_min": 4,
        "alert_check_seconds": 1e6,
    }
    async with (
        delivery_stack(database, tmp_path / "one", clock=clock, **settings) as one,
        delivery_stack(database, tmp_path / "two", clock=clock, mta=one.mta, **settings) as two,
    ):
        world = World(one, two, clock)
        before, during = await one.sent(30), await one.sent(6)
        await one.apply(*(observed(before, DELIVERED, START - 3 * DAY, recipient=each) for each in range(1, 31)))
        await one.apply(observed(during, BOUNCED, START, HARD, UNKNOWN, 1))
        await world.becomes(QUARANTINED)  # one alone is no outage

        await two.apply(*(observed(during, BOUNCED, START, HARD, UNKNOWN, each) for each in range(2, 7)))
        for number in range(1, 7):
            await world.becomes(PROVISIONAL, f"person{number}@example.com")
        assert (await one.ready(6)).plan.to_deliver == 6  # they are written to

        async def alerts() -> list[alert_pb2.Alert]:
            return list((await one.stub.ListAlerts(alert_pb2.ListAlertsRequest())).alerts)

        (alert,) = await eventually(alerts)
        assert (alert.cause, alert.recipient_domain, alert.delivery_id) == (
            alert_pb2.ALERT_CAUSE_OUTAGE_SUSPECTED,
            "example.com",
            "",
        )
        assert "6 of 6 bounced hard" in alert.detail or "5 of 5" in alert.detail or "of 36" in alert.detail

        # Another day: the guard has ended. What bounces again is quarantined, what arrives is cleared, and the rest is
        # still written to.
        clock.set(START + DAY)

        async def guard_has_ended() -> bool:
            async with connected(database) as connection:
                return bool(await connection.fetchval("select count(*) from outage_guard where end_time is not null"))

        await eventually(guard_has_ended)
        after = await two.sent(6)
        await one.apply(
            observed(after, BOUNCED, START + DAY + HOUR, HARD, UNKNOWN, 1),
            observed(after, DELIVERED, START + DAY + HOUR, recipient=2),
        )
        await world.becomes(QUARANTINED)
        await world.becomes(NONE, "person2@example.com")
        assert await world.status("person3@example.com") == PROVISIONAL
        assert len(await alerts()) == 1

        request = pb.ReleaseMatchingAddressesRequest(statuses=[PROVISIONAL], recipient_domain="example.com")
        request.since_time.FromDatetime(START - HOUR)
        request.until_time.FromDatetime(START + HOUR)
        assert (await one.addresses.ReleaseMatchingAddresses(request)).released_count == 4
    await assert_laws(database)


async def test_addresses_without_errors_for_long_are_forgotten_and_quarantined_ones_are_not(world: World) -> None:
    delivery_id = await world.one.sent()
    await world.one.apply(soft(delivery_id, START), observed(delivery_id, BOUNCED, START, HARD, UNKNOWN, recipient=2))
    await world.becomes(WITH_ERRORS)
    await world.becomes(QUARANTINED, "person2@example.com")
    world.clock.set(START + 41 * DAY)

    async def forgotten() -> bool:
        async with connected(world.one.dsn) as connection:
            kept = await connection.fetch("select address from address_health order by address")
            events = await connection.fetchval("select count(*) from address_event")
        return [row["address"] for row in kept] == ["person2@example.com"] and events == 1

    await eventually(forgotten)


async def test_a_long_log_is_read_in_steps_of_whole_revisions(database: str, tmp_path: Path) -> None:
    async with delivery_stack(database, tmp_path, slots_per_delivery=1) as stack:
        delivery_id = await stack.sent(12_000)
        times = to_microseconds(START)
        for begin in range(1, 12_001, 4_000):
            await stack.apply(
                *(
                    Observed(f"{delivery_id}-{each}", BOUNCED, times, HARD, UNKNOWN)
                    for each in range(begin, begin + 4_000)
                )
            )
        steps = []
        async with connected(database) as connection:
            while rows := await connection.fetchval(
                query("collect_address_facts"), int(delivery_id), 0, 5_000, 1_000, HOUR, START - DAY, START
            ):
                steps.append(rows)
            known = await connection.fetchval("select count(*) from address_event")
    assert known == 12_000
    assert sum(steps) == 12_000  # hand-overs tell nothing of an address
    assert max(steps) <= 5_000
    await assert_laws(database)


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


async def test_a_database_from_before_the_quarantine_has_its_log_read_from_the_beginning(
    database: str, tmp_path: Path
) -> None:
    files = migrations()
    async with connected(database) as connection:
        await connection.execute("drop schema public cascade; create schema public")
        await connection.execute("create table schema_version (version integer primary key, apply_time timestamptz)")
        for version in (each for each in files if each < 27):
            await connection.execute(files[version])
            await connection.execute("insert into schema_version values ($1, now())", version)
        await seed_delivery(database, 1, [1, 2, 3, 4], slots=1)
        observed_before = """
            select apply_slot(1, 0::smallint, now(), array[1, 2, 3, 4], array[6, 6, 5, 5]::smallint[],
                array[$1, $1, $1, $1]::bigint[], array[2, 3, 0, 0]::smallint[], array[2, 8, 0, 0]::smallint[],
                '{}', '{}', '{}', '{}', array[1, 1, 1, 1]::smallint[])
        """
        await connection.execute(observed_before, to_microseconds(START))
        await connection.execute(
            "select keep_late(array[1]::bigint[], array[0]::smallint[], array[1], now(), array[2], "
            "array[6]::smallint[], array[$1]::bigint[], array[2]::smallint[], array[2]::smallint[], "
            "'{}', '{}', '{}', '{}', array[1]::smallint[])",
            to_microseconds(START - HOUR),
        )
        await connection.execute(
            "select apply_tracking(array[1]::bigint[], array[3], array[6]::smallint[], array[$1]::bigint[], array[''],"
            " now())",
            to_microseconds(START),
        )
        await connection.execute(
            "insert into alert select 1, 4, current_date, nextval('alert_id'), '', now(), 'old', null, now(), 0"
        )
    await migrate(database)

    async with delivery_stack(database, tmp_path, quarantine_check_seconds=0.02) as stack:
        for number, status in ((1, QUARANTINED), (2, QUARANTINED), (4, NONE)):

            async def is_so(number: int = number, status: int = status) -> bool:
                request = pb.GetAddressRequest(address=f"person{number}@example.com")
                return (await stack.addresses.GetAddress(request)).health.status == status

            await eventually(is_so)

        async def complained() -> bool:
            denials = await stack.addresses.ListDenials(pb.ListDenialsRequest())
            return [each.address for each in denials.denials] == ["person3@example.com"]

        await eventually(complained)
        (alert,) = (await stack.stub.ListAlerts(alert_pb2.ListAlertsRequest())).alerts
        assert (alert.detail, alert.recipient_domain) == ("old", "")
    await assert_laws(database)


async def test_of_an_erased_profile_only_a_quarantined_address_is_kept_and_not_why(world: World) -> None:
    delivery_id, other = await world.one.sent(), await world.one.sent()
    await world.one.apply(
        observed(delivery_id, BOUNCED, START, HARD, UNKNOWN, diagnostic="550 person1 is unknown"),
        soft(delivery_id, START, recipient=2),
        soft(delivery_id, START, recipient=3),
        soft(other, START + 2 * DAY, recipient=3),
    )
    await world.becomes(QUARANTINED)
    await world.becomes(WITH_ERRORS, "person2@example.com")
    await world.becomes(WITH_ERRORS, "person3@example.com", count=2)
    async with connected(world.one.dsn) as connection:
        # Somebody else with the same address, in another delivery.
        await connection.execute(
            "update recipient set profile_id = 'q3' where delivery_id = $1 and recipient = 3", int(other)
        )

        for profile_id in ("p1", "p2", "p3"):
            await world.two.client("administration").EraseProfile(
                erasure_pb2.EraseProfileRequest(profile_id=profile_id)
            )
        await world.looked()

        await world.becomes(QUARANTINED)
        health = (await world.health()).health
        assert (health.adder, health.diagnostic, health.delivery_id) == ("erasure", "", "")
        assert await world.status("person2@example.com") == NONE
        await world.becomes(WITH_ERRORS, "person3@example.com", count=1)
        assert await connection.fetchval("select array_agg(delivery_id) from address_event") == [int(other)]
        assert await connection.fetchval("select count(*) from address_health where address like 'person2%'") == 0
