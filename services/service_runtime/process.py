"""The process around a service: its signals, its limits, its event loop."""

import asyncio
import gc
import importlib
import logging
import os
import resource
import signal
from collections.abc import Awaitable, Callable
from typing import Any

log = logging.getLogger(__name__)

OPEN_FILES_WANTED = 65_536


def run(main: Callable[[asyncio.Event], Awaitable[None]], *, use_uvloop: bool = False) -> None:
    """Runs `main` until it returns. SIGTERM or SIGINT sets its event; a second one ends the process at once.

    uvloop is used if asked for and installed; it gains little here, so nothing depends on it.
    """

    async def with_signals() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, _stop_or_exit, number, stop)
        await main(stop)

    with asyncio.Runner(loop_factory=_uvloop_factory() if use_uvloop else None) as runner:
        runner.run(with_signals())


def raise_open_files_limit(wanted: int = OPEN_FILES_WANTED) -> int:
    """Raises the soft limit of open files towards `wanted`, and returns it. Each connection is an open file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft == resource.RLIM_INFINITY or soft >= limit:
        return soft
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    return limit


def relax_garbage_collection() -> None:
    """Makes full collections rare: with 10,000 open streams each one stops the process for some 300 ms.

    Call it once, after start-up: what lives by then stays for good, and is not looked at again.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 1_000)


def _stop_or_exit(number: signal.Signals, stop: asyncio.Event) -> None:
    if stop.is_set():
        log.warning("second signal, leaving at once", extra={"action": "stop_process", "signal": number.name})
        logging.shutdown()
        os._exit(128 + number)
    log.info("stopping on a signal", extra={"action": "stop_process", "signal": number.name})
    stop.set()


def _uvloop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        uvloop: Any = importlib.import_module("uvloop")
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
