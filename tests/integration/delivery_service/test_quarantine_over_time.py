"""The quarantine over time: outages, long logs, what is forgotten and erased, and a database from before."""

from pathlib import Path

from campaign.delivery.v1 import address_health_service_pb2 as pb
from campaign.delivery.v1 import (
    alert_pb2,
    erasure_pb2,
)
from delivery_service.store.migrate import migrate, migrations
from delivery_service.store.queries import query
from service_runtime.clock import to_microseconds
from tests.support.delivery_stack import Observed, delivery_stack
from tests.support.eventually import eventually
from tests.support.invariants import assert_laws
from tests.support.postgres import connected
from tests.support.quarantine_world import (
    BOUNCED,
    DAY,
    DELIVERED,
    HARD,
    HOUR,
    NONE,
    PROVISIONAL,
    QUARANTINED,
    START,
    UNKNOWN,
    WITH_ERRORS,
    World,
    observed,
    quarantine_world,
    soft,
)
from tests.support.seeding import seed_delivery


async def test_an_outage_makes_quarantines_provisional_and_raises_one_alert_a_day(
    database: str, tmp_path: Path
) -> None:
    settings = {"outage_guard_hard_bounces_min": 4, "alert_check_seconds": 1e6}
    async with quarantine_world(database, tmp_path, **settings) as world:
        one, two = world.one, world.two
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
        world.clock.set(START + DAY)

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
        delivery_id = await stack.sent(1_200)
        times = to_microseconds(START)
        for begin in range(1, 1_201, 400):
            await stack.apply(
                *(
                    Observed(f"{delivery_id}-{each}", BOUNCED, times, HARD, UNKNOWN)
                    for each in range(begin, begin + 400)
                )
            )
        steps = []
        async with connected(database) as connection:
            while rows := await connection.fetchval(
                query("collect_address_facts"), int(delivery_id), 0, 500, 100, HOUR, START - DAY, START
            ):
                steps.append(rows)
            known = await connection.fetchval("select count(*) from address_event")
    assert known == 1_200
    assert sum(steps) == 1_200  # hand-overs tell nothing of an address
    assert max(steps) <= 500
    await assert_laws(database)


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
