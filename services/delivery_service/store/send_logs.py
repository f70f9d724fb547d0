"""Reading send logs: pages with a bound on the rows read, and the timeline of one message."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

import asyncpg

from delivery_service.domain.outcome import FailureType, Outcome, Reason
from delivery_service.domain.problems import SendLogNotFound
from delivery_service.store.queries import query


@dataclass(frozen=True, slots=True)
class SendLog:
    """One row, with the recipient that it is about."""

    delivery_id: int
    recipient: int
    profile_id: str
    address: str
    outcome: Outcome
    failure_type: FailureType
    reason: Reason
    smtp_code: int
    enhanced_code: str
    diagnostic: str
    attempt: int
    event_time: datetime
    update_time: datetime


@dataclass(frozen=True, slots=True)
class Filters:
    """What to list. Empty types or reasons: any."""

    outcomes: frozenset[Outcome]
    failure_types: frozenset[FailureType] = frozenset()
    reasons: frozenset[Reason] = frozenset()
    address: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """Some send logs, and the recipient number to go on behind; None: that was all."""

    send_logs: list[SendLog]
    next_after: int | None


class SendLogs:
    """Reads the send logs of a delivery."""

    def __init__(self, pool: asyncpg.Pool, rows_scanned_per_page_max: int) -> None:
        self._pool = pool
        self._scan_max = rows_scanned_per_page_max

    async def page(self, delivery_id: int, after: int, filters: Filters, page_size: int) -> Page:
        """A page of at most `page_size`, reading at most a bounded number of rows behind recipient `after`."""
        if filters.address:
            rows = await self._pool.fetch(
                query("list_send_logs_by_address"),
                delivery_id,
                filters.address,
                after,
                *arrays(filters.outcomes, filters.failure_types, filters.reasons),
                page_size + 1,
            )
            send_logs = [send_log_of(row) for row in rows[:page_size]]
            return Page(send_logs, send_logs[-1].recipient if len(rows) > page_size else None)
        unfiltered = len(filters.outcomes) == len(Outcome) and not filters.failure_types and not filters.reasons
        scan = page_size + 1 if unfiltered else self._scan_max
        rows = await self._pool.fetch(
            query("list_send_logs"),
            delivery_id,
            after,
            scan,
            *arrays(filters.outcomes, filters.failure_types, filters.reasons),
            page_size + 1,
        )
        send_logs = [send_log_of(row) for row in rows[:page_size]]
        if len(rows) > page_size:
            return Page(send_logs, send_logs[-1].recipient)
        if unfiltered:
            return Page(send_logs, None)
        scanned = await self._pool.fetchrow(query("scanned_through"), delivery_id, after, scan)
        assert scanned is not None  # an aggregate
        return Page(send_logs, scanned["recipient"] if scanned["n"] == scan else None)

    async def get(self, delivery_id: int, recipient: int) -> SendLog:
        """One send log; SendLogNotFound."""
        row = await self._pool.fetchrow(query("get_send_log"), delivery_id, recipient)
        if row is None:
            raise SendLogNotFound(delivery_id, recipient)
        return send_log_of(row)

    async def timeline(self, delivery_id: int, recipient: int, limit: int) -> list[asyncpg.Record]:
        """The first `limit` facts known about the message, by event time."""
        rows: list[asyncpg.Record] = await self._pool.fetch(query("get_timeline"), delivery_id, recipient, limit)
        return rows


def arrays(*values: Iterable[int]) -> list[list[int]]:
    """Filters as a statement takes them."""
    return [sorted(value) for value in values]


def send_log_of(row: asyncpg.Record) -> SendLog:
    """A row of send_log, joined with its recipient."""
    return SendLog(
        delivery_id=row["delivery_id"],
        recipient=row["recipient"],
        profile_id=row["profile_id"],
        address=row["address"],
        outcome=Outcome(row["outcome"]),
        failure_type=FailureType(row["failure_type"]),
        reason=Reason(row["reason"]),
        smtp_code=row["smtp_code"],
        enhanced_code=row["enhanced_code"],
        diagnostic=row["diagnostic"],
        attempt=row["attempt"],
        event_time=row["event_time"],
        update_time=row["update_time"],
    )
