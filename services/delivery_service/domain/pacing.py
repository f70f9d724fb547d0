"""Pacing: a first wave, then an even rate. A token bucket whose tokens are the delivery's next messages.

Invariants: what was let go and has not left never exceeds the bucket (the first wave, or one hour's worth), so that
after a pause or an MTA that was away nothing is made up for in a rush; and time that the bucket could not use is lost.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

MESSAGES_PER_HOUR_MAX: Final = 1_000_000_000
_HOUR: Final = timedelta(hours=1)
_IDLE_MAX: Final = timedelta(minutes=1)
"""How much time without anyone counting (a restart, a pause) still counts."""


@dataclass(frozen=True, slots=True)
class Pacing:
    """How fast the messages of a delivery may leave."""

    first_wave_count: int
    messages_per_hour: int

    def time_needed(self, messages: int) -> timedelta:
        """From the start until that many may have left."""
        return max(0, messages - self.first_wave_count) * _HOUR / self.messages_per_hour


@dataclass(frozen=True, slots=True)
class Grant:
    """How many more messages may leave, and up to when the time has been used for them."""

    messages: int
    time: datetime


def grant(pacing: Pacing, granted: int, left: int, counted_until: datetime | None, now: datetime) -> Grant:
    """What may leave at `now`, if `granted` were let go so far and `left` of them have left."""
    if counted_until is None:
        return Grant(pacing.first_wave_count, now)
    interval = _HOUR / pacing.messages_per_hour
    begin = max(counted_until, now - max(_IDLE_MAX, interval))
    due = max(0, (now - begin) * pacing.messages_per_hour // _HOUR)
    room = max(0, max(pacing.first_wave_count, pacing.messages_per_hour) - max(0, granted - left))
    if due > room:
        return Grant(room, now)
    return Grant(due, begin + due * _HOUR / pacing.messages_per_hour)
