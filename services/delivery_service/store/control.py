"""Pause, resume and stop in Postgres. Each is one statement that compares the state; False: the state was another."""

from datetime import datetime

import asyncpg

from delivery_service.domain.breaker import PauseCause, Sample
from delivery_service.store.queries import query


class Control:
    """What may be done to a delivery that is being sent."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def pause(
        self, delivery_id: int, pauser: str, now: datetime, cause: PauseCause = PauseCause.COMMAND, detail: str = ""
    ) -> bool:
        """IN_PROGRESS to PAUSED: no part is claimed after it. Not for a cause that someone has resumed over."""
        return None is not await self._pool.fetchval(query("pause_delivery"), delivery_id, now, pauser, cause, detail)

    async def breaker_samples(self, sample_min: int) -> list[tuple[int, Sample, frozenset[PauseCause]]]:
        """Deliveries in progress with that many messages handed over: what is known, and what was overruled."""
        return [
            (
                row["delivery_id"],
                Sample(row["handed_over"], row["hard_bounces"], row["complained"]),
                frozenset(map(PauseCause, row["overruled_causes"])),
            )
            for row in await self._pool.fetch(query("breaker_samples"), sample_min)
        ]

    async def resume(self, delivery_id: int, now: datetime) -> bool:
        """PAUSED to IN_PROGRESS."""
        return await self._pool.fetchval(query("resume_delivery"), delivery_id, now) is not None

    async def stop(self, delivery_id: int, stopper: str, now: datetime) -> bool:
        """START_PENDING, IN_PROGRESS or PAUSED to STOPPED."""
        return await self._pool.fetchval(query("stop_delivery"), delivery_id, now, stopper) is not None

    async def in_flight(self, delivery_id: int) -> int:
        """Messages that a relay worker holds at this moment and may have given away."""
        return int(await self._pool.fetchval(query("in_flight"), delivery_id))

    async def note_stop_in_flight(self, delivery_id: int, in_flight: int) -> None:
        """Keeps what was in flight when it was stopped; the first number stands."""
        await self._pool.execute(query("note_stop_in_flight"), delivery_id, in_flight)
