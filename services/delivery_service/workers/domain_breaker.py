"""Pauses recipient domains whose hard bounces or complaints pass a threshold; the rest of their delivery goes on.

Nothing is counted by domain while messages leave or reports come in. A look reads the messages that failed, which are
few, and tells their domains; only for one with failures enough to be judged does it count what was handed over, which
reads all that has left. That count only grows, so an older one will do until failures have caught up with it. And a
process spends no more than a share of its time on looks.
"""

import logging
from collections.abc import Callable
from typing import Final

from delivery_service.domain.breaker import Sample, Thresholds, Trip, may_trip, trip
from delivery_service.domain.domain_pauses import DomainPause
from delivery_service.domain.lifecycle import DeliveryState
from delivery_service.domain.problems import DeliveryNotFound
from delivery_service.metrics import Metrics
from delivery_service.settings import Settings
from delivery_service.store.control import Control, DomainFailures
from delivery_service.store.deliveries import Deliveries
from delivery_service.workers.breaker import PAUSER, thresholds_of
from service_runtime.clock import Clock

log = logging.getLogger(__name__)

_DOMAINS_JUDGED_MAX: Final = 100
"""Of one delivery in one look: those with the most failures."""


class DomainBreakerWorker:
    """`changed` is called with each delivery of which a domain was paused, to halt what is in flight and wake watchers.

    Replicas may all look: the first one that finds something pauses the domain, and the others see that.
    """

    def __init__(
        self,
        deliveries: Deliveries,
        control: Control,
        settings: Settings,
        clock: Clock,
        metrics: Metrics,
        changed: Callable[[int], None],
    ) -> None:
        self._deliveries = deliveries
        self._control = control
        self._thresholds = thresholds_of(settings)
        self._check_seconds = settings.breaker_check_seconds
        self._time_share_max = settings.breaker_domain_time_share_max
        self._paused_max = settings.paused_domains_max
        self._clock = clock
        self._metrics = metrics
        self._changed = changed
        self._next_look = 0.0
        self._looked_at: dict[int, Sample] = {}
        self._handed_over: dict[int, dict[str, int]] = {}
        """By delivery and domain, as last counted."""

    async def work(self) -> bool:
        """Looks at what is being sent, not more often than the settings say."""
        begin = self._clock.monotonic()
        if begin < self._next_look:
            return False
        samples = await self._control.breaker_samples(self._thresholds.sample_min)
        sent = {each.delivery_id: each.sample for each in samples if each.has_domains}
        self._handed_over = {key: counts for key, counts in self._handed_over.items() if key in sent}
        self._looked_at = {key: sample for key, sample in self._looked_at.items() if key in sent}
        for delivery_id, sample in sent.items():
            if sample != self._looked_at.get(delivery_id) and _worth_a_look(sample, self._thresholds):
                await self._look(delivery_id)
                self._looked_at[delivery_id] = sample
        end = self._clock.monotonic()
        self._next_look = max(begin + self._check_seconds, end + (end - begin) * (1 / self._time_share_max - 1))
        return False

    async def _look(self, delivery_id: int) -> None:
        """Judges the domains of one delivery."""
        failures = await self._control.domain_failures(delivery_id, self._thresholds, _DOMAINS_JUDGED_MAX)
        try:
            pauses = (await self._deliveries.get(delivery_id)).domain_pauses
        except DeliveryNotFound:
            return
        counted = self._handed_over.setdefault(delivery_id, {})
        suspects = [
            each
            for each in failures
            if not pauses.holds(each.recipient_domain)
            and may_trip(
                _sample(each, counted.get(each.recipient_domain, 0)),
                self._thresholds,
                pauses.overruled_of(each.recipient_domain),
            )
        ]
        if not suspects:
            return
        names = [suspect.recipient_domain for suspect in suspects]
        counted.update(await self._control.handed_over_by_domain(delivery_id, names))
        for suspect in suspects:
            overruled = pauses.overruled_of(suspect.recipient_domain)
            sample = _sample(suspect, counted.get(suspect.recipient_domain, 0))
            if found := trip(sample, self._thresholds, overruled):
                await self._pause(delivery_id, suspect.recipient_domain, found)

    async def _pause(self, delivery_id: int, recipient_domain: str, found: Trip) -> None:
        """Pauses a domain, unless someone has done so or has overruled it meanwhile, or the delivery is not being sent
        any more. Someone else's write in between is tried over at the next look."""
        delivery, now = await self._deliveries.get(delivery_id), self._clock.now()
        pauses = delivery.domain_pauses
        if (
            delivery.state is not DeliveryState.IN_PROGRESS
            or pauses.holds(recipient_domain)
            or found.cause in pauses.overruled_of(recipient_domain)
        ):
            return
        about = {"action": "break", "delivery_id": delivery_id, "recipient_domain": recipient_domain}
        if len(pauses.paused) >= self._paused_max:
            log.warning("too many domains are paused to pause another one", extra=about)
            return
        pause = DomainPause(recipient_domain, PAUSER, now, found.cause, found.detail)
        if await self._control.set_domain_pauses(delivery, pauses.with_pause(pause), now):
            log.warning("a recipient domain was paused by the circuit breaker", extra={**about, "detail": found.detail})
            self._metrics.breaker_domain_trips.labels(found.cause.name.lower()).inc()
            self._changed(delivery_id)


def _worth_a_look(sample: Sample, thresholds: Thresholds) -> bool:
    """Whether any domain of the delivery can have failures enough."""
    return any(
        least and number >= least
        for number, least in (
            (sample.hard_bounces, thresholds.hard_bounces_min),
            (sample.complained, thresholds.complaints_min),
        )
    )


def _sample(failures: DomainFailures, handed_over: int) -> Sample:
    return Sample(handed_over, failures.hard_bounces, failures.complained)
