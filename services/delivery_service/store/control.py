"""Pause, resume and stop in Postgres. Each is one statement that compares the state; False: the state was another."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

import asyncpg

from delivery_service.domain.breaker import PauseCause, Sample, Thresholds
from delivery_service.domain.delivery import Delivery
from delivery_service.domain.domain_pauses import DomainPauses
from delivery_service.store.deliveries import domain_pauses_to_json
from delivery_service.store.kpis import long_transaction
from delivery_service.store.queries import query


@dataclass(frozen=True, slots=True)
class DeliverySample:
    """What the circuit breaker looks at."""

    delivery_id: int
    sample: Sample
    overruled: frozenset[PauseCause]
    has_domains: bool
    """Whether its recipients have a domain: those of an EMAIL."""


@dataclass(frozen=True, slots=True)
class DomainFailures:
    """Recipients of one domain whose message bounced hard, or who complained."""

    recipient_domain: str
    hard_bounces: int
    complained: int


class Control:
    """What may be done to a delivery that is being sent."""

    def __init__(self, pool: asyncpg.Pool, long_statement_timeout_seconds: float) -> None:
        self._pool = pool
        self._long_statement_timeout_seconds = long_statement_timeout_seconds

    async def pause(
        self, delivery_id: int, pauser: str, now: datetime, cause: PauseCause = PauseCause.COMMAND, detail: str = ""
    ) -> bool:
        """IN_PROGRESS to PAUSED: no part is claimed after it. Not for a cause that someone has resumed over."""
        return None is not await self._pool.fetchval(query("pause_delivery"), delivery_id, now, pauser, cause, detail)

    async def breaker_samples(self, sample_min: int) -> list[DeliverySample]:
        """Deliveries in progress with that many messages handed over: what is known, and what was overruled."""
        return [
            DeliverySample(
                row["delivery_id"],
                Sample(row["handed_over"], row["hard_bounces"], row["complained"]),
                frozenset(map(PauseCause, row["overruled_causes"])),
                row["has_domains"],
            )
            for row in await self._pool.fetch(query("breaker_samples"), sample_min)
        ]

    async def domain_failures(self, delivery_id: int, thresholds: Thresholds, limit: int) -> list[DomainFailures]:
        """The recipient domains that have failures enough to be judged, the worst first."""
        never = 2**31 - 1
        rows = await self._pool.fetch(
            query("domain_failures"),
            delivery_id,
            thresholds.hard_bounces_min or never,
            thresholds.complaints_min or never,
            limit,
        )
        return [DomainFailures(*row.values()) for row in rows]

    async def handed_over_by_domain(self, delivery_id: int, recipient_domains: Iterable[str]) -> dict[str, int]:
        """How many messages to these domains were handed over."""
        async with long_transaction(self._pool, self._long_statement_timeout_seconds) as connection:
            rows = await connection.fetch(query("handed_over_by_domain"), delivery_id, list(recipient_domains))
        return {row["recipient_domain"]: row["handed_over"] for row in rows}

    async def set_domain_pauses(
        self, delivery: Delivery, pauses: DomainPauses, now: datetime, *, resumed: bool = False
    ) -> bool:
        """Writes them over the version that `delivery` was read at. `resumed`: a domain fewer is paused."""
        paused, overruled = domain_pauses_to_json(pauses)
        return None is not await self._pool.fetchval(
            query("set_domain_pauses"), delivery.delivery_id, delivery.version, now, paused, overruled, resumed
        )

    async def resume(self, delivery_id: int, now: datetime) -> bool:
        """PAUSED to IN_PROGRESS."""
        return await self._pool.fetchval(query("resume_delivery"), delivery_id, now) is not None

    async def stop(self, delivery_id: int, stopper: str, now: datetime) -> bool:
        """START_PENDING, IN_PROGRESS or PAUSED to STOPPED."""
        return await self._pool.fetchval(query("stop_delivery"), delivery_id, now, stopper) is not None

    async def in_flight(self, delivery_id: int) -> int:
        """Messages that a relay worker holds at this moment and may have given away."""
        return int(await self._pool.fetchval(query("in_flight"), delivery_id))

    async def in_flight_to_domain(self, delivery_id: int, recipient_domain: str) -> int:
        """Those of them that go to one recipient domain."""
        return int(await self._pool.fetchval(query("in_flight_to_domain"), delivery_id, recipient_domain))

    async def note_stop_in_flight(self, delivery_id: int, in_flight: int) -> None:
        """Keeps what was in flight when it was stopped; the first number stands."""
        await self._pool.execute(query("note_stop_in_flight"), delivery_id, in_flight)
