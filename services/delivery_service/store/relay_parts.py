"""The work of relaying in Postgres: parts of 1,024 recipients, claimed with leases by the database's clock."""

from dataclasses import dataclass
from datetime import datetime, timedelta

import asyncpg

from delivery_service.domain.identifiers import RECIPIENT_MAX, RECIPIENTS_PER_PART
from delivery_service.domain.lifecycle import Channel
from delivery_service.domain.outcome import Reason
from delivery_service.store.queries import query


@dataclass(frozen=True, slots=True)
class Claim:
    """One part, ours until its lease ends. `claim_count` fences off an earlier holder."""

    delivery_id: int
    part: int
    claim_count: int
    prepared_count: int = 0
    """How many messages the part has had at first."""
    through: int = RECIPIENT_MAX
    """The last recipient that may leave; beyond it the delivery's pacing holds them back."""
    paused_domains: tuple[str, ...] = ()
    """Messages to these recipient domains are left out."""
    domain_pause_version: int = 0
    """Of the delivery's paused domains, when it was claimed."""

    @property
    def first(self) -> int:
        return self.part * RECIPIENTS_PER_PART

    @property
    def end(self) -> int:
        """One beyond the part's last recipient."""
        return self.first + RECIPIENTS_PER_PART

    @property
    def held_back(self) -> bool:
        """Whether not all of the part may leave yet."""
        return self.through < self.end - 1


@dataclass(frozen=True, slots=True)
class PartMessages:
    """Messages of a part, as columns of equal lengths, by recipient; at most 1,024."""

    recipients: list[int]
    addresses: list[str]
    attributes: list[str]
    """JSON objects."""
    held: int = 0
    """Messages to paused domains, which are not among them."""
    barred: tuple[tuple[int, Reason], ...] = ()
    """Recipients who must not be written to any more, and why; they are not among them either."""


class RelayParts:
    """Claims parts for one holder (a process)."""

    def __init__(self, pool: asyncpg.Pool, holder: str, lease: timedelta) -> None:
        self._pool = pool
        self._holder = holder
        self._lease = lease

    async def claim(self, delivery_id: int, limit: int, now: datetime) -> list[Claim]:
        """Up to `limit` free parts of a delivery that is IN_PROGRESS and within its validity; none if it is not."""
        rows = await self._pool.fetch(query("claim_parts"), delivery_id, self._holder, self._lease, limit, now)
        return [
            Claim(
                delivery_id,
                row["part"],
                row["claim_count"],
                row["prepared_count"],
                row["through"],
                tuple(row["paused_domains"]),
                row["domain_pause_version"],
            )
            for row in rows
        ]

    async def claim_to_close(self, delivery_id: int, limit: int) -> list[Claim]:
        """Up to `limit` free parts of a delivery that will relay nothing any more, which the caller knows."""
        rows = await self._pool.fetch(query("claim_parts_to_close"), delivery_id, self._holder, self._lease, limit)
        return [Claim(delivery_id, row["part"], row["claim_count"]) for row in rows]

    async def renew(self, delivery_id: int, parts: list[int]) -> None:
        """Prolongs the leases of parts that are still ours."""
        await self._pool.execute(query("renew_parts"), delivery_id, self._holder, self._lease, parts)

    async def read(self, claim: Claim, channel: Channel) -> PartMessages:
        """The part's messages that have not left, and may."""
        end = min(claim.end, claim.through + 1)
        arguments = (claim.delivery_id, claim.first, end, channel)
        if not claim.paused_domains:
            (row,) = await self._pool.fetch(query("read_part"), *arguments)
            if not row["any_barred"]:  # nearly always
                return PartMessages(row["recipients"], row["addresses"], row["attributes"])
        (row,) = await self._pool.fetch(query("read_part_apart"), *arguments, claim.paused_domains)
        barred = tuple(zip(row["barred"], map(Reason, row["barred_reasons"]), strict=True))
        return PartMessages(row["recipients"], row["addresses"], row["attributes"], row["held"], barred)

    async def not_left(self, claim: Claim) -> list[int]:
        """The part's recipients that are PREPARED still."""
        rows = await self._pool.fetch(query("prepared_of_part"), claim.delivery_id, claim.first, claim.end)
        return [row["recipient"] for row in rows]

    async def release(self, claim: Claim, available_after: timedelta, held: int = 0, decided: int = 0) -> bool:
        """Ends a claim; True if the part is done: no message in it is left PREPARED. Free at once, with messages to
        paused domains left (`held`), means once the paused domains are others than when it was claimed. `decided`:
        how many of its messages are known to have become something else under this claim."""
        return bool(
            await self._pool.fetchval(
                query("release_part"),
                claim.delivery_id,
                claim.part,
                claim.claim_count,
                available_after,
                claim.first,
                claim.end,
                held,
                claim.domain_pause_version,
                decided,
            )
        )
