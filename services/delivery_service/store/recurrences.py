"""Recurring deliveries, their occurrences and their totals in Postgres."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Final, NamedTuple

import asyncpg

from delivery_service.domain.kpis import Counts
from delivery_service.domain.outcome import Outcome
from delivery_service.domain.recurrence import OccurrenceState
from delivery_service.store.queries import query

FIRST_PAGE: Final = datetime(9999, 12, 31)  # noqa: DTZ001  # a local time
"""After every nominal time: where a list that runs from the newest begins."""


class NewOccurrence(NamedTuple):
    """An occurrence that has come, as it is recorded; `child_id` is the id of the child that it will have."""

    local_time: datetime
    due_time: datetime
    state: OccurrenceState
    period_date: date | None
    child_id: int


@dataclass(frozen=True, slots=True)
class RecordedOccurrence:
    """An occurrence as it stands."""

    local_time: datetime
    due_time: datetime
    state: OccurrenceState
    child_id: int
    update_time: datetime


@dataclass(frozen=True, slots=True)
class Totals:
    """All children of a recurring delivery taken together: messages add up, people are counted once."""

    children: int
    skipped: int
    counts: Counts
    unique_opened: int
    unique_clicked: int
    opens: int
    clicks: int
    children_without_log: int


class Recurrences:
    """Every step may be repeated, by any replica: each occurrence and each child is there once."""

    def __init__(self, pool: asyncpg.Pool, long_statement_timeout_seconds: float) -> None:
        self._pool = pool
        self._long_statement_timeout_seconds = long_statement_timeout_seconds

    async def due(self, now: datetime, limit: int) -> list[tuple[int, datetime | None]]:
        """Recurring deliveries with an occurrence by now, and when it is due (None: not worked out yet)."""
        rows = await self._pool.fetch(query("recurring_due"), now, limit)
        return [(row["delivery_id"], row["next_occurrence_time"]) for row in rows]

    async def record(
        self,
        parent_id: int,
        seen_next_time: datetime | None,
        occurrences: Sequence[NewOccurrence],
        next_time: datetime | None,
        now: datetime,
    ) -> bool:
        """Records occurrences that have come, and when the next one is due (None: there is none).

        False: things have changed meanwhile.
        """
        columns = [list(column) for column in zip(*occurrences, strict=True)] or [[], [], [], [], []]
        return bool(
            await self._pool.fetchval(query("record_occurrences"), parent_id, seen_next_time, *columns, next_time, now)
        )

    async def without_child(self, limit: int) -> list[tuple[int, datetime]]:
        """(parent, nominal time) of occurrences that are due and wait for their child."""
        rows = await self._pool.fetch(query("occurrences_due"), limit)
        return [(row["delivery_id"], row["local_time"]) for row in rows]

    async def spawn(self, parent_id: int, local_time: datetime, now: datetime) -> OccurrenceState | None:
        """Makes the child of an occurrence, if it is to have one of its own. None: someone else did."""
        state = await self._pool.fetchval(query("spawn_child"), parent_id, local_time, now)
        return None if state is None else OccurrenceState(state)

    async def to_confirm(self, now: datetime, limit: int) -> list[int]:
        """Children in READY that the system confirms."""
        rows = await self._pool.fetch(query("children_to_confirm"), now, limit)
        return [row["delivery_id"] for row in rows]

    async def out_of_time(self, now: datetime, limit: int) -> list[tuple[int, int]]:
        """(child, version) of children in READY that may not be confirmed any more."""
        rows = await self._pool.fetch(query("children_out_of_time"), now, limit)
        return [(row["delivery_id"], row["version"]) for row in rows]

    async def finish(self, now: datetime) -> list[int]:
        """Finishes recurring deliveries without an occurrence to come; gives their ids."""
        rows = await self._pool.fetch(query("finish_recurring"), now)
        return [row["delivery_id"] for row in rows]

    async def page(
        self, parent_id: int, states: list[OccurrenceState], before: datetime, limit: int
    ) -> list[RecordedOccurrence]:
        """The newest `limit` occurrences in one of these states (none given: any) before a nominal time."""
        rows = await self._pool.fetch(query("list_occurrences"), parent_id, before, states, limit)
        return [
            RecordedOccurrence(
                row["local_time"], row["due_time"], OccurrenceState(row["state"]), row["child_id"], row["update_time"]
            )
            for row in rows
        ]

    async def totals(self, parent_id: int) -> Totals:
        """Counts over all children, in one snapshot. May take long: it reads their opens and clicks."""
        async with self._pool.acquire() as connection, connection.transaction():
            timeout_ms = int(self._long_statement_timeout_seconds * 1_000)
            await connection.execute("select set_config('statement_timeout', $1, true)", str(timeout_ms))
            row = await connection.fetchrow(query("recurrence_totals"), parent_id)
        assert row is not None
        return Totals(
            children=row["children"],
            skipped=row["skipped"],
            counts=Counts({outcome: int(row[outcome.name.lower()] or 0) for outcome in Outcome}),
            unique_opened=row["unique_opened"],
            unique_clicked=row["unique_clicked"],
            opens=row["opens"],
            clicks=row["clicks"],
            children_without_log=row["children_without_log"],
        )
