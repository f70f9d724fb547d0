"""Prepares deliveries in the background: control rules, exclusions, send logs, plan.

Any replica may do it, one at a time: the work is leased, its steps are committed one by one, and another worker goes on
where a crashed one stopped. A worker that lost its lease can do no harm: every step is fenced by its token.
"""

import asyncio
import logging
from collections.abc import Callable
from datetime import timedelta
from typing import Final
from uuid import UUID, uuid4

import asyncpg

from delivery_service.domain.delivery import Delivery, ExclusionCause, Issue, Plan
from delivery_service.domain.identifiers import RECIPIENTS_PER_PART, part_of
from delivery_service.domain.lifecycle import DeliveryState
from delivery_service.domain.plan import audience_errors, control_errors, control_warnings, plan_digest
from delivery_service.metrics import Metrics
from delivery_service.settings import Settings
from delivery_service.store.database import DatabaseSettings, close_quietly, connect_worker
from delivery_service.store.deliveries import Deliveries
from delivery_service.store.preparation import Preparation
from service_runtime.clock import Clock

log = logging.getLogger(__name__)

_LISTED_MAX: Final = 100
_WORTH_A_WRITER_PARTS: Final = 10
"""Fewer are written sooner than another connection is opened."""


def ranges_of_step(done: int, recipient_count: int, writers: int, parts_max: int) -> list[tuple[int, int]]:
    """The ranges, `after` to `through`, that follow the recipients done: one for each writer, or fewer, of about equal
    size. They end at the last number of a part, so that a part is written by one of them."""
    first, end = part_of(done + 1), part_of(recipient_count) + 1
    parts = min(parts_max, max(-(-(end - first) // writers), _WORTH_A_WRITER_PARTS))
    return [
        (max(begin * RECIPIENTS_PER_PART - 1, 0), min(begin + parts, end) * RECIPIENTS_PER_PART - 1)
        for begin in range(first, end, parts)[:writers]
    ]


class Writers:
    """Connections for one round of work, opened when they are first needed."""

    def __init__(self, database: DatabaseSettings) -> None:
        self._database = database
        self._connections: list[asyncpg.Connection] = []

    async def first(self, count: int) -> list[Preparation]:
        """So many of them, always the same ones first."""
        while len(self._connections) < count:
            self._connections.append(await connect_worker(self._database))
        return [Preparation(connection) for connection in self._connections[:count]]

    async def close(self) -> None:
        """All of them, also if this is cancelled half-way."""
        try:
            for connection in self._connections:
                await close_quietly(connection)
        finally:
            for connection in self._connections:
                connection.terminate()


class PreparationWorker:
    """`changed` is called with a delivery whose state has changed, to wake watchers."""

    def __init__(
        self,
        deliveries: Deliveries,
        database: DatabaseSettings,
        settings: Settings,
        clock: Clock,
        metrics: Metrics,
        changed: Callable[[int], None],
    ) -> None:
        self._deliveries = deliveries
        self._database = database
        self._settings = settings
        self._clock = clock
        self._metrics = metrics
        self._changed = changed
        self._lease = timedelta(seconds=settings.preparation_lease_seconds)
        self._parts_per_range = settings.preparation_recipients_per_step // RECIPIENTS_PER_PART

    async def work(self) -> bool:
        """Prepares what there is to prepare; True if it did anything."""
        waiting = await self._deliveries.in_state(DeliveryState.PREPARING, _LISTED_MAX)
        if not waiting:
            return False
        # For all of them: a connection takes longer to open than a small delivery to prepare.
        writers = Writers(self._database)
        try:
            done = [await self._prepare(writers, delivery_id) for delivery_id in waiting]
        finally:
            await writers.close()
        return any(done)

    async def _prepare(self, writers: Writers, delivery_id: int) -> bool:
        """Does one delivery's preparation, or what is left of it. False: another worker has it."""
        token = uuid4()
        (preparation,) = await writers.first(1)
        through = await preparation.claim(delivery_id, token, self._lease)
        if through is None:
            return False
        renewing = asyncio.create_task(self._renew(delivery_id, token), name=f"preparation-lease-{delivery_id}")
        try:
            await self._run(writers, await self._deliveries.get(delivery_id), token, through)
        finally:
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)
        self._changed(delivery_id)
        return True

    async def _run(self, writers: Writers, delivery: Delivery, token: UUID, through: int) -> None:
        (preparation,) = await writers.first(1)
        # In a thread: a large template takes long to compile, and watchers must not wait for it.
        errors = await asyncio.to_thread(control_errors, delivery)
        errors += audience_errors(delivery, await preparation.suppression_lists(delivery))
        if errors:
            await preparation.fail(delivery.delivery_id, token, self._failed_plan(delivery, errors), self._clock.now())
            self._metrics.prepared.labels("failed").inc()
            return
        count = 1 if delivery.is_recurring else self._settings.preparation_writers
        if through < 0:
            # The connections of the first step are opened meanwhile.
            ahead = len(ranges_of_step(0, delivery.recipient_count, count, self._parts_per_range))
            opening = asyncio.create_task(writers.first(ahead), name=f"preparation-writers-{delivery.delivery_id}")
            try:
                if not await preparation.exclude(delivery.delivery_id, token):
                    return
            finally:
                await opening
            through = 0
        while through < delivery.recipient_count:
            ranges = ranges_of_step(through, delivery.recipient_count, count, self._parts_per_range)
            if not await self._step(writers, delivery, token, through, ranges):
                return
            through = ranges[-1][1]
        await self._finish(preparation, delivery, token)

    async def _step(
        self, writers: Writers, delivery: Delivery, token: UUID, done: int, ranges: list[tuple[int, int]]
    ) -> bool:
        """Deals with these ranges of recipients, each on a connection. False: lost the lease, or done already."""
        delivery_id, now = delivery.delivery_id, self._clock.now()
        preparations = await writers.first(len(ranges))
        if delivery.is_recurring:
            ((after, through),) = ranges
            return await preparations[0].clear_range(delivery_id, token, after, through)
        written = await asyncio.gather(
            *(
                preparation.write_range(delivery_id, token, done, after, through, now)
                for preparation, (after, through) in zip(preparations, ranges, strict=True)
            ),
            return_exceptions=True,  # none goes on by itself when another one fails
        )
        for error in written:
            if isinstance(error, BaseException):
                raise error
        return all(written) and await preparations[0].end_step(delivery_id, token, done, ranges[-1][1])

    async def _finish(self, preparation: Preparation, delivery: Delivery, token: UUID) -> None:
        excluded = await preparation.exclusion_volumes(delivery.delivery_id)
        if delivery.is_recurring:  # what each child would have if its time were now
            to_deliver = delivery.recipient_count - sum(excluded.volumes.values())
        else:
            to_deliver = await preparation.prepared_count(delivery.delivery_id)
        now = self._clock.now()
        plan = Plan(
            targeted=delivery.recipient_count,
            exclusions=excluded.volumes,
            to_deliver=to_deliver,
            warnings=tuple(control_warnings(delivery, to_deliver)),
            errors=(),
            plan_digest=plan_digest(delivery, excluded.volumes, to_deliver, excluded.checksum),
            prepare_time=now,
            preparer=delivery.preparer,
        )
        slots = self._settings.slots_per_delivery
        if await preparation.finish(delivery.delivery_id, token, slots, plan, now):
            self._metrics.prepared.labels("ready").inc()
            log.info(
                "prepared a delivery",
                extra={"action": "prepare", "delivery_id": delivery.delivery_id, "to_deliver": to_deliver},
            )

    def _failed_plan(self, delivery: Delivery, errors: list[Issue]) -> Plan:
        return Plan(
            targeted=delivery.recipient_count,
            exclusions=dict.fromkeys(ExclusionCause, 0),
            to_deliver=0,
            warnings=(),
            errors=tuple(errors),
            plan_digest="",
            prepare_time=self._clock.now(),
            preparer=delivery.preparer,
        )

    async def _renew(self, delivery_id: int, token: UUID) -> None:
        """Holds the lease while single statements take long. If it fails the lease ends: the steps are fenced."""
        while True:
            await self._clock.sleep(self._lease.total_seconds() / 3)
            connection = await connect_worker(self._database)
            try:
                await Preparation(connection).renew(delivery_id, token, self._lease)
            finally:
                await close_quietly(connection)
