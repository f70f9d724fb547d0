"""Work on many rows that a command has left behind: copies audiences, removes rows of what was deleted.

In steps of a bounded number of rows, each committed by itself and repeatable: a crash costs one step, and any replica
goes on.
"""

from collections.abc import Callable
from typing import Final

from delivery_service.settings import Settings
from delivery_service.store.commands import Commands
from delivery_service.store.suppressions import Suppressions

_LISTED_MAX: Final = 100


class AudienceCopyWorker:
    """`changed` is called with each delivery whose audience is complete: it can be prepared."""

    def __init__(self, commands: Commands, settings: Settings, changed: Callable[[int], None]) -> None:
        self._commands = commands
        self._step = settings.audience_copy_recipients_per_step
        self._changed = changed

    async def work(self) -> bool:
        """Copies one step of each audience in turn: no small one waits for a large one. True while there is more."""
        worked = False
        for delivery_id in await self._commands.audiences_to_copy(_LISTED_MAX):
            complete = await self._commands.copy_audience(delivery_id, self._step)
            worked |= complete is not None
            if complete:
                self._changed(delivery_id)
        return worked


class DeletionWorker:
    """Nobody sees what it removes any more: the rows of deleted drafts, the entries of deleted suppression lists."""

    def __init__(self, commands: Commands, suppressions: Suppressions, settings: Settings) -> None:
        self._commands = commands
        self._suppressions = suppressions
        self._step = settings.deletion_rows_per_step

    async def work(self) -> bool:
        """Removes one step of each in turn; True while there is more."""
        deleted = await self._commands.deleted(_LISTED_MAX)
        purged = [await self._commands.purge(delivery_id, self._step) for delivery_id in deleted]
        lists = await self._suppressions.deleted(_LISTED_MAX)
        purged += [await self._suppressions.purge(list_id, self._step) for list_id in lists]
        return any(complete is not None for complete in purged)
