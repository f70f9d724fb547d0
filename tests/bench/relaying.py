"""Relaying: messages claimed, streamed, accepted and committed RELAYED, beside the bare stream and the bare UPDATE."""

import asyncio
import time
from collections.abc import Sequence
from typing import Final

import asyncpg

from campaign.delivery.v1 import delivery_service_pb2
from delivery_service.domain.identifiers import RECIPIENTS_PER_PART
from delivery_service.domain.lifecycle import DeliveryState
from delivery_service.settings import Settings
from tests.bench.cost import measuring
from tests.bench.feedback import FIRST_DELIVERY_ID
from tests.bench.registry import Run, Sample, figure, measures
from tests.bench.seeding import Seed, seed
from tests.bench.stand import Services, settle
from tests.bench.workload import workload
from tests.support.invariants import assert_laws

_POLL_SECONDS: Final = 0.01
_RELAY_SECONDS_MAX: Final = 200.0
_IDLE_SECONDS: Final = 0.5
_WARM_UP_ID: Final = FIRST_DELIVERY_ID + 1
_FIRST_RECIPIENTS_MAX: Final = 20 * RECIPIENTS_PER_PART
"""Relayed before: a service that runs has planned its statements, and loaded the catalog on its connections."""
_STATE: Final = "select state from delivery where delivery_id = $1"
_UPDATE: Final = """
update send_log set outcome = 2, event_time = $4, update_time = $4
where delivery_id = $1 and recipient >= $2 and recipient < $3
"""


@measures(figure("relay", "messages/s", must=0.5, aim=0.7))
async def relay(run: Run) -> Sequence[Sample]:
    async with run.stand.database() as dsn:
        first = min(run.recipients, _FIRST_RECIPIENTS_MAX)
        await seed(dsn, Seed(FIRST_DELIVERY_ID, run.recipients), Seed(_WARM_UP_ID, first))
        await settle(dsn)
        async with workload("accepting_mta") as mta:
            port: int = mta.ready["port"]
            async with run.stand.services(dsn, "delivery_service", mta_port=port) as services:
                await _relay_all(dsn, services, _WARM_UP_ID)
                processes = {**services.processes, "postgres": run.stand.postgres_process, "mta side": mta.process_id}
                with measuring(processes) as cost:
                    seconds = await _relay_all(dsn, services, FIRST_DELIVERY_ID)
            await assert_laws(dsn)
            with measuring({"mta side": mta.process_id}) as bare_stream:
                stream_rate = await _stream_rate(port, run.recipients)
    async with run.stand.database() as dsn:
        await seed(dsn, Seed(FIRST_DELIVERY_ID, run.recipients, with_recipients=False))
        await settle(dsn)
        with measuring({"postgres": run.stand.postgres_process}) as bare_update:
            update_rate = await _update_rate(dsn, run.recipients)
    ceiling = 1 / (1 / stream_rate + 1 / update_rate)
    run.note(f"relay: {cost.per_unit(run.recipients, 'message')}")
    run.note(f"bare UPDATE: {bare_update.per_unit(run.recipients, 'message')}")
    run.note(f"bare stream: {bare_stream.per_unit(run.recipients, 'message')}")
    run.note(f"ceiling of relay: bare stream {stream_rate:,.0f}, bare UPDATE {update_rate:,.0f} messages/s")
    return [Sample(run.recipients / seconds, ceiling)]


async def _relay_all(dsn: str, services: Services, delivery_id: int) -> float:
    """Resumes a delivery, and waits until it is FINISHED."""
    connection = await asyncpg.connect(dsn)
    try:
        await asyncio.sleep(_IDLE_SECONDS)
        began = time.perf_counter()
        await services.stub.ResumeDelivery(delivery_service_pb2.ResumeDeliveryRequest(delivery_id=str(delivery_id)))
        async with asyncio.timeout(_RELAY_SECONDS_MAX):
            while await connection.fetchval(_STATE, delivery_id) != DeliveryState.FINISHED:  # noqa: ASYNC110
                await asyncio.sleep(_POLL_SECONDS)
        return time.perf_counter() - began
    finally:
        await connection.close()


async def _stream_rate(port: int, messages: int) -> float:
    batch = int(Settings.model_fields["relay_batch_size_max"].default)
    parts = int(Settings.model_fields["relay_parts_in_flight_max"].default)
    async with workload(
        "relay_load", target=f"127.0.0.1:{port}", messages=messages, batch=batch, in_flight=2 * parts
    ) as load:
        seconds: float = (await load.go())["seconds"]
    return messages / seconds


async def _update_rate(dsn: str, messages: int) -> float:
    """The bare UPDATE of the same rows in the same batches, a part each, every one committed before the next."""
    connection = await asyncpg.connect(dsn)
    try:
        statement = await connection.prepare(_UPDATE)
        now = await connection.fetchval("select now()")
        began = time.perf_counter()
        for first in range(0, messages + 1, RECIPIENTS_PER_PART):
            await statement.fetch(FIRST_DELIVERY_ID, first, first + RECIPIENTS_PER_PART, now)
        return messages / (time.perf_counter() - began)
    finally:
        await connection.close()
