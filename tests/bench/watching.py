"""Watching: how soon the last of many watchers knows, what they cost the feedback, and how many a process can hold."""

import asyncio
import statistics
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import asyncpg

from campaign.delivery.v1 import delivery_service_pb2 as pb
from tests.bench.cost import measuring
from tests.bench.events import Audience
from tests.bench.fanout_server import METHOD, SERVICE
from tests.bench.feedback import (
    FIRST_DELIVERY_ID,
    assert_nothing_lost,
    audience_of,
    durable_rate,
    report_all,
)
from tests.bench.registry import Run, Sample, figure, measures
from tests.bench.seeding import seed_audience
from tests.bench.stand import Services, memory_bytes, settle
from tests.bench.workload import Report, Workload, workload

WATCHERS: Final = 2_000
CAPACITY_WATCHERS: Final = 10_000
WATCHERS_PER_CONNECTION: Final = 100
PUSHES: Final = 15
CAPACITY_PUSHES: Final = 5
PUSH_PAUSE_SECONDS: Final = 0.3
CAPACITY_PUSH_SECONDS: Final = 5.0
"""Longer than the feed rests after a push to so many."""
_WATCH: Final = "/campaign.delivery.v1.DeliveryService/WatchKpis"
_COMMIT: Final = """
update delivery_counter set revision = revision + 1, commit_time = clock_timestamp() where delivery_id = $1 and slot = 0
"""


