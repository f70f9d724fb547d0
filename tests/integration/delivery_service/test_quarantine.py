"""The quarantine: what bounces do to later sends, with two replicas that both read the log."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC
from random import Random

import pytest

from campaign.delivery.v1 import (
    delivery_pb2,
    requalification_service_pb2,
)
from delivery_service.domain.outcome import FailureType, Reason
from delivery_service.domain.quarantine import AddressStatus, QuarantineRules, Report, judge
from service_runtime.clock import to_microseconds
from tests.support.delivery_stack import Observed
from tests.support.eventually import eventually
from tests.support.postgres import connected
from tests.support.quarantine_world import (
    BOUNCED,
    DAY,
    DEFERRED,
    DELIVERED,
    EXPIRED,
    FULL,
    HARD,
    HOUR,
    IGNORED,
    NONE,
    QUARANTINED,
    REFUSED,
    SOFT,
    START,
    UNKNOWN,
    UNREACHABLE,
    WITH_ERRORS,
    World,
    excluded,
    observed,
    soft,
    volumes,
)

RULES = QuarantineRules()


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
