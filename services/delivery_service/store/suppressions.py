"""Suppression lists and their entries in Postgres. Whoever changes a list's entries holds the list."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from typing import Final, NamedTuple

import asyncpg

from delivery_service.domain.lifecycle import Channel
from delivery_service.domain.problems import (
    LimitReached,
    SuppressionListExists,
    SuppressionListInUse,
    SuppressionListNotFound,
)
from delivery_service.store.queries import query


class EntryKind(IntEnum):
    """What an entry suppresses; the numbers are stored."""

    ADDRESS = 1
    DOMAIN = 2


class EntryPlace(NamedTuple):
    """Where a list of entries stands: behind this one."""

    kind: int
    value: str


FIRST_ENTRY: Final = EntryPlace(0, "")


@dataclass(frozen=True, slots=True)
class SuppressionList:
    """A list without its entries. `list_id` is of this list alone, whoever bears its name later."""

    list_id: int
    name: str
    channel: Channel
    description: str
    creator: str
    create_time: datetime
    update_time: datetime
    address_count: int
    domain_count: int


class Suppressions:
    """Adding and removing may be repeated: the second time they change nothing."""

    def __init__(self, pool: asyncpg.Pool, entries_per_list_max: int) -> None:
        self._pool = pool
        self._entries_max = entries_per_list_max

    async def create(
        self, name: str, channel: Channel, description: str, creator: str, now: datetime
    ) -> SuppressionList:
        """An empty list; SuppressionListExists."""
        row = await self._pool.fetchrow(query("create_suppression_list"), name, channel, description, creator, now)
        if row is None:
            raise SuppressionListExists(name)
        return _list(row)

    async def get(self, name: str) -> SuppressionList:
        """One list; SuppressionListNotFound."""
        row = await self._pool.fetchrow(query("get_suppression_list"), name)
        if row is None:
            raise SuppressionListNotFound(name)
        return _list(row)

    async def page(self, behind: str, limit: int) -> list[SuppressionList]:
        """The next `limit` lists by name."""
        return [_list(row) for row in await self._pool.fetch(query("list_suppression_lists"), behind, limit)]

    async def delete(self, name: str, now: datetime) -> None:
        """Takes a list away; its entries are left to `purge`. SuppressionListNotFound, SuppressionListInUse."""
        users = await self._pool.fetchval(query("delete_suppression_list"), name, now)
        if users is None:
            raise SuppressionListNotFound(name)
        if users:
            raise SuppressionListInUse(name, users)

    async def add(self, name: str, addresses: Sequence[str], domains: Sequence[str], now: datetime) -> int:
        """How many entries were new; SuppressionListNotFound, LimitReached."""
        try:
            added = await self._pool.fetchval(
                query("add_suppression_entries"), name, addresses, domains, self._entries_max, now
            )
        except asyncpg.ProgramLimitExceededError:
            raise LimitReached("suppression_entries_per_list_max", self._entries_max, "begin another list") from None
        if added is None:
            raise SuppressionListNotFound(name)
        return int(added)

    async def remove(self, name: str, addresses: Sequence[str], domains: Sequence[str], now: datetime) -> int:
        """How many entries were there; SuppressionListNotFound."""
        removed = await self._pool.fetchval(query("remove_suppression_entries"), name, addresses, domains, now)
        if removed is None:
            raise SuppressionListNotFound(name)
        return int(removed)

    async def entries(self, list_id: int, behind: EntryPlace, limit: int) -> list[asyncpg.Record]:
        """The next `limit` entries (kind, value, add_time): addresses, then domains."""
        rows: list[asyncpg.Record] = await self._pool.fetch(
            query("list_suppression_entries"), list_id, behind.kind, behind.value, limit
        )
        return rows

    async def deleted(self, limit: int) -> list[int]:
        """Deleted lists with entries left."""
        rows = await self._pool.fetch(query("deleted_suppression_lists"), limit)
        return [row["list_id"] for row in rows]

    async def purge(self, list_id: int, entries_max: int) -> bool | None:
        """Removes some entries of a deleted list; True once none is left, None if another replica is at it."""
        complete: bool | None = await self._pool.fetchval(query("purge_suppression_list"), list_id, entries_max)
        return complete


def _list(row: asyncpg.Record) -> SuppressionList:
    return SuppressionList(**{**row, "channel": Channel(row["channel"])})
