"""Watching: how soon the last of many watchers knows, what they cost the feedback, and how many a process can hold."""

import asyncio
import statistics
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
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
CAPACITY_PUSHES: Final = 5
PUSH_PAUSE_SECONDS: Final = 0.3
CAPACITY_PUSH_SECONDS: Final = 5.0
"""Longer than the feed rests after a push to so many."""
_STEPS: Final = 100
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
    """From the newest commit in an update until the last watcher has that update or a later one, while feedback runs
    at half speed; then by how much the same watchers slow feedback at full speed."""
    number = watchers_of(run, WATCHERS)
    audiences = [audience_of(run.recipients, 1, FIRST_DELIVERY_ID + n) for n in range(6)]
    half = await durable_rate(run) / 2
    async with run.stand.database() as dsn:
        for audience in audiences:
            await seed_audience(dsn, audience)
        await settle(dsn)
        async with run.stand.services(dsn) as services:
            ours, bare = await _latencies(run, services, audiences[:2], number, half)
            slower_percent = await _slower_percent(run, services, audiences[2:], number)
        await assert_nothing_lost(dsn, *audiences)
    return [
        Sample(1_000 * _percentile(ours, 0.99), 1_000 * _percentile(bare, 0.99)),
        Sample(1_000 * _percentile(ours, 0.5), 1_000 * _percentile(bare, 0.5)),
        Sample(slower_percent),
    ]


async def _latencies(
    run: Run, services: Services, audiences: Sequence[Audience], number: int, rate: float
) -> tuple[list[float], list[float]]:
    """Of the service and of the bare fan-out. Both beside the same feedback, to as many watchers, as often, and with
    messages as long."""
    async with watchers(services, audiences[0], number) as load:
        await asyncio.sleep(PUSH_PAUSE_SECONDS)
        await ask(load, "mark")
        await report_all(services, audiences[0], events_per_second=rate)
        await asyncio.sleep(PUSH_PAUSE_SECONDS)
        seen = (await ask(load, "report"))["seen"]
    commits = [_commit_time(bytes.fromhex(one["payload"])) for one in seen]
    every = (commits[-1] - commits[0]) / (len(commits) - 1) if len(commits) > 1 else PUSH_PAUSE_SECONDS
    async with _bare(number, _size(seen)) as (load, server):
        await ask(load, "mark")
        feedback = asyncio.create_task(report_all(services, audiences[1], events_per_second=rate))
        await _push_until_done(server, feedback, every)
        await feedback
        bare = (await ask(load, "report"))["seen"]
    run.note(
        f"watch.latency: {number:,} watchers at {rate:,.0f} events/s, {len(seen)} updates, one in {every:.2f} s, and "
        f"{len(bare)} of the bare server; any commit, most of which are told by a later one's update, is seen after "
        f"{_age(seen, commits, 0.5):.2f} s (p50), {_age(seen, commits, 0.99):.2f} s (p99)"
    )
    return [one["last"] - commit for one, commit in zip(seen, commits, strict=True)], _bare_latencies(bare)


async def _slower_percent(run: Run, services: Services, audiences: Sequence[Audience], number: int) -> float:
    """The same services without watchers, with them, with them, without them: so that what changes with time does not
    count."""
    alone: list[float] = []
    watched: list[float] = []
    updates = 0
    spent = {False: 0.0, True: 0.0}
    processes = {**services.processes, "postgres": run.stand.postgres_process}
    for audience, rates in zip(audiences, (alone, watched, watched, alone), strict=True):
        async with AsyncExitStack() as exits:
            load = None
            if rates is watched:
                load = await exits.enter_async_context(watchers(services, audience, number))
                await ask(load, "mark")
            with measuring(processes) as cost:
                rates.append(await report_all(services, audience))
            spent[rates is watched] += sum(cost.seconds.values())
            if load is not None:
                updates += len((await ask(load, "report"))["seen"])
    run.note(
        f"watch.slowdown: {_rates(alone)} events/s alone, {_rates(watched)} beside {number:,} watchers, who had "
        f"{updates} updates; services and Postgres took {100 * (spent[True] / spent[False] - 1):.1f} % more CPU for it"
    )
    return 100 * (1 - sum(1 / rate for rate in alone) / sum(1 / rate for rate in watched))


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


async def _push_until_done(server: Workload, work: "asyncio.Task[float]", every_seconds: float) -> None:
    """Has the bare server push once in so many seconds."""
    loop = asyncio.get_running_loop()
    at = loop.time()
    while not work.done():
        await server.go()
        at = max(at + every_seconds, loop.time())
        await asyncio.wait([work], timeout=at - loop.time())


def _bare_latencies(seen: Sequence[Any]) -> list[float]:
    return [one["last"] - struct.unpack_from(">d", bytes.fromhex(one["payload"]))[0] for one in seen]


def _age(seen: Sequence[Any], commits: Sequence[float], share: float) -> float:
    """How long commits take to be seen by all if they happen all the time, and most are told by a later one's update.
    Those of a period are told by the update that ends it."""
    ages = [
        one["last"] - (begin + (end - begin) * step / _STEPS)
        for one, begin, end in zip(seen[1:], commits, commits[1:], strict=False)
        for step in range(_STEPS)
    ]
    return _percentile(ages or [0.0], share)


def _rates(rates: Sequence[float]) -> str:
    return " and ".join(f"{rate:,.0f}" for rate in rates)


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
