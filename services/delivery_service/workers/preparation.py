"""Prepares deliveries in the background: control rules, exclusions, send logs, plan.

Any replica may do it, one at a time: the work is leased, its steps are committed one by one, and another worker goes on
where a crashed one stopped. A worker that lost its lease can do no harm: every step is fenced by its token.
"""

import asyncio
import logging
from collections.abc import Callable
from datetime import timedelta
from uuid import UUID, uuid4

from delivery_service.domain.delivery import Delivery, ExclusionCause, Issue, Plan
from delivery_service.domain.identifiers import RECIPIENTS_PER_PART
from delivery_service.domain.lifecycle import DeliveryState
from delivery_service.domain.plan import audience_errors, control_errors, control_warnings, plan_digest
from delivery_service.metrics import Metrics
from delivery_service.settings import Settings
from delivery_service.store.database import DatabaseSettings, close_quietly, connect_worker
from delivery_service.store.deliveries import Deliveries
from delivery_service.store.preparation import Preparation
from service_runtime.clock import Clock

log = logging.getLogger(__name__)

_LISTED_MAX = 100


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
        # Steps end at the last number of a part: a part is written by one step.
        self._step = settings.preparation_recipients_per_step // RECIPIENTS_PER_PART * RECIPIENTS_PER_PART

    async def work(self) -> bool:
        """Prepares what there is to prepare; True if it did anything."""
        waiting = await self._deliveries.in_state(DeliveryState.PREPARING, _LISTED_MAX)
        if not waiting:
            return False
        # One for all: a connection takes longer to open than a small delivery to prepare.
        connection = await connect_worker(self._database)
        try:
            done = [await self._prepare(Preparation(connection), delivery_id) for delivery_id in waiting]
        finally:
            await close_quietly(connection)
        return any(done)

    async def _prepare(self, preparation: Preparation, delivery_id: int) -> bool:
        """Does one delivery's preparation, or what is left of it. False: another worker has it."""
        token = uuid4()
        through = await preparation.claim(delivery_id, token, self._lease)
        if through is None:
            return False
        renewing = asyncio.create_task(self._renew(delivery_id, token), name=f"preparation-lease-{delivery_id}")
        try:
            await self._run(preparation, await self._deliveries.get(delivery_id), token, through)
        finally:
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)
        self._changed(delivery_id)
        return True

    async def _run(self, preparation: Preparation, delivery: Delivery, token: UUID, through: int) -> None:
        # In a thread: a large template takes long to compile, and watchers must not wait for it.
        errors = await asyncio.to_thread(control_errors, delivery)
        errors += audience_errors(delivery, await preparation.suppression_lists(delivery))
        if errors:
            await preparation.fail(delivery.delivery_id, token, self._failed_plan(delivery, errors), self._clock.now())
            self._metrics.prepared.labels("failed").inc()
            return
        if through < 0:
            if not await preparation.exclude(delivery.delivery_id, token):
                return
            through = 0
        while through < delivery.recipient_count:
            # Recipients are numbered from 1, so the first step is one shorter.
            after, through = through, through + self._step if through else self._step - 1
            if delivery.is_recurring:
                done = await preparation.clear_range(delivery.delivery_id, token, after, through)
            else:
                now = self._clock.now()
                done = await preparation.prepare_range(delivery.delivery_id, token, after, through, now)
            if not done:
                return
        await self._finish(preparation, delivery, token)

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
