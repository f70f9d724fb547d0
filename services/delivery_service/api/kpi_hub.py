"""The watch feed: one poll and one serialisation per change for all watchers of this process.

Guarantees to a watcher, per delivery: a snapshot first; then revisions that strictly increase, coalesced (the newest
wins) but never without the last one; no other watcher can slow it. Memory per watcher is bounded: a watcher holds no
messages, only which deliveries have something newer than what it sent.

Works on every replica: commits of this process wake the feed at once, and a poll covers those of the others. (NOTIFY
inside transactions would halve the commit rate, and a dead LISTEN tells nobody.)

What watchers cost is bounded: after each push the feed rests, so long that pushes take no more than their share of the
process's time. The more watchers, or the busier the process, the rarer the updates; never older than the push.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from campaign.delivery.v1 import delivery_service_pb2 as pb
from delivery_service.api.watchers import Topic, View, Watcher, wake_in_waves
from delivery_service.convert import kpis_to_pb
from delivery_service.domain.kpis import DeliveryKpis
from delivery_service.domain.problems import DeliveryNotFound, LimitReached
from delivery_service.settings import Settings
from delivery_service.store.database import RETRYABLE_ERRORS, UNAVAILABLE_ERRORS
from delivery_service.store.feedback import FeedbackStore
from delivery_service.store.kpis import KpiStore
from service_runtime.clock import Clock

log = logging.getLogger(__name__)

_COALESCE_SECONDS: Final = 0.02
"""Commits within it make one update."""
_SOURCES_REFRESH_SECONDS: Final = 1.0
_HEARTBEAT_CHECK_SECONDS_MAX: Final = 1.0
"""How often idle watchers are looked for: one sweep over all of them, instead of a timer in each."""


class KpiHub:
    """`run` is the feed; `watch` serves one stream; `touch` says that something was committed here."""

    def __init__(self, kpis: KpiStore, feedback: FeedbackStore, settings: Settings, clock: Clock) -> None:
        self._kpis = kpis
        self._feedback = feedback
        self._settings = settings
        self._clock = clock
        self._topics: dict[int, Topic] = {}
        self._touched: set[int] = set()
        self._wake = asyncio.Event()
        self._first_load = asyncio.Lock()
        self._watchers: set[Watcher] = set()
        self.sources_connected = 0

    @property
    def watchers(self) -> int:
        """Open streams."""
        return len(self._watchers)

    def touch(self, delivery_ids: Iterable[int]) -> None:
        """These deliveries have changed: watchers of this process will see it at once."""
        watched = self._topics.keys() & delivery_ids
        if watched:
            self._touched |= watched
            self._wake.set()

    async def watch(
        self, delivery_ids: list[int], min_interval_seconds: float, write: Callable[[bytes], Awaitable[None]]
    ) -> None:
        """Serves one stream of serialised messages, until all is settled. DeliveryNotFound, LimitReached."""
        with self._subscription(delivery_ids, min_interval_seconds) as watcher:
            # One after the other: of ten thousand watchers that come at once, the first one reads for all.
            async with self._first_load:
                fresh_since = asyncio.get_running_loop().time() - self._settings.watch_poll_seconds
                self.touch(await self._load(d for d in delivery_ids if self._topics[d].load_time < fresh_since))
            for delivery_id in delivery_ids:
                if not self._topics[delivery_id].payload:
                    raise DeliveryNotFound(delivery_id)
            await watcher.serve(write)

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
                await asyncio.sleep(self._rest_seconds(await self._publish_changes()))
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

    async def run_heartbeats(self) -> None:
        """Has idle watchers hear something, until cancelled."""
        seconds = self._settings.watch_heartbeat_seconds
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(min(seconds / 4, _HEARTBEAT_CHECK_SECONDS_MAX))
            idle_since = loop.time() - seconds
            idle = [watcher for watcher in self._watchers if watcher.wrote_at <= idle_since]
            heartbeat = _heartbeat(self._clock)
            for watcher in idle:
                watcher.beat(heartbeat)

    @contextmanager
    def _subscription(self, delivery_ids: list[int], min_interval_seconds: float) -> Iterator[Watcher]:
        if len(self._watchers) >= self._settings.watchers_max:
            raise LimitReached(
                "watchers_max", self._settings.watchers_max, "watch through another replica", retry_delay_seconds=1.0
            )
        watcher = Watcher((self._topics.setdefault(d, Topic()) for d in delivery_ids), min_interval_seconds)
        self._watchers.add(watcher)
        try:
            yield watcher
        finally:
            self._watchers.discard(watcher)
            watcher.close()
            for delivery_id in delivery_ids:
                topic = self._topics.get(delivery_id)
                if topic is not None and not topic.views:
                    del self._topics[delivery_id]

    async def _publish_changes(self) -> float:
        """Tells watchers what has changed; how many seconds that took, without the reading."""
        if not self._topics:
            return 0.0
        changed, self._touched = self._touched & self._topics.keys(), set()
        others = [delivery_id for delivery_id in self._topics if delivery_id not in changed]
        for delivery_id, revision in (await self._kpis.revisions(others)).items():
            topic = self._topics.get(delivery_id)
            if topic is not None and revision > topic.revision:
                changed.add(delivery_id)
        await self._load(changed)
        return await wake_in_waves([watcher for delivery_id in changed for watcher in self._due(delivery_id)])

    def _rest_seconds(self, push_seconds: float) -> float:
        """How long nobody is told anything after a push, so that pushes keep to their share of the time."""
        share = self._settings.watch_time_share_max
        return min(push_seconds * (1 - share) / share, self._settings.watch_rest_seconds_max)

    async def _load(self, delivery_ids: Iterable[int]) -> list[int]:
        """Reads and serialises these; gives those that have something newer than before."""
        wanted = list(delivery_ids)
        if not wanted:
            return []
        began = asyncio.get_running_loop().time()
        newer = []
        for delivery_id, kpis in (await self._kpis.get(wanted)).items():
            topic = self._topics.get(delivery_id)
            if topic is None:
                continue
            topic.load_time = max(topic.load_time, began)
            if kpis.revision > topic.revision:  # two loads may overtake each other
                topic.payload = self._serialised(kpis)
                topic.revision, topic.settled = kpis.revision, kpis.settled
                newer.append(delivery_id)
        return newer

    def _serialised(self, kpis: DeliveryKpis) -> bytes:
        return pb.WatchKpisResponse(kpis=kpis_to_pb(kpis, self.sources_connected)).SerializeToString()

    def _due(self, delivery_id: int) -> list[Watcher]:
        """Who is to be told now. Those that were told too lately are set aside until their interval is over: however
        often the delivery changes meanwhile, they cost nothing."""
        topic = self._topics.get(delivery_id)
        if topic is None:
            return []
        loop = asyncio.get_running_loop()
        now = loop.time()
        due = []
        for view in tuple(topic.idle):
            if not view.is_behind:
                continue
            if view.due > now:
                topic.idle.discard(view)
                loop.call_at(view.due, self._rested, delivery_id, view)
            else:
                due.append(view.watcher)
        return due

    def _rested(self, delivery_id: int, view: View) -> None:
        """A watcher's interval is over: it is told with the others, what is newest then."""
        if view in view.topic.views:
            view.topic.idle.add(view)
            if view.is_behind:
                self.touch((delivery_id,))


def _heartbeat(clock: Clock) -> bytes:
    time = Timestamp()
    time.FromDatetime(clock.now())
    return pb.WatchKpisResponse(heartbeat=pb.Heartbeat(time=time)).SerializeToString()
