"""GetKpis and WatchKpis: the figures, the bounds, and a watch that misses nothing that lasts."""

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration

from campaign.delivery.v1 import delivery_pb2, kpis_pb2, send_log_pb2
from campaign.delivery.v1 import delivery_service_pb2 as pb
from tests.support.delivery_stack import DeliveryStack, Fact, Observed, batch_of, delivery_stack
from tests.support.eventually import eventually
from tests.support.invariants import OUTCOMES, assert_laws
from tests.support.mta_side import ACCEPT, LATER
from tests.support.postgres import connected
from tests.support.statuses import refused

SOFT, HARD, IGNORED = 1, 2, 3
DEFERRED, DELIVERED = send_log_pb2.OUTCOME_DEFERRED, send_log_pb2.OUTCOME_DELIVERED
TIME_US = 1_790_000_100_000_000
LONG = Duration(seconds=3_000)


def of(counts: Any) -> dict[str, int]:
    return {field.name: getattr(counts, field.name) for field in counts.DESCRIPTOR.fields}


def rate(figure: kpis_pb2.Rate) -> tuple[int, int, float | None]:
    return figure.count, figure.base, figure.rate if figure.HasField("rate") else None


@asynccontextmanager
async def one_of_each(stack: DeliveryStack) -> AsyncIterator[str]:
    """A delivery to ten: one not left yet, the others at every outcome."""
    stack.mta.decide = lambda message: LATER if message.address == "person10@example.com" else ACCEPT
    try:
        delivery = await stack.ready(10)
        delivery_id = delivery.delivery_id
        await stack.confirm(delivery)

        async def left() -> bool:
            return (await stack.kpis(delivery_id)).outcomes.relayed == 9

        await eventually(left)
        await stack.apply(
            Observed(f"{delivery_id}-1", DELIVERED, TIME_US),
            Observed(f"{delivery_id}-2", DELIVERED, TIME_US + 7_000_000),
            Observed(f"{delivery_id}-3", DEFERRED, TIME_US, SOFT, 6),
            Observed(f"{delivery_id}-4", DEFERRED, TIME_US),
            Observed(f"{delivery_id}-5", send_log_pb2.OUTCOME_EXPIRED, TIME_US, HARD),
            Observed(f"{delivery_id}-6", send_log_pb2.OUTCOME_BOUNCED, TIME_US, HARD, 2),
            Observed(f"{delivery_id}-7", send_log_pb2.OUTCOME_BOUNCED, TIME_US, IGNORED, 8),
        )
        yield delivery_id
    finally:
        stack.mta.decide = lambda message: ACCEPT
        await stack.in_state(delivery_id, delivery_pb2.DELIVERY_STATE_FINISHED)


async def test_the_figures_of_both_modes_come_from_the_same_rows(common: DeliveryStack) -> None:
    async with one_of_each(common) as delivery_id:
        kpis = await common.kpis(delivery_id)

    assert list(of(kpis.outcomes).values()) == [1, 0, 2, 2, 1, 2, 2]
    assert (kpis.to_deliver, kpis.handed_over, kpis.retrying, kpis.unresolved) == (10, 9, 2, 0)
    with_efs, without = kpis.with_efs, kpis.without_efs
    assert rate(with_efs.delivered) == rate(with_efs.delivered_of_not_canceled) == (2, 10, 0.2)
    assert rate(with_efs.bounces_and_errors) == rate(with_efs.bounces_and_errors_of_not_canceled) == (5, 10, 0.5)
    assert with_efs.processed == 7
    assert of(with_efs.statuses) == {"pending": 3, "sent": 2, "failed": 5, "canceled": 0}
    assert of(with_efs.failures) == {"soft": 2, "hard": 2, "ignored": 1}
    assert (with_efs.delivered_min_final, with_efs.delivered_max_final, with_efs.final) == (2, 7, False)
    assert rate(without.delivered) == (6, 9, 6 / 9)
    assert rate(without.bounces_and_errors) == (3, 9, 3 / 9)
    assert rate(without.delivered_of_not_canceled) == (6, 10, 0.6)
    assert of(without.statuses) == {"pending": 1, "sent": 6, "failed": 3, "canceled": 0}
    assert of(without.failures) == {"soft": 0, "hard": 2, "ignored": 1}
    assert (without.delivered_min_final, without.delivered_max_final, without.final) == (2, 7, False)


