"""What partitions cost the apply path: CPU of Postgres per event, for a few numbers of partitions, in turns.

    .venv/bin/python -m tests.bench.partitions [--rounds 15]

Each case is a database of its own on one server: not partitioned, or with that many partitions of every table. "large"
applies batches of 2,000 events to one slot of one delivery; "many" applies batches of 2,000 events to 1,000 deliveries,
two each, which is what statements cost rather than rows.
"""

import argparse
import asyncio
import statistics
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import asyncpg

from delivery_service.domain.outcome import Outcome
from delivery_service.store import migrate as migration
from delivery_service.store.database import WRITER_PLANS
from delivery_service.store.observations import ObservationColumns
from delivery_service.store.queries import query
from tests.support.postgres import DatabaseFactory, connected, server

CASES: Final = (0, 2, 5, 12, 48)
"""Partitions per table; 0: the schema before it had any."""
BATCH, MANY, BATCHES = 2_000, 1_000, 3
_LAST_WITHOUT: Final = 28
_MIGRATIONS: Final = migration.migrations()


def cpu_seconds(pid: int) -> float:
    """How long a process has run, to the nanosecond."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


@asynccontextmanager
async def case(server_dsn: str, partitions: int) -> AsyncIterator[asyncpg.Connection]:
    """A writer's connection to a database with so many partitions, and its deliveries: 1 the large one."""
    kept = {n: s for n, s in _MIGRATIONS.items() if partitions or n <= _LAST_WITHOUT}
    with patch.object(migration, "migrations", lambda: kept):
        async with DatabaseFactory.on(server_dsn) as databases, databases.fresh() as dsn:
            async with connected(dsn) as connection:
                if partitions > 2:  # of what the apply path touches alone: the other tables only take time to make
                    await connection.execute(
                        "delete from retained_table where table_name not in ('send_log', 'transition', "
                        "'late_observation', 'delivery', 'delivery_counter')"
                    )
                for kind in (1, 2) if partitions > 2 else ():
                    begin = await connection.fetchval(
                        "select begin_id from retention_range where kind = $1 and end_id is null", kind
                    )
                    for n in range(partitions - 2):
                        await connection.execute(
                            f"select add_range({kind}::smallint, {begin + ((n + 1) << 50)}, 'n{n}')"
                        )
                await connection.execute(
                    f"""
                    insert into delivery_counter (delivery_id, slot, prepared)
                    select 1, 0, {BATCH} union all select d, 0, 2 from generate_series(2, {MANY} + 1) d;
                    insert into send_log (delivery_id, recipient, outcome, event_time, update_time)
                    select 1, r, 0, now(), now() from generate_series(1, {BATCH}) r union all
                    select d, r, 0, now(), now() from generate_series(2, {MANY} + 1) d, generate_series(1, 2) r;
                    """
                )
                await connection.execute("vacuum analyze")
            writer = await asyncpg.connect(dsn, server_settings=WRITER_PLANS)
            try:
                yield writer
            finally:
                await writer.close()


def layers(large: bool, number: int) -> tuple[Any, ...]:
    """The arguments of apply_slots: each time with a later event time, so that every event wins."""
    times = [1_800_000_000_000_000 + number * 1_000_000] * BATCH
    recipients = list(range(1, BATCH + 1)) if large else [1, 2] * MANY
    columns = ObservationColumns.without_detail(1, recipients, Outcome.DEFERRED, times)
    if large:
        return [1], [0], *columns.layer_values([BATCH])
    return list(range(2, MANY + 2)), [0] * MANY, *columns.layer_values(list(range(2, BATCH + 1, 2)))


async def measure(writer: asyncpg.Connection, large: bool, number: int) -> float:
    """Microseconds of CPU per event."""
    pid = await writer.fetchval("select pg_backend_pid()")
    await writer.execute("vacuum send_log, delivery_counter")
    now = await writer.fetchval("select now()")
    begin = cpu_seconds(pid)
    for batch in range(BATCHES):
        ids, slots, *columns = layers(large, number * BATCHES + batch)
        lost = await writer.fetch(query("apply_slots"), ids, slots, now, *columns)
        assert not lost
    return (cpu_seconds(pid) - begin) / (BATCHES * BATCH) * 1e6


async def main(rounds: int) -> None:
    found: dict[tuple[bool, int], list[float]] = {(large, n): [] for large in (True, False) for n in CASES}
    async with AsyncExitStack() as stack:
        dsn = stack.enter_context(server())
        writers = {n: await stack.enter_async_context(case(dsn, n)) for n in CASES}
        for number in range(rounds + 1):
            for large, partitions in found:
                cost = await measure(writers[partitions], large, number)
                if number:  # the first one makes the plans
                    found[large, partitions].append(cost)
    for large in (True, False):
        for n in CASES:
            # What others do on the machine only ever adds: the lower quartile is nearest to the cost itself.
            cost, base = (statistics.quantiles(found[large, case], n=4)[0] for case in (n, 0))
            print(f"{'large' if large else 'many':6} {n:3} partitions: {cost:6.2f} us/event, x{base / cost:.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    asyncio.run(main(parser.parse_args().rounds))