def watchers_of(run: Run, most: int) -> int:
    """So many, or fewer where the bench itself is small."""
    return max(50, min(most, most * run.recipients // 50_000))


@asynccontextmanager
async def watchers(services: Services, audience: Audience, number: int) -> AsyncIterator[Workload]:
    """Watchers of an audience's delivery that leave the interval to the service, all of which have the snapshot."""
    request = pb.WatchKpisRequest(delivery_ids=[str(audience.first_delivery_id)])
    async with _watchers(
        services.delivery_target, services.user_token, _WATCH, request.SerializeToString(), number
    ) as load:
        yield load


@asynccontextmanager
async def _watchers(target: str, token: str, method: str, request: bytes, number: int) -> AsyncIterator[Workload]:
    async with workload(
        "watch_load",
        target=target,
        token=token,
        method=method,
        request=request.hex(),
        watchers=number,
        connections=max(1, number // WATCHERS_PER_CONNECTION),
    ) as load:
        assert load.ready["ready"], f"{load.ready['ended']} watchers were sent away"
        yield load


async def ask(load: Workload, word: str) -> Report:
    """One word, one answer; no watcher may have been lost."""
    await load.say(word)
    answer = await load.hear()
    assert not answer["ended"], f"{answer['ended']} watchers were cut"
    return answer


@measures(
    figure("watch.latency", "ms (p99)", must=3, aim=1.5, direction="at most"),
    figure("watch.latency.p50", "ms (p50)", must=3, aim=1.5, direction="at most"),
    figure("watch.slowdown", "%", must=15, aim=5, judged="value", direction="at most"),
)
async def latency(run: Run) -> Sequence[Sample]:
    """From a commit that is told to the watchers until the last one knows of it or of a later one, while feedback runs
    at half speed; then by how much the same watchers slow feedback at full speed."""
    number = watchers_of(run, WATCHERS)
    audiences = [audience_of(run.recipients, 1, FIRST_DELIVERY_ID + n) for n in range(2)]
    alone = await durable_rate(run)
    async with run.stand.database() as dsn:
        for audience in audiences:
            await seed_audience(dsn, audience)
        await settle(dsn)
        async with run.stand.services(dsn) as services:
            async with watchers(services, audiences[0], number) as load:
                await asyncio.sleep(PUSH_PAUSE_SECONDS)
                await ask(load, "mark")
                await report_all(services, audiences[0], events_per_second=alone / 2)
                await asyncio.sleep(PUSH_PAUSE_SECONDS)
                seen = (await ask(load, "report"))["seen"]
            async with watchers(services, audiences[1], number) as load:
                with measuring({"watchers": load.process_id}) as cost:
                    watched = await report_all(services, audiences[1])
        await assert_nothing_lost(dsn, *audiences)
    ours = [one["last"] - _commit_time(bytes.fromhex(one["payload"])) for one in seen]
    bare = await _bare_latencies(number, 3 if run.smoke else PUSHES, PUSH_PAUSE_SECONDS, _size(seen))
    span = max(one["last"] for one in seen) - min(one["first"] for one in seen)
    run.note(
        f"watch.latency: {len(ours)} updates in {span:.1f} s to {number:,} watchers at {alone / 2:,.0f} events/s; "
        f"the watchers' own process took {cost.seconds['watchers']:.1f} s of CPU at full speed"
    )
    return [
        Sample(1_000 * _percentile(ours, 0.99), 1_000 * _percentile(bare, 0.99)),
        Sample(1_000 * _percentile(ours, 0.5), 1_000 * _percentile(bare, 0.5)),
        Sample(100 * (1 - watched / alone)),
    ]


@measures(
    figure("watch.capacity", "s", must=1.5, aim=1.1, direction="at most"),
    figure("watch.capacity.memory", "KiB", must=40, aim=28, judged="value", direction="at most"),
)
async def capacity(run: Run) -> Sequence[Sample]:
    """From the first watcher that has an update to the last one; and what each watcher costs in memory."""
    number = watchers_of(run, CAPACITY_WATCHERS)
    pushes, pause_seconds = (2, PUSH_PAUSE_SECONDS) if run.smoke else (CAPACITY_PUSHES, CAPACITY_PUSH_SECONDS)
    async with run.stand.database() as dsn:
        await seed_audience(dsn, audience := audience_of(1_000))
        async with run.stand.services(dsn, "delivery_service", count_memory=False) as services:
            before = services.resident_bytes("delivery_service")
            async with watchers(services, audience, number) as load:
                held = services.resident_bytes("delivery_service") - before
                connection = await asyncpg.connect(dsn)
                try:
                    await asyncio.sleep(PUSH_PAUSE_SECONDS)  # nobody was told too lately
                    await ask(load, "mark")
                    for _ in range(pushes):
                        await connection.execute(_COMMIT, FIRST_DELIVERY_ID)
                        await asyncio.sleep(pause_seconds)
                finally:
                    await connection.close()
                seen = (await ask(load, "report"))["seen"]
    ours = _durations(seen)
    async with _bare(number, _size(seen)) as (load, server):
        await ask(load, "mark")
        for _ in range(pushes):
            await server.go()
            await asyncio.sleep(pause_seconds)
        bare = _durations((await ask(load, "report"))["seen"])
        bare_held = memory_bytes(server.ready["pid"], "VmRSS")
    run.note(f"watch.capacity: {number:,} watchers; the bare server holds {bare_held / 2**20:,.0f} MiB in all")
    return [Sample(statistics.median(ours), statistics.median(bare)), Sample(held / number / 1_024)]


async def _bare_latencies(number: int, pushes: int, pause_seconds: float, size: int) -> list[float]:
    async with _bare(number, size) as (load, server):
        await ask(load, "mark")
        for _ in range(pushes):
            await server.go()
            await asyncio.sleep(pause_seconds)
        seen = (await ask(load, "report"))["seen"]
    return [one["last"] - struct.unpack_from(">d", bytes.fromhex(one["payload"]))[0] for one in seen]


@asynccontextmanager
async def _bare(number: int, size: int) -> AsyncIterator[tuple[Workload, Workload]]:
    """Watchers, and the bare server that they watch, with messages of that many bytes."""
    async with workload("fanout_server", bytes=size) as server:
        target = f"127.0.0.1:{server.ready['port']}"
        async with _watchers(target, "none", f"/{SERVICE}/{METHOD}", b"", number) as load:
            yield load, server


def _size(seen: Sequence[Any]) -> int:
    """How large the service's messages are."""
    assert seen, "no update reached all watchers"
    return len(bytes.fromhex(seen[-1]["payload"]))


def _commit_time(message: bytes) -> float:
    time = pb.WatchKpisResponse.FromString(message).kpis.freshness.commit_time
    return time.seconds + time.nanos / 1e9


def _durations(seen: Sequence[Any]) -> list[float]:
    assert seen, "no update reached all watchers"
    return [one["last"] - one["first"] for one in seen]


def _percentile(numbers: Sequence[float], share: float) -> float:
    assert numbers, "no update reached all watchers"
    return sorted(numbers)[min(len(numbers) - 1, int(share * len(numbers)))]