async def test_freshness_names_the_newest_event_and_how_late_it_came(common: DeliveryStack) -> None:
    async with one_of_each(common) as delivery_id:
        # Those of the relay's answers lie ahead, by the double's clock: a lag is never negative.
        assert (await common.kpis(delivery_id)).freshness.lag.ToMicroseconds() == 0
        async with connected(common.dsn) as connection:
            await connection.execute(
                "update delivery_counter set newest_event_time = timestamptz 'epoch' + $2::bigint * interval '1 us' "
                "where delivery_id = $1 and newest_event_time is not null",
                int(delivery_id),
                TIME_US,
            )
        freshness = (await common.kpis(delivery_id)).freshness

    assert freshness.newest_event_time.ToMicroseconds() == TIME_US
    assert freshness.lag.ToMicroseconds() == freshness.commit_time.ToMicroseconds() - TIME_US > 0


async def test_what_has_no_fate_when_the_validity_is_over_is_unresolved(common: DeliveryStack) -> None:
    async with one_of_each(common) as delivery_id:
        async with connected(common.dsn) as connection:
            await connection.execute(
                "update delivery set validity_closed_time = now() where delivery_id = $1",
                int(delivery_id),
            )
        kpis = await common.kpis(delivery_id)

    assert kpis.unresolved == kpis.outcomes.relayed == 2
    assert (kpis.with_efs.delivered_min_final, kpis.with_efs.delivered_max_final) == (2, 5)
    assert (kpis.without_efs.delivered_min_final, kpis.without_efs.delivered_max_final) == (4, 7)


async def test_the_figures_are_final_once_nothing_is_undecided(common: DeliveryStack) -> None:
    delivery_id = await common.sent(2)
    assert not (await common.kpis(delivery_id)).with_efs.final

    await common.apply(
        Observed(f"{delivery_id}-1", DELIVERED), Observed(f"{delivery_id}-2", send_log_pb2.OUTCOME_BOUNCED)
    )

    kpis = await common.kpis(delivery_id)
    assert kpis.with_efs.final
    assert (kpis.with_efs.delivered_min_final, kpis.with_efs.delivered_max_final) == (1, 1)
    assert kpis.without_efs.final


async def test_an_empty_base_has_no_rate(common: DeliveryStack) -> None:
    draft = await common.kpis(await common.create())
    ready = await common.kpis((await common.ready(3)).delivery_id)

    assert rate(draft.with_efs.delivered) == rate(draft.without_efs.delivered) == (0, 0, None)
    assert draft.to_deliver == 0
    assert rate(ready.with_efs.delivered) == (0, 3, 0.0)
    assert rate(ready.without_efs.delivered) == (0, 0, None)
    assert rate(ready.with_efs.opened) == (0, 0, None)
    assert not ready.engagement.HasField("as_of_time")


@pytest.mark.parametrize("channel", [delivery_pb2.CHANNEL_SMS, delivery_pb2.CHANNEL_PUSH])
async def test_only_an_email_has_figures_with_efs_and_clicks(common: DeliveryStack, channel: int) -> None:
    other = await common.kpis(await common.create(channel=channel))
    email = await common.kpis(await common.create())

    assert not other.HasField("with_efs")
    assert not other.without_efs.HasField("clicked")
    assert other.feedback_mode == delivery_pb2.FEEDBACK_MODE_WITHOUT_EFS
    assert email.HasField("with_efs")
    assert email.without_efs.HasField("clicked")


async def test_no_engagement_rate_passes_one_hundred_percent(common: DeliveryStack) -> None:
    async with one_of_each(common) as delivery_id:
        await common.track(
            *(Fact(f"{delivery_id}-{n}") for n in (1, 3, 6, 10)),  # delivered, deferred, bounced, prepared
            Fact(f"{delivery_id}-2", send_log_pb2.TIMELINE_ENTRY_KIND_CLICK, url="https://example.com"),
        )
        await common.stub.ComputeStatistics(pb.ComputeStatisticsRequest(delivery_id=delivery_id))
        kpis = await common.kpis(delivery_id)

    assert of_totals(kpis) == (5, 1, 4, 1)
    assert rate(kpis.with_efs.opened) == (2, 2, 1.0)
    assert rate(kpis.with_efs.clicked) == (1, 2, 0.5)
    assert rate(kpis.without_efs.opened) == (3, 6, 0.5)
    assert rate(kpis.without_efs.clicked) == (1, 6, 1 / 6)


