"""The loop of a background worker: when woken, or every so often, and patient while the database is away."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Final

from delivery_service.domain.problems import DeliveryNotFound
from delivery_service.store.database import RETRYABLE_ERRORS, UNAVAILABLE_ERRORS
from service_runtime.backoff import delays
from service_runtime.clock import Clock

log = logging.getLogger(__name__)

_BACKOFF_INITIAL_SECONDS: Final = 0.1
_BACKOFF_MAX_SECONDS: Final = 5.0


class PollLoop:
    """Runs `work` again at once while it says that there may be more to do, else after a wait or a `wake`."""

    def __init__(self, name: str, work: Callable[[], Awaitable[bool]], poll_seconds: float, clock: Clock) -> None:
        self.name = name
        self._work = work
        self._poll_seconds = poll_seconds
        self._clock = clock
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """There may be something to do now."""
        self._wake.set()

    async def run(self) -> None:
        """Until cancelled. Work is repeatable: it goes on after an error, in this process or another."""
        waits = delays(_BACKOFF_INITIAL_SECONDS, _BACKOFF_MAX_SECONDS, random.random)
        while True:
            self._wake.clear()
            try:
                more = await self._work()
                waits = delays(_BACKOFF_INITIAL_SECONDS, _BACKOFF_MAX_SECONDS, random.random)
            except (*UNAVAILABLE_ERRORS, *RETRYABLE_ERRORS, TimeoutError, DeliveryNotFound) as error:
                # Not found: someone has deleted the draft, or the child, between the listing and the look at it.
                log.warning(
                    "a worker will try again",
                    extra={"action": "worker", "worker": self.name, "error": type(error).__name__},
                )
                await self._clock.sleep(next(waits))
                continue
            if not more and not self._wake.is_set():
                await self._wait()

    async def _wait(self) -> None:
        woken = asyncio.ensure_future(self._wake.wait())
        slept = asyncio.ensure_future(self._clock.sleep(self._poll_seconds))
        try:
            await asyncio.wait((woken, slept), return_when=asyncio.FIRST_COMPLETED)
        finally:
            woken.cancel()
            slept.cancel()
            await asyncio.gather(woken, slept, return_exceptions=True)
