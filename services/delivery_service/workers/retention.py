"""Drops what is kept long enough, a range of deliveries at a time, and makes ranges ahead of time.

Invariants:
- A range is dropped as a whole or not at all: once every delivery in it is over for as long as it is kept. One that
  stays open keeps its whole range; that is logged, and a metric.
- Readers are told before the first row is gone (`log_dropped_time`, committed by itself).
- Each step is one statement that the catalog tells to be next: a process may be killed between any two of them, or in
  the middle of one, and any replica goes on.
"""

import logging
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Final

import asyncpg

from delivery_service.domain.identifiers import creation_time, first_id_at
from delivery_service.domain.retention import Period, RangeKind, next_range
from delivery_service.metrics import Metrics
from delivery_service.settings import Settings
from delivery_service.store.database import UNAVAILABLE_ERRORS
from delivery_service.store.retention import HeldRetention, Retention
from service_runtime.clock import Clock

log = logging.getLogger(__name__)

_ANALYZE_EVERY: Final = timedelta(days=1)


class RetentionWorker:
    """Looks every `retention_check_seconds`, or at once if time has passed otherwise; one replica works."""

    def __init__(self, retention: Retention, settings: Settings, clock: Clock, metrics: Metrics) -> None:
        self._retention = retention
        self._check = timedelta(seconds=settings.retention_check_seconds)
        self._ahead = timedelta(days=settings.retention_ahead_days)
        self._periods: Mapping[RangeKind, Period] = {
            RangeKind.LOG: Period(
                timedelta(days=settings.retention_log_days), timedelta(days=settings.retention_log_span_days)
            ),
            RangeKind.DELIVERY: Period(
                timedelta(days=settings.retention_delivery_days), timedelta(days=settings.retention_delivery_span_days)
            ),
        }
        self._clock = clock
        self._metrics = metrics
        self._looked: datetime | None = None
        self._analyzed: datetime | None = None

    async def work(self) -> bool:
        """One look; False always: there is nothing more until some time has passed."""
        now = self._clock.now()
        if self._looked is not None and timedelta() <= now - self._looked < self._check:
            return False
        async with self._retention.held() as held:
            if held is not None:
                await self._try(held, now)
        self._looked = now
        return False

    async def _try(self, held: HeldRetention, now: datetime) -> None:
        """A look that fails ends no process: what is due stays so until the next one."""
        try:
            await self._look(held, now)
        except asyncpg.LockNotAvailableError:
            # Not at once again: others waited behind us. Someone is in a long transaction, as a dump is.
            log.warning("a table is in use for long; retention goes on later", extra={"action": "retention"})
        except UNAVAILABLE_ERRORS:
            raise
        except asyncpg.PostgresError as error:
            log.exception("retention failed", extra={"action": "retention", "error": type(error).__name__})

    async def _look(self, held: HeldRetention, now: datetime) -> None:
        await self.add_ranges(held, now)
        while await held.drop_step():  # what someone was stopped at
            pass
        for kind in RangeKind:
            await self._drop(held, kind, now)
        if self._analyzed is None or now - self._analyzed >= _ANALYZE_EVERY:
            await held.analyze()
            self._analyzed = now

    async def add_ranges(self, held: HeldRetention, now: datetime) -> None:
        """Makes the next range of each kind if its time is near."""
        for opened in await held.open_ranges():
            new = next_range(opened, self._periods[opened.kind].span, now, self._ahead)
            if new is not None and await held.add(opened.kind, new):
                log.info(
                    "added a range of partitions",
                    extra={"action": "add_range", "kind": opened.kind.name, "suffix": new.suffix},
                )

    async def _drop(self, held: HeldRetention, kind: RangeKind, now: datetime) -> None:
        """Drops every range of a kind that may be."""
        before = now - self._periods[kind].kept
        overdue = timedelta()
        for due in await held.before(kind, first_id_at(before)):
            keeper = await held.announce(due, before, now)
            if keeper is not None:
                overdue = max(overdue, before - creation_time(due.end_id))
                log.warning(
                    "a delivery that is not over keeps its range from being dropped",
                    extra={"action": "keep_range", "kind": kind.name, "suffix": due.suffix, "delivery_id": keeper},
                )
                continue
            while await held.drop_step():
                pass
            self._metrics.ranges_dropped.labels(kind.name).inc()
            log.info(
                "dropped a range of partitions",
                extra={"action": "drop_range", "kind": kind.name, "suffix": due.suffix},
            )
        self._metrics.range_overdue.labels(kind.name).set(overdue.total_seconds())
