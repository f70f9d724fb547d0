"""The watch feed: one poll and one serialisation per change for all watchers of this process.

Guarantees to a watcher, per delivery: a snapshot first; then revisions that strictly increase, coalesced (the newest
wins) but never without the last one; no other watcher can slow it. Memory per watcher is bounded: a watcher holds no
messages, only which deliveries have something newer than what it sent.

Works on every replica: commits of this process wake the feed at once, and a poll covers those of the others. (NOTIFY
inside transactions would halve the commit rate, and a dead LISTEN tells nobody.)
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from campaign.delivery.v1 import delivery_service_pb2 as pb
from delivery_service.convert import kpis_to_pb
from delivery_service.domain.kpis import DeliveryKpis
from delivery_service.domain.problems import DeliveryNotFound, LimitReached
from delivery_service.settings import Settings
from delivery_service.store.database import RETRYABLE_ERRORS, UNAVAILABLE_ERRORS
from delivery_service.store.feedback import FeedbackStore
from delivery_service.store.kpis import KpiStore
from service_runtime.clock import Clock

log = logging.getLogger(__name__)

_WAVE: Final = 50
"""Watchers woken at once. Waking thousands blocks the loop for hundreds of milliseconds; waves that wait for half of
their writes keep other calls at a few milliseconds, and are faster in all."""
_WAVE_SECONDS_MAX: Final = 0.005
_COALESCE_SECONDS: Final = 0.02
"""Commits within it make one update."""
_SOURCES_REFRESH_SECONDS: Final = 1.0


class _Topic:
    """One watched delivery: its newest message, serialised once, and who watches it."""

    __slots__ = ("payload", "revision", "settled", "watchers")

    def __init__(self) -> None:
        self.payload = b""
        self.revision = 0
        self.settled = False
        self.watchers: set[Watcher] = set()


class Watcher:
    """One WatchKpis stream: what it has sent, and what it should send."""

    __slots__ = ("_due", "_heartbeat_seconds", "_min_interval_seconds", "_sent", "_topics", "busy", "event")

    def __init__(self, topics: dict[int, _Topic], min_interval_seconds: float, heartbeat_seconds: float) -> None:
        self._topics = topics
        self._min_interval_seconds = min_interval_seconds
        self._heartbeat_seconds = heartbeat_seconds
        self._sent = dict.fromkeys(topics, 0)
        self._due = dict.fromkeys(topics, 0.0)  # when the next message about it may go, by the loop's time
        self.event = asyncio.Event()
        self.busy = False

    async def messages(self, clock: Clock) -> AsyncIterator[bytes]:
        """What to send, until every delivery is settled."""
        loop = asyncio.get_running_loop()
        while self._topics:
            self.event.clear()
            now = loop.time()
            wait_until = now + self._heartbeat_seconds
            for delivery_id, topic in list(self._topics.items()):
                if topic.revision > self._sent[delivery_id]:
                    if now < self._due[delivery_id]:
                        wait_until = min(wait_until, self._due[delivery_id])
                        continue
                    self._sent[delivery_id] = topic.revision
                    self._due[delivery_id] = now + self._min_interval_seconds
                    self.busy = True
                    yield topic.payload
                    self.busy = False
                if topic.settled and self._sent[delivery_id] == topic.revision:
                    del self._topics[delivery_id]
            if self.event.is_set() or not self._topics:
                continue
            held_back = wait_until < now + self._heartbeat_seconds
            try:
                async with asyncio.timeout_at(wait_until):
                    await self.event.wait()
            except TimeoutError:
                if not held_back:
                    yield _heartbeat(clock)


class KpiHub:
    """`run` is the feed; `watch` serves one stream; `touch` says that something was committed here."""

    def __init__(self, kpis: KpiStore, feedback: FeedbackStore, settings: Settings, clock: Clock) -> None:
        self._kpis = kpis
        self._feedback = feedback
        self._settings = settings
        self._clock = clock
        self._topics: dict[int, _Topic] = {}
        self._touched: set[int] = set()
        self._wake = asyncio.Event()
        self._first_load = asyncio.Lock()
        self._watchers = 0
        self.sources_connected = 0

    @property
    def watchers(self) -> int:
        """Open streams."""
        return self._watchers

    def touch(self, delivery_ids: Iterable[int]) -> None:
        """These deliveries have changed: watchers of this process will see it at once."""
        watched = self._topics.keys() & delivery_ids
        if watched:
            self._touched |= watched
            self._wake.set()

    async def watch(self, delivery_ids: list[int], min_interval_seconds: float) -> AsyncIterator[bytes]:
        """The serialised messages of one stream. DeliveryNotFound, LimitReached."""
        with self._subscription(delivery_ids, min_interval_seconds) as watcher:
            # One after the other: of ten thousand watchers that come at once, the first one reads for all.
            async with self._first_load:
                unknown = [delivery_id for delivery_id in delivery_ids if not self._topics[delivery_id].payload]
                await self._load(unknown)
            for delivery_id in unknown:
                if not self._topics[delivery_id].payload:
                    raise DeliveryNotFound(delivery_id)
            async for message in watcher.messages(self._clock):
                yield message

    async def run(self) -> None:
        """Polls and publishes until cancelled. While the database is away, watchers just hear nothing new."""
        while True:
            try:
                async with asyncio.timeout(self._settings.watch_poll_seconds):
                    await self._wake.wait()
                    await asyncio.sleep(_COALESCE_SECONDS)
            except TimeoutError:
                pass
            self._wake.clear()
            try:
                await self._publish_changes()
            except (*UNAVAILABLE_ERRORS, *RETRYABLE_ERRORS, TimeoutError) as error:
                log.warning("the watch feed can't read", extra={"action": "watch_feed", "error": type(error).__name__})

    async def run_sources(self, database_reached: Callable[[bool], Awaitable[None]]) -> None:
        """Keeps `sources_connected` fresh, until cancelled, and tells each time whether the database answered."""
        while True:
            try:
                self.sources_connected = await self._feedback.sources_connected(self._clock.now())
                reached = True
            except (*UNAVAILABLE_ERRORS, *RETRYABLE_ERRORS, TimeoutError):
                self.sources_connected, reached = 0, False  # unknown; the feed says why
            await database_reached(reached)
            await self._clock.sleep(_SOURCES_REFRESH_SECONDS)

    @contextmanager
    def _subscription(self, delivery_ids: list[int], min_interval_seconds: float) -> Iterator[Watcher]:
        if self._watchers >= self._settings.watchers_max:
            raise LimitReached(
                "watchers_max", self._settings.watchers_max, "watch through another replica", retry_delay_seconds=1.0
            )
        topics = {delivery_id: self._topics.setdefault(delivery_id, _Topic()) for delivery_id in delivery_ids}
        watcher = Watcher(dict(topics), min_interval_seconds, self._settings.watch_heartbeat_seconds)
        self._watchers += 1
        for topic in topics.values():
            topic.watchers.add(watcher)
        try:
            yield watcher
        finally:
            self._watchers -= 1
            for delivery_id, topic in topics.items():
                topic.watchers.discard(watcher)
                if not topic.watchers and self._topics.get(delivery_id) is topic:
                    del self._topics[delivery_id]

    async def _publish_changes(self) -> None:
        if not self._topics:
            return
        changed, self._touched = self._touched & self._topics.keys(), set()
        others = [delivery_id for delivery_id in self._topics if delivery_id not in changed]
        for delivery_id, revision in (await self._kpis.revisions(others)).items():
            topic = self._topics.get(delivery_id)
            if topic is not None and revision > topic.revision:
                changed.add(delivery_id)
        for topic in await self._load(changed):
            await self._wake_watchers(topic)

    async def _load(self, delivery_ids: Iterable[int]) -> list[_Topic]:
        """Reads and serialises these; gives the topics that have something newer than before."""
        wanted = list(delivery_ids)
        if not wanted:
            return []
        newer = []
        for delivery_id, kpis in (await self._kpis.get(wanted, self._clock.now())).items():
            topic = self._topics.get(delivery_id)
            if topic is not None and kpis.revision > topic.revision:  # two loads may overtake each other
                topic.payload = self._serialised(kpis)
                topic.revision, topic.settled = kpis.revision, kpis.settled
                newer.append(topic)
        return newer

    def _serialised(self, kpis: DeliveryKpis) -> bytes:
        return pb.WatchKpisResponse(kpis=kpis_to_pb(kpis, self.sources_connected)).SerializeToString()

    async def _wake_watchers(self, topic: _Topic) -> None:
        """Wakes all watchers, in waves paced by completion. A stalled one is not waited for: it finds the newest state
        when it can write again."""
        watchers = list(topic.watchers)
        for begin in range(0, len(watchers), _WAVE):
            wave = []
            for watcher in watchers[begin : begin + _WAVE]:
                watcher.event.set()
                if not watcher.busy:
                    wave.append(watcher)
            if begin + _WAVE >= len(watchers):
                return
            loop = asyncio.get_running_loop()
            end = loop.time() + _WAVE_SECONDS_MAX
            # There are fifty events to wait for, and half of them are enough.
            while loop.time() < end and 2 * sum(w.busy or w.event.is_set() for w in wave) > len(wave):  # noqa: ASYNC110
                await asyncio.sleep(0)  # fifty events to wait for, and half of them are enough


def _heartbeat(clock: Clock) -> bytes:
    time = Timestamp()
    time.FromDatetime(clock.now())
    return pb.WatchKpisResponse(heartbeat=pb.Heartbeat(time=time)).SerializeToString()
