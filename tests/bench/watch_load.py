"""Watchers of one delivery, many streams on few connections.

Options: target, token, method, request (hexadecimal), watchers, connections. It says when all have had a first message.
Words: `mark` begins anew, `report` gives, for each different message since then, when it was read off the wire first
and when the last watcher had it or a newer one.
"""

import asyncio
import time
from functools import partial
from typing import Any

from service_runtime.process import raise_open_files_limit
from tests.bench.http2 import Connection, framed
from tests.bench.workload import Bench, Report, main

OPENING_AT_ONCE = 500
HEARTBEAT_BYTES_MAX = 32
"""A heartbeat has a time and nothing else; no KPIs are so short."""


class Watchers:
    """What all of them have seen. Messages are told apart by their bytes; each is newer than those before it."""

    def __init__(self, number: int) -> None:
        self._payloads: dict[bytes, int] = {}
        self._latest = [-1] * number
        self._first: list[float] = []
        self._last: list[float] = []
        self._behind: list[int] = []
        self._marked = 0
        self.ended = 0
        self.waiting = number
        self.changed = asyncio.Event()

    def heard(self, watcher: int, message: bytes) -> None:
        if len(message) <= HEARTBEAT_BYTES_MAX:
            return
        now = time.time()
        number = self._payloads.get(message)
        if number is None:
            number = self._payloads[message] = len(self._payloads)
            self._first.append(now)
            self._last.append(0.0)
            self._behind.append(len(self._latest))
        before = self._latest[watcher]
        if before < 0:
            self.waiting -= 1
            self.changed.set()
        for reached in range(max(before + 1, self._marked), number + 1):
            self._behind[reached] -= 1
            if not self._behind[reached]:
                self._last[reached] = now
        if number > before:
            self._latest[watcher] = number

    def end(self) -> None:
        self.ended += 1
        self.changed.set()

    def mark(self) -> None:
        """Forgets what was before. A watcher that is behind counts only for what comes now."""
        self._marked = len(self._payloads)

    def seen(self) -> list[dict[str, Any]]:
        """Every message since the mark that all have got past, in order."""
        return [
            {"payload": payload.hex(), "first": self._first[number], "last": self._last[number]}
            for payload, number in self._payloads.items()
            if number >= self._marked and self._last[number]
        ]


async def work(bench: Bench, options: Report) -> None:
    raise_open_files_limit()
    count: int = options["watchers"]
    watchers = Watchers(count)
    connections = [await Connection.open(options["target"]) for _ in range(options["connections"])]
    request = framed(bytes.fromhex(options["request"]))
    for number in range(count):
        connection = connections[number % len(connections)]
        stream = connection.call(options["method"], options["token"], partial(watchers.heard, number), watchers.end)
        connection.send(stream, request)
        connection.half_close(stream)
        while number + 1 - (count - watchers.waiting) >= OPENING_AT_ONCE and not watchers.ended:
            watchers.changed.clear()
            await watchers.changed.wait()
    while watchers.waiting and not watchers.ended:
        watchers.changed.clear()
        await watchers.changed.wait()
    bench.report(ready=not watchers.ended, ended=watchers.ended)
    while word := await bench.word():
        if word == "mark":
            watchers.mark()
        bench.report(seen=watchers.seen() if word == "report" else [], ended=watchers.ended)
    for connection in connections:
        connection.close()


if __name__ == "__main__":
    main(work)
