"""Time as a dependency: code that waits or stamps takes a `Clock`, so that tests decide what time it is."""

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import Protocol

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

WAIT_STEP_SECONDS_MAX = 60.0
"""The longest single sleep of `SystemClock.wait_until`: the wall clock may be set while we sleep."""


def to_microseconds(moment: datetime) -> int:
    """The microseconds from the epoch to an aware `moment`, exact (no float on the way)."""
    return (moment - _EPOCH) // _MICROSECOND


def from_microseconds(microseconds: int) -> datetime:
    """The aware UTC datetime that many microseconds after the epoch."""
    return _EPOCH + timedelta(microseconds=microseconds)


class Clock(Protocol):
    """What time it is, how long something took, and how to wait."""

    def now(self) -> datetime:
        """The wall clock, aware, in UTC."""
        ...

    def now_us(self) -> int:
        """The wall clock in microseconds since the epoch."""
        ...

    def monotonic(self) -> float:
        """Seconds that never run backwards; only differences mean something."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Waits that long; zero or less only lets other tasks run."""
        ...

    async def wait_until(self, moment: datetime) -> None:
        """Waits until the wall clock has reached `moment`; returns at once if it has."""
        ...


class SystemClock:
    """The machine's own clock."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def now_us(self) -> int:
        return time.time_ns() // 1_000

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(max(seconds, 0.0))

    async def wait_until(self, moment: datetime) -> None:
        # No event could end this wait: the wall clock, which may be set meanwhile, tells nobody.
        while (left_seconds := (moment - self.now()).total_seconds()) > 0:  # noqa: ASYNC110
            await asyncio.sleep(min(left_seconds, WAIT_STEP_SECONDS_MAX))
