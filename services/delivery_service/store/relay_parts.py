"""The work of relaying in Postgres: parts of 1,024 recipients, claimed with leases by the database's clock."""

from dataclasses import dataclass
from datetime import datetime, timedelta

import asyncpg

from delivery_service.domain.identifiers import RECIPIENTS_PER_PART
from delivery_service.store.queries import query


@dataclass(frozen=True, slots=True)
class Claim:
    """One part, ours until its lease ends. `claim_count` fences off an earlier holder."""

    delivery_id: int
    part: int
    claim_count: int


@dataclass(frozen=True, slots=True)
class PartMessages:
    """Messages of a part, as columns of equal lengths, by recipient; at most 1,024."""

    recipients: list[int]
    addresses: list[str]
    attributes: list[str]
    """JSON objects."""


class RelayParts:
    """Claims parts for one holder (a process)."""

    def __init__(self, pool: asyncpg.Pool, holder: str, lease: timedelta) -> None:
        self._pool = pool
        self._holder = holder
        self._lease = lease

    async def claim(self, delivery_id: int, limit: int, now: datetime) -> list[Claim]:
        """Up to `limit` free parts of a delivery that is IN_PROGRESS and within its validity; none if it is not."""
        rows = await self._pool.fetch(query("claim_parts"), delivery_id, self._holder, self._lease, limit, now)
        return [Claim(delivery_id, row["part"], row["claim_count"]) for row in rows]

    async def claim_to_close(self, delivery_id: int, limit: int) -> list[Claim]:
        """Up to `limit` free parts of a delivery that will relay nothing any more, which the caller knows."""
        rows = await self._pool.fetch(query("claim_parts_to_close"), delivery_id, self._holder, self._lease, limit)
        return [Claim(delivery_id, row["part"], row["claim_count"]) for row in rows]

    async def renew(self, delivery_id: int, parts: list[int]) -> None:
        """Prolongs the leases of parts that are still ours."""
        await self._pool.execute(query("renew_parts"), delivery_id, self._holder, self._lease, parts)

    async def read(self, claim: Claim) -> PartMessages:
        """The part's messages that have not left."""
        first = claim.part * RECIPIENTS_PER_PART
        (row,) = await self._pool.fetch(query("read_part"), claim.delivery_id, first, first + RECIPIENTS_PER_PART)
        return PartMessages(row["recipients"], row["addresses"], row["attributes"])

    async def not_left(self, claim: Claim) -> list[int]:
        """The part's recipients that are PREPARED still."""
        first = claim.part * RECIPIENTS_PER_PART
        rows = await self._pool.fetch(query("prepared_of_part"), claim.delivery_id, first, first + RECIPIENTS_PER_PART)
        return [row["recipient"] for row in rows]

    async def release(self, claim: Claim, available_after: timedelta) -> bool:
        """Ends a claim; True if the part is done: no message in it is left PREPARED."""
        first = claim.part * RECIPIENTS_PER_PART
        return bool(
            await self._pool.fetchval(
                query("release_part"),
                claim.delivery_id,
                claim.part,
                claim.claim_count,
                available_after,
                first,
                first + RECIPIENTS_PER_PART,
            )
        )
