"""Retries of deliveries that are over in Postgres: counted in one statement, made by another, copied by a worker."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

import asyncpg
import orjson

from delivery_service.domain.outcome import FailureType, Outcome, Reason
from delivery_service.store.kpis import long_transaction
from delivery_service.store.queries import query
from delivery_service.store.send_logs import arrays


@dataclass(frozen=True, slots=True)
class RetryFilter:
    """Which failed recipients. Empty types, reasons or domains: any."""

    outcomes: frozenset[Outcome]
    failure_types: frozenset[FailureType] = frozenset()
    reasons: frozenset[Reason] = frozenset()
    recipient_domains: frozenset[str] = frozenset()

    @property
    def columns(self) -> tuple[list[int], list[int], list[int], list[str]]:
        """As statements take it."""
        outcomes, failure_types, reasons = arrays(self.outcomes, self.failure_types, self.reasons)
        return outcomes, failure_types, reasons, sorted(self.recipient_domains)


class FailureVolume(NamedTuple):
    """How many recipients failed in one way."""

    failure_type: FailureType
    reason: Reason
    volume: int


@dataclass(frozen=True, slots=True)
class Retry:
    """What a request has made, and what it was told."""

    retry_id: int
    retry_filter: RetryFilter
    failures: Sequence[FailureVolume]
    undecided: int


class Retries:
    """Counts and makes them."""

    def __init__(self, pool: asyncpg.Pool, long_statement_timeout_seconds: float) -> None:
        self._pool = pool
        self._long_statement_timeout_seconds = long_statement_timeout_seconds

    async def count(
        self, delivery_id: int, recipient_count: int, retry_filter: RetryFilter
    ) -> list[FailureVolume] | None:
        """The failed recipients that pass the filter, by failure type and reason, the largest first. None: another
        call counts the same delivery."""
        async with long_transaction(self._pool, self._long_statement_timeout_seconds) as connection:
            if not await connection.fetchval(query("lock_retry"), delivery_id):
                return None
            rows = await connection.fetch(query("count_failed"), delivery_id, recipient_count, *retry_filter.columns)
        return [_volume(*row.values()) for row in rows]

    async def make(
        self, delivery_id: int, request_id: str, retry: Retry, label: str, creator: str, now: datetime
    ) -> int | None:
        """Makes the draft, whose recipients are copied in the background. Gives its id, or that of the draft which the
        same request has made before; None: the id is taken."""
        made: int | None = await self._pool.fetchval(
            query("retry_failed"),
            delivery_id,
            request_id,
            retry.retry_id,
            label,
            creator,
            now,
            *retry.retry_filter.columns,
            orjson.dumps([list(each) for each in retry.failures]).decode(),
            retry.undecided,
        )
        return made

    async def known(self, delivery_id: int, request_id: str) -> Retry | None:
        """What a request has made, if it did."""
        row = await self._pool.fetchrow(query("get_retry"), delivery_id, request_id)
        if row is None:
            return None
        return Retry(
            row["retry_id"],
            RetryFilter(
                frozenset(map(Outcome, row["outcomes"])),
                frozenset(map(FailureType, row["failure_types"])),
                frozenset(map(Reason, row["reasons"])),
                frozenset(row["recipient_domains"]),
            ),
            [_volume(*each) for each in orjson.loads(row["failures"])],
            row["undecided_count"],
        )

    async def retries_of(self, delivery_id: int, but: int, limit: int) -> list[int]:
        """Drafts and deliveries that retries of this delivery made, one of them aside; oldest first."""
        rows = await self._pool.fetch(query("retries_of"), delivery_id, but, limit)
        return [row["delivery_id"] for row in rows]


def _volume(failure_type: int, reason: int, volume: int) -> FailureVolume:
    return FailureVolume(FailureType(failure_type), Reason(reason), volume)
