"""The quarantine, the denylist and the allowlist in Postgres: what is shown of them, and changed by hand."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from typing import Final, NamedTuple

import asyncpg

from delivery_service.domain.lifecycle import Channel
from delivery_service.domain.outcome import Reason
from delivery_service.domain.quarantine import AddressStatus
from delivery_service.store.queries import query
from delivery_service.store.send_logs import arrays


class DenialKind(IntEnum):
    """Who is denied; the numbers are stored."""

    ADDRESS = 1
    PROFILE = 2


class DenialCause(IntEnum):
    """How they got on the denylist; the numbers are stored."""

    COMPLAINT = 1
    UNSUBSCRIBE = 2
    BY_HAND = 3


class Place(NamedTuple):
    """Where a list by channel and address stands: behind this one."""

    channel: int
    address: str


class DenialPlace(NamedTuple):
    """Where the denylist stands: behind this one."""

    channel: int
    kind: int
    value: str


FIRST: Final = Place(0, "")
FIRST_DENIAL: Final = DenialPlace(0, 0, "")


@dataclass(frozen=True, slots=True)
class AddressFilter:
    """Which addresses: by their status and by the error that decided it. Empty: any."""

    channel: Channel | None = None
    statuses: frozenset[AddressStatus] = frozenset()
    reasons: frozenset[Reason] = frozenset()
    domain: str = ""
    text: str = ""
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class AddressPage:
    """Some addresses, and the place to go on behind; None: that was all."""

    rows: list[asyncpg.Record]
    next_place: Place | None


class AddressHealth:
    """Each change may be repeated: the second time it changes nothing that counts."""

    def __init__(self, pool: asyncpg.Pool, rows_scanned_per_page_max: int) -> None:
        self._pool = pool
        self._scan_max = rows_scanned_per_page_max

    async def page(self, place: Place, wanted: AddressFilter, size: int) -> AddressPage:
        """At most `size` addresses that pass, of a bounded number that is looked at."""
        rows = await self._pool.fetch(
            query("list_address_health"),
            *place,
            self._scan_max,
            wanted.channel or 0,
            *arrays(wanted.statuses, wanted.reasons),
            wanted.domain,
            wanted.text,
            wanted.since,
            wanted.until,
        )
        shown = [row for row in rows if row["shown"]]
        if len(shown) > size:
            return AddressPage(shown[:size], _place(shown[size - 1]))
        return AddressPage(shown, _place(rows[-1]) if len(rows) == self._scan_max else None)

    async def get(self, channel: Channel, address: str) -> asyncpg.Record | None:
        """What its errors come to; None: none were reported."""
        return await self._pool.fetchrow(query("get_address_health"), channel, address)

    async def reports(self, channel: Channel, address: str, limit: int) -> list[asyncpg.Record]:
        """The newest reports about it that are kept."""
        rows: list[asyncpg.Record] = await self._pool.fetch(query("get_address_events"), channel, address, limit)
        return rows

    async def quarantine(
        self, channel: Channel, addresses: Sequence[str], adder: str, note: str, now: datetime
    ) -> list[str]:
        """Gives those that are on the allowlist, and so are not quarantined."""
        rows = await self._pool.fetch(query("quarantine_by_hand"), channel, addresses, adder, note, now)
        return [row["address"] for row in rows]

    async def release(self, addresses: Sequence[tuple[int, str]], now: datetime) -> int:
        """Gives how many were quarantined, provisionally or not."""
        channels, texts = [channel for channel, _ in addresses], [address for _, address in addresses]
        return int(await self._pool.fetchval(query("release_addresses"), channels, texts, now))

    async def with_error(
        self, since: datetime, until: datetime, after: tuple[datetime, int, str] | None, wanted: AddressFilter
    ) -> tuple[list[tuple[int, str]], tuple[datetime, int, str] | None]:
        """Some of the addresses whose deciding error happened in a time and passes, and where to go on; None: those
        were all."""
        rows = await self._pool.fetch(
            query("addresses_with_error"),
            *(after or (since, 0, "")),
            self._scan_max,
            until,
            wanted.channel or 0,
            *arrays(wanted.statuses, wanted.reasons),
            wanted.domain,
            wanted.text,
        )
        found = [(row["channel"], row["address"]) for row in rows if row["shown"]]
        last = rows[-1] if len(rows) == self._scan_max else None
        return found, (last["error_time"], last["channel"], last["address"]) if last else None

    async def allow(self, channel: Channel, addresses: Sequence[str], adder: str, note: str, now: datetime) -> int:
        """Gives how many are new."""
        return int(await self._pool.fetchval(query("add_to_allowlist"), channel, addresses, adder, note, now))

    async def disallow(self, channel: Channel, addresses: Sequence[str], now: datetime) -> int:
        """Gives how many were on the allowlist."""
        return int(await self._pool.fetchval(query("remove_from_allowlist"), channel, addresses, now))

    async def allowed(self, channel: Channel, address: str) -> asyncpg.Record | None:
        """The allowlist's entry of an address."""
        return await self._pool.fetchrow(query("get_allowlist_entry"), channel, address)

    async def allowlist(self, place: Place, limit: int) -> list[asyncpg.Record]:
        """The next entries behind a place."""
        rows: list[asyncpg.Record] = await self._pool.fetch(query("list_allowlist"), *place, limit)
        return rows

    async def deny(
        self, channel: Channel, kind: DenialKind, values: Sequence[str], changer: str, note: str, now: datetime
    ) -> int:
        """Gives how many were not on the denylist."""
        return int(await self._pool.fetchval(query("deny"), channel, kind, values, changer, note, now))

    async def undeny(
        self, channel: Channel, kind: DenialKind, values: Sequence[str], changer: str, now: datetime
    ) -> int:
        """Gives how many were on the denylist."""
        return int(await self._pool.fetchval(query("undeny"), channel, kind, values, changer, now))

    async def denial(self, channel: Channel, kind: DenialKind, value: str) -> asyncpg.Record | None:
        """The denylist's entry."""
        return await self._pool.fetchrow(query("get_denial"), channel, kind, value)

    async def denylist(self, place: DenialPlace, limit: int) -> list[asyncpg.Record]:
        """The next entries behind a place."""
        rows: list[asyncpg.Record] = await self._pool.fetch(query("list_denylist"), *place, limit)
        return rows


def _place(row: asyncpg.Record) -> Place:
    return Place(row["channel"], row["address"])
