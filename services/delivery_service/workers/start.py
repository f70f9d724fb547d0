"""Starts confirmed deliveries when their time has come: START_PENDING to IN_PROGRESS, by exactly one replica each.

The time is this process's clock, handed to the statement that compares and sets. So a delivery starts when the first of
the replicas' clocks reaches its time: early by no more than that clock is ahead.
"""

from collections.abc import Callable

from delivery_service.store.deliveries import Deliveries
from service_runtime.clock import Clock

_LISTED_MAX = 1_000


class StartWorker:
    """`changed` is called with each delivery started, to wake watchers and relay workers."""

    def __init__(self, deliveries: Deliveries, clock: Clock, changed: Callable[[int], None]) -> None:
        self._deliveries = deliveries
        self._clock = clock
        self._changed = changed

    async def work(self) -> bool:
        """Starts what is to be started; True if there may be more."""
        due = await self._deliveries.to_start(self._clock.now(), _LISTED_MAX)
        for delivery_id in due:
            if await self._deliveries.start(delivery_id, self._clock.now()):
                self._changed(delivery_id)
        return len(due) == _LISTED_MAX
