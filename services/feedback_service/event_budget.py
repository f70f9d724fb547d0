"""How many events the process may hold un-acked, and whose turn it is when that is not enough.

Memory has one bound however many streams there are; and a source that floods the service must not keep the others
waiting. So what becomes free goes to the waiting source that holds least, and among equals to the one that has waited
longest: with like sources that is taking turns.
"""

import asyncio
from collections import deque


class EventBudget:
    """Counts the un-acked events of each source."""

    def __init__(self, unacked_events_max: int) -> None:
        self._max = unacked_events_max
        self._held: dict[str, int] = {}
        self._total = 0
        self._waiting: dict[str, deque[tuple[int, asyncio.Future[None]]]] = {}
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def held(self) -> int:
        """Un-acked events of all sources."""
        return self._total

    def held_by(self, source_id: str) -> int:
        """Un-acked events of one source."""
        return self._held.get(source_id, 0)

    def take_now(self, source_id: str, count: int) -> bool:
        """Takes `count` if they are free and nobody waits; the usual case, without a pause."""
        if self._waiting or self._total + count > self._max:
            return False
        self._take(source_id, count)
        return True

    async def take(self, source_id: str, count: int) -> None:
        """Waits until it is this source's turn and `count` are free, and takes them. Never more than the whole."""
        if count > self._max:
            raise ValueError(f"{count} events can never fit into a budget of {self._max}")
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(source_id, deque()).append((count, turn))
        self._grant()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.release(source_id, count)
            else:
                self._forget(source_id, turn)
            self.grant()
            raise

    def release(self, source_id: str, count: int) -> None:
        """Gives `count` back. Call `grant` once all that became free at the same time is given back."""
        self._total -= count
        left = self._held[source_id] - count
        if left:
            self._held[source_id] = left
        else:
            del self._held[source_id]
        if not self._total:
            self._idle.set()

    def grant(self) -> None:
        """Lets those in who wait, as far as it goes."""
        if self._waiting:
            self._grant()

    async def wait_idle(self) -> None:
        """Returns when no event is un-acked."""
        await self._idle.wait()

    def _take(self, source_id: str, count: int) -> None:
        self._total += count
        self._held[source_id] = self._held.get(source_id, 0) + count
        self._idle.clear()

    def _grant(self) -> None:
        while self._waiting:
            # A dict keeps its order, and min takes the first of equals: the one that has waited longest.
            source_id = min(self._waiting, key=self.held_by)
            queue = self._waiting[source_id]
            count, turn = queue[0]
            if self._total + count > self._max:
                return  # smaller ones may not overtake, or a large one would wait for ever
            queue.popleft()
            del self._waiting[source_id]
            if queue:
                self._waiting[source_id] = queue
            if not turn.done():
                self._take(source_id, count)
                turn.set_result(None)

    def _forget(self, source_id: str, turn: asyncio.Future[None]) -> None:
        queue = self._waiting.get(source_id)
        if queue is None:
            return
        remaining = deque(entry for entry in queue if entry[1] is not turn)
        if remaining:
            self._waiting[source_id] = remaining
        else:
            del self._waiting[source_id]
