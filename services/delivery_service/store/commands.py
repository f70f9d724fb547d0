"""The commands that take a delivery back, or away, or copy it, in Postgres. False: it changed since it was read."""

from datetime import datetime
from enum import IntEnum

import asyncpg

from delivery_service.domain.delivery import Delivery
from delivery_service.store.queries import query


class Deletion(IntEnum):
    """What came of deleting a draft, as delete_draft tells it."""

    DONE = 0
    CHANGED = 1
    BEING_COPIED = 2


class Commands:
    """Compares the version that was read, as store/deliveries.py does."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def unconfirm(self, delivery: Delivery, now: datetime) -> bool:
        """START_PENDING to READY."""
        return None is not await self._pool.fetchval(query("unconfirm"), delivery.delivery_id, delivery.version, now)

    async def cancel_preparation(self, delivery: Delivery, now: datetime) -> bool:
        """PREPARING to EDITING."""
        return None is not await self._pool.fetchval(
            query("cancel_preparation"), delivery.delivery_id, delivery.version, now
        )

    async def decline(self, delivery_id: int, version: int, decliner: str, now: datetime) -> bool:
        """READY to STOPPED, of a child."""
        return None is not await self._pool.fetchval(query("decline_child"), delivery_id, version, now, decliner)

    async def delete(self, delivery: Delivery, now: datetime) -> Deletion:
        """Takes a draft away; its rows are left to `purge`."""
        return Deletion(await self._pool.fetchval(query("delete_draft"), delivery.delivery_id, delivery.version, now))

    async def deleted(self, limit: int) -> list[int]:
        """Deleted drafts with rows left, the oldest first."""
        rows = await self._pool.fetch(query("deleted_deliveries"), limit)
        return [row["delivery_id"] for row in rows]

    async def purge(self, delivery_id: int, rows_max: int) -> bool | None:
        """Removes some rows of a deleted draft; True once none is left, None if another replica is at it."""
        complete: bool | None = await self._pool.fetchval(query("purge_deleted"), delivery_id, rows_max)
        return complete

    async def duplicate(
        self, delivery_id: int, original_id: int, label: str, creator: str, now: datetime, *, with_audience: bool
    ) -> bool:
        """Makes a copy under a new id. False: the id is taken, or the original is gone."""
        return None is not await self._pool.fetchval(
            query("duplicate_delivery"), delivery_id, original_id, label, creator, now, with_audience
        )

    async def audiences_to_copy(self, limit: int) -> list[int]:
        """Deliveries whose audience is being copied, and can be now."""
        rows = await self._pool.fetch(query("audiences_to_copy"), limit)
        return [row["delivery_id"] for row in rows]

    async def copy_audience(self, delivery_id: int, recipients_max: int) -> bool | None:
        """Copies some recipients; True once all are copied, None if another replica is at it."""
        complete: bool | None = await self._pool.fetchval(query("copy_audience"), delivery_id, recipients_max)
        return complete
