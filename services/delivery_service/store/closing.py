"""The end of deliveries in Postgres: what is due, who closes it, and its last changes."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

import asyncpg

from delivery_service.store.queries import query


@dataclass(frozen=True, slots=True)
class DeferredRow:
    """A message that still waits for a retry, with its last failure."""

    recipient: int
    failure_type: int
    reason: int
    smtp_code: int
    attempt: int
    enhanced_code: str
    diagnostic: str


class Closing:
    """`token` names this process: closing one delivery is leased to one process at a time."""

    def __init__(self, pool: asyncpg.Pool, token: UUID, lease: timedelta) -> None:
        self._pool = pool
        self._token = token
        self._lease = lease

    async def due(self, now: datetime, grace: timedelta, limit: int) -> list[int]:
        """Stopped deliveries with undecided messages, and those whose validity ended a grace ago."""
        rows = await self._pool.fetch(query("deliveries_to_close"), now, grace, limit)
        return [row["delivery_id"] for row in rows]

    async def claim(self, delivery_id: int) -> bool:
        """Takes or renews the lease. False: another process has it."""
        return await self._pool.fetchval(query("claim_closing"), delivery_id, self._token, self._lease) is not None

    async def has_open_parts(self, delivery_id: int) -> bool:
        """Whether a part may have messages that are PREPARED."""
        return bool(await self._pool.fetchval(query("has_open_parts"), delivery_id))

    async def last_recipient(self, delivery_id: int) -> int:
        """The greatest number of a send log; 0: there are none."""
        return int(await self._pool.fetchval(query("last_recipient"), delivery_id))

    async def deferred(self, delivery_id: int, first: int, last: int) -> list[DeferredRow]:
        """The rows of these recipients that are DEFERRED."""
        return [
            DeferredRow(*row.values())
            for row in await self._pool.fetch(query("deferred_rows"), delivery_id, first, last)
        ]

    async def finish_stop(self, delivery_id: int, now: datetime) -> bool:
        """A stopped delivery is decided. False: not yet, or done already."""
        return await self._pool.fetchval(query("finish_stop"), delivery_id, now) is not None

    async def close_validity(self, delivery_id: int, now: datetime) -> bool:
        """The validity period is dealt with; ends the sending too. False: not yet, or done already."""
        return await self._pool.fetchval(query("close_validity"), delivery_id, now) is not None

    async def settle(self, now: datetime, period: timedelta, limit: int) -> list[int]:
        """Settles deliveries whose last hand-over was that long ago; gives them."""
        rows = await self._pool.fetch(query("settle_deliveries"), now, period, limit)
        return [row["delivery_id"] for row in rows]
