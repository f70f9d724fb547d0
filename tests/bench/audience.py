"""The audience: AddRecipients into Postgres, and the preparation that follows, beside bare COPY and INSERT … SELECT."""

import asyncio
import time
from collections.abc import Sequence
from typing import Final

import asyncpg

from campaign.delivery.v1 import delivery_pb2
from campaign.delivery.v1 import delivery_service_pb2 as pb
from tests.bench.cost import measuring
from tests.bench.registry import Run, Sample, figure, measures
from tests.bench.stand import settle
from tests.bench.workload import workload
from tests.support.delivery_stack import CONTENT
from tests.support.invariants import assert_laws

_POLL_SECONDS: Final = 0.01
_PREPARE_SECONDS_MAX: Final = 200.0
_LIKE: Final = "create table {0}_like (like {0} including all)"
_READY: Final = delivery_pb2.DELIVERY_STATE_READY


@measures(
    figure("add_recipients", "recipients/s", must=0.4, aim=0.6),
    figure("prepare", "recipients/s", must=0.5, aim=0.7),
)
async def audience(run: Run) -> Sequence[Sample]:
    """Uploads one audience, then prepares that: addresses that are empty, malformed or repeated are among it."""
    async with run.stand.database() as dsn:
        await settle(dsn)
        async with run.stand.services(dsn, "delivery_service") as services:
            created = await services.stub.CreateDelivery(
                pb.CreateDeliveryRequest(delivery=delivery_pb2.Delivery(label="bench", content=CONTENT))
            )
            delivery_id = created.delivery.delivery_id
            async with workload(
                "upload_load",
                target=services.delivery_target,
                token=services.user_token,
                delivery_id=delivery_id,
                recipients=run.recipients,
            ) as upload:
                processes = {**services.processes, "postgres": run.stand.postgres_process, "load": upload.process_id}
                with measuring(processes) as cost:
                    uploaded = await upload.go()
            run.note(cost.per_unit(run.recipients, "recipient added"))
            assert uploaded["added"] == run.recipients
            add_rate = run.recipients / uploaded["seconds"]

            began = time.perf_counter()
            with measuring({**services.processes, "postgres": run.stand.postgres_process}) as cost:
                await services.stub.PrepareDelivery(pb.PrepareDeliveryRequest(delivery_id=delivery_id))
                async with asyncio.timeout(_PREPARE_SECONDS_MAX):
                    request = pb.GetDeliveryRequest(delivery_id=delivery_id)
                    while (delivery := (await services.stub.GetDelivery(request)).delivery).state != _READY:
                        assert delivery.state == delivery_pb2.DELIVERY_STATE_PREPARING, "the preparation failed"
                        await asyncio.sleep(_POLL_SECONDS)
                prepare_rate = run.recipients / (time.perf_counter() - began)
            run.note(cost.per_unit(run.recipients, "recipient prepared"))
            excluded = {exclusion.cause: exclusion.volume for exclusion in delivery.plan.exclusions}
            assert sum(map(bool, excluded.values())) >= 3, "the audience has no one to exclude"
        await assert_laws(dsn)
        copy_rate = await _copy_rate(dsn, run.recipients)
        insert_rate = await _insert_rate(dsn, int(delivery_id), run.recipients)
    return [Sample(add_rate, copy_rate), Sample(prepare_rate, insert_rate)]


async def _copy_rate(dsn: str, recipients: int) -> float:
    """Bare binary COPY of the same rows into a table with the same key and indexes."""
    connection = await asyncpg.connect(dsn)
    try:
        rows = [tuple(row) for row in await connection.fetch("select * from recipient order by recipient")]
        await connection.execute(_LIKE.format("recipient"))
        began = time.perf_counter()
        await connection.copy_records_to_table("recipient_like", records=rows)
        return recipients / (time.perf_counter() - began)
    finally:
        await connection.close()


async def _insert_rate(dsn: str, delivery_id: int, recipients: int) -> float:
    """One bare INSERT … SELECT of the same send logs, into a table with the same key."""
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute("create table chosen as select delivery_id, recipient from send_log")
        await connection.execute(_LIKE.format("send_log"))
        began = time.perf_counter()
        await connection.execute(
            "insert into send_log_like (delivery_id, recipient, outcome, event_time, update_time) "
            "select delivery_id, recipient, 0, now(), now() from chosen where delivery_id = $1",
            delivery_id,
        )
        return recipients / (time.perf_counter() - began)
    finally:
        await connection.close()
