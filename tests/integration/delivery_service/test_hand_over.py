"""A hand-over that is all of its part ends the claim of whoever relays it, in the same commit."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from delivery_service.domain.identifiers import RECIPIENTS_PER_PART
from delivery_service.domain.outcome import Outcome
from delivery_service.store.apply_writer import ApplySettings, ApplyWriter, Refused
from delivery_service.store.database import DatabaseSettings, open_pool
from delivery_service.store.hand_over import HandOver
from delivery_service.store.observations import ObservationColumns
from service_runtime.clock import SystemClock, from_microseconds
from tests.support.invariants import assert_laws
from tests.support.postgres import connected
from tests.support.seeding import seed_delivery

DELIVERY_ID = 7
FIRST = RECIPIENTS_PER_PART
TIME_US = 1_800_000_000_000_000
AT_ONCE = [TIME_US] * 3
ONE_BY_ONE = [TIME_US, TIME_US + 1, TIME_US + 2]
CLAIM = 2


@asynccontextmanager
async def part_of_three(dsn: str) -> AsyncIterator[ApplyWriter]:
    """Part 1 has three messages and was claimed for the second time."""
    await seed_delivery(dsn, DELIVERY_ID, [FIRST, FIRST + 1, FIRST + 2])
    async with connected(dsn) as connection:
        await connection.execute(
            "insert into relay_part (delivery_id, part, prepared_count, claim_count, lease_holder) "
            "values ($1, 1, 3, $2, 'me')",
            DELIVERY_ID,
            CLAIM,
        )
    database = DatabaseSettings(dsn)
    pool = await open_pool(database)
    writer = ApplyWriter(pool, database, ApplySettings(), SystemClock(), lambda _: None)
    tasks = [asyncio.create_task(run, name=name) for name, run in writer.runs()]
    try:
        yield writer
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await pool.close()
    await assert_laws(dsn)


def handed_over(times_us: list[int], claim_count: int = CLAIM) -> HandOver:
    """As many messages as there are times."""
    return HandOver(DELIVERY_ID, [FIRST + place for place in range(len(times_us))], times_us, claim_count)


async def part(dsn: str) -> tuple[bool, str]:
    """Whether it is done, and who holds it."""
    async with connected(dsn) as connection:
        row = await connection.fetchrow("select done, lease_holder from relay_part")
    assert row is not None
    return row["done"], row["lease_holder"]


@pytest.mark.parametrize("times_us", [AT_ONCE, ONE_BY_ONE])
async def test_a_part_that_left_as_a_whole_is_done_with_its_hand_over(database: str, times_us: list[int]) -> None:
    async with part_of_three(database) as writer:
        assert await writer.apply_hand_over(handed_over(times_us)) == (Refused([], []), True)
        assert await part(database) == (True, "")


@pytest.mark.parametrize("times_us", [AT_ONCE, ONE_BY_ONE])
async def test_a_part_of_which_a_message_was_reported_on_before_is_left_to_its_holder(
    database: str, times_us: list[int]
) -> None:
    async with part_of_three(database) as writer:
        await writer.apply(
            ObservationColumns.without_detail(DELIVERY_ID, [FIRST + 1], Outcome.DELIVERED, [TIME_US + 9])
        )
        assert await writer.apply_hand_over(handed_over(times_us)) == (Refused([], []), False)
        assert await part(database) == (False, "me")
        async with connected(database) as connection:
            log = await connection.fetch("select * from every_transition where outcome = 2 order by recipient")
        expected = [(FIRST, from_microseconds(times_us[0])), (FIRST + 2, from_microseconds(times_us[2]))]
        assert [(row["recipient"], row["event_time"]) for row in log] == expected


@pytest.mark.parametrize("times_us", [AT_ONCE, ONE_BY_ONE])
@pytest.mark.parametrize(("messages", "claim_count"), [(3, 0), (3, CLAIM - 1), (2, CLAIM)])
async def test_a_hand_over_ends_no_claim_but_its_own_and_only_of_a_whole_part(
    database: str, times_us: list[int], messages: int, claim_count: int
) -> None:
    """One that was lost since; one that its holder did not give; a part of which more is left."""
    async with part_of_three(database) as writer:
        await writer.apply_hand_over(handed_over(times_us[:messages], claim_count))
        assert await part(database) == (False, "me")


async def test_a_replica_of_the_version_before_hands_over_and_releases_its_claim_itself(database: str) -> None:
    async with part_of_three(database), connected(database) as connection:
        to = (DELIVERY_ID, FIRST // RECIPIENTS_PER_PART % 4, from_microseconds(TIME_US), FIRST)
        assert await connection.fetchval("select apply_relayed($1, $2, $3, $4, $5)", *to, [0, *ONE_BY_ONE[1:]]) is None
        assert await connection.fetchval("select apply_relayed($1, $2, $3, $4, $5)", *to, ONE_BY_ONE) == [
            FIRST + 1,
            FIRST + 2,
        ]
        assert await part(database) == (False, "me")


@pytest.mark.parametrize("times_us", [AT_ONCE, ONE_BY_ONE])
async def test_a_hand_over_that_is_written_again_leaves_its_part_done(database: str, times_us: list[int]) -> None:
    """As after a connection that broke between the commit and its answer."""
    async with part_of_three(database) as writer:
        await writer.apply_hand_over(handed_over(times_us))
        assert await writer.apply_hand_over(handed_over(times_us)) == (Refused([], []), False)
        assert await part(database) == (True, "")
