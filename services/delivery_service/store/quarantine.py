"""How the quarantine is derived: facts are taken from the log, addresses judged, domains guarded.

Each method is one autocommitted statement, and may be repeated.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import asyncpg

from delivery_service.domain.lifecycle import Channel
from delivery_service.domain.outage_guard import DomainResults
from delivery_service.domain.outcome import FailureType, Reason
from delivery_service.domain.quarantine import Guard, Report, Verdict
from delivery_service.store.queries import query


@dataclass(frozen=True, slots=True)
class Suspect:
    """An address whose facts have changed, with them."""

    channel: Channel
    address: str
    fact_version: int
    allowed: bool
    """It is on the allowlist."""
    reports: tuple[Report, ...]
    guards: tuple[Guard, ...]


@dataclass(frozen=True, slots=True)
class CollectLimits:
    """How much one step of reading takes on."""

    transitions: int
    messages: int
    deliveries_looked_back: int


class Quarantine:
    """The worker's side of the quarantine."""

    def __init__(self, pool: asyncpg.Pool, limits: CollectLimits, bucket: timedelta, baseline: timedelta) -> None:
        self._pool = pool
        self._limits = limits
        self._bucket = bucket
        self._baseline = baseline

    async def slots_to_collect(self, limit: int) -> list[tuple[int, int]]:
        """Slots (delivery, slot) whose log goes on behind where it was read."""
        rows = await self._pool.fetch(query("slots_to_collect"), limit)
        return [(row["delivery_id"], row["slot"]) for row in rows]

    async def collect(self, delivery_id: int, slot: int, now: datetime) -> int | None:
        """Reads a step of the log. Gives how many transitions it had; None: another process is at it."""
        rows: int | None = await self._pool.fetchval(
            query("collect_address_facts"),
            delivery_id,
            slot,
            self._limits.transitions,
            self._limits.deliveries_looked_back,
            self._bucket,
            now - self._baseline,
            now,
        )
        return rows

    async def take_news(self, now: datetime) -> int | None:
        """Takes a step of the queue. Gives how many messages it had; None: another process is at it."""
        taken: int | None = await self._pool.fetchval(
            query("take_address_news"), self._limits.messages, self._limits.deliveries_looked_back, now
        )
        return taken

    async def suspects(self, limit: int) -> list[Suspect]:
        """Addresses to judge."""
        return [_suspect(row) for row in await self._pool.fetch(query("addresses_to_judge"), limit)]

    async def set_verdicts(
        self, judged: Sequence[tuple[Suspect, Verdict]], forget_before: datetime, now: datetime, forget_time: datetime
    ) -> list[Reason]:
        """Writes verdicts. Facts from before `forget_before` that changed nothing are forgotten, and at `forget_time`
        all of an address that is not quarantined. Gives the reasons of those that are quarantined now and were not."""
        rows = await self._pool.fetch(
            query("set_verdicts"),
            [suspect.channel for suspect, _ in judged],
            [suspect.address for suspect, _ in judged],
            [suspect.fact_version for suspect, _ in judged],
            [verdict.status for _, verdict in judged],
            [verdict.error_count for _, verdict in judged],
            [verdict.decisive.failure_type if verdict.decisive else 0 for _, verdict in judged],
            [verdict.decisive.reason if verdict.decisive else 0 for _, verdict in judged],
            [verdict.decisive.event_time if verdict.decisive else None for _, verdict in judged],
            [verdict.decisive.delivery_id if verdict.decisive else None for _, verdict in judged],
            [verdict.decisive.recipient if verdict.decisive else None for _, verdict in judged],
            [verdict.decisive.outcome if verdict.decisive else 0 for _, verdict in judged],
            [min(verdict.since or forget_before, forget_before) for _, verdict in judged],
            now,
            forget_time,
        )
        return [Reason(row["reason"]) for row in rows]

    async def waiting(self) -> int:
        """How many addresses are to be judged."""
        return int(await self._pool.fetchval(query("quarantine_counts")))

    async def forget(self, now: datetime, limit: int) -> int:
        """Forgets addresses that are not quarantined and whose time is over. Gives how many there were."""
        return int(await self._pool.fetchval(query("forget_addresses"), now, limit))

    async def forget_rest(self, now: datetime, guards_before: datetime) -> None:
        """Forgets what deliveries, domains and guards left behind that are no more of use."""
        await self._pool.execute(query("forget_scans"))
        await self._pool.execute(query("forget_domain_results"), now - self._baseline)
        await self._pool.execute(query("forget_guards"), guards_before)

    async def recent_results(self, buckets: Sequence[datetime], hard_min: int) -> dict[str, DomainResults]:
        """In these steps of time, by domain: those with so many hard bounces."""
        return _results(await self._pool.fetch(query("recent_domain_results"), buckets, hard_min))

    async def usual_results(self, buckets: Sequence[datetime], domains: Sequence[str]) -> dict[str, DomainResults]:
        """Of these domains, in these steps of time."""
        return _results(await self._pool.fetch(query("usual_domain_results"), buckets, domains))

    async def guard(self, domains: Sequence[str], begin: datetime, now: datetime) -> list[str]:
        """Guards these domains. Gives those that were not guarded yet."""
        return [row["domain"] for row in await self._pool.fetch(query("guard_domains"), domains, begin, now)]

    async def end_guards(self, not_since: datetime, now: datetime) -> list[str]:
        """Ends guards that have not tripped since then."""
        return [row["domain"] for row in await self._pool.fetch(query("end_guards"), not_since, now)]

    async def raise_alerts(self, cause: int, domains: Sequence[str], details: Sequence[str], now: datetime) -> int:
        """Raises alerts about domains, unless they were raised this day; gives how many are new."""
        return int(await self._pool.fetchval(query("raise_domain_alerts"), cause, domains, details, now))


def _suspect(row: asyncpg.Record) -> Suspect:
    columns = ("event_times", "failure_types", "reasons", "delivery_ids", "recipients", "outcomes")
    reports = tuple(
        Report(event_time, FailureType(failure_type), Reason(reason), delivery_id, recipient, outcome)
        for event_time, failure_type, reason, delivery_id, recipient, outcome in zip(
            *(row[column] or () for column in columns), strict=True
        )
    )
    guards = tuple(map(Guard, row["begin_times"] or (), row["end_times"] or ()))
    return Suspect(Channel(row["channel"]), row["address"], row["fact_version"], row["allowed"], reports, guards)


def _results(rows: Sequence[asyncpg.Record]) -> dict[str, DomainResults]:
    return {row["domain"]: DomainResults(row["delivered"], row["hard"]) for row in rows}
