"""Alerts in Postgres."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import asyncpg

from delivery_service.domain.alerts import Alert, AlertCause, AlertSample
from delivery_service.domain.breaker import PauseCause
from delivery_service.domain.lifecycle import DeliveryState
from delivery_service.store.deliveries import domain_pauses_from_json
from delivery_service.store.queries import query


@dataclass(frozen=True, slots=True)
class RaisedAlert:
    """An alert as it was raised."""

    alert_id: int
    delivery_id: int
    """0: it is about the recipient domain, and no delivery."""
    label: str
    cause: AlertCause
    raise_time: datetime
    detail: str
    recipient_domain: str = ""


class Alerts:
    """The table alert, and what the rules look at."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def samples(self, after: int, limit: int, preparations_since: datetime) -> list[AlertSample]:
        """Deliveries that may deserve an alert, by id, above `after`."""
        rows = await self._pool.fetch(query("alert_samples"), after, limit, preparations_since)
        return [
            AlertSample(
                delivery_id=row["delivery_id"],
                label=row["label"],
                state=DeliveryState(row["state"]),
                due_time=row["due_time"],
                start_time=row["start_time"],
                to_deliver=row["to_deliver"],
                handed_over=row["handed_over"],
                relayed=row["relayed"],
                soft=row["failed"] - row["hard"] - row["ignored"],
                hard=row["hard"],
                newest_event_time=row["newest_event_time"],
                validity_closed=row["validity_closed"],
                pause_cause=PauseCause(row["pause_cause"]),
                pause_detail=row["pause_detail"],
                paced_messages_per_hour=row["messages_per_hour"],
                paused_domains=domain_pauses_from_json(row["paused_domains"], row["overruled_domains"]).paused,
            )
            for row in rows
        ]

    async def raise_(self, found: Sequence[tuple[AlertSample, Alert]], now: datetime) -> list[AlertCause]:
        """Raises those that were not raised this day; gives the causes of the new ones."""
        causes = await self._pool.fetchval(
            query("raise_alerts"),
            [sample.delivery_id for sample, _ in found],
            [alert.cause for _, alert in found],
            [sample.label for sample, _ in found],
            [alert.detail for _, alert in found],
            now,
        )
        return [AlertCause(cause) for cause in causes]

    async def drop_before(self, moment: datetime) -> None:
        """Forgets older ones."""
        await self._pool.execute(query("drop_old_alerts"), moment)

    async def page(self, delivery_id: int | None, below: int, limit: int) -> list[RaisedAlert]:
        """The newest below an id."""
        return [_raised(row) for row in await self._pool.fetch(query("list_alerts"), below, delivery_id, limit)]

    async def after(self, alert_id: int, limit: int) -> list[RaisedAlert]:
        """The oldest after an id."""
        return [_raised(row) for row in await self._pool.fetch(query("alerts_after"), alert_id, limit)]

    async def newest(self) -> int:
        """The largest id; 0: there is none."""
        return int(await self._pool.fetchval(query("newest_alert")))

    async def claim(self, now: datetime, until: datetime, raised_after: datetime) -> tuple[RaisedAlert, int] | None:
        """One that the webhook has not taken, ours until then, and how often it was tried with this time."""
        row = await self._pool.fetchrow(query("claim_alert"), now, until, raised_after)
        return (_raised(row), row["tries"]) if row is not None else None

    async def taken(self, alert_id: int, now: datetime) -> None:
        """The webhook has it."""
        await self._pool.execute(query("alert_taken"), alert_id, now)

    async def not_taken(self, alert_id: int, next_try: datetime) -> None:
        """The webhook did not take it: again then."""
        await self._pool.execute(query("alert_not_taken"), alert_id, next_try)


def _raised(row: asyncpg.Record) -> RaisedAlert:
    return RaisedAlert(
        row["alert_id"],
        row["delivery_id"],
        row["label"],
        AlertCause(row["cause"]),
        row["raise_time"],
        row["detail"],
        row["recipient_domain"],
    )