def of_totals(kpis: kpis_pb2.Kpis) -> tuple[int, int, int, int]:
    totals = kpis.engagement
    return totals.opened, totals.clicked, totals.opens, totals.clicks


async def test_kpis_of_an_unknown_delivery_are_not_found(common: DeliveryStack) -> None:
    async with refused(grpc.StatusCode.NOT_FOUND, "DELIVERY_NOT_FOUND"):
        await common.kpis("12345")


# The snapshot and the log.


def vector_of(token: str, delivery_id: str) -> list[int]:
    """The slot revisions behind a resume token. Opaque to callers; tests may look."""
    raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    assert raw[:2] == b"v1"
    of_delivery, *revisions = (int.from_bytes(raw[i : i + 8], "big") for i in range(2, len(raw), 8))
    assert of_delivery == int(delivery_id)
    return revisions


async def test_the_log_up_to_the_resume_token_adds_up_to_exactly_the_counts(stack: DeliveryStack) -> None:
    recipients = 9_000  # in nine parts, so in all slots
    delivery_id = await stack.sent(recipients)
    snapshots: list[kpis_pb2.Kpis] = []
    running = True

    async def change(first: int, outcome: "send_log_pb2.Outcome.ValueType") -> None:
        async with stack.apply_stream() as stream:
            for begin in range(first, recipients, 300):
                observed = [
                    Observed(f"{delivery_id}-{n}", outcome, TIME_US + begin, SOFT)
                    for n in range(begin, min(begin + 300, recipients), 2)
                ]
                await stream.send(batch_of(observed))

    async def look() -> None:
        while running:
            snapshots.append(await stack.kpis(delivery_id))

    looking = [asyncio.create_task(look()) for _ in range(2)]
    await asyncio.gather(change(1, DEFERRED), change(2, DELIVERED), change(1, send_log_pb2.OUTCOME_EXPIRED))
    running = False
    await asyncio.gather(*looking)
    snapshots.append(await stack.kpis(delivery_id))

    distinct = {kpis.resume_token: kpis for kpis in snapshots}
    assert len(distinct) > 10
    async with connected(stack.dsn) as connection:
        for token, kpis in distinct.items():
            vector = vector_of(token, delivery_id)
            assert sum(vector) == kpis.revision
            log = await connection.fetch(
                """
                select t.before, t.outcome, count(*) as n from every_transition t
                join unnest($2::bigint[]) with ordinality as v (revision, position) on t.slot = v.position - 1
                where t.delivery_id = $1 and t.revision <= v.revision group by 1, 2
                """,
                int(delivery_id),
                vector,
            )
            for rank, name in enumerate(OUTCOMES):
                counted = recipients if rank == 0 else 0
                counted += sum(row["n"] for row in log if row["outcome"] == rank)
                counted -= sum(row["n"] for row in log if row["before"] == rank)
                assert getattr(kpis.outcomes, name) == counted


# Watching.


class Watch:
    """One WatchKpis stream; keeps what it has seen, and that revisions strictly increase."""

    def __init__(self, call: Any) -> None:
        self.call = call
        self.newest: dict[str, kpis_pb2.Kpis] = {}
        self.seen: list[kpis_pb2.Kpis] = []
        self.times: list[float] = []
        self.heartbeats = 0

    async def next(self) -> kpis_pb2.Kpis | None:
        """The next message: KPIs, or None for a heartbeat. EOF raises StopAsyncIteration."""
        response = await self.call.read()
        if response is grpc.aio.EOF:
            raise StopAsyncIteration
        if response.HasField("heartbeat"):
            self.heartbeats += 1
            return None
        kpis: kpis_pb2.Kpis = response.kpis
        before = self.newest.get(kpis.delivery_id)
        assert before is None or kpis.revision > before.revision
        self.newest[kpis.delivery_id] = kpis
        self.seen.append(kpis)
        self.times.append(asyncio.get_running_loop().time())
        return kpis

    async def until(self, wanted: kpis_pb2.Kpis) -> None:
        """Reads until the state of these KPIs has come."""
        async with asyncio.timeout(60):
            while True:
                newest = self.newest.get(wanted.delivery_id)
                if newest is not None and newest.revision >= wanted.revision:
                    assert newest.outcomes == wanted.outcomes
                    return
                await self.next()

    async def end(self) -> grpc.StatusCode:
        """Reads to the end."""
        async with asyncio.timeout(60):
            try:
                while True:
                    await self.next()
            except StopAsyncIteration:
                code: grpc.StatusCode = await self.call.code()
                return code


