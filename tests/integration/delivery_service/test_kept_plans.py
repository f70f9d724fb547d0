"""Connections that keep their plans: what was planned for a young installation is right for a large delivery, too.

A plan is made again only when the tables are analysed, which autovacuum does minutes later, or never.
"""

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import asyncpg
import pytest

from delivery_service.domain.identifiers import RECIPIENTS_PER_PART as PART
from delivery_service.domain.outcome import Outcome
from delivery_service.store.database import RELAY_PLANS, WRITER_PLANS
from delivery_service.store.observations import ObservationColumns
from delivery_service.store.queries import query
from tests.support.postgres import DatabaseFactory, connected
from tests.support.rows_read import rows_read
from tests.support.seeding import seed_delivery

SMALL, LARGE = 1, 2
RECIPIENTS: Final = 100_000
BARRED: Final = 20_000
SLOTS: Final = 4
TIME_US: Final = 1_800_000_000_000_000
NOW: Final = datetime.now(UTC)

_A_SMALL_WORLD: Final = """
insert into relay_part (delivery_id, part, prepared_count) values (1, 0, 9);
insert into denylist (channel, kind, value, denied, cause, change_time)
values (1, 1, 'x@y.example', true, 1, now()), (1, 2, 'x', true, 2, now());
insert into address_health (channel, address, domain, status, update_time)
values (1, 'x@y.example', 'y.example', 3, now());
analyze
"""
_A_LARGE_DELIVERY: Final = f"""
insert into delivery select (jsonb_populate_record(d, '{{"delivery_id": {LARGE}}}')).* from delivery d;
insert into recipient (delivery_id, recipient, address_problem, profile_id, address, attributes)
select {LARGE}, r, 0, 'profile' || r, 'p' || r || '@d' || r % 50 || '.example', '{{}}'
from generate_series(1, {RECIPIENTS}) r;
insert into send_log (delivery_id, recipient, outcome, event_time, update_time)
select {LARGE}, r, 0, now(), now() from generate_series(1, {RECIPIENTS}) r;
insert into relay_part (delivery_id, part, prepared_count)
select {LARGE}, r / {PART}, count(*) from generate_series(1, {RECIPIENTS}) r group by 2;
insert into delivery_counter (delivery_id, slot, revision, prepared)
select {LARGE}, part % {SLOTS}, 1, sum(prepared_count) from relay_part where delivery_id = {LARGE} group by 2;
insert into denylist (channel, kind, value, denied, cause, change_time)
select 1, kind, 'denied' || n, true, 1, now() from generate_series(1, {BARRED}) n, generate_series(1, 2) kind;
insert into address_health (channel, address, domain, status, update_time)
select 1, 'q' || n || '@d.example', 'd.example', 3, now() from generate_series(1, {BARRED}) n
"""


def relay_statements(delivery_id: int, part: int) -> dict[str, tuple[Any, ...]]:
    """On a part. What they may be bound by: the part, twice."""
    first, end = part * PART, (part + 1) * PART
    return {
        "claim_parts": (delivery_id, "me", timedelta(seconds=60), 4, NOW),
        "read_part": (delivery_id, first, end, 1),
        "read_part_apart": (delivery_id, first, end, 1, ["d1.example"]),
        "prepared_of_part": (delivery_id, first, end),
        "release_part": (delivery_id, part, 0, timedelta(), first, end, 0, 0, 0),
    }


def apply_statements(delivery_id: int, first: int, number: int) -> dict[str, tuple[Any, ...]]:
    """On so many recipients from one on, each statement on others."""
    slot = first // PART % SLOTS
    delivered = ObservationColumns.without_detail(
        delivery_id, list(range(first, first + number)), Outcome.DELIVERED, [TIME_US] * number
    )
    lost = ObservationColumns.without_detail(delivery_id, delivered.recipients, Outcome.RELAYED, [TIME_US] * number)
    behind = first + number
    return {
        "apply_slot": (delivery_id, slot, NOW, *delivered.statement_values()),
        "keep_late": ([delivery_id], [slot], [number], NOW, *lost.statement_values()),
        "apply_relayed": (delivery_id, slot, NOW, behind, [TIME_US] * number, 0),
        "apply_relayed_at_once": (delivery_id, slot, NOW, behind + number, number, TIME_US, 0),
    }


@pytest.fixture(params=[1, 3, 9])
async def young(request: pytest.FixtureRequest, database_factory: DatabaseFactory) -> AsyncIterator[str]:
    """A database with one delivery of so many recipients, analysed."""
    async with database_factory.fresh() as dsn:
        await seed_delivery(dsn, SMALL, list(range(1, request.param + 1)), slots=SLOTS)
        async with connected(dsn) as connection:
            await connection.execute(_A_SMALL_WORLD)
        yield dsn


async def most_read(connection: asyncpg.Connection, statements: dict[str, tuple[Any, ...]]) -> dict[str, int]:
    """The most rows that each reads of any table."""
    most = {}
    for name, arguments in statements.items():
        transaction = connection.transaction()
        await transaction.start()
        before = await rows_read(connection)
        await connection.fetch(query(name), *arguments)
        after = await rows_read(connection)
        await transaction.commit()
        most[name] = max(after[table] - before[table] for table in after)
    return most


def compared_in_vain(plan: dict[str, Any]) -> int:
    """The pairs of rows that joins have looked at for nothing."""
    own = plan.get("Rows Removed by Join Filter", 0) * plan.get("Actual Loops", 1)
    return int(own + sum(map(compared_in_vain, plan.get("Plans", []))))


async def test_plans_of_a_young_installation_are_right_for_a_large_delivery(young: str) -> None:
    pool = {"max_parallel_workers_per_gather": "0", "jit": "off"}
    relaying = await asyncpg.connect(young, server_settings={**pool, **RELAY_PLANS})
    writing = await asyncpg.connect(young, server_settings=dict(WRITER_PLANS))
    try:
        await relaying.execute(f"prepare kept (bigint, integer, integer, smallint) as {query('read_part')}")
        await relaying.execute(f"execute kept ({SMALL}, 0, {PART}, 1)")
        await most_read(relaying, relay_statements(SMALL, 0))
        await most_read(writing, apply_statements(SMALL, 1, 1))
        async with connected(young) as connection:
            await connection.execute(_A_LARGE_DELIVERY)

        read = await most_read(relaying, relay_statements(LARGE, 40))
        read |= await most_read(writing, apply_statements(LARGE, 60 * PART, PART // 4))
        explained = await relaying.fetchval(
            f"explain (analyze, format json) execute kept ({LARGE}, {41 * PART}, {42 * PART}, 1)"
        )
    finally:
        await relaying.close()
        await writing.close()

    assert {name: rows for name, rows in read.items() if rows > 3 * PART} == {}
    assert compared_in_vain(json.loads(explained)[0]["Plan"]) == 0
    async with connected(young) as connection:
        outcomes = await connection.fetch(
            f"select outcome, count(*) as n from send_log where delivery_id = {LARGE} group by 1 order by 1"
        )
    assert [(row["outcome"], row["n"]) for row in outcomes] == [
        (Outcome.PREPARED, RECIPIENTS - 3 * (PART // 4)),
        (Outcome.RELAYED, 2 * (PART // 4)),
        (Outcome.DELIVERED, PART // 4),
    ]
