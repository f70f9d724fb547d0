"""The bare fan-out that watching is held against: grpc.aio alone, an event per watcher, the same bytes to all.

Options: bytes. Each word on standard input pushes one message, which begins with the time (a double, big-endian); the
answer comes once all are woken.
"""

import asyncio
import os
import struct
import time
from typing import Any

import grpc
import grpc.aio

from service_runtime.process import raise_open_files_limit, relax_garbage_collection
from service_runtime.server import ServerLimits
from tests.bench.workload import Bench, Report, main

SERVICE, METHOD = "bench.Fanout", "Watch"
WAVE = 50
WAVE_SECONDS_MAX = 0.02


class Fanout:
    """All watchers, and the newest message."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._events: set[asyncio.Event] = set()
        self._payload = self._stamped()

    def _stamped(self) -> bytes:
        return struct.pack(">d", time.time()) + bytes(self._size - 8)

    async def push(self) -> None:
        """Wakes all, in waves: all at once is slower. A wave is over when half of it has begun to write."""
        self._payload = self._stamped()
        events = list(self._events)
        for begin in range(0, len(events), WAVE):
            wave = events[begin : begin + WAVE]
            for event in wave:
                event.set()
            end = time.perf_counter() + WAVE_SECONDS_MAX
            while time.perf_counter() < end and 2 * sum(event.is_set() for event in wave) > len(wave):  # noqa: ASYNC110
                await asyncio.sleep(0)

    async def watch(self, request: bytes, context: Any) -> None:
        event = asyncio.Event()
        event.set()
        self._events.add(event)
        try:
            while True:
                await event.wait()
                event.clear()
                await context.write(self._payload)
        finally:
            self._events.discard(event)


async def work(bench: Bench, options: Report) -> None:
    raise_open_files_limit()
    fanout = Fanout(options["bytes"])
    handler: Any = grpc.unary_stream_rpc_method_handler(fanout.watch, None, None)
    server = grpc.aio.server(options=ServerLimits().options())
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    relax_garbage_collection()
    bench.report(port=port, pid=os.getpid())
    while await bench.word():
        await fanout.push()
        bench.report(pushed=True)
    await server.stop(0)


if __name__ == "__main__":
    main(work)
