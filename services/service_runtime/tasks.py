"""Background tasks with an owner: none dies unnoticed, none outlives the owner."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

log = logging.getLogger(__name__)


class BackgroundTasks:
    """Starts named tasks that are to run until `stop`. One that ends by itself is a fault and stops the process.

    `on_death` is called once with the name of the first that died; usually it sets the process's stop event.
    """

    def __init__(self, on_death: Callable[[str], None]) -> None:
        self._on_death = on_death
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stopping = False

    @property
    def dead(self) -> bool:
        """Whether a task has died, or all were told to stop."""
        return self._stopping

    def start(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Runs `work` as a task."""
        if self._stopping:
            work.close()
            return
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    async def stop(self) -> None:
        """Cancels all tasks and waits until the last one is through with its cleaning up."""
        self._stopping = True
        while self._tasks:
            running = tuple(self._tasks)
            for task in running:
                task.cancel()
            await asyncio.wait(running)
            # The callbacks that remove them have been scheduled but may not have run.
            self._tasks.difference_update(running)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        extra = {"action": "run_background_task", "task": task.get_name()}
        if error is not None:
            log.error("a background task failed", extra=extra, exc_info=error)
        elif not self._stopping:
            log.error("a background task ended by itself", extra=extra)
        if not self._stopping:
            self._stopping = True
            self._on_death(task.get_name())
