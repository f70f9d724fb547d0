"""Plays the scripts of accepted messages: from the schedule to what is ready to be reported, until all is acknowledged.

Everything that is not acknowledged counts as pending, wherever it is: scheduled, ready, or in a batch on its way. The
bound on that number is what keeps memory in bounds while FeedbackService is away: the relay waits in `reserve`.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Iterable
from typing import Final

from mta_simulator.journal import Journal
from mta_simulator.misbehaviour import NOT_TRACKED, Misbehaviour, PlayedEvent
from mta_simulator.schedule import Schedule
from mta_simulator.script import Script
from service_runtime.clock import Clock

PENDING_EVENTS_MAX: Final = 200_000
LINGER_SECONDS: Final = 0.02
"""How long an event may wait for others to share its batch."""


class Playback:
    """The events of all accepted messages."""

    def __init__(
        self,
        journal: Journal,
        misbehaviour: Misbehaviour,
        clock: Clock,
        pending_max: int = PENDING_EVENTS_MAX,
    ) -> None:
        self._journal = journal
        self._misbehaviour = misbehaviour
        self._clock = clock
        self._pending_max = pending_max
        self._schedule: Schedule[PlayedEvent] = Schedule()
        self._ready: deque[PlayedEvent] = deque()
        self._unacked_of_range: dict[int, int] = {}
        self.pending = 0
        self._reserved = 0
        self._scheduled = asyncio.Event()
        self._something_ready = asyncio.Event()
        self._has_room = asyncio.Event()

    async def reserve(self, messages: int) -> None:
        """Returns when so many messages may be accepted. Each holds a place for one event until `release`."""
        while self.pending + self._reserved >= self._pending_max:
            self._has_room.clear()
            await self._has_room.wait()
        self._reserved += messages

    def release(self, messages: int) -> None:
        """Gives reserved places back: their messages are played by now, or will never be."""
        self._reserved -= messages
        self._has_room.set()

    def play(self, range_id: int, messages: Iterable[tuple[str, int, Script]]) -> None:
        """Schedules all events of a range's accepted messages: id, time of acceptance, script."""
        events = 0
        for message_id, accept_time_us, script in messages:
            for delay_us, lag_us, report, attempt in script.events:
                happens_us = accept_time_us + delay_us
                self._add(happens_us + lag_us, PlayedEvent(message_id, happens_us, report, attempt, range_id))
                events += 1
        if events:
            self._unacked_of_range[range_id] = events
            self._scheduled.set()
        else:
            self._journal.settle(range_id)

    def _add(self, due_us: int, event: PlayedEvent) -> None:
        due_us += self._misbehaviour.lateness_us()
        self._schedule.add(due_us, event)
        self.pending += 1
        if self._misbehaviour.spoils_events:
            for later_us, extra in self._misbehaviour.on_top_of(event):
                self._schedule.add(due_us + later_us, extra)
                self.pending += 1

    async def run(self) -> None:
        """Makes events ready as they fall due."""
        while True:
            due_us = self._schedule.next_us
            if due_us is None:
                self._scheduled.clear()
                await self._scheduled.wait()
                continue
            now_us = self._clock.now_us()
            if due_us > now_us:
                await self._clock.sleep(min((due_us - now_us) / 1_000_000, LINGER_SECONDS))
                continue
            self._ready += self._schedule.take_due(now_us)
            self._something_ready.set()
            await asyncio.sleep(0)

    async def some_ready(self, wanted: int) -> None:
        """Returns when there is something to report: `wanted` events, or fewer after a short wait for more."""
        while not self._ready:
            self._something_ready.clear()
            await self._something_ready.wait()
        if len(self._ready) < wanted:
            await self._clock.sleep(LINGER_SECONDS)

    def take(self, most: int) -> list[PlayedEvent]:
        """Removes and returns up to that many ready events; the caller answers for them until `acknowledge`."""
        return [self._ready.popleft() for _ in range(min(most, len(self._ready)))]

    def acknowledge(self, ranges: Counter[int]) -> None:
        """So many events of each range are acknowledged for good."""
        for range_id, count in ranges.items():
            self.pending -= count
            if range_id == NOT_TRACKED:
                continue
            self._unacked_of_range[range_id] -= count
            if not self._unacked_of_range[range_id]:
                del self._unacked_of_range[range_id]
                self._journal.settle(range_id)
        self._has_room.set()