@asynccontextmanager
async def watching(
    stack: DeliveryStack, *delivery_ids: str, min_interval: Duration | None = None
) -> AsyncIterator[Watch]:
    call: Any = stack.stub.WatchKpis(pb.WatchKpisRequest(delivery_ids=delivery_ids, min_interval=min_interval))
    try:
        yield Watch(call)
    finally:
        call.cancel()


async def deferrals(stack: DeliveryStack, delivery_id: str, number: int, first: int = 1) -> None:
    """That many commits, each changing the KPIs' revision."""
    async with stack.apply_stream() as stream:
        for n in range(number):
            await stream.send(batch_of([Observed(f"{delivery_id}-{first}", DEFERRED, TIME_US + n, SOFT)]))


async def test_a_watch_begins_with_the_present_state_of_each_delivery(common: DeliveryStack) -> None:
    ids = [await common.create(), (await common.ready(2)).delivery_id, await common.sent(3)]

    async with watching(common, *ids) as watch:
        for _ in ids:
            await watch.next()

    assert {delivery_id: kpis.to_deliver for delivery_id, kpis in watch.newest.items()} == dict(
        zip(ids, (0, 2, 3), strict=True)
    )
    for delivery_id in ids:
        expected = await common.kpis(delivery_id)
        assert watch.newest[delivery_id].outcomes == expected.outcomes
        assert watch.newest[delivery_id].revision == expected.revision


async def test_a_watch_sees_a_delivery_through_its_whole_life(common: DeliveryStack) -> None:
    delivery_id = await common.create()

    async with watching(common, delivery_id, min_interval=Duration()) as watch:

        async def caught_up(state: "delivery_pb2.DeliveryState.ValueType") -> None:
            await watch.until(await common.kpis(delivery_id))
            assert watch.newest[delivery_id].state == state

        await caught_up(delivery_pb2.DELIVERY_STATE_EDITING)
        await common.prepare(delivery_id)
        await caught_up(delivery_pb2.DELIVERY_STATE_READY)
        request = pb.UpdateDeliveryRequest(delivery=await common.delivery(delivery_id))
        request.update_mask.paths.append("content")
        await common.stub.UpdateDelivery(request)
        await caught_up(delivery_pb2.DELIVERY_STATE_EDITING)
        await common.confirm(await common.prepare(delivery_id))
        await common.in_state(delivery_id, delivery_pb2.DELIVERY_STATE_FINISHED)
        await caught_up(delivery_pb2.DELIVERY_STATE_FINISHED)


async def test_the_last_state_is_never_missed_however_many_watch_and_write(common: DeliveryStack) -> None:
    ids = [await common.sent(4) for _ in range(3)]

    @asynccontextmanager
    async def followed(*watched: str) -> AsyncIterator[Watch]:
        async with watching(common, *watched, min_interval=Duration(nanos=1_000_000)) as watch:
            yield watch

    async with followed(*ids) as all_of_them, followed(ids[0]) as one, followed(ids[2], ids[1]) as two:
        await asyncio.gather(*(deferrals(common, d, 25, first) for d in ids for first in (1, 2)))
        final = {delivery_id: await common.kpis(delivery_id) for delivery_id in ids}
        for watch, watched in ((all_of_them, ids), (one, ids[:1]), (two, ids[1:])):
            for delivery_id in watched:
                await watch.until(final[delivery_id])
                assert watch.newest[delivery_id].revision == final[delivery_id].revision


async def test_changes_are_coalesced_to_the_interval_and_the_last_one_still_comes(common: DeliveryStack) -> None:
    delivery_id = await common.sent(1)

    opened = asyncio.get_running_loop().time()
    async with watching(common, delivery_id, min_interval=Duration(nanos=300_000_000)) as watch:
        await watch.next()
        before = watch.newest[delivery_id].revision
        await deferrals(common, delivery_id, 60)
        final = await common.kpis(delivery_id)
        await watch.until(final)

    assert final.revision - before == 60
    # Not the gaps: a reader that was held up finds several that were written in time.
    intervals = len(watch.times) - 1
    assert watch.times[-1] - opened >= 0.3 * intervals
    assert watch.newest[delivery_id].revision == final.revision


