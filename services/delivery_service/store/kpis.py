"""KPIs from Postgres: counters and slot revisions in one statement, so one exact point of the log."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from delivery_service.domain.identifiers import slot_bits
from delivery_service.domain.kpis import Counts, DeliveryKpis, Engagement, EngagementRates
from delivery_service.domain.lifecycle import Channel, DeliveryState
from delivery_service.domain.outcome import FAILING, Outcome
from delivery_service.domain.problems import DeliveryNotFound, LogDropped
from delivery_service.domain.status import FeedbackMode
from delivery_service.store.queries import query

_PARALLEL_WORKERS = 2
"""Beside the backend itself, for what reads all rows of a delivery."""


@dataclass(frozen=True, slots=True)
class Recount:
    """What a recount found: the sum of absolute differences (must be 0), and the rows counted."""

    drift: int
    recounted: int


class KpiStore:
    """Reads and refreshes KPIs."""

    def __init__(self, pool: asyncpg.Pool, long_statement_timeout_seconds: float) -> None:
        self._pool = pool
        self._long_statement_timeout_seconds = long_statement_timeout_seconds

    async def get(self, delivery_ids: Sequence[int]) -> dict[int, DeliveryKpis]:
        """The KPIs of those that exist, all in one snapshot."""
        rows = await self._pool.fetch(query("get_kpis"), delivery_ids)
        return {row["delivery_id"]: _kpis(row) for row in rows}

    async def revisions(self, delivery_ids: Sequence[int]) -> dict[int, int]:
        """The revision of those that exist: what a watch feed polls."""
        rows = await self._pool.fetch(query("revisions"), delivery_ids)
        return {row["delivery_id"]: row["revision"] for row in rows}

    async def compute_statistics(self, delivery_id: int, now: datetime) -> Recount | None:
        """Recounts rows against counters and repairs a drift. None: another run holds the delivery. LogDropped, with
        nothing touched, if the rows are beyond the retention."""
        async with long_transaction(self._pool, self._long_statement_timeout_seconds) as connection:
            if not await connection.fetchval(query("lock_recount"), delivery_id):
                return None
            slot_count = await connection.fetchval(query("slot_count"), delivery_id)
            # Not fetchrow: a statement whose rows are limited is never parallel.
            (row,) = await connection.fetch(query("recount"), delivery_id, slot_count, slot_bits(slot_count))
            # Looked at behind the count: if rows were being dropped, that was said before.
            kept = await connection.fetchrow(query("log_dropped_time"), delivery_id)
            if kept is None:
                raise DeliveryNotFound(delivery_id)
            if kept["log_dropped_time"] is not None:
                raise LogDropped(delivery_id, kept["log_dropped_time"], "compute its statistics")
            recounted, *differences = row.values()
            if row["slots"]:
                await connection.execute(query("correct_counters"), delivery_id, now, *differences)
        drift = sum(abs(counted - found) for counted, found in zip(row["counted"], row["found"], strict=True))
        return Recount(drift, recounted)

    async def refresh_engagement(self, delivery_id: int, now: datetime) -> None:
        """Counts opens and clicks anew."""
        async with long_transaction(self._pool, self._long_statement_timeout_seconds) as connection:
            await connection.execute(query("refresh_engagement"), delivery_id, now)

    async def mark_outdated_engagement(self, now: datetime) -> None:
        """Finds deliveries whose delivered have changed since opens and clicks were counted."""
        await self._pool.execute(query("mark_outdated_engagement"), now)

    async def stale_engagement(self, counted_before: datetime, limit: int) -> list[int]:
        """Deliveries whose opens and clicks changed since they were counted, if that was before this time."""
        rows = await self._pool.fetch(query("stale_engagement"), counted_before, limit)
        return [row["delivery_id"] for row in rows]


@asynccontextmanager
async def long_transaction(pool: asyncpg.Pool, timeout_seconds: float) -> AsyncIterator[PoolConnectionProxy]:
    """A transaction whose statements may take long, and use several CPUs: they read all rows of a delivery."""
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute(query("long_transaction"), str(int(timeout_seconds * 1_000)), str(_PARALLEL_WORKERS))
        yield connection


def _kpis(row: asyncpg.Record) -> DeliveryKpis:
    return DeliveryKpis(
        delivery_id=row["delivery_id"],
        channel=Channel(row["channel"]),
        state=DeliveryState(row["state"]),
        feedback_mode=FeedbackMode(row["feedback_mode"]),
        slot_revisions=tuple(row["slot_revisions"]),
        counts=Counts(
            by_outcome={outcome: row[outcome.name.lower()] for outcome in Outcome},
            hard={outcome: row[f"{outcome.name.lower()}_hard"] for outcome in FAILING},
            ignored={outcome: row[f"{outcome.name.lower()}_ignored"] for outcome in FAILING},
        ),
        validity_closed=row["validity_closed"],
        engagement=_engagement(row),
        commit_time=row["commit_time"],
        newest_event_time=row["newest_event_time"],
        settled=row["settled"],
    )


def _engagement(row: asyncpg.Record) -> Engagement:
    if row["opened"] is None:  # never prepared
        return Engagement()
    return Engagement(
        opened=row["opened"],
        clicked=row["clicked"],
        opens=row["opens"],
        clicks=row["clicks"],
        unsubscribed=row["unsubscribed"],
        unsubscribes=row["unsubscribes"],
        complained=row["complained"],
        complaints=row["complaints"],
        rates={
            mode: EngagementRates(
                row[f"opened_{mode.name.lower()}"],
                row[f"clicked_{mode.name.lower()}"],
                row[f"delivered_{mode.name.lower()}"],
                row[f"unsubscribed_{mode.name.lower()}"],
                row[f"complained_{mode.name.lower()}"],
            )
            for mode in FeedbackMode
        },
        as_of_time=row["as_of_time"],
    )
