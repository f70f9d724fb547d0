"""Follows the log of Postfix: a file, over its rotations, or standard input.

The place up to which everything is acknowledged is remembered; after a restart, reading goes on there, and what had
been reported but not acknowledged is reported again. A file that was renamed is read to its end before the new one. For
what was rotated away while the bridge was down, its directory is searched by inode; a compressed one can't be read on,
which is logged.
"""

import asyncio
import logging
import os
import sys
from collections import deque
from pathlib import Path
from typing import BinaryIO, Final

from mta_bridge.domain.postfix_log import PostfixLog, Taken
from mta_bridge.domain.reports import Report
from mta_bridge.feedback.queue import Delivery, FeedbackQueue
from mta_bridge.store.journal import Journal
from mta_bridge.store.log_place import LogPlaces, Place
from service_runtime.clock import Clock

log = logging.getLogger(__name__)

CHUNK_BYTES: Final = 256 * 1_024
LINE_BYTES_MAX: Final = 64 * 1_024
DELIVERIES_MAX: Final = 16
"""Chunks read and not acknowledged; beyond it the log is not read."""


class LogTail:
    """One log."""

    def __init__(
        self,
        path: Path,
        parser: PostfixLog,
        queue: FeedbackQueue,
        journal: Journal,
        places: LogPlaces,
        poll_seconds: float,
        clock: Clock,
    ) -> None:
        self._path = path
        self._reader = _Lines(parser, queue, journal, clock)
        self._places = places
        self._poll_seconds = poll_seconds
        self._clock = clock
        self._unacked: deque[tuple[Delivery | None, Place]] = deque()
        self._moved = asyncio.Event()
        self._shrunk = asyncio.Event()

    async def run(self) -> None:
        """Reads for ever."""
        acknowledging = asyncio.create_task(self._acknowledge(), name="log acknowledgements")
        try:
            place = self._places.get(str(self._path))
            while True:
                file = await self._open(place)
                with file:
                    inode = os.fstat(file.fileno()).st_ino
                    await self._read_to_its_end(file, inode)
                place = None
        finally:
            acknowledging.cancel()
            await asyncio.wait([acknowledging])

    async def _open(self, place: Place | None) -> BinaryIO:
        """The file that the place is in, or the present one, as soon as there is one."""
        while True:
            if place is not None:
                if (path := self._find(place.inode)) is not None:
                    file = path.open("rb")
                    if place.offset <= os.fstat(file.fileno()).st_size:
                        file.seek(place.offset)
                        return file
                    file.close()
                told = {"action": "tail_log", "path": str(self._path), "inode": place.inode}
                log.warning(
                    "the log that was read last is gone: reading the present one from its beginning", extra=told
                )
                place = None
            try:
                return self._path.open("rb")
            except FileNotFoundError:
                await self._clock.sleep(self._poll_seconds)

    def _find(self, inode: int) -> Path | None:
        try:
            with os.scandir(self._path.parent) as entries:
                return next((Path(entry.path) for entry in entries if entry.inode() == inode), None)
        except FileNotFoundError:
            return None

    async def _read_to_its_end(self, file: BinaryIO, inode: int) -> None:
        """Returns once another file has taken its place, and nothing more was written to this one."""
        rest = b""
        replaced = False
        while True:
            offset = file.tell()
            chunk = file.read(CHUNK_BYTES)
            if not chunk:
                if replaced:
                    return
                replaced = self._is_replaced(inode, offset)
                if not replaced:
                    await self._clock.sleep(self._poll_seconds)
                continue  # once more after a rotation: something may have been written just before it
            replaced = False
            *lines, rest = (rest + chunk).split(b"\n")
            if len(rest) > LINE_BYTES_MAX:
                rest = b""
            delivery = await self._reader.take(lines)
            await self._add(delivery, Place(inode, file.tell() - len(rest)))

    def _is_replaced(self, inode: int, offset: int) -> bool:
        try:
            now = self._path.stat()
        except FileNotFoundError:
            return False  # between the renaming and the new file
        return now.st_ino != inode or now.st_size < offset

    async def _add(self, delivery: Delivery | None, place: Place) -> None:
        while len(self._unacked) >= DELIVERIES_MAX:
            self._shrunk.clear()
            await self._shrunk.wait()
        self._unacked.append((delivery, place))
        self._moved.set()

    async def _acknowledge(self) -> None:
        while True:
            while not self._unacked:
                self._moved.clear()
                await self._moved.wait()
            delivery, place = self._unacked[0]
            if delivery is not None:
                await delivery.acknowledged
            self._unacked.popleft()
            self._shrunk.set()
            self._places.set(str(self._path), place)


class StandardInput:
    """Postfix with its log on standard output, piped into us: nothing can be read again, so there is no place."""

    def __init__(self, parser: PostfixLog, queue: FeedbackQueue, journal: Journal, clock: Clock) -> None:
        self._reader = _Lines(parser, queue, journal, clock)

    async def run(self) -> None:
        """Reads until the input ends, and then waits: the process goes on."""
        loop = asyncio.get_running_loop()
        stream = asyncio.StreamReader(limit=LINE_BYTES_MAX)
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stream), sys.stdin)
        try:
            rest = b""
            while chunk := await stream.read(CHUNK_BYTES):
                *lines, rest = (rest + chunk).split(b"\n")
                await self._reader.take(lines)
            log.warning("the log on standard input has ended", extra={"action": "tail_log"})
            await asyncio.Event().wait()
        finally:
            transport.close()


class _Lines:
    """Turns lines into reports, and hands them in."""

    def __init__(self, parser: PostfixLog, queue: FeedbackQueue, journal: Journal, clock: Clock) -> None:
        self._parser = parser
        self._queue = queue
        self._journal = journal
        self._clock = clock

    async def take(self, lines: list[bytes]) -> Delivery | None:
        now = self._clock.now()
        reports: list[Report] = []
        for line in lines:
            found = self._parser.read(line.decode("utf-8", "replace"), now)
            if isinstance(found, Taken):
                self._journal.tie(found.message_id, found.queue_id)
            elif found is not None:
                reports.append(found)
        return await self._queue.hand_in("log", reports) if reports else None
