"""What must not grow with the audience: ConfirmSend and GetKpis, small beside large; and the speed of a recount."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final

import asyncpg

from campaign.delivery.v1 import delivery_service_pb2 as pb
from delivery_service.domain.lifecycle import DeliveryState
from tests.bench.registry import Run, Sample, figure, measures
from tests.bench.seeding import DIGEST, Seed, seed
from tests.bench.stand import Services, settle

LARGE_PER_RECIPIENT: Final = 5
"""The large delivery has so many times the recipients of the bench."""
CONFIRM_SMALL, KPIS_SMALL = 1_000, 10_000
CALLS: Final = 300
SMOKE_CALLS: Final = 20
_SMALL_ID, _LARGE_ID, _KPIS_ID = 1_001, 1_002, 1_003
_FINISH_SECONDS_MAX: Final = 10.0
_POLL_SECONDS: Final = 0.002
_STATE: Final = "select state from delivery where delivery_id = $1"
_RESET: Final = "update delivery set state = 4, confirm_request_id = null, finish_time = null where delivery_id = $1"


@measures(
    figure("confirm.p99", "ms", must=1.5, aim=1.1, direction="at most"),
    figure("kpis.read", "ms", must=1.3, aim=1.0, direction="at most"),
    figure("statistics", "rows/s", must=0.7, aim=0.9),
)
async def reading(run: Run) -> Sequence[Sample]:
    """The ceiling of the first two is the same call for a small delivery; calls take turns between the two."""
    large = LARGE_PER_RECIPIENT * run.recipients
    calls = SMOKE_CALLS if run.smoke else CALLS
    async with run.stand.database() as dsn:
        await seed(
            dsn,
            Seed(_SMALL_ID, CONFIRM_SMALL, DeliveryState.READY, with_recipients=False, relayed=True),
            Seed(_LARGE_ID, large, DeliveryState.READY, with_recipients=False, relayed=True),
            Seed(_KPIS_ID, KPIS_SMALL, with_recipients=False),
        )
        await settle(dsn)
        async with run.stand.services(dsn, "delivery_service") as services:
            confirm = await _confirm(dsn, services, calls)
            kpis = await _kpis(services, calls)
            statistics = await _statistics(dsn, services, large)
    return [confirm, kpis, statistics]


async def _confirm(dsn: str, services: Services, calls: int) -> Sample:
    async with _resetting(dsn) as reset:

        async def confirm(delivery_id: int, number: int) -> float:
            request = pb.ConfirmSendRequest(
                delivery_id=str(delivery_id), plan_digest=DIGEST, request_id=f"bench-{number}"
            )
            seconds = await _timed(lambda: services.stub.ConfirmSend(request))
            await reset(delivery_id)
            return seconds

        small, large = await _in_turn(lambda number: confirm(_SMALL_ID, number), lambda n: confirm(_LARGE_ID, n), calls)
    return Sample(1_000 * _percentile(large, 0.99), 1_000 * _percentile(small, 0.99))


async def _kpis(services: Services, calls: int) -> Sample:
    async def read(delivery_id: int) -> float:
        request = pb.GetKpisRequest(delivery_id=str(delivery_id))
        return await _timed(lambda: services.stub.GetKpis(request))

    small, large = await _in_turn(lambda _: read(_KPIS_ID), lambda _: read(_LARGE_ID), calls)
    return Sample(1_000 * _percentile(large, 0.5), 1_000 * _percentile(small, 0.5))


async def _statistics(dsn: str, services: Services, rows: int) -> Sample:
    """The better of two each, in turn: the first may find cold pages."""
    connection = await asyncpg.connect(dsn)
    counting = "select outcome, count(*) from send_log where delivery_id = $1 group by outcome"
    ours, bare = [], []
    try:
        for _ in range(2):
            bare.append(await _timed(lambda: connection.fetch(counting, _LARGE_ID)))
            request = pb.ComputeStatisticsRequest(delivery_id=str(_LARGE_ID))
            began = time.perf_counter()
            answer = await services.stub.ComputeStatistics(request)
            ours.append(time.perf_counter() - began)
            assert (answer.drift, answer.recounted) == (0, rows)
    finally:
        await connection.close()
    return Sample(rows / min(ours), rows / min(bare))


async def _in_turn(
    small: Callable[[int], Awaitable[float]], large: Callable[[int], Awaitable[float]], calls: int
) -> tuple[list[float], list[float]]:
    """The latencies of both, measured in turn, so that whatever else runs on the machine meets both alike."""
    smalls, larges = [], []
    for number in range(calls):
        smalls.append(await small(number))
        larges.append(await large(number))
    return smalls, larges


@asynccontextmanager
async def _resetting(dsn: str) -> AsyncIterator[Callable[[int], Awaitable[None]]]:
    """Takes a confirmed delivery back to READY once the workers are through with it: there is nothing left to relay."""
    connection = await asyncpg.connect(dsn)

    async def reset(delivery_id: int) -> None:
        async with asyncio.timeout(_FINISH_SECONDS_MAX):
            while await connection.fetchval(_STATE, delivery_id) != DeliveryState.FINISHED:  # noqa: ASYNC110
                await asyncio.sleep(_POLL_SECONDS)
        await connection.execute(_RESET, delivery_id)

    try:
        yield reset
    finally:
        await connection.close()


async def _timed(call: Callable[[], Awaitable[object]]) -> float:
    began = time.perf_counter()
    await call()
    return time.perf_counter() - began


def _percentile(numbers: Sequence[float], share: float) -> float:
    return sorted(numbers)[min(len(numbers) - 1, int(share * len(numbers)))]
