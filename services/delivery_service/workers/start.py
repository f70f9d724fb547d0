"""Starts confirmed deliveries: START_PENDING to IN_PROGRESS, by exactly one replica each."""

from collections.abc import Callable

from delivery_service.domain.lifecycle import DeliveryState
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
        pending = await self._deliveries.in_state(DeliveryState.START_PENDING, _LISTED_MAX)
        for delivery_id in pending:
            if await self._deliveries.start(delivery_id, self._clock.now()):
                self._changed(delivery_id)
        return len(pending) == _LISTED_MAX
