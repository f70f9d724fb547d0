"""Approval, proofs and pacing in Postgres."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import asyncpg

from delivery_service.domain.delivery import Delivery
from delivery_service.domain.lifecycle import DeliveryState
from delivery_service.domain.pacing import Grant, Pacing
from delivery_service.store.queries import query
from delivery_service.store.relay_parts import PartMessages


@dataclass(frozen=True, slots=True)
class PacedDelivery:
    """How far the pacing of a delivery has come. `counted_until` is compared when it goes on."""

    delivery_id: int
    pacing: Pacing
    granted: int
    left: int
    counted_until: datetime | None


class BeforeTheSend:
    """Each method is one statement."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def approve(self, delivery: Delivery, approver: str, plan_digest: str, now: datetime) -> bool:
        """Keeps who approved the plan of the version that was read. False: it changed since."""
        return None is not await self._pool.fetchval(
            query("approve_delivery"), delivery.delivery_id, delivery.version, now, approver, plan_digest
        )

    async def add_proof(
        self,
        delivery_id: int,
        states: Sequence[DeliveryState],
        proofs_max: int,
        profile_ids: list[str],
        addresses: list[str],
        attributes: list[str],
        now: datetime,
    ) -> PartMessages | None:
        """Makes the send logs of a proof. None: the delivery is in no such state, or has too many proofs."""
        first = await self._pool.fetchval(
            query("add_proof"), delivery_id, states, proofs_max, profile_ids, addresses, attributes, now
        )
        if first is None:
            return None
        return PartMessages([first - index for index in range(len(addresses))], addresses, attributes)

    async def paced(self) -> list[PacedDelivery]:
        """Deliveries being sent whose pacing holds messages back."""
        return [
            PacedDelivery(
                row["delivery_id"],
                Pacing(row["first_wave_count"], row["messages_per_hour"]),
                row["pace_granted"],
                row["left_count"],
                row["pace_time"],
            )
            for row in await self._pool.fetch(query("paced_deliveries"))
        ]

    async def grant(self, paced: PacedDelivery, grant: Grant) -> bool:
        """Lets messages go. False: another replica has been here, or it is not IN_PROGRESS any more."""
        return None is not await self._pool.fetchval(
            query("grant_messages"), paced.delivery_id, paced.counted_until, grant.time, grant.messages
        )
