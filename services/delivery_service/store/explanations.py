"""What explanations are made of."""

from dataclasses import dataclass
from datetime import datetime, timedelta

import asyncpg

from delivery_service.domain.delivery import Delivery, ExclusionCause
from delivery_service.domain.explanation import LostContact, OpenParts, Situation
from delivery_service.domain.lifecycle import DeliveryState
from delivery_service.domain.problems import DeliveryNotFound
from delivery_service.store.queries import query


@dataclass(frozen=True, slots=True)
class RecipientExclusion:
    """One recipient of an audience, and why it gets no message, if it gets none."""

    profile_id: str
    address: str
    cause: ExclusionCause | None


class Explanations:
    """Reads them, and keeps what processes tell about their contact to the MTA side."""

    def __init__(self, pool: asyncpg.Pool, silence: timedelta) -> None:
        self._pool = pool
        self._silence = silence

    async def situation(self, delivery: Delivery, now: datetime) -> Situation:
        """All that is known about what a delivery waits for; DeliveryNotFound."""
        row = await self._pool.fetchrow(query("delivery_situation"), delivery.delivery_id)
        if row is None:
            raise DeliveryNotFound(delivery.delivery_id)
        state = DeliveryState(row["state"])
        relaying = state is DeliveryState.IN_PROGRESS or state is DeliveryState.PAUSED
        parts = await self._pool.fetch(query("open_parts"), delivery.delivery_id) if relaying else []
        lost = await self._pool.fetch(query("mta_contacts_lost"), now, self._silence) if relaying else []
        heard = await self._pool.fetchrow(query("sources_heard"), now, self._silence)
        assert heard is not None  # an aggregate
        return Situation(
            state=state,
            time=now,
            database_time=row["time"],
            update_time=row["update_time"],
            recipient_count=row["recipient_count"],
            prepared_through=row["prepared_through"],
            preparation_held=row["preparation_held"],
            preparation_lease_time=row["preparation_lease_time"],
            preparation_errors=tuple(issue.description for issue in delivery.plan.errors) if delivery.plan else (),
            confirm_time=row["confirm_time"],
            contact_time=row["contact_time"],
            paced_to=row["pace_granted"] if row["paced"] else None,
            validity_end_time=row["validity_end_time"],
            settled_time=row["settled_time"],
            paused_domains=delivery.domain_pauses.paused,
            prepared=row["prepared"],
            relayed=row["relayed"],
            deferred=row["deferred"],
            newest_event_time=row["newest_event_time"],
            parts=tuple(
                OpenParts(
                    parts=part["parts"],
                    messages=part["messages"],
                    held=part["held"],
                    holder=part["holder"],
                    available_time=part["available_time"],
                    claim_count=part["claim_count"],
                    waits_for_domains=part["waits_for_domains"],
                    messages_to_paused_domains=part["messages_to_paused_domains"],
                )
                for part in parts
            ),
            lost_contacts=tuple(LostContact(contact["holder"], contact["away_since_time"]) for contact in lost),
            sources_connected=heard["connected"],
            source_heard_time=heard["report_time"],
        )

    async def recipient(self, delivery_id: int, recipient: int) -> RecipientExclusion | None:
        """One recipient of the audience; None: there is no such one."""
        row = await self._pool.fetchrow(query("recipient_exclusion"), delivery_id, recipient)
        if row is None:
            return None
        cause = ExclusionCause(row["cause"]) if row["cause"] is not None else None
        return RecipientExclusion(row["profile_id"], row["address"], cause)

    async def report_mta_contact(self, holder: str, away_since: datetime | None, now: datetime) -> None:
        """Keeps what this process sees of the MTA side."""
        await self._pool.execute(query("report_mta_contact"), holder, away_since, now, self._silence)
