"""The transition log as a feed: how far it has come, and what is behind a place in it, in bounded pages.

Retention commits `log_dropped_time` before it drops anything. Each statement reads it in the snapshot of its rows:
where it is unset, the rows are all there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import asyncpg

from delivery_service.domain.log_position import LogPosition, Place
from delivery_service.domain.problems import DeliveryNotFound, LogOutOfRange
from delivery_service.store.queries import query
from delivery_service.store.send_logs import Filters, SendLog, arrays, send_log_of


@dataclass(frozen=True, slots=True)
class LogState:
    """How far a delivery's log has come; all of it in one snapshot."""

    slot_revisions: tuple[int, ...]
    settled: bool
    log_dropped_time: datetime | None

    def require_kept(self, delivery_id: int, position: LogPosition) -> None:
        """LogOutOfRange unless everything behind this position is still there, and the position is of this log."""
        if position.is_ahead_of(self.slot_revisions):
            raise LogOutOfRange(delivery_id, None)
        if self.log_dropped_time is not None and not position.covers(self.slot_revisions):
            raise LogOutOfRange(delivery_id, self.log_dropped_time)


@dataclass(frozen=True, slots=True)
class LogPage:
    """Some transitions of one slot, and the place behind them."""

    rows: list[asyncpg.Record]
    place: Place


@dataclass(frozen=True, slots=True)
class ChangedPage:
    """The send logs that some transitions were the last ones of, and the place behind those."""

    send_logs: list[SendLog]
    place: Place


class TransitionLog:
    """Reads the transition logs of deliveries."""

    def __init__(self, pool: asyncpg.Pool, rows_max: int) -> None:
        self._pool = pool
        self._rows_max = rows_max

    async def states(self, delivery_ids: Sequence[int]) -> dict[int, LogState]:
        """How far the logs of those that exist have come."""
        rows = await self._pool.fetch(query("log_states"), delivery_ids)
        return {
            row["delivery_id"]: LogState(tuple(row["slot_revisions"]), row["settled"], row["log_dropped_time"])
            for row in rows
        }

    async def state(self, delivery_id: int) -> LogState:
        """How far one log has come; DeliveryNotFound."""
        found = await self.states([delivery_id])
        if delivery_id not in found:
            raise DeliveryNotFound(delivery_id)
        return found[delivery_id]

    async def page(self, delivery_id: int, slot: int, after: Place, through: int) -> LogPage:
        """What is behind that place of the slot, through that revision: a bounded number of rows, ending at the end of
        a revision (unless one alone is more than the bound, which no writer makes). LogOutOfRange, DeliveryNotFound."""
        rows = await self._pool.fetch(query("log_page"), *self._bounds(delivery_id, slot, after, through))
        rows = _kept(delivery_id, rows)
        if len(rows) <= self._rows_max:
            return LogPage(rows, Place(through))
        last = rows.pop()
        if rows[0]["revision"] == last["revision"]:
            return LogPage(rows, Place(last["revision"], rows[-1]["recipient"]))
        while rows[-1]["revision"] == last["revision"]:
            rows.pop()
        return LogPage(rows, Place(rows[-1]["revision"]))

    async def changed(self, delivery_id: int, slot: int, after: Place, through: int, filters: Filters) -> ChangedPage:
        """The present state of recipients whose last change through that revision is among the next transitions, if it
        passes the filters. LogOutOfRange, DeliveryNotFound."""
        bounds = self._bounds(delivery_id, slot, after, through)
        passing = arrays(filters.outcomes, filters.failure_types, filters.reasons)
        rows = _kept(delivery_id, await self._pool.fetch(query("changed_send_logs"), *bounds, *passing))
        send_logs = [send_log_of(row) for row in rows if row["recipient"] is not None]
        if len(rows) <= self._rows_max:
            return ChangedPage(send_logs, Place(through))
        return ChangedPage(send_logs, Place(rows[-1]["revision"], rows[-1]["place"]))

    def _bounds(self, delivery_id: int, slot: int, after: Place, through: int) -> tuple[int, ...]:
        return delivery_id, slot, after.from_revision, after.recipient, through, self._rows_max + 1


def _kept(delivery_id: int, rows: list[asyncpg.Record]) -> list[asyncpg.Record]:
    """The rows of a page, without the one that stands for none."""
    if not rows:
        raise DeliveryNotFound(delivery_id)
    if rows[0]["log_dropped_time"] is not None:
        raise LogOutOfRange(delivery_id, rows[0]["log_dropped_time"])
    return rows if rows[0]["revision"] is not None else []
