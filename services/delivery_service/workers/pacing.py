"""Lets the messages of paced deliveries go, a few at a time. All replicas count; a compare-and-set lets one grant."""

from collections.abc import Callable

from delivery_service.domain.pacing import grant
from delivery_service.store.before_the_send import BeforeTheSend
from service_runtime.clock import Clock


class PacingWorker:
    """`granted` is called when messages may leave, to wake the relay."""

    def __init__(self, store: BeforeTheSend, clock: Clock, granted: Callable[[], None]) -> None:
        self._store = store
        self._clock = clock
        self._granted = granted

    async def work(self) -> bool:
        """Counts the time that has passed since it was last counted."""
        now = self._clock.now()
        for paced in await self._store.paced():
            due = grant(paced.pacing, paced.granted, paced.left, paced.counted_until, now)
            # Time is only written down when it has led to something: a fraction of a message stays due.
            waits = paced.counted_until is not None and not due.messages
            if not waits and await self._store.grant(paced, due) and due.messages:
                self._granted()
        return False
