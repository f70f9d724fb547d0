"""The feed behind WatchSendLogs: how far each watched log has come, by one poll per process for all of them.

It carries no transitions: a watcher reads its own from the log, page by page, whenever the feed says that there are
more. So a slow watcher holds one page and slows no other, and none can miss or repeat anything: where it stands is a
position in the log, not what it was told in time.

Works on every replica: commits of this process wake the feed at once, and the poll covers those of the others.
"""

import asyncio
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from delivery_service.domain.problems import DeliveryNotFound, LimitReached
from delivery_service.settings import Settings
from delivery_service.store.database import RETRYABLE_ERRORS, UNAVAILABLE_ERRORS
from delivery_service.store.transition_log import LogState, TransitionLog

log = logging.getLogger(__name__)

_COALESCE_SECONDS: Final = 0.02
"""Commits within it make one wake-up."""


class LogWatch:
    """One stream's view of one delivery's log."""

    __slots__ = ("_delivery_id", "_event", "_state")

    def __init__(self, delivery_id: int) -> None:
        self._delivery_id = delivery_id
        self._state: LogState | None = None
        self._event = asyncio.Event()

    def offer(self, state: LogState | None) -> None:
        """The feed has read this; None: the delivery is gone."""
        # Two reads may overtake each other; a delivery that is gone never comes back.
        if state is None or self._state is None or sum(state.slot_revisions) >= sum(self._state.slot_revisions):
            self._state = state
            self._event.set()

    async def changed(self, wait_seconds: float) -> LogState | None:
        """The newest state once one was offered since the last call; None: none was for so long. DeliveryNotFound."""
        try:
            async with asyncio.timeout(wait_seconds):
                await self._event.wait()
        except TimeoutError:
            return None
        self._event.clear()
        if self._state is None:
            raise DeliveryNotFound(self._delivery_id)
        return self._state


class _Topic:
    """One watched delivery: what was last read of it, and who watches."""

    __slots__ = ("state", "watches")

    def __init__(self) -> None:
        self.state: LogState | None = None
        self.watches: set[LogWatch] = set()


class SendLogFeed:
    """`run` is the feed; `watching` serves one stream; `touch` says that something was committed here."""

    def __init__(self, transitions: TransitionLog, settings: Settings) -> None:
        self._transitions = transitions
        self._settings = settings
        self._topics: dict[int, _Topic] = {}
        self._wake = asyncio.Event()
        self._watchers = 0

    def touch(self, delivery_ids: Iterable[int]) -> None:
        """These deliveries have changed: watchers of this process will see it at once."""
        if not self._topics.keys().isdisjoint(delivery_ids):
            self._wake.set()

    @contextmanager
    def watching(self, delivery_id: int) -> Iterator[LogWatch]:
        """A watch of one delivery's log, for as long as the block runs. LimitReached."""
        if self._watchers >= self._settings.send_log_watchers_max:
            raise LimitReached(
                "send_log_watchers_max",
                self._settings.send_log_watchers_max,
                "watch through another replica",
                retry_delay_seconds=1.0,
            )
        topic = self._topics.setdefault(delivery_id, _Topic())
        watch = LogWatch(delivery_id)
        self._watchers += 1
        topic.watches.add(watch)
        try:
            yield watch
        finally:
            self._watchers -= 1
            topic.watches.discard(watch)
            if not topic.watches and self._topics.get(delivery_id) is topic:
                del self._topics[delivery_id]

    async def run(self) -> None:
        """Polls until cancelled. While the database is away, watchers just hear nothing new."""
        while True:
            try:
                async with asyncio.timeout(self._settings.watch_poll_seconds):
                    await self._wake.wait()
                    await asyncio.sleep(_COALESCE_SECONDS)
            except TimeoutError:
                pass
            self._wake.clear()
            if not self._topics:
                continue
            try:
                await self._publish()
            except (*UNAVAILABLE_ERRORS, *RETRYABLE_ERRORS, TimeoutError) as error:
                log.warning(
                    "the send log feed can't read", extra={"action": "send_log_feed", "error": type(error).__name__}
                )

    async def _publish(self) -> None:
        watched = dict(self._topics)
        found = await self._transitions.states(list(watched))
        for delivery_id, topic in watched.items():
            state = found.get(delivery_id)
            if state is not None and state == topic.state:
                continue
            topic.state = state
            for watch in topic.watches:
                watch.offer(state)
