"""Pages of the transition log: bounded, and ending at the end of a revision."""

from collections.abc import AsyncIterator

import asyncpg
import pytest

from delivery_service.domain.log_position import Place
from delivery_service.domain.outcome import Outcome
from delivery_service.domain.problems import DeliveryNotFound, LogOutOfRange
from delivery_service.store.observations import ObservationColumns
from delivery_service.store.queries import query
from delivery_service.store.send_logs import Filters
from delivery_service.store.transition_log import TransitionLog
from service_runtime.clock import from_microseconds
from tests.support.invariants import assert_laws
from tests.support.postgres import connected
from tests.support.seeding import seed_delivery

DELIVERY_ID = 7
ALL = Filters(frozenset(Outcome))
# Revisions 2, 3, 5 and 6 of slot 0, with so many recipients each; 4 is one without transitions.
REVISIONS = {2: [1, 2], 3: [3], 5: [1, 2, 4, 5, 6], 6: [-1, 2]}
TIME_US = 1_800_000_000_000_000
NOW = from_microseconds(TIME_US)


@pytest.fixture
async def log(database: str) -> AsyncIterator[TransitionLog]:
    """A log read four rows at a time."""
    await seed_delivery(database, DELIVERY_ID, list(range(1, 9)))
    async with connected(database) as connection:
        for revision, recipients in REVISIONS.items():
            await connection.executemany(
                "insert into transition values ($1, $2, $3, 0, 0, 2, 0, 0, 0, 0, 0, now(), now(), '', '')",
                [(DELIVERY_ID, revision, recipient) for recipient in recipients],
            )
    pool = await asyncpg.create_pool(database, min_size=1, max_size=2)
    yield TransitionLog(pool, rows_max=4)
    await pool.close()


async def test_a_page_ends_at_the_end_of_a_revision_unless_one_alone_is_too_large(log: TransitionLog) -> None:
    pages = []
    place = Place()
    while place != Place(6):
        page = await log.page(DELIVERY_ID, 0, place, 6)
        assert len(page.rows) <= 4
        pages.append(([(row["revision"], row["recipient"]) for row in page.rows], page.place))
        place = page.place

    assert pages == [
        ([(2, 1), (2, 2), (3, 3)], Place(3)),
        ([(5, 1), (5, 2), (5, 4), (5, 5)], Place(5, 5)),
        ([(5, 6), (6, 2)], Place(6)),  # without the test profile
    ]


async def test_a_page_goes_no_further_than_it_is_asked_to(log: TransitionLog) -> None:
    page = await log.page(DELIVERY_ID, 0, Place(2), 4)

    assert [row["revision"] for row in page.rows] == [3]
    assert page.place == Place(4)
    assert (await log.page(DELIVERY_ID, 0, Place(3), 4)).rows == []
    assert (await log.page(DELIVERY_ID, 1, Place(), 1)).rows == []


async def test_what_changed_comes_once_with_the_last_change_of_its_recipient(log: TransitionLog) -> None:
    found, place = [], Place()
    while place != Place(6):
        page = await log.changed(DELIVERY_ID, 0, place, 6, ALL)
        found.append([send_log.recipient for send_log in page.send_logs])
        place = page.place
    by_then = await log.changed(DELIVERY_ID, 0, Place(), 3, ALL)

    assert [recipient for page_of in found for recipient in page_of] == [3, 1, 4, 5, 6, 2]
    assert [send_log.recipient for send_log in by_then.send_logs] == [1, 2, 3]


@pytest.fixture
async def log_of_hand_overs(database: str) -> AsyncIterator[TransitionLog]:
    """A log read four rows at a time: three hand-overs, the last one of a single moment, and after each a message of it
    is delivered."""
    await seed_delivery(database, DELIVERY_ID, [1, 2, 3, 5, 6, 7, 8, 10, 11])
    async with connected(database) as connection:
        for first, after_us in ((1, [1, 2, 3, 0, 5]), (6, [6, 7, 8]), (10, 11)):
            to = (DELIVERY_ID, 0, NOW, first)
            if isinstance(after_us, list):
                times_us = [TIME_US + us if us else 0 for us in after_us]
                assert await connection.fetchval(query("apply_relayed"), *to, times_us, 0) is None
            else:
                assert await connection.fetchval(query("apply_relayed_at_once"), *to, 2, TIME_US + after_us, 0) is None
            delivered = ObservationColumns.without_detail(DELIVERY_ID, [first], 5, [TIME_US + 100])
            values = (DELIVERY_ID, 0, NOW, *delivered.statement_values())
            assert await connection.fetchval(query("apply_slot"), *values) is None
    pool = await asyncpg.create_pool(database, min_size=1, max_size=2)
    yield TransitionLog(pool, rows_max=4)
    await pool.close()
    await assert_laws(database)


async def test_hand_overs_are_told_message_by_message_between_other_changes(log_of_hand_overs: TransitionLog) -> None:
    pages = []
    place = Place()
    while place != Place(7):
        page = await log_of_hand_overs.page(DELIVERY_ID, 0, place, 7)
        pages.append([(row["revision"], row["recipient"], row["before"], row["outcome"]) for row in page.rows])
        place = page.place

    assert pages == [
        [(2, 1, 0, 2), (2, 2, 0, 2), (2, 3, 0, 2), (2, 5, 0, 2)],
        [(3, 1, 2, 5), (4, 6, 0, 2), (4, 7, 0, 2), (4, 8, 0, 2)],
        [(5, 6, 2, 5), (6, 10, 0, 2), (6, 11, 0, 2), (7, 10, 2, 5)],
    ]
    (row,) = (await log_of_hand_overs.page(DELIVERY_ID, 0, Place(6, 10), 6)).rows
    assert (row["recipient"], row["profile_id"]) == (11, "")
    assert row["event_time"] == from_microseconds(TIME_US + 11)
    assert row["commit_time"] == NOW


async def test_what_was_handed_over_and_changed_since_comes_once(log_of_hand_overs: TransitionLog) -> None:
    found, place = [], Place()
    while place != Place(7):
        page = await log_of_hand_overs.changed(DELIVERY_ID, 0, place, 7, ALL)
        found += [(send_log.recipient, send_log.outcome) for send_log in page.send_logs]
        place = page.place

    relayed = [(recipient, Outcome.RELAYED) for recipient in (2, 3, 5, 7, 8, 11)]
    assert sorted(found) == sorted([*relayed, *((r, Outcome.DELIVERED) for r in (1, 6, 10))])


async def test_a_log_that_was_dropped_gives_no_page(log: TransitionLog, database: str) -> None:
    async with connected(database) as connection:
        await connection.execute("update delivery set log_dropped_time = now()")

    with pytest.raises(LogOutOfRange):
        await log.page(DELIVERY_ID, 0, Place(), 6)
    with pytest.raises(LogOutOfRange):
        await log.changed(DELIVERY_ID, 0, Place(6), 6, ALL)
    with pytest.raises(DeliveryNotFound):
        await log.page(8, 0, Place(), 6)
