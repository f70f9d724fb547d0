"""Alerts: listed, and watched as they are raised."""

import asyncio
import logging
from collections.abc import AsyncGenerator
from typing import Final

from campaign.delivery.v1 import alert_pb2 as pb
from delivery_service.api.validation import delivery_id_of, page_size_of, page_token, place_of
from delivery_service.convert import timestamp
from delivery_service.domain.problems import LimitReached
from delivery_service.settings import Settings
from delivery_service.store.alerts import Alerts, RaisedAlert
from delivery_service.store.database import RETRYABLE_ERRORS, UNAVAILABLE_ERRORS
from delivery_service.store.deliveries import FIRST_PAGE
from service_runtime.clock import Clock
from service_runtime.problems import InvalidInput

log = logging.getLogger(__name__)

_RESPONSE_ALERTS_MAX: Final = 500


class AlertCalls:
    """`run` is the feed: one poll per process for all who watch."""

    def __init__(self, store: Alerts, settings: Settings, clock: Clock) -> None:
        self._store = store
        self._settings = settings
        self._clock = clock
        self._watchers = 0
        self._newest = 0
        self._raised = asyncio.Condition()

    async def run(self) -> None:
        """Polls until cancelled. While the database is away, watchers just hear nothing new."""
        while True:
            await asyncio.sleep(self._settings.alert_poll_seconds)
            if not self._watchers:
                continue
            try:
                newest = await self._store.newest()
            except (*UNAVAILABLE_ERRORS, *RETRYABLE_ERRORS, TimeoutError) as error:
                log.warning("the alert feed can't read", extra={"action": "alerts", "error": type(error).__name__})
                continue
            if newest > self._newest:
                async with self._raised:
                    self._newest = newest
                    self._raised.notify_all()

    async def list(self, request: pb.ListAlertsRequest) -> pb.ListAlertsResponse:
        delivery_id = delivery_id_of(request.delivery_id) if request.delivery_id else None
        size = page_size_of(request.page_size, self._settings.page_size_default, self._settings.page_size_max)
        found = await self._store.page(delivery_id, place_of(request.page_token, FIRST_PAGE), size + 1)
        return pb.ListAlertsResponse(
            alerts=[_alert(alert) for alert in found[:size]],
            next_page_token=page_token(found[size - 1].alert_id) if len(found) > size else "",
        )

    async def watch(self, request: pb.WatchAlertsRequest) -> AsyncGenerator[pb.WatchAlertsResponse]:
        after = request.after_alert_id
        if after < 0:
            raise InvalidInput.of("after_alert_id", f"is {after}: give the id of the last alert received, or 0")
        if self._watchers >= self._settings.alert_watchers_max:
            raise LimitReached(
                "alert_watchers_max",
                self._settings.alert_watchers_max,
                "watch through another replica",
                retry_delay_seconds=1.0,
            )
        self._watchers += 1
        more = False  # nothing to tell at first is told at once: the watcher sees that it is heard
        try:
            while True:
                found = await self._store.after(after, _RESPONSE_ALERTS_MAX)
                if found:
                    after = found[-1].alert_id
                    yield pb.WatchAlertsResponse(alerts=[_alert(alert) for alert in found])
                elif not more:
                    yield pb.WatchAlertsResponse(heartbeat_time=timestamp(self._clock.now()))
                more = await self._more_than(after)
        finally:
            self._watchers -= 1

    async def _more_than(self, after: int) -> bool:
        """Waits until there is one after this, or for a heartbeat's time."""
        try:
            async with asyncio.timeout(self._settings.watch_heartbeat_seconds), self._raised:
                await self._raised.wait_for(lambda: self._newest > after)
        except TimeoutError:
            return False
        return True


def _alert(alert: RaisedAlert) -> pb.Alert:
    return pb.Alert(
        alert_id=alert.alert_id,
        delivery_id=str(alert.delivery_id or ""),
        label=alert.label,
        cause=pb.AlertCause.ValueType(alert.cause),
        raise_time=timestamp(alert.raise_time),
        detail=alert.detail,
        recipient_domain=alert.recipient_domain,
    )
