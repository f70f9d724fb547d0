"""The rules of exclusion on a large audience that has just been uploaded: what they read, and what they find.

Postgres takes such an audience for a few rows. That a rule reads it once, and looks nothing up row by row, is seen in
the counts that Postgres itself keeps of rows read and of index look-ups.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from random import Random
from uuid import UUID

import asyncpg
import pytest

from tests.support.partitions import PARTITION
from tests.support.postgres import DatabaseFactory, connected

RECIPIENTS = 60_000
OTHERS = 20
"""Recipients of each of many other deliveries, which no rule may read."""
TOKEN = UUID(int=1)
DRAWS = 200
SOME_LOOK_UPS = 50
"""Of the rules' own rows: the delivery, the lists."""
AS_A_CONNECTION_GOES_ON = 7
"""Executions, of which the first have plans made for them, and the last, if Postgres likes, the generic one."""


@dataclass(frozen=True)
class Read:
    """Rows of the audience read, look-ups of recipients and of entries, and exclusions found by cause."""

    recipients: int
    recipient_look_ups: int
    entry_look_ups: int
    found: dict[int, int]


@pytest.fixture(scope="module")
async def large(database_factory: DatabaseFactory) -> AsyncIterator[str]:
    """One large delivery, never analysed, beside many small ones; and three suppression lists."""
    async with database_factory.fresh() as dsn:
        async with connected(dsn) as connection:
            await connection.execute(
                f"""
                insert into delivery (delivery_id, label, channel, feedback_mode, subject, html, body_text,
                    from_address, from_name, reply_to_address, validity_period, state, creator, create_time,
                    update_time, recipient_count, preparation_token)
                select d, '', 1, 1, '', '', '', '', '', '', '84 hours', 2, '', now(), now(),
                    case d when 1 then {RECIPIENTS} else {OTHERS} end, '{TOKEN}'
                from generate_series(1, 1000) d;
                insert into recipient (delivery_id, recipient, address_problem, profile_id, address, attributes)
                select d, r, 0, 'profile' || r, 'p' || r || '@d' || r % 3000 || '.example.com', '{{}}'
                from generate_series(2, 1000) d, generate_series(1, {OTHERS}) r;
                analyze recipient;
                insert into recipient (delivery_id, recipient, address_problem, profile_id, address, attributes)
                select 1, r, 0, 'profile' || r, 'p' || r || '@d' || r % 3000 || '.example.com', '{{}}'
                from generate_series(1, {RECIPIENTS}) r;
                insert into suppression_list (name, channel, description, creator, create_time, update_time,
                    address_count, domain_count)
                values ('addresses', 1, '', '', now(), now(), {RECIPIENTS // 2}, 0),
                    ('others', 1, '', '', now(), now(), {RECIPIENTS // 2}, 0),
                    ('domains', 1, '', '', now(), now(), 0, 30000);
                insert into suppression_entry (list_id, kind, value, add_time)
                select 1 + r % 2, 1, 'p' || r || '@d' || r % 3000 || '.example.com', now()
                from generate_series(1, {RECIPIENTS}) r
                union all
                select 3, 2, 'd' || d * 10 || '.example.com', now() from generate_series(0, 29999) d;
                analyze suppression_entry
                """
            )
        yield dsn


async def excluded(connection: asyncpg.Connection, delivery_id: int) -> Read:
    """Runs the exclusions, tells what they read, and takes them back."""
    async with connection.transaction():
        await connection.execute("update delivery set prepared_through = -1 where delivery_id = $1", delivery_id)
        before = await _counted(connection)
        assert await connection.fetchval("select prepare_exclusions($1, $2)", delivery_id, TOKEN)
        after = await _counted(connection)
        rows = await connection.fetch(
            "select cause, count(*) as n from exclusion_log where delivery_id = $1 group by 1", delivery_id
        )
        await connection.execute("delete from exclusion_log")
    return Read(
        recipients=after["recipient"][0] - before["recipient"][0],
        recipient_look_ups=after["recipient"][1] - before["recipient"][1],
        entry_look_ups=after["suppression_entry"][1] - before["suppression_entry"][1],
        found={row["cause"]: row["n"] for row in rows},
    )


