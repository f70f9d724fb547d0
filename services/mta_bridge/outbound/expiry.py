"""Messages whose deadline has passed: the mail server is asked to give them up, as far as it can be asked.

Postfix knows no deadline of a single message (it has no DELIVERBY), but `postsuper -e` makes it give one up at once,
with the report that an expiry gets. That needs root, or Postfix's own user: so it is a command of the operator's, which
reads queue ids from its standard input: `postsuper -e -`, or something that runs it elsewhere.
"""

import asyncio
import logging
import shlex
from typing import Final

from mta_bridge.metrics import BridgeMetrics
from mta_bridge.store.journal import Journal
from service_runtime.clock import Clock

log = logging.getLogger(__name__)

BATCH: Final = 1_000
ERROR_CHARACTERS_MAX: Final = 500


class Expiry:
    """Looks at the deadlines every now and then."""

    def __init__(
        self,
        command: str,
        interval_seconds: float,
        command_seconds_max: float,
        journal: Journal,
        metrics: BridgeMetrics,
        clock: Clock,
    ) -> None:
        self._command = shlex.split(command)
        self._interval_seconds = interval_seconds
        self._command_seconds_max = command_seconds_max
        self._journal = journal
        self._metrics = metrics
        self._clock = clock

    async def run(self) -> None:
        """For ever. What could not be asked for, or goes on all the same, is asked for again."""
        while True:
            await self._clock.sleep(self._interval_seconds)
            overdue = self._journal.take_overdue(self._clock.now_us(), BATCH)
            if overdue and await self._expire([queue_id for _, queue_id in overdue]):
                self._metrics.expired.inc(len(overdue))
                self._journal.asked_to_expire((message_id for message_id, _ in overdue), self._clock.now_us())

    async def _expire(self, queue_ids: list[str]) -> bool:
        extra = {"action": "expire", "messages": len(queue_ids)}
        try:
            process = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
            )
        except OSError as error:
            self._metrics.expire_failures.inc()
            log.warning("the expiry command can't be run: %s", error, extra=extra)
            return False
        try:
            async with asyncio.timeout(self._command_seconds_max):
                _, said = await process.communicate("".join(f"{queue_id}\n" for queue_id in queue_ids).encode())
        except TimeoutError:
            said = b"it took too long"
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode == 0:
            return True
        self._metrics.expire_failures.inc()
        told = {**extra, "said": said.decode("utf-8", "replace")[:ERROR_CHARACTERS_MAX]}
        log.warning("the expiry command failed", extra=told)
        return False
