"""Feedback: from an MTA's stream to its ack after the commit, through both services, beside Postgres alone."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Final

import asyncpg

from tests.bench import apply_ceiling
from tests.bench.cost import measuring
from tests.bench.events import Audience, facts
from tests.bench.registry import Run, Sample, figure, measures
from tests.bench.seeding import seed_audience
from tests.bench.stand import Services, settle
from tests.bench.workload import RUN_SECONDS_MAX, Report, workload
from tests.support.invariants import assert_laws

FIRST_DELIVERY_ID: Final = 1_000_000_000_000
STREAMS, FRAME_EVENTS, OUTSTANDING_FRAMES = 3, 500, 16
SMALL_STREAMS, SMALL_OUTSTANDING_FRAMES = 50, 64
SMALL_SHARE: Final = 8
"""Single events are so much slower that an eighth of them tells as much."""
MANY_DELIVERIES: Final = 1_000
PEER_EVENTS: Final = 3_000
FLAT_RECIPIENTS: Final = 5_000_000
FIRST_EVENTS_MAX: Final = 20_000
EVENTS_PER_SECOND_MIN: Final = 10_000
"""A run of many that is slower has failed."""


def audience_of(recipients: int, deliveries: int = 1, first_delivery_id: int = FIRST_DELIVERY_ID) -> Audience:
    """An audience of about that many recipients."""
    return Audience(first_delivery_id, deliveries, recipients // deliveries * deliveries)


async def report_all(
    services: Services,
    audience: Audience,
    *,
    streams: int = STREAMS,
    frame_events: int = FRAME_EVENTS,
    outstanding_frames: int = OUTSTANDING_FRAMES,
    events_per_second: float = 0,
) -> float:
    """Events per second from the first frame sent to the last one acked; 0: as fast as they can go."""
    async with workload(
        "mta_load",
        target=services.feedback_target,
        token=services.mta_token,
        audience=asdict(audience),
        streams=streams,
        frame_events=frame_events,
        outstanding_frames=outstanding_frames,
        events_per_second=events_per_second,
    ) as mta:
        report = await mta.go(max(RUN_SECONDS_MAX, audience.recipients / EVENTS_PER_SECOND_MIN))
    return rate_of(report)


def rate_of(report: Report) -> float:
    """Events per second of a report that is sound."""
    assert not report["failed"], f"{report['failed']} streams were cut"
    assert not report["rejected"], f"{report['rejected']} events were rejected"
    rate: float = report["events"] / report["seconds"]
    return rate


async def assert_nothing_lost(dsn: str, *audiences: Audience) -> None:
    """Everyone has feedback, and every law holds: no speed comes from lost work."""
    connection = await asyncpg.connect(dsn)
    try:
        known = await connection.fetchval("select sum(delivered + bounced) from delivery_counter")
    finally:
        await connection.close()
    expected = sum(audience.recipients for audience in audiences)
    assert known == expected, f"{known} of {expected} recipients have feedback"
    await assert_laws(dsn)


async def product_rate(
    run: Run,
    audience: Audience,
    *,
    streams: int = STREAMS,
    frame_events: int = FRAME_EVENTS,
    outstanding_frames: int = OUTSTANDING_FRAMES,
) -> float:
    """The whole path on a fresh database, and its laws afterwards; notes what an event cost. The services have taken
    feedback before: their connections are open, and have planned what they write."""
    stand = run.stand
    first = audience_of(min(audience.recipients, FIRST_EVENTS_MAX), 1, audience.first_delivery_id + audience.deliveries)
    async with stand.database() as dsn:
        await seed_audience(dsn, audience)
        await seed_audience(dsn, first)
        await settle(dsn)
        async with stand.services(dsn) as services:
            await report_all(services, first)
            with measuring({**services.processes, "postgres": stand.postgres_process}) as cost:
                rate = await report_all(
                    services,
                    audience,
                    streams=streams,
                    frame_events=frame_events,
                    outstanding_frames=outstanding_frames,
                )
        await assert_nothing_lost(dsn, audience, first)
    run.note(
        f"{audience.deliveries:,} deliveries, {frame_events} events a frame: "
        f"{cost.per_unit(audience.recipients, 'event')}"
    )
    return rate


async def durable_rate(run: Run) -> float:
    """The product's own rate, measured once a run."""
    return await run.once("durable", lambda: product_rate(run, audience_of(run.recipients)))


async def ceiling_rate(run: Run) -> float:
    """The larger of the two bare ones, measured once a run."""
    return await run.once("apply ceiling", lambda: _ceiling_rate(run))


async def _ceiling_rate(run: Run) -> float:
    audience = audience_of(run.recipients)
    reported = facts(audience)
    async with run.stand.database() as dsn:
        await seed_audience(dsn, audience)
        await settle(dsn)
        product = await apply_ceiling.product_rate(dsn, reported)
        yardstick = await apply_ceiling.yardstick_rate(dsn, reported)
    run.note(f"ceiling of feedback: the product's function {product:,.0f}, the yardstick {yardstick:,.0f} events/s")
    return max(product, yardstick)


async def peer_rate(run: Run) -> float:
    """Row by row, measured once a run."""
    return await run.once("peer", lambda: _peer_rate(run))


async def _peer_rate(run: Run) -> float:
    audience = audience_of(min(PEER_EVENTS, run.recipients))
    async with run.stand.database() as dsn:
        await seed_audience(dsn, audience)
        await settle(dsn)
        return await apply_ceiling.peer_rate(dsn, facts(audience))


@measures(figure("feedback.durable", "events/s", must=0.45, aim=0.75))
async def durable(run: Run) -> Sequence[Sample]:
    ceiling = await ceiling_rate(run)
    return [Sample(await durable_rate(run), ceiling, await peer_rate(run))]


@measures(figure("feedback.peer", "events/s", must=25, aim=45, judged="vs_peer"))
async def peer(run: Run) -> Sequence[Sample]:
    rate = await peer_rate(run)
    return [Sample(rate, None, rate, vs_peer=await durable_rate(run) / rate)]


@measures(figure("feedback.small_frames", "events/s", must=0.03, aim=0.06))
async def small_frames(run: Run) -> Sequence[Sample]:
    rate = await product_rate(
        run,
        audience_of(run.recipients // SMALL_SHARE),
        streams=SMALL_STREAMS,
        frame_events=1,
        outstanding_frames=SMALL_OUTSTANDING_FRAMES,
    )
    return [Sample(rate, await ceiling_rate(run), await peer_rate(run))]


@measures(figure("feedback.many", "events/s", must=0.4, aim=0.6))
async def many(run: Run) -> Sequence[Sample]:
    deliveries = min(MANY_DELIVERIES, run.recipients // 20)
    rate = await product_rate(run, audience_of(run.recipients, deliveries))
    return [Sample(rate, await durable_rate(run), await peer_rate(run))]


@measures(figure("feedback.flat", "events/s", must=0.7, aim=0.9, on_demand=True))
async def flat(run: Run) -> Sequence[Sample]:
    large = await product_rate(run, audience_of(run.recipients * FLAT_RECIPIENTS // 200_000))
    return [Sample(large, await durable_rate(run))]
