"""The steps of a preparation in Postgres. Each is one autocommitted statement, fenced by the preparation's token."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

import asyncpg

from delivery_service.domain.delivery import Delivery, ExclusionCause, Plan
from delivery_service.domain.identifiers import RECIPIENTS_PER_PART
from delivery_service.domain.lifecycle import Channel
from delivery_service.store.deliveries import plan_to_json
from delivery_service.store.queries import query


@dataclass(frozen=True, slots=True)
class ExclusionVolumes:
    """Who was excluded: volumes by cause, and a checksum over (recipient, cause) whatever their order."""

    volumes: Mapping[ExclusionCause, int]
    checksum: int


class Preparation:
    """Runs on a connection of its own: single statements may take long."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection

    async def claim(self, delivery_id: int, token: UUID, lease: timedelta) -> int | None:
        """Takes the preparation. Gives the last recipient dealt with (-1: not even the
        exclusions), None if another worker has it or there is none."""
        through: int | None = await self._connection.fetchval(query("claim_preparation"), delivery_id, token, lease)
        return through

    async def renew(self, delivery_id: int, token: UUID, lease: timedelta) -> None:
        """Prolongs the lease, if it is still ours."""
        await self._connection.execute(query("renew_preparation"), delivery_id, token, lease)

    async def suppression_lists(self, delivery: Delivery) -> dict[str, Channel]:
        """Those that exist of the ones that the delivery names, with their channels."""
        names = delivery.audience_options.suppression_lists
        rows = await self._connection.fetch(query("suppression_list_channels"), names) if names else ()
        return {row["name"]: Channel(row["channel"]) for row in rows}

    async def exclude(self, delivery_id: int, token: UUID) -> bool:
        """Records all exclusions. False: lost the lease, or a suppression list has gone."""
        return bool(await self._connection.fetchval(query("prepare_exclusions"), delivery_id, token))

    async def write_range(
        self, delivery_id: int, token: UUID, done: int, after: int, through: int, now: datetime
    ) -> bool:
        """Writes the send logs of recipients after + 1 .. through: a range of the step that goes on behind `done`, and
        whose other ranges may be written at the same time. False: lost the lease, or the step is done already."""
        assert (through + 1) % RECIPIENTS_PER_PART == 0, "a part is written by one range"
        return bool(
            await self._connection.fetchval(query("write_range"), delivery_id, token, done, after, through, now)
        )

    async def end_step(self, delivery_id: int, token: UUID, done: int, through: int) -> bool:
        """All recipients from done + 1 to `through` are written. False: lost the lease, or done already."""
        return await self._connection.fetchval(query("end_step"), delivery_id, token, done, through) is not None

    async def clear_range(self, delivery_id: int, token: UUID, after: int, through: int) -> bool:
        """Removes what an earlier preparation left of recipients after + 1 .. through, and writes nothing: a recurring
        delivery has no send logs of its own. False: lost the lease, or done already."""
        return bool(await self._connection.fetchval(query("clear_range"), delivery_id, token, after, through))

    async def exclusion_volumes(self, delivery_id: int) -> ExclusionVolumes:
        """What the exclusions found, zeros included."""
        volumes = dict.fromkeys(ExclusionCause, 0)
        checksum = 0
        for row in await self._connection.fetch(query("exclusion_volumes"), delivery_id):
            volumes[ExclusionCause(row["cause"])] = row["volume"]
            checksum += int(row["checksum"])
        return ExclusionVolumes(volumes, checksum)

    async def prepared_count(self, delivery_id: int) -> int:
        """The number of send logs written: T."""
        return int(await self._connection.fetchval(query("prepared_count"), delivery_id))

    async def finish(self, delivery_id: int, token: UUID, slot_count: int, plan: Plan, now: datetime) -> bool:
        """PREPARING to READY, with counters and plan. False: lost the lease."""
        return bool(
            await self._connection.fetchval(
                query("finish_preparation"), delivery_id, token, slot_count, plan_to_json(plan), now
            )
        )

    async def fail(self, delivery_id: int, token: UUID, plan: Plan, now: datetime) -> bool:
        """PREPARING to PREPARATION_FAILED, with the plan's errors. False: lost the lease."""
        failed = await self._connection.fetchval(query("fail_preparation"), delivery_id, token, plan_to_json(plan), now)
        return failed is not None
