"""Refreshes opens and clicks of deliveries where they changed, once they are older than the period."""

import logging
from collections.abc import Callable
from datetime import timedelta

import asyncpg

from delivery_service.store.kpis import KpiStore
from service_runtime.clock import Clock

log = logging.getLogger(__name__)

_LISTED_MAX = 100


class EngagementWorker:
    """`changed` is called with each delivery refreshed, to wake watchers. A period of 0 means live.

    Facts mark their delivery as stale when they are committed. What moves the base of the rates alone, the delivered,
    does not (it would cost the hot path a row): that is looked for every `check_seconds`.
    """

    def __init__(
        self, kpis: KpiStore, period: timedelta, check_seconds: float, clock: Clock, changed: Callable[[int], None]
    ) -> None:
        self._kpis = kpis
        self._period = period
        self._check_seconds = check_seconds
        self._checked: float | None = None
        self._clock = clock
        self._changed = changed

    async def work(self) -> bool:
        """Refreshes what is due; True if there may be more."""
        now, moment = self._clock.now(), self._clock.monotonic()
        if self._checked is None or moment - self._checked >= self._check_seconds:
            await self._kpis.mark_outdated_engagement(now)
            self._checked = moment
        due = await self._kpis.stale_engagement(now - self._period, _LISTED_MAX)
        for delivery_id in due:
            try:
                await self._kpis.refresh_engagement(delivery_id, now)
            except asyncpg.QueryCanceledError:  # too long for now: the other deliveries go on
                log.warning("a refresh took too long", extra={"action": "refresh", "delivery_id": delivery_id})
                continue
            self._changed(delivery_id)
        return len(due) == _LISTED_MAX