async def _counted(connection: asyncpg.Connection) -> dict[str, tuple[int, int]]:
    """Rows read and index look-ups so far in this transaction, by table. A look-up of many rows counts once."""
    rows = await connection.fetch(
        """
        select regexp_replace(t.relname, $1, '') as name, sum(t.seq_tup_read + coalesce(i.read, 0)) as read,
            coalesce(sum(i.scans), 0) as scans
        from pg_stat_xact_user_tables t
        left join lateral (
            select sum(pg_stat_get_xact_tuples_returned(indexrelid)) as read,
                sum(pg_stat_get_xact_numscans(indexrelid)) as scans
            from pg_index where indrelid = t.relid
        ) i on true
        where regexp_replace(t.relname, $1, '') in ('recipient', 'suppression_entry')
        group by 1
        """,
        PARTITION,
    )
    return {row["name"]: (int(row["read"]), int(row["scans"])) for row in rows}


def assert_read_once_a_pass(read: Read, passes: int) -> None:
    """The rules of bad addresses and duplicates take two passes; others come on top. Nothing row by row."""
    assert read.recipients <= (2 + passes) * RECIPIENTS + 2 * 1_000 * OTHERS * (2 + passes)
    assert read.recipient_look_ups <= SOME_LOOK_UPS


async def test_without_options_the_other_rules_read_nothing(large: str) -> None:
    async with connected(large) as connection:
        reads = [await excluded(connection, 1) for _ in range(AS_A_CONNECTION_GOES_ON)]

    for read in reads:
        assert read.found == {}
        assert_read_once_a_pass(read, passes=0)
        assert read.entry_look_ups == 0


