"""Raises alerts, and tells them to a webhook. All replicas look; each alert is raised once, by a unique key."""

import logging
from datetime import timedelta
from typing import Final

from delivery_service.domain.alerts import AlertCause, AlertLimits, alerts
from delivery_service.metrics import Metrics
from delivery_service.settings import Settings
from delivery_service.store.alerts import Alerts, RaisedAlert
from service_runtime.clock import Clock

log = logging.getLogger(__name__)

_PAGE: Final = 500
_PREPARATIONS_SINCE: Final = timedelta(days=1)
_TOLD_FOR: Final = timedelta(days=1)
"""The webhook hears of nothing older: it would be no alarm any more."""


class AlertWorker:
    """Looks at what may be wrong."""

    def __init__(self, store: Alerts, settings: Settings, clock: Clock, metrics: Metrics) -> None:
        self._store = store
        self._limits = AlertLimits(
            start_pending=timedelta(seconds=settings.alert_start_pending_seconds),
            soft_share=settings.alert_soft_bounce_share,
            hard_share=settings.alert_hard_bounce_share,
            sample_min=settings.alert_sample_min,
            throughput_messages_per_hour=settings.alert_throughput_min_per_hour,
            throughput_after=timedelta(seconds=settings.alert_throughput_after_seconds),
            throughput_below_share=settings.alert_throughput_below_share,
            silence=timedelta(seconds=settings.alert_feedback_silent_seconds),
        )
        self._check_seconds = settings.alert_check_seconds
        self._kept = timedelta(seconds=settings.alerts_kept_seconds)
        self._clock = clock
        self._metrics = metrics
        self._next_check = 0.0

    async def work(self) -> bool:
        """Looks at all deliveries that are not over, not more often than the setting says."""
        if self._clock.monotonic() < self._next_check:
            return False
        self._next_check = self._clock.monotonic() + self._check_seconds
        now = self._clock.now()
        after = 0
        while samples := await self._store.samples(after, _PAGE, now - _PREPARATIONS_SINCE):
            after = samples[-1].delivery_id
            found = [(sample, alert) for sample in samples for alert in alerts(sample, self._limits, now)]
            for cause in await self._store.raise_(found, now) if found else ():
                self._metrics.alerts.labels(cause.name.lower()).inc()
                log.warning("an alert was raised", extra={"action": "alert", "cause": cause.name})
        await self._store.drop_before(now - self._kept)
        return False


class AlertWebhookWorker:
    """Posts each alert until the webhook takes it with a 2xx; it may come twice, with the same alert_id."""

    def __init__(self, store: Alerts, settings: Settings, clock: Clock, metrics: Metrics) -> None:
        self._store = store
        self._settings = settings
        self._clock = clock
        self._metrics = metrics
        if settings.alert_webhook_url:
            # Only then, since it is a sixth of what a start takes; and now, since nothing else runs meanwhile.
            import aiohttp  # noqa: F401

    async def work(self) -> bool:
        """Posts one; True if there may be more."""
        settings, now = self._settings, self._clock.now()
        if not settings.alert_webhook_url:
            return False
        lease = timedelta(seconds=settings.alert_webhook_timeout_seconds * 2)
        claimed = await self._store.claim(now, now + lease, now - _TOLD_FOR)
        if claimed is None:
            return False
        alert, tries = claimed
        taken = await self._post(alert)
        self._metrics.alert_posts.labels("taken" if taken else "not taken").inc()
        if taken:
            await self._store.taken(alert.alert_id, self._clock.now())
        else:
            wait = min(settings.alert_webhook_retry_seconds * 2 ** min(tries - 1, 10), 3_600.0)
            await self._store.not_taken(alert.alert_id, self._clock.now() + timedelta(seconds=wait))
        return True

    async def _post(self, alert: RaisedAlert) -> bool:
        import aiohttp

        settings, headers = self._settings, {}
        if settings.alert_webhook_token_file is not None:
            headers["Authorization"] = f"Bearer {settings.alert_webhook_token_file.read_text('utf-8').strip()}"
        timeout = aiohttp.ClientTimeout(total=settings.alert_webhook_timeout_seconds)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.post(settings.alert_webhook_url, json=_as_json(alert), headers=headers) as response,
            ):
                status = response.status
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            log.warning("the alert webhook can't be reached", extra={"action": "alert", "error": type(error).__name__})
            return False
        if not 200 <= status < 300:
            log.warning("the alert webhook refused an alert", extra={"action": "alert", "status": status})
        return 200 <= status < 300


def _as_json(alert: RaisedAlert) -> dict[str, object]:
    return {
        "alert_id": alert.alert_id,
        "delivery_id": str(alert.delivery_id or ""),
        "label": alert.label,
        "cause": AlertCause(alert.cause).name,
        "raise_time": alert.raise_time.isoformat(),
        "detail": alert.detail,
        "recipient_domain": alert.recipient_domain,
    }
