"""Derives the quarantine and the denylist from what was reported, and guards domains whose provider seems to be out.

Off the hot path: once in a while it reads what the log has got since, in steps, each with its cursor in one statement;
then the addresses concerned are judged by domain/quarantine.py. All replicas do it. Reading is done by one at a time,
and a verdict counts only for the facts that it is of: so nothing is counted twice, wherever a process is killed.
"""

import logging
from datetime import timedelta
from typing import Final

from delivery_service.domain.alerts import AlertCause
from delivery_service.domain.outage_guard import DomainResults, GuardLimits, describe, leaves_baseline
from delivery_service.domain.quarantine import QuarantineRules, Verdict, judge
from delivery_service.metrics import Metrics
from delivery_service.settings import Settings
from delivery_service.store.quarantine import Quarantine, Suspect
from service_runtime.clock import Clock, from_microseconds

log = logging.getLogger(__name__)

_SLOTS_PER_TURN: Final = 20
_NOTHING: Final = DomainResults(0, 0)


class QuarantineWorker:
    """One turn reads at most a step of each of some slots."""

    def __init__(self, store: Quarantine, settings: Settings, clock: Clock, metrics: Metrics) -> None:
        self._store = store
        self._settings = settings
        self._rules = rules_of(settings)
        self._limits = GuardLimits(
            settings.outage_guard_hard_bounces_min, settings.outage_guard_share_min, settings.outage_guard_factor
        )
        self._bucket = timedelta(seconds=settings.outage_guard_window_seconds)
        self._clock = clock
        self._metrics = metrics
        self._next_check = clock.monotonic() + settings.quarantine_check_seconds

    async def work(self) -> bool:
        """Takes up what is new, not more often than the setting says; True while there is more."""
        if self._clock.monotonic() < self._next_check:
            return False
        more = await self._collect()
        await self._guard()
        more |= await self._judge()
        if not more:
            await self._forget()
            self._metrics.addresses_to_judge.set(await self._store.waiting())
            self._next_check = self._clock.monotonic() + self._settings.quarantine_check_seconds
        return more

    async def _collect(self) -> bool:
        """Reads on in the log and in the queue. False: all is read, or another replica is at it."""
        slots = await self._store.slots_to_collect(_SLOTS_PER_TURN)
        for delivery_id, slot in slots:
            rows = await self._store.collect(delivery_id, slot, self._clock.now())
            if rows is None:
                return False
            self._metrics.quarantine_transitions.inc(rows)
        taken = await self._store.take_news(self._clock.now())
        return bool(slots) or bool(taken)

    async def _judge(self) -> bool:
        """Judges some of the addresses whose facts have changed. True: there may be more."""
        settings, now = self._settings, self._clock.now()
        suspects = await self._store.suspects(settings.quarantine_addresses_per_step)
        if not suspects:
            return False
        late = timedelta(seconds=settings.quarantine_late_seconds)
        judged = [(suspect, self._verdict(suspect)) for suspect in suspects]
        forget_time = now + self._rules.longest + late
        for reason in await self._store.set_verdicts(judged, now - late, now, forget_time):
            self._metrics.quarantined.labels(reason.name.lower()).inc()
        return True

    def _verdict(self, suspect: Suspect) -> Verdict:
        return Verdict() if suspect.allowed else judge(suspect.reports, self._rules, suspect.guards)

    async def _guard(self) -> None:
        """Guards domains that leave their baseline, and ends guards of those that have not for a while."""
        settings, now = self._settings, self._clock.now()
        if not self._limits.hard_bounces_min:
            return
        begin = now - (now - from_microseconds(0)) % self._bucket - self._bucket
        # The step before, this one, and the next: an MTA's clock may be ahead.
        latest = [begin + step * self._bucket for step in range(3)]
        recent = await self._store.recent_results(latest, self._limits.hard_bounces_min)
        tripped: dict[str, str] = {}
        if recent:
            steps = int(timedelta(seconds=settings.outage_guard_baseline_seconds) / self._bucket)
            buckets = [begin - step * self._bucket for step in range(1, steps + 1)]
            usual = await self._store.usual_results(buckets, list(recent))
            for domain, results in recent.items():
                before = usual.get(domain, _NOTHING)
                if leaves_baseline(results, before, self._limits):
                    tripped[domain] = describe(results, before)
        if tripped:
            domains = list(tripped)
            for domain in await self._store.guard(domains, begin, now):
                log.warning(
                    "a recipient domain is guarded: its hard bounces are doubted",
                    extra={"action": "guard", "recipient_domain": domain, "detail": tripped[domain]},
                )
                self._metrics.outage_guards.inc()
            details = [f"{detail}: its addresses are quarantined provisionally" for detail in tripped.values()]
            raised = await self._store.raise_alerts(AlertCause.OUTAGE_SUSPECTED, domains, details, now)
            self._metrics.alerts.labels(AlertCause.OUTAGE_SUSPECTED.name.lower()).inc(raised)
        quiet = timedelta(seconds=settings.outage_guard_quiet_seconds)
        for domain in await self._store.end_guards(now - quiet, now):
            log.info("a recipient domain is guarded no more", extra={"action": "guard", "recipient_domain": domain})

    async def _forget(self) -> None:
        settings, now = self._settings, self._clock.now()
        await self._store.forget(now, settings.quarantine_addresses_per_step)
        await self._store.forget_rest(now, now - timedelta(seconds=settings.outage_guards_kept_seconds))


def rules_of(settings: Settings) -> QuarantineRules:
    """The rules as the settings have them."""
    return QuarantineRules(
        errors_max=settings.quarantine_errors_max,
        significant_after=timedelta(seconds=settings.quarantine_significant_after_seconds),
        reset_after=timedelta(seconds=settings.quarantine_reset_after_seconds),
        mailbox_full_reset_after=timedelta(seconds=settings.quarantine_mailbox_full_reset_after_seconds),
    )