async def test_after_a_push_watchers_are_let_rest_and_then_have_what_is_newest(database: str, tmp_path: Path) -> None:
    """With next to no share of the time, every push is followed by the longest rest."""
    rest = 1.0
    async with delivery_stack(
        database, tmp_path, watch_time_share_max=1e-9, watch_rest_seconds_max=rest, watch_poll_seconds=0.001
    ) as stack:
        delivery_id = await stack.sent(1)
        async with watching(stack, delivery_id, min_interval=Duration()) as watch:
            await watch.next()
            await deferrals(stack, delivery_id, 1)
            committed = asyncio.get_running_loop().time()
            await watch.until(await stack.kpis(delivery_id))
            told = len(watch.times)
            await deferrals(stack, delivery_id, 20, first=1)
            await stack.apply(Observed(f"{delivery_id}-1", DELIVERED))
            final = await stack.kpis(delivery_id)
            async with watching(stack, delivery_id) as late:
                await late.next()  # begins with the present state nevertheless
                assert late.newest[delivery_id].revision == final.revision
            await watch.until(final)

    assert watch.newest[delivery_id].revision == final.revision
    # At the most one for each rest that has begun: however many commits there were.
    assert len(watch.times) - told <= 1 + (watch.times[-1] - committed) / rest


async def test_an_idle_watch_gets_heartbeats(database: str, tmp_path: Path) -> None:
    async with delivery_stack(database, tmp_path, watch_heartbeat_seconds=0.05) as stack:
        delivery_id = await stack.create()
        async with watching(stack, delivery_id) as watch:
            assert await watch.next() is not None
            assert await watch.next() is None
            assert await watch.next() is None


async def test_changes_of_another_replica_are_seen(database: str, tmp_path: Path) -> None:
    async with (
        delivery_stack(database, tmp_path / "one") as one,
        delivery_stack(database, tmp_path / "two", mta=one.mta) as two,
    ):
        delivery_id = await one.sent(3)
        async with watching(one, delivery_id) as watch:
            await watch.next()
            await two.apply(Observed(f"{delivery_id}-1", DELIVERED))
            await watch.until(await two.kpis(delivery_id))
    await assert_laws(database)


async def test_a_watcher_that_does_not_read_holds_nobody_up(common: DeliveryStack) -> None:
    delivery_id = await common.sent(2)

    async with (
        watching(common, delivery_id, min_interval=Duration()) as lazy,
        watching(common, delivery_id, min_interval=Duration()) as eager,
    ):
        await eager.next()
        for _ in range(4):
            await deferrals(common, delivery_id, 50)
            await eager.until(await common.kpis(delivery_id))
        # When it reads at last, it has everything that lasts.
        await lazy.until(await common.kpis(delivery_id))


async def test_a_watch_survives_the_loss_of_the_database_connections(common: DeliveryStack) -> None:
    delivery_id = await common.sent(2)

    async with watching(common, delivery_id) as watch:
        await watch.next()
        async with connected(common.dsn) as connection:
            await connection.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity "
                "where datname = current_database() and application_name = 'delivery_service'"
            )

        async def applied() -> bool:
            try:
                await common.apply(Observed(f"{delivery_id}-1", DELIVERED))
            except grpc.aio.AioRpcError:
                return False
            return True

        await eventually(applied)

        async def looked() -> kpis_pb2.Kpis | None:
            try:
                return await common.kpis(delivery_id)
            except grpc.aio.AioRpcError:
                return None

        await watch.until(await eventually(looked))


async def _settle(dsn: str, *delivery_ids: str) -> None:
    async with connected(dsn) as connection:
        for delivery_id in delivery_ids:
            async with connection.transaction():
                await connection.execute(
                    "update delivery set settled_time = now() where delivery_id = $1", int(delivery_id)
                )
                await connection.execute(
                    "update delivery_counter set revision = revision + 1 where delivery_id = $1 and slot = 0",
                    int(delivery_id),
                )


