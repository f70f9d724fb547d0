"""Retention: ranges of partitions, made ahead of time and dropped as a whole. One replica at a time is at it.

The catalog itself says how far a range has come, so whoever goes on needs to know nothing of who was stopped.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import asyncpg

from delivery_service.domain.retention import NewRange, OpenRange, RangeKind
from delivery_service.store.database import DatabaseSettings, close_quietly, connect_worker
from delivery_service.store.queries import query

_ANNOUNCE: Final[Mapping[RangeKind, str]] = {
    RangeKind.LOG: query("announce_log_drop"),
    RangeKind.DELIVERY: query("announce_delivery_drop"),
}


@dataclass(frozen=True, slots=True)
class Range:
    """Deliveries with ids from `begin_id` until `end_id`."""

    kind: RangeKind
    begin_id: int
    end_id: int
    suffix: str


class Retention:
    """`held` gives what may be done while no other replica does it."""

    def __init__(self, database: DatabaseSettings, lock_timeout_seconds: float, *, concurrently: bool) -> None:
        self._database = database
        self._lock_timeout_seconds = lock_timeout_seconds
        self._concurrently = concurrently

    @asynccontextmanager
    async def held(self) -> AsyncIterator["HeldRetention | None"]:
        """None: another replica is at it. A connection of its own, with whose end the lock goes, however it ends."""
        connection = await connect_worker(self._database)
        try:
            # Whoever waits for a table makes everybody wait behind: for a moment only, and it tries again later.
            milliseconds = str(int(self._lock_timeout_seconds * 1_000))
            await connection.execute("select set_config('lock_timeout', $1, false)", milliseconds)
            locked = await connection.fetchval(query("lock_retention"))
            yield HeldRetention(connection, concurrently=self._concurrently) if locked else None
        finally:
            await close_quietly(connection)


class HeldRetention:
    """Every step is one statement, and may be repeated."""

    def __init__(self, connection: asyncpg.Connection, *, concurrently: bool) -> None:
        self._connection = connection
        self._concurrently = concurrently

    async def open_ranges(self) -> list[OpenRange]:
        """The last range of each kind."""
        rows = await self._connection.fetch(query("open_ranges"))
        return [OpenRange(RangeKind(row["kind"]), row["begin_id"], row["newest_id"]) for row in rows]

    async def add(self, kind: RangeKind, new: NewRange) -> bool:
        """Bounds the open range, and opens the next one."""
        return bool(await self._connection.fetchval(query("add_range"), kind, new.end_id, new.suffix))

    async def before(self, kind: RangeKind, end_id: int) -> list[Range]:
        """The ranges that end before this id and are not being dropped, oldest first."""
        rows = await self._connection.fetch(query("ranges_before"), kind, end_id)
        return [Range(kind, row["begin_id"], row["end_id"], row["suffix"]) for row in rows]

    async def announce(self, dropped: Range, before: datetime, now: datetime) -> int | None:
        """From now on readers are told that it is gone. Else a delivery that keeps it: not over since `before`."""
        statement = _ANNOUNCE[dropped.kind]
        keeper: int | None = await self._connection.fetchval(statement, dropped.begin_id, dropped.end_id, before, now)
        return keeper

    async def drop_step(self) -> bool:
        """One step of dropping what was announced; False: nothing is left to drop."""
        row = await self._connection.fetchrow(query("range_to_drop"))
        if row is None:
            return False
        arguments = row["kind"], row["suffix"], self._concurrently
        statement = await self._connection.fetchval(query("next_drop_step"), *arguments)
        if statement is None:
            await self._connection.execute(query("forget_range"), row["kind"], row["begin_id"])
        else:
            await self._connection.execute(statement)
        return True

    async def analyze(self) -> None:
        """Statistics of the tables as wholes, for plans that are made for any partition."""
        for row in await self._connection.fetch(query("partition_tables")):
            await self._connection.execute(row["statement"])
