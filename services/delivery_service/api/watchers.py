"""One WatchKpis stream, and how many of them are woken without standing in each other's way.

A watcher costs what its messages cost to write, and a future while it waits: no timer of its own, no message of its
own, no wrapper per message. It holds only which deliveries have something newer than what it sent, so its memory is
bounded, and a slow one finds the newest state whenever it can write again.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

WAVE: Final = 200
"""Watchers that begin to write in one turn of the event loop: some 5 ms of it, so that thousands don't hold every other
call up. Fewer would make an update reach the last one later: under feedback a turn is long whoever is woken in it."""


class Topic:
    """One watched delivery: its newest message, serialised once, and who watches it."""

    __slots__ = ("idle", "load_time", "payload", "revision", "settled", "watchers")

    def __init__(self) -> None:
        self.payload = b""
        self.load_time = float("-inf")
        """When it was last read, by the loop's time: what was committed before that is in it."""
        self.revision = 0
        self.settled = False
        self.watchers: set[Watcher] = set()
        self.idle: set[Watcher] = set()
        """Those to be woken by the next message. The others are between two messages, and look by themselves."""


class Watcher:
    """One stream: what it has sent, and what it should send."""

    __slots__ = ("_due", "_heartbeat", "_min_interval_seconds", "_sent", "_topics", "_waiting", "wrote_at")

    def __init__(self, topics: dict[int, Topic], min_interval_seconds: float) -> None:
        self._topics = topics
        self._min_interval_seconds = min_interval_seconds
        self._sent = dict.fromkeys(topics, 0)
        self._due = dict.fromkeys(topics, 0.0)  # when the next message about it may go, by the loop's time
        self._waiting: asyncio.Future[None] | None = None
        self._heartbeat = b""
        self.wrote_at = asyncio.get_running_loop().time()

    def due(self, delivery_id: int) -> float:
        """When it may be sent something about the delivery again, by the loop's time."""
        return self._due[delivery_id]

    def behind(self, delivery_id: int) -> bool:
        """Whether the delivery has something newer than what it was sent."""
        topic = self._topics.get(delivery_id)
        return topic is not None and topic.revision > self._sent[delivery_id]

    def wake(self) -> bool:
        """Makes it look for what is new. False: it is writing, and will look by itself when it can write again."""
        if self._waiting is None or self._waiting.done():
            return False
        self._waiting.set_result(None)
        return True

    def beat(self, heartbeat: bytes) -> None:
        """Makes it send a heartbeat, unless it is writing."""
        if self.wake():
            self._heartbeat = heartbeat

    async def serve(self, write: Callable[[bytes], Awaitable[None]]) -> None:
        """Sends what is to be sent, until every delivery is settled."""
        loop = asyncio.get_running_loop()
        while True:
            message = self._next(loop.time())
            if message:
                try:
                    await write(message)
                finally:
                    self.wrote_at = loop.time()
            elif self._topics:
                self._waiting = loop.create_future()
                try:
                    await self._waiting
                finally:
                    self._waiting = None
            else:
                return

    def _next(self, now: float) -> bytes:
        """What to send now; empty if there is nothing."""
        settled = []
        message = b""
        for delivery_id, topic in self._topics.items():
            if topic.revision > self._sent[delivery_id] and now >= self._due[delivery_id]:
                self._sent[delivery_id] = topic.revision
                self._due[delivery_id] = now + self._min_interval_seconds
                message = topic.payload
            if topic.settled and self._sent[delivery_id] == topic.revision:
                settled.append(delivery_id)
            if message:
                break
        for delivery_id in settled:
            del self._topics[delivery_id]
        if not message:
            message, self._heartbeat = self._heartbeat, b""
        return message


async def wake_in_waves(watchers: Sequence[Watcher]) -> None:
    """Wakes them all, a wave in each turn of the event loop.

    A wave does not wait for the one before to have written: those that don't read hold nobody up, and the bytes of the
    last watcher leave before the loop is told of every write that has ended.
    """
    for begin in range(0, len(watchers), WAVE):
        for watcher in watchers[begin : begin + WAVE]:
            watcher.wake()
        await asyncio.sleep(0)