async def test_a_watch_ends_when_every_delivery_is_settled(common: DeliveryStack) -> None:
    one, two = await common.sent(1), await common.sent(1)

    async with watching(common, one, two) as watch:
        await watch.next()
        await watch.next()
        await _settle(common.dsn, one)
        await watch.until(await common.kpis(one))
        await common.apply(Observed(f"{two}-1", DELIVERED))
        await watch.until(await common.kpis(two))
        await _settle(common.dsn, two)
        assert await watch.end() == grpc.StatusCode.OK

    assert watch.newest[two].revision == (await common.kpis(two)).revision


async def test_a_watch_of_settled_deliveries_is_their_snapshot(common: DeliveryStack) -> None:
    one, two = await common.sent(1), await common.sent(2)
    await _settle(common.dsn, one, two)

    async with watching(common, one, two, min_interval=LONG) as watch:
        assert await watch.end() == grpc.StatusCode.OK

    assert [kpis.delivery_id for kpis in watch.seen] == [one, two]


@pytest.mark.parametrize(
    ("request_", "fields"),
    [
        (pb.WatchKpisRequest(), ["delivery_ids"]),
        (pb.WatchKpisRequest(delivery_ids=[str(n) for n in range(1, 102)]), ["delivery_ids"]),
        (pb.WatchKpisRequest(delivery_ids=["1", "2", "1"]), ["delivery_ids"]),
        (pb.WatchKpisRequest(delivery_ids=["1", "one"]), ["delivery_ids[1]"]),
        (pb.WatchKpisRequest(delivery_ids=["1"], min_interval=Duration(seconds=-1)), ["min_interval"]),
        (pb.WatchKpisRequest(delivery_ids=["1"], min_interval=Duration(seconds=3_601)), ["min_interval"]),
    ],
    ids=["none", "too many", "twice the same", "malformed", "negative interval", "long interval"],
)
async def test_a_watch_out_of_bounds_is_refused_by_name(
    common: DeliveryStack, request_: pb.WatchKpisRequest, fields: list[str]
) -> None:
    call: Any = common.stub.WatchKpis(request_)
    async with refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD") as problem:
        await call.read()

    assert problem.fields == fields


async def test_a_watch_of_an_unknown_delivery_is_not_found_and_leaves_others_alone(common: DeliveryStack) -> None:
    delivery_id = await common.sent(1)

    async with watching(common, delivery_id) as good, watching(common, delivery_id, "12345") as bad:
        await good.next()
        async with refused(grpc.StatusCode.NOT_FOUND, "DELIVERY_NOT_FOUND") as problem:
            await bad.next()
        await common.apply(Observed(f"{delivery_id}-1", DELIVERED))
        await good.until(await common.kpis(delivery_id))

    assert problem.metadata == {"delivery_id": "12345"}


async def test_watchers_beyond_the_limit_are_refused_until_one_leaves(database: str, tmp_path: Path) -> None:
    async with delivery_stack(database, tmp_path, watchers_max=2) as stack:
        delivery_id = await stack.create()
        async with watching(stack, delivery_id) as one:
            async with watching(stack, delivery_id) as two:
                await one.next()
                await two.next()
                async with (
                    watching(stack, delivery_id) as three,
                    refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "LIMIT_REACHED") as problem,
                ):
                    await three.next()
            assert problem.metadata == {"limit": "watchers_max", "value": "2"}

            async def let_in() -> bool:
                async with watching(stack, delivery_id) as again:
                    try:
                        return await again.next() is not None
                    except grpc.aio.AioRpcError:
                        return False

            assert await eventually(let_in)
        hub = stack.app.hub
        assert hub is not None
        await eventually(lambda: hub.watchers == 0)


async def test_a_stopping_service_ends_watches_as_unavailable_once_it_has_given_notice(
    database: str, tmp_path: Path
) -> None:
    loop = asyncio.get_running_loop()
    async with delivery_stack(database, tmp_path, shutdown_notice_seconds=0.3) as stack:
        delivery_id = await stack.create()
        async with watching(stack, delivery_id) as watch:
            await watch.next()
            started = loop.time()
            stopping = asyncio.create_task(stack.app.stop())
            async with refused(grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN"):
                await watch.next()
            assert loop.time() - started >= 0.3
        await stopping
