"""Recurring deliveries: records occurrences as they come, makes their children, confirms those that it is to confirm.

Invariants:
- An occurrence is identified by its parent and its nominal local time, and inserted once. Its child is made by a second
  step, whose id was chosen by the first. Each step is one statement that does nothing the second time: so any number of
  replicas, stopped anywhere, make one child per occurrence, or per period.
- The statements are given this process's clock, and a parent's next occurrence only ever moves on: a clock that is
  behind finds nothing to do, one that is ahead has a child made early by no more than it is ahead.
- A child is only made, confirmed or kept waiting within `max_lateness` of its occurrence.
"""

import asyncio
import logging
import secrets
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

from delivery_service.domain.delivery import Confirmation, Delivery
from delivery_service.domain.identifiers import new_delivery_id
from delivery_service.domain.lifecycle import DeliveryState
from delivery_service.domain.recurrence import Occurrence, OccurrenceState, occurrences, period_of
from delivery_service.domain.schedule import Schedule, ScheduleProblem
from delivery_service.metrics import Metrics
from delivery_service.settings import Settings
from delivery_service.store.commands import Commands
from delivery_service.store.deliveries import Deliveries
from delivery_service.store.recurrences import NewOccurrence, Recurrences
from service_runtime.clock import Clock

log = logging.getLogger(__name__)

SYSTEM: Final = "system"
"""Who confirms the children of a recurring delivery that a person has confirmed."""
_LISTED_MAX: Final = 100
_INSTANT: Final = timedelta(microseconds=1)


class RecurrenceWorker:
    """`changed` is called with each delivery changed, to wake watchers and other workers."""

    def __init__(
        self,
        deliveries: Deliveries,
        recurrences: Recurrences,
        commands: Commands,
        settings: Settings,
        clock: Clock,
        metrics: Metrics,
        changed: Callable[[int], None],
    ) -> None:
        self._deliveries = deliveries
        self._recurrences = recurrences
        self._commands = commands
        self._per_step = settings.occurrences_recorded_per_step_max
        self._clock = clock
        self._metrics = metrics
        self._changed = changed

    async def work(self) -> bool:
        """Takes every occurrence and child as far as it goes now; True if there may be more."""
        recorded = await self._record_all()
        spawned = await self._spawn_all()
        confirmed = await self._confirm_all()
        stopped = await self._stop_all()
        for parent_id in await self._recurrences.finish(self._clock.now()):
            self._changed(parent_id)
        return recorded or max(spawned, confirmed, stopped) == _LISTED_MAX

    async def _record_all(self) -> bool:
        """True if there may be more: what was missed in a long downtime comes in steps."""
        due = await self._recurrences.due(self._clock.now(), _LISTED_MAX)
        more = [await self._record(parent_id, next_time) for parent_id, next_time in due]
        return any(more)

    async def _record(self, parent_id: int, seen_next_time: datetime | None) -> bool:
        parent = await self._deliveries.get(parent_id)
        if parent.schedule is None or parent.schedule.recurrence is None or parent.confirmation is None:
            return False
        # What was due before the confirmation was not confirmed. Later on, the occurrence seen is the first to look at.
        after = (seen_next_time or parent.confirmation.confirm_time) - _INSTANT
        try:
            # In a thread: a rule may take long to expand, and watchers must not wait for it.
            coming = await asyncio.to_thread(occurrences, parent.schedule, after, self._per_step + 1)
        except ScheduleProblem as problem:  # was sound when it was stored: a zone has gone from the data since
            log.error(
                "a recurring delivery can't go on",
                extra={"action": "record_occurrences", "delivery_id": parent_id, "error": str(problem)},
            )
            return False
        now = self._clock.now()
        come = [occurrence for occurrence in coming[: self._per_step] if occurrence.due_time <= now]
        following = coming[len(come)].due_time if len(coming) > len(come) else None
        new = [_new_occurrence(parent.schedule, occurrence, now) for occurrence in come]
        if not await self._recurrences.record(parent_id, seen_next_time, new, following, now):
            return False
        skipped = sum(occurrence.state is OccurrenceState.SKIPPED for occurrence in new)
        if skipped:
            self._metrics.occurrences.labels(OccurrenceState.SKIPPED.name.lower()).inc(skipped)
            log.warning(
                "occurrences were missed, and are too late to be made up for",
                extra={"action": "skip_occurrences", "delivery_id": parent_id, "occurrences": skipped},
            )
        return following is not None and following <= now

    async def _spawn_all(self) -> int:
        waiting = await self._recurrences.without_child(_LISTED_MAX)
        for parent_id, local_time in waiting:
            state = await self._recurrences.spawn(parent_id, local_time, self._clock.now())
            if state is not None:
                self._metrics.occurrences.labels(state.name.lower()).inc()
                log.info(
                    "an occurrence was dealt with",
                    extra={
                        "action": "spawn",
                        "delivery_id": parent_id,
                        "local_time": local_time.isoformat(),
                        "state": state.name,
                    },
                )
                self._changed(parent_id)
        return len(waiting)

    async def _confirm_all(self) -> int:
        waiting = await self._recurrences.to_confirm(self._clock.now(), _LISTED_MAX)
        for child_id in waiting:
            await self._confirm(await self._deliveries.get(child_id))
        return len(waiting)

    async def _confirm(self, child: Delivery) -> None:
        """By compare-and-set, as every confirmation: of several replicas, and of a person who declines, one wins."""
        occurrence = child.parent_occurrence
        if child.state is not DeliveryState.READY or child.plan is None:
            return
        if occurrence is None or not occurrence.system_confirms:  # a person took the confirmation back since
            return
        now = self._clock.now()
        # A new one each time: a confirmation that a person took back is not to be found again.
        request_id = f"{SYSTEM}-{occurrence.local_time.isoformat()}-{child.version}"
        confirmation = Confirmation(SYSTEM, now, child.plan.plan_digest, request_id, now)
        if await self._deliveries.confirm(child, confirmation):
            self._changed(child.delivery_id)

    async def _stop_all(self) -> int:
        expired = await self._recurrences.out_of_time(self._clock.now(), _LISTED_MAX)
        for child_id, version in expired:
            if await self._commands.decline(child_id, version, SYSTEM, self._clock.now()):
                log.warning(
                    "a child was not confirmed in time", extra={"action": "stop_child", "delivery_id": child_id}
                )
                self._changed(child_id)
        return len(expired)


def _new_occurrence(schedule: Schedule, occurrence: Occurrence, now: datetime) -> NewOccurrence:
    assert schedule.recurrence is not None
    late = now > occurrence.due_time + schedule.recurrence.max_lateness
    return NewOccurrence(
        occurrence.local_time,
        occurrence.due_time,
        OccurrenceState.SKIPPED if late else OccurrenceState.DUE,
        period_of(schedule.recurrence.aggregation_period, occurrence.local_time),
        new_delivery_id(now, secrets.randbits(20)),
    )