async def test_a_large_audience_is_read_once_for_each_list_of_those_not_to_be_written_to(large: str) -> None:
    async with connected(large) as connection:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute(
            """
            insert into address_health (channel, address, domain, status, update_time)
            select 1, address, '', 3, now() from recipient where delivery_id = 1 and recipient between 1 and 3000;
            insert into denylist (channel, kind, value, denied, cause, change_time)
            select 1, 1, address, true, 1, now() from recipient
            where delivery_id = 1 and recipient between 2001 and 4000
            union all
            select 1, 2, profile_id, true, 2, now() from recipient
            where delivery_id = 1 and recipient between 4001 and 5000
            """
        )
        read = await excluded(connection, 1)
        await transaction.rollback()

    assert read.found == {4: 3_000, 5: 2_000}
    assert_read_once_a_pass(read, passes=3)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ("control_group_profile_ids = (select array_agg('profile' || r * 7) from generate_series(1, 5000) r)",
         {6: 5_000}),
        ("suppression_lists = '{addresses}'", {7: RECIPIENTS // 2}),
        ("suppression_lists = '{addresses,others}'", {7: RECIPIENTS}),
        ("suppression_lists = '{domains}'", {8: RECIPIENTS // 10}),
    ],
    ids=["profiles", "addresses", "two lists", "domains"],
)  # fmt: skip
async def test_a_rule_reads_the_audience_once_and_looks_nothing_up_row_by_row(
    large: str, options: str, found: dict[int, int]
) -> None:
    async with connected(large) as connection:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute(f"update delivery set {options} where delivery_id = 1")
        reads = [await excluded(connection, 1) for _ in range(AS_A_CONNECTION_GOES_ON)]
        await transaction.rollback()

    for read in reads:
        assert read.found == found
        assert_read_once_a_pass(read, passes=3)
        assert read.entry_look_ups <= SOME_LOOK_UPS


async def test_a_share_of_a_large_audience_is_drawn_in_one_pass(large: str) -> None:
    async with connected(large) as connection:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute("update delivery set control_group_share = 0.1 where delivery_id = 1")
        read = await excluded(connection, 1)
        await transaction.rollback()

    assert abs(read.found[6] - RECIPIENTS / 10) <= 5 * (RECIPIENTS * 0.1 * 0.9) ** 0.5
    assert_read_once_a_pass(read, passes=1)


async def test_the_few_recipients_of_a_small_delivery_are_looked_up_in_a_large_list(large: str) -> None:
    async with connected(large) as connection:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute("update delivery set suppression_lists = '{addresses,others}' where delivery_id = 500")
        read = await excluded(connection, 500)
        await transaction.rollback()

    assert read.found == {7: OTHERS}
    assert read.recipients <= 10 * OTHERS
    assert 1 <= read.entry_look_ups <= 4 * OTHERS, "each in each list, and not the lists from end to end"


async def test_a_range_is_written_by_a_plan_that_hashes_the_excluded(large: str) -> None:
    """Which only a plan made for them does, and Postgres would not make one any more after some steps."""
    async with connected(large) as connection:
        settings = await connection.fetchval("select proconfig from pg_proc where proname = 'write_range'")

    assert "plan_cache_mode=force_custom_plan" in settings


async def test_who_is_excluded_already_makes_nobody_a_duplicate(database: str) -> None:
    """Someone is denied by his profile: another person with the same address is not, and gets the message."""
    async with connected(database) as connection:
        await connection.execute(
            """
            insert into recipient (delivery_id, recipient, address_problem, profile_id, address, attributes)
            select 1, r, 0, 'p' || r, 'a' || r % 2 || '@example.com', '{}' from generate_series(1, 6) r;
            insert into exclusion_log (delivery_id, recipient, cause) values (1, 1, 4), (1, 4, 4);
            """
        )
        await connection.execute("select exclude_duplicates(1)")
        rows = await connection.fetch("select recipient, cause from exclusion_log order by recipient")

    assert [tuple(row) for row in rows] == [(1, 4), (4, 4), (5, 3), (6, 3)]


async def test_any_share_of_any_audience_is_hit_within_the_rounding_of_statistics(database: str) -> None:
    """Over 200 draws: each within five standard deviations, all together as even as independent draws are, and none
    like another. The numbers are fixed, so it is the same every time."""
    random = Random(7)
    deviations: list[float] = []
    async with connected(database) as connection:
        await connection.execute(
            f"""
            insert into delivery (delivery_id, label, channel, feedback_mode, subject, html, body_text, from_address,
                from_name, reply_to_address, validity_period, state, creator, create_time, update_time)
            select d, '', 1, 1, '', '', '', '', '', '', '84 hours', 2, '', now(), now()
            from generate_series(1, {DRAWS}) d
            """
        )
        for delivery_id in range(1, DRAWS + 1):
            recipients, share = random.randrange(200, 1_500), random.uniform(0.02, 0.98)
            # Profiles as people number them, and some who have none.
            await connection.execute(
                "insert into recipient (delivery_id, recipient, address_problem, profile_id, address, attributes) "
                "select $1, r, 0, case when r % 10 = 0 then '' else ($3 + r)::text end, 'a' || r || '@example.com', '' "
                "from generate_series(1, $2::integer) r",
                delivery_id,
                recipients,
                random.randrange(10**9),
            )
            await connection.execute(
                "update delivery set control_group_share = $2 where delivery_id = $1", delivery_id, share
            )
            await connection.execute("select exclude_control_group($1)", delivery_id)
            drawn = await connection.fetchval(
                "select count(*) from exclusion_log where delivery_id = $1 and cause = 6", delivery_id
            )
            deviations.append((drawn - recipients * share) / (recipients * share * (1 - share)) ** 0.5)

    assert max(map(abs, deviations)) <= 5
    mean, square = sum(deviations) / DRAWS, sum(each**2 for each in deviations) / DRAWS
    assert abs(mean) <= 4 / DRAWS**0.5
    assert abs(square - 1) <= 4 * (2 / DRAWS) ** 0.5
