"""Runs a command's coroutine: signals cancel it once, failures are shown without a traceback."""

import asyncio
import signal
import sys
from collections.abc import Coroutine
from typing import Any

import grpc.aio
from rich.console import Console

from campaign_cli.errors import CommandFailed, explain, show_failure

INTERRUPTED_STATUS = 130


PIPE_WIDTH = 160
"""Where nothing says how wide the output may be, tables are not squeezed."""
WIDE = 130


def open_console(*, stderr: bool = False) -> Console:
    """The console of stdout, or of stderr."""
    console = Console(stderr=stderr)
    return console if console.is_terminal else Console(stderr=stderr, width=PIPE_WIDTH)


def is_wide(console: Console) -> bool:
    """Whether there is room for every column of a wide table."""
    return console.width >= WIDE


def run(work: Coroutine[Any, Any, None], *, interrupted_status: int = INTERRUPTED_STATUS) -> None:
    """Runs `work` to its end, or exits with a status and a message that say why it did not come to it."""
    try:
        interrupted = asyncio.run(_until_signal(work))
    except CommandFailed as failure:
        _fail(failure)
    except grpc.aio.AioRpcError as error:
        _fail(explain(error))
    except OSError as error:
        _fail(CommandFailed(str(error)))
    else:
        if interrupted:
            sys.exit(interrupted_status)


async def _until_signal(work: Coroutine[Any, Any, None]) -> bool:
    """Whether a signal has ended it. Only the first signal counts: the cleaning up that it starts is not cut short."""
    task = asyncio.create_task(work)
    loop = asyncio.get_running_loop()
    received: list[int] = []

    def interrupt(number: int) -> None:
        received.append(number)
        if len(received) == 1:
            task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, interrupt, number)
    try:
        await task
    except asyncio.CancelledError:
        if not received:
            raise
    return bool(received)


def _fail(failure: CommandFailed) -> None:
    show_failure(open_console(stderr=True), failure)
    sys.exit(1)
