"""One WatchKpis stream, and how many of them are woken without standing in each other's way.

A watcher costs what its messages cost to write, and a future while it waits: no timer of its own, no message of its
own, no wrapper per message. It holds only which deliveries have something newer than what it sent, so its memory is
bounded, and a slow one finds the newest state whenever it can write again.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final

WAVE: Final = 200
"""Watchers that begin to write in one turn of the event loop: some 5 ms of it, so that thousands don't hold every other
call up. Fewer would make an update reach the last one later: under feedback a turn is long whoever is woken in it."""


_LOOK_SECONDS: Final = 0.01
"""How often it is looked whether those that were woken have written."""


class Topic:
    """One watched delivery: its newest message, serialised once, and who watches it."""

    __slots__ = ("idle", "load_time", "payload", "revision", "settled", "views")

    def __init__(self) -> None:
        self.payload = b""
        self.load_time = float("-inf")
        """When it was last read, by the loop's time: what was committed before that is in it."""
        self.revision = 0
        self.settled = False
        self.views: set[View] = set()
        self.idle: set[View] = set()
        """Those to be woken by the next message. The others are between two messages, and look by themselves."""


class View:
    """One delivery as one watcher sees it."""

    __slots__ = ("due", "sent", "topic", "watcher")

    def __init__(self, watcher: "Watcher", topic: Topic) -> None:
        self.watcher = watcher
        self.topic = topic
        self.sent = 0
        """The revision that it was sent last."""
        self.due = 0.0
        """When it may be sent something again, by the loop's time."""
        topic.views.add(self)
        topic.idle.add(self)

    @property
    def is_behind(self) -> bool:
        """Whether there is something newer than what it was sent."""
        return self.topic.revision > self.sent

    @property
    def is_over(self) -> bool:
        """Whether it was sent all that there will ever be."""
        return self.topic.settled and self.sent == self.topic.revision

    def close(self) -> None:
        """It is told nothing any more."""
        self.topic.views.discard(self)
        self.topic.idle.discard(self)


class Watcher:
    """One stream: what it has sent, and what it should send."""

    __slots__ = ("_heartbeat", "_min_interval_seconds", "_views", "_waiting", "wrote_at")

    def __init__(self, topics: Iterable[Topic], min_interval_seconds: float) -> None:
        self._views = [View(self, topic) for topic in topics]
        self._min_interval_seconds = min_interval_seconds
        self._waiting: asyncio.Future[None] | None = None
        self._heartbeat = b""
        self.wrote_at = asyncio.get_running_loop().time()
        """When it last had written something, by the loop's time."""

    @property
    def waits(self) -> bool:
        """Whether it has nothing to do until it is woken."""
        return self._waiting is not None and not self._waiting.done()

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
            elif self._views:
                self._waiting = loop.create_future()
                try:
                    await self._waiting
                finally:
                    self._waiting = None
            else:
                return

    def close(self) -> None:
        """The stream has ended."""
        for view in self._views:
            view.close()

    def _next(self, now: float) -> bytes:
        """What to send now; empty if there is nothing."""
        message = b""
        for view in self._views:
            if view.is_behind and now >= view.due:
                view.sent = view.topic.revision
                view.due = now + self._min_interval_seconds
                message = view.topic.payload
                break
        if any(view.is_over for view in self._views):
            for view in self._views:
                if view.is_over:
                    view.close()
            self._views = [view for view in self._views if not view.is_over]
        if not message:
            message, self._heartbeat = self._heartbeat, b""
        return message


async def wake_in_waves(watchers: Sequence[Watcher]) -> float:
    """Wakes them all, a wave in each turn of the event loop; how many seconds it took until they had written.

    A wave does not wait for the one before to have written: the bytes of the last watcher leave before the loop is told
    of every write that has ended. Those that don't read hold nobody up: in the end nobody waits for who makes no
    headway.
    """
    began = asyncio.get_running_loop().time()
    woken: list[Watcher] = []
    for begin in range(0, len(watchers), WAVE):
        woken += [watcher for watcher in watchers[begin : begin + WAVE] if watcher.wake()]
        await asyncio.sleep(0)
    writing = woken
    while writing:
        await asyncio.sleep(_LOOK_SECONDS)
        before, writing = len(writing), [watcher for watcher in writing if not watcher.waits]
        if len(writing) == before:
            break
    return max([0.0, *(watcher.wrote_at - began for watcher in woken)])
