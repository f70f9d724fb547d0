"""What else comes with feedback: tracking facts, dead letters, and which MTA sources are connected."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import NamedTuple

import asyncpg

from delivery_service.store.queries import query


@dataclass(slots=True)
class TrackingColumns:
    """Tracking facts, one entry per column and fact; kinds as in the table tracking_log."""

    delivery_ids: list[int] = field(default_factory=list)
    recipients: list[int] = field(default_factory=list)
    kinds: list[int] = field(default_factory=list)
    event_times_us: list[int] = field(default_factory=list)
    urls: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.recipients)


class DeadLetter(NamedTuple):
    """An MTA event whose message does not exist. An outcome or kind of -1: not of that sort."""

    message_id: str
    source_id: str
    outcome: int
    tracking_kind: int
    event_time_us: int
    smtp_code: int
    diagnostic: str
    detail: str


class FeedbackStore:
    """Writes and reads them."""

    def __init__(self, pool: asyncpg.Pool, dead_letters_max: int, source_silence: timedelta) -> None:
        self._pool = pool
        self._dead_letters_max = dead_letters_max
        self._source_silence = source_silence

    async def apply_tracking(self, facts: TrackingColumns, now: datetime) -> list[int]:
        """Applies facts, each exactly once; gives the indexes of those whose message does not exist."""
        order = sorted(range(len(facts)), key=facts.delivery_ids.__getitem__)
        missing = await self._pool.fetchval(
            query("apply_tracking"),
            [facts.delivery_ids[i] for i in order],
            [facts.recipients[i] for i in order],
            [facts.kinds[i] for i in order],
            [facts.event_times_us[i] for i in order],
            [facts.urls[i] for i in order],
            now,
        )
        return [order[i - 1] for i in missing or ()]

    async def add_dead_letters(self, letters: Sequence[DeadLetter], now: datetime) -> None:
        """Adds them; beyond the limit the oldest go."""
        if not letters:
            return
        message_ids, source_ids, outcomes, kinds, times, codes, diagnostics, details = map(
            list, zip(*letters, strict=True)
        )
        await self._pool.execute(
            query("add_dead_letters"),
            message_ids,
            source_ids,
            outcomes,
            kinds,
            times,
            now,
            codes,
            diagnostics,
            details,
            self._dead_letters_max,
        )

    async def list_dead_letters(self, below: int, limit: int) -> list[asyncpg.Record]:
        """The newest `limit` with an id below `below`."""
        rows: list[asyncpg.Record] = await self._pool.fetch(query("list_dead_letters"), below, limit)
        return rows

    async def report_sources(self, replica_id: str, source_ids: list[str], now: datetime) -> None:
        """Replaces what this replica of FeedbackService has connected."""
        await self._pool.execute(query("report_sources"), replica_id, source_ids, now, self._source_silence)

    async def sources_connected(self, now: datetime) -> int:
        """MTA sources connected to any replica that reported lately."""
        return int(await self._pool.fetchval(query("sources_connected"), now, self._source_silence))
