"""Pauses deliveries whose hard bounces or complaints pass a threshold. Whoever looks after them decides then."""

import logging
from collections.abc import Callable

from delivery_service.domain.breaker import Thresholds, trip
from delivery_service.metrics import Metrics
from delivery_service.settings import Settings
from delivery_service.store.control import Control
from service_runtime.clock import Clock

log = logging.getLogger(__name__)

PAUSER = "circuit breaker"


def thresholds_of(settings: Settings) -> Thresholds:
    """When to pause, as it is set."""
    return Thresholds(settings.breaker_hard_bounce_share, settings.breaker_complaint_share, settings.breaker_sample_min)


class BreakerWorker:
    """`changed` is called with each delivery paused, to halt what is in flight and wake watchers."""

    def __init__(
        self, control: Control, settings: Settings, clock: Clock, metrics: Metrics, changed: Callable[[int], None]
    ) -> None:
        self._control = control
        self._thresholds = thresholds_of(settings)
        self._check_seconds = settings.breaker_check_seconds
        self._clock = clock
        self._metrics = metrics
        self._changed = changed
        self._next_check = 0.0

    async def work(self) -> bool:
        """Looks at what is being sent, not more often than the setting says. Replicas may both look: one pauses."""
        now = self._clock.monotonic()
        if now < self._next_check:
            return False
        self._next_check = now + self._check_seconds
        for sent in await self._control.breaker_samples(self._thresholds.sample_min):
            delivery_id = sent.delivery_id
            found = trip(sent.sample, self._thresholds, sent.overruled)
            if found and await self._control.pause(delivery_id, PAUSER, self._clock.now(), found.cause, found.detail):
                log.warning(
                    "a delivery was paused by the circuit breaker",
                    extra={"action": "break", "delivery_id": delivery_id, "detail": found.detail},
                )
                self._metrics.breaker_trips.labels(found.cause.name.lower()).inc()
                self._changed(delivery_id)
        return False
