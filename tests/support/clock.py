"""A clock that stands still until a test moves it."""

import asyncio
import heapq
import itertools
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from service_runtime.clock import SystemClock, to_microseconds

START = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
SETTLE_ROUNDS = 20
"""Turns of the event loop given to the woken after each step: enough to act and to fall asleep again."""


class ManualClock:
    """A `Clock` whose time passes only by `advance`, and whose sleepers wake in the order of their alarms."""

    def __init__(self, now: datetime = START) -> None:
        self._start = self._now = now
        self._order = itertools.count()
        self._sleepers: list[tuple[datetime, int, asyncio.Future[None]]] = []

    def now(self) -> datetime:
        return self._now

    def now_us(self) -> int:
        return to_microseconds(self._now)

    def monotonic(self) -> float:
        return (self._now - self._start).total_seconds()

    @property
    def sleeping(self) -> int:
        """How many wait for this clock."""
        return sum(not alarm.done() for _, _, alarm in self._sleepers)

    async def sleep(self, seconds: float) -> None:
        await self.wait_until(self._now + timedelta(seconds=max(seconds, 0.0)))

    async def wait_until(self, moment: datetime) -> None:
        if moment <= self._now:
            await asyncio.sleep(0)
            return
        alarm = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (moment, next(self._order), alarm))
        await alarm

    async def advance(self, seconds: float) -> None:
        """Moves time on, stopping at each alarm on the way so that the woken see the time they asked for."""
        end = self._now + timedelta(seconds=seconds)
        await _settle()
        while self._sleepers and self._sleepers[0][0] <= end:
            moment, _, alarm = heapq.heappop(self._sleepers)
            self._now = max(self._now, moment)
            if not alarm.done():
                alarm.set_result(None)
                await _settle()
        self._now = end

    def set(self, moment: datetime) -> None:
        """Sets the time without waking anybody, as when an operator sets the machine's clock."""
        self._now = moment


class SetClock:
    """A `Clock` whose time a test sets, while waits really pass, or end with the time that they were to end at: for
    whole services, whose workers then see each new time at once."""

    def __init__(self, now: datetime = START) -> None:
        self._now = now
        self._running = SystemClock()
        self._sleepers: set[tuple[datetime, asyncio.Future[None]]] = set()

    def now(self) -> datetime:
        return self._now

    def now_us(self) -> int:
        return to_microseconds(self._now)

    def monotonic(self) -> float:
        return self._running.monotonic()

    async def sleep(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(max(seconds, 0.0)):
                await self.wait_until(self._now + timedelta(seconds=max(seconds, 0.0)))

    async def wait_until(self, moment: datetime) -> None:
        if moment <= self._now:
            await asyncio.sleep(0)
            return
        sleeper = moment, asyncio.get_running_loop().create_future()
        self._sleepers.add(sleeper)
        try:
            await sleeper[1]
        finally:
            self._sleepers.discard(sleeper)

    def set(self, moment: datetime) -> None:
        """It is that time now."""
        self._now = moment
        for alarm, sleeper in self._sleepers:
            if alarm <= moment and not sleeper.done():
                sleeper.set_result(None)


async def _settle() -> None:
    for _ in range(SETTLE_ROUNDS):
        await asyncio.sleep(0)
