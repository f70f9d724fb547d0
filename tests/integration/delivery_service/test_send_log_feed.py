"""WatchSendLogs: no gap and no repetition, over reconnects and replicas; and how it ends."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from campaign.delivery.v1 import delivery_pb2, kpis_pb2, send_log_pb2
from campaign.delivery.v1 import delivery_service_pb2 as pb
from campaign.delivery.v1 import send_log_feed_pb2 as feed_pb
from campaign.delivery.v1.delivery_service_pb2_grpc import DeliveryServiceStub
from delivery_service.api.resume_tokens import position_of, token_of
from delivery_service.domain.log_position import LogPosition, Place
from tests.support.delivery_stack import DeliveryStack, Observed, batch_of, delivery_stack
from tests.support.eventually import eventually
from tests.support.invariants import OUTCOMES, assert_laws
from tests.support.mta_side import MtaSide
from tests.support.postgres import connected
from tests.support.statuses import refused

DEFERRED, DELIVERED, BOUNCED, EXPIRED = (
    send_log_pb2.OUTCOME_DEFERRED,
    send_log_pb2.OUTCOME_DELIVERED,
    send_log_pb2.OUTCOME_BOUNCED,
    send_log_pb2.OUTCOME_EXPIRED,
)
SOFT = send_log_pb2.FAILURE_TYPE_SOFT
TIME_US = 1_790_000_100_000_000


@dataclass
class Told:
    """What a watcher was told, over all its streams."""

    delivery_id: str
    token: str = ""
    changes: list[feed_pb.SendLogChange] = field(default_factory=list)
    lengths: dict[str, int] = field(default_factory=dict)
    """How many changes had been told at each place where it had caught up."""
    reconnects: int = 0
    heartbeats: int = 0

    def take(self, response: feed_pb.WatchSendLogsResponse) -> None:
        if response.HasField("heartbeat_time"):
            self.heartbeats += 1
            return
        self.changes += response.changes.changes
        self.token = response.changes.resume_token
        if response.changes.caught_up:
            self.lengths[self.token] = len(self.changes)

    def outcomes(self, to_deliver: int, length: int | None = None) -> dict[str, int]:
        return added_up(self.changes[:length], to_deliver)


def added_up(changes: list[feed_pb.SendLogChange], to_deliver: int) -> dict[str, int]:
    """The counts by outcome that some transitions lead to, from everyone PREPARED."""
    counts = Counter({1: to_deliver})
    for change in changes:
        counts[change.before] -= 1
        counts[change.outcome] += 1
    return {name: counts[rank] for rank, name in enumerate(OUTCOMES, start=1)}


def of(counts: kpis_pb2.OutcomeCounts) -> dict[str, int]:
    return {name: getattr(counts, name) for name in OUTCOMES}


@asynccontextmanager
async def watching(stub: DeliveryServiceStub, delivery_id: str, token: str = "", **fields: Any) -> AsyncIterator[Any]:
    request = feed_pb.WatchSendLogsRequest(delivery_id=delivery_id, resume_token=token, **fields)
    call: Any = stub.WatchSendLogs(request)
    try:
        yield call
    finally:
        call.cancel()


async def caught_up(stack: DeliveryStack, delivery_id: str, token: str = "", **fields: Any) -> Told:
    """Everything that is behind the token now."""
    told = Told(delivery_id, token)
    async with asyncio.timeout(60), watching(stack.stub, delivery_id, token, **fields) as call:
        while not told.lengths:
            told.take(await call.read())
    return told


async def settle(stack: DeliveryStack, delivery_id: str) -> None:
    async with connected(stack.dsn) as connection:
        await connection.execute("update delivery set settled_time = now() where delivery_id = $1", int(delivery_id))


async def follow(stacks: list[DeliveryStack], told: Told, chance: random.Random, cut_share: float) -> None:
    """Watches to the end, cutting its stream at random places and going on at a random replica."""
    while True:
        async with watching(chance.choice(stacks).stub, told.delivery_id, told.token) as call:
            while True:
                response = await call.read()
                if response is grpc.aio.EOF:
                    assert await call.code() is grpc.StatusCode.OK
                    return
                told.take(response)
                if chance.random() < cut_share:
                    told.reconnects += 1
                    break


async def change(stack: DeliveryStack, delivery_id: str, chance: random.Random, recipients: int) -> None:
    """Applies random batches of all kinds of facts, in random order."""
    outcomes = [DEFERRED, DELIVERED, BOUNCED, EXPIRED]
    async with stack.apply_stream() as stream:
        for _ in range(16):
            size = chance.choice((1, 20, 400))
            await stream.send(
                batch_of(
                    Observed(
                        f"{delivery_id}-{chance.randint(1, recipients)}",
                        chance.choice(outcomes),
                        TIME_US + chance.randint(0, 50),
                        SOFT,
                        diagnostic="x" * chance.randint(0, 60),
                    )
                    for _ in range(size)
                )
            )


@pytest.fixture
async def replicas(database: str, tmp_path: Path) -> AsyncIterator[list[DeliveryStack]]:
    """Two replicas on one database, whose responses hold some thirty changes: so large revisions are cut."""
    side = MtaSide()
    await side.start()
    settings: dict[str, Any] = {"send_log_response_bytes_max": 4_000, "watch_poll_seconds": 0.02}
    async with (
        delivery_stack(database, tmp_path / "one", mta=side, **settings) as one,
        delivery_stack(database, tmp_path / "two", mta=side, **settings) as two,
    ):
        yield [one, two]
    await side.stop()
    await assert_laws(database)


@pytest.mark.expects_errors  # a client that goes away in the middle of a write: gRPC logs it as an error
@pytest.mark.parametrize("seed", [1, 2])
async def test_every_transition_is_told_once_and_in_order_over_reconnects_and_replicas(
    replicas: list[DeliveryStack], seed: int
) -> None:
    chance = random.Random(seed)
    recipients = 3_200  # in four parts, so in all slots
    delivery = await replicas[0].ready(recipients)
    delivery_id = delivery.delivery_id
    watchers = [Told(delivery_id) for _ in range(4)]
    following = [
        asyncio.create_task(follow(replicas, told, random.Random(chance.random()), share))
        for told, share in zip(watchers, (0.0, 0.02, 0.1, 0.4), strict=True)
    ]
    snapshots: dict[str, kpis_pb2.Kpis] = {}
    running = True

    async def look() -> None:
        while running:
            for stack in replicas:
                kpis = await stack.kpis(delivery_id)
                snapshots[kpis.resume_token] = kpis

    looking = asyncio.create_task(look())
    await replicas[1].confirm(delivery)
    await replicas[0].in_state(delivery_id, delivery_pb2.DELIVERY_STATE_FINISHED)
    await asyncio.gather(
        *(change(stack, delivery_id, random.Random(chance.random()), recipients) for stack in replicas * 2)
    )
    running = False
    await looking
    last = await replicas[0].kpis(delivery_id)
    snapshots[last.resume_token] = last
    await settle(replicas[0], delivery_id)
    async with asyncio.timeout(60):
        await asyncio.gather(*following)

    async with connected(replicas[0].dsn) as connection:
        log = await connection.fetch(
            "select slot, revision, recipient, before, outcome from every_transition where delivery_id = $1",
            int(delivery_id),
        )
    assert len(log) > 2 * recipients
    expected = sorted(tuple(row) for row in log)
    for told in watchers:
        seen = [(c.slot, c.revision, c.recipient, c.before - 1, c.outcome - 1) for c in told.changes]
        assert sorted(seen) == expected  # nothing missing, nothing twice
        newest: dict[int, int] = {}
        for slot, revision, _, _, _ in seen:
            assert revision >= newest.get(slot, 0), "not in commit order"
            newest[slot] = revision
        assert told.token == last.resume_token
        assert told.outcomes(recipients) == of(last.outcomes)
    assert watchers[3].reconnects > 20

    # What lies up to the token of any snapshot adds up to exactly its counts; and whoever has caught up is at one.
    assert len(snapshots) > 10
    for token, kpis in chance.sample(list(snapshots.items()), min(40, len(snapshots))):
        places = position_of(int(told.delivery_id), token)
        up_to = [c for c in watchers[0].changes if c.revision <= places.at(c.slot).revision]
        assert added_up(up_to, recipients) == of(kpis.outcomes)
    met = 0
    for told in watchers:
        for token in told.lengths.keys() & snapshots.keys():
            met += 1
            assert told.outcomes(recipients, told.lengths[token]) == of(snapshots[token].outcomes)
    assert met >= len(watchers)


async def test_the_token_of_a_kpi_snapshot_goes_on_behind_it(common: DeliveryStack) -> None:
    delivery_id = await common.sent(3)
    await common.apply(Observed(f"{delivery_id}-1", DEFERRED, TIME_US, SOFT))
    kpis = await common.kpis(delivery_id)
    await common.apply(Observed(f"{delivery_id}-1", DELIVERED, TIME_US))

    told = await caught_up(common, delivery_id, kpis.resume_token)

    (change,) = told.changes
    assert (change.recipient, change.profile_id, change.before, change.outcome) == (1, "p1", DEFERRED, DELIVERED)
    assert told.token == (await common.kpis(delivery_id)).resume_token


async def test_a_change_is_told_in_the_mode_asked_for(common: DeliveryStack) -> None:
    delivery_id = await common.sent(1)
    before = await common.kpis(delivery_id)
    full = Observed(f"{delivery_id}-1", DEFERRED, TIME_US, SOFT, 6, 452, "4.2.2", "full", 1)
    await common.apply(full)

    with_efs = (await caught_up(common, delivery_id, before.resume_token)).changes[0]
    without = await caught_up(
        common, delivery_id, before.resume_token, feedback_mode=delivery_pb2.FEEDBACK_MODE_WITHOUT_EFS
    )

    pending, sent = send_log_pb2.SEND_LOG_STATUS_PENDING, send_log_pb2.SEND_LOG_STATUS_SENT
    assert (with_efs.status_before, with_efs.status) == (pending, send_log_pb2.SEND_LOG_STATUS_FAILED)
    assert (with_efs.failure_type, with_efs.reason, with_efs.diagnostic) == (SOFT, 6, "full")
    assert (with_efs.smtp_code, with_efs.enhanced_code, with_efs.attempt) == (452, "4.2.2", 1)
    assert with_efs.rules_version == 1
    assert with_efs.event_time.ToMicroseconds() == TIME_US
    hidden = without.changes[0]
    assert (hidden.status_before, hidden.status) == (sent, sent)
    assert (hidden.failure_type, hidden.reason, hidden.diagnostic, hidden.smtp_code) == (0, 0, "", 0)


async def test_revisions_without_transitions_move_the_token_alone(common: DeliveryStack) -> None:
    delivery_id = await common.create()
    told = await caught_up(common, delivery_id)
    assert told.changes == []
    assert told.token == (await common.kpis(delivery_id)).resume_token

    async with watching(common.stub, delivery_id, told.token) as call:
        request = pb.UpdateDeliveryRequest(delivery=await common.delivery(delivery_id))
        request.update_mask.paths.append("label")
        await common.stub.UpdateDelivery(request)
        response = await asyncio.wait_for(call.read(), 60)

    assert len(response.changes.changes) == 0
    assert response.changes.caught_up
    kpis = await common.kpis(delivery_id)
    assert (response.changes.resume_token, response.changes.revision) == (kpis.resume_token, kpis.revision)


async def test_an_idle_watch_has_heartbeats(database: str, tmp_path: Path) -> None:
    async with delivery_stack(database, tmp_path, watch_heartbeat_seconds=0.05) as stack:
        delivery_id = await stack.create()
        told = Told(delivery_id)
        async with watching(stack.stub, delivery_id) as call, asyncio.timeout(60):
            while told.heartbeats < 3:
                told.take(await call.read())


async def test_a_settled_delivery_is_told_to_its_end_and_no_further(common: DeliveryStack) -> None:
    delivery_id = await common.sent(5)
    await settle(common, delivery_id)

    told = Told(delivery_id)
    async with asyncio.timeout(60):
        await follow([common], told, random.Random(1), 0.0)
        again = Told(delivery_id, told.token)
        await follow([common], again, random.Random(1), 0.0)

    assert len(told.changes) == 5
    assert again.changes == []


async def test_a_token_older_than_the_log_that_is_kept_is_out_of_range(common: DeliveryStack) -> None:
    delivery_id = await common.sent(2)
    token = (await common.kpis(delivery_id)).resume_token
    async with connected(common.dsn) as connection:
        await connection.execute(
            "update delivery set log_dropped_time = now() where delivery_id = $1", int(delivery_id)
        )

    async with refused(grpc.StatusCode.OUT_OF_RANGE, "LOG_OUT_OF_RANGE") as problem:
        await caught_up(common, delivery_id)
    assert problem.metadata.keys() == {"delivery_id", "log_dropped_time"}
    async with refused(grpc.StatusCode.OUT_OF_RANGE, "LOG_OUT_OF_RANGE"):
        await anext(aiter(common.stub.ExportSendLogs(feed_pb.ExportSendLogsRequest(delivery_id=delivery_id))))

    async with watching(common.stub, delivery_id, token):
        pass  # nothing is behind it, so nothing is missing
    async with connected(common.dsn) as connection:
        await connection.execute("update delivery set log_dropped_time = null where delivery_id = $1", int(delivery_id))


async def test_a_log_that_is_dropped_while_it_is_watched_ends_the_watch(common: DeliveryStack) -> None:
    delivery_id = await common.sent(2)
    async with (
        refused(grpc.StatusCode.OUT_OF_RANGE, "LOG_OUT_OF_RANGE"),
        watching(common.stub, delivery_id) as call,
        asyncio.timeout(60),
    ):
        told = Told(delivery_id)
        told.take(await call.read())
        async with connected(common.dsn) as connection:
            await connection.execute(
                "with dropped as (update delivery set log_dropped_time = now() where delivery_id = $1) "
                "update delivery_counter set revision = revision + 1 where delivery_id = $1 and slot = 0",
                int(delivery_id),
            )
        while True:
            told.take(await call.read())


async def test_a_token_of_another_log_is_refused(common: DeliveryStack) -> None:
    """Also one that this log has reached: what lies before the place that it happens to name would never be told."""
    other, delivery_id = await common.sent(2), await common.sent(2)
    await common.apply(*(Observed(f"{delivery_id}-{number}", DELIVERED) for number in (1, 2)))
    token = (await common.kpis(other)).resume_token
    export = feed_pb.ExportSendLogsRequest(delivery_id=delivery_id, resume_token=token)

    async with refused(grpc.StatusCode.OUT_OF_RANGE, "LOG_OUT_OF_RANGE") as problem:
        await caught_up(common, delivery_id, token)
    async with refused(grpc.StatusCode.OUT_OF_RANGE, "LOG_OUT_OF_RANGE"):
        await anext(aiter(common.stub.ExportSendLogs(export)))

    assert problem.metadata == {"delivery_id": delivery_id}


@pytest.mark.parametrize("token", ["x", "djE", "!!!", "djEAAAAAAAAAA", "djH__________w"])
async def test_a_token_that_is_none_is_refused(common: DeliveryStack, token: str) -> None:
    delivery_id = await common.create()

    async with refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD") as problem:
        await caught_up(common, delivery_id, token)

    assert problem.fields == ["resume_token"]


async def test_a_delivery_that_does_not_exist_can_not_be_watched(common: DeliveryStack) -> None:
    async with refused(grpc.StatusCode.NOT_FOUND, "DELIVERY_NOT_FOUND"):
        await caught_up(common, "12345")


async def test_a_delivery_that_is_deleted_while_it_is_watched_ends_the_watch(common: DeliveryStack) -> None:
    delivery_id = await common.create()
    async with (
        refused(grpc.StatusCode.NOT_FOUND, "DELIVERY_NOT_FOUND"),
        watching(common.stub, delivery_id) as call,
        asyncio.timeout(60),
    ):
        await call.read()
        async with connected(common.dsn) as connection:
            await connection.execute("delete from delivery where delivery_id = $1", int(delivery_id))
        await call.read()


async def test_the_watchers_of_a_process_are_bounded(database: str, tmp_path: Path) -> None:
    async with delivery_stack(database, tmp_path, send_log_watchers_max=2) as stack:
        delivery_id = await stack.create()
        async with watching(stack.stub, delivery_id) as one, watching(stack.stub, delivery_id) as two:
            await one.read()
            await two.read()
            async with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "LIMIT_REACHED") as problem:
                await caught_up(stack, delivery_id)
            assert problem.metadata == {"limit": "send_log_watchers_max", "value": "2"}

        async def free() -> bool:
            return bool((await caught_up(stack, delivery_id)).token)

        async def admitted() -> bool:
            try:
                return await free()
            except grpc.aio.AioRpcError:
                return False

        await eventually(admitted)  # those that ended make room


async def test_a_stop_ends_the_watch_with_shutting_down(database: str, tmp_path: Path) -> None:
    async with delivery_stack(database, tmp_path) as stack:
        delivery_id = await stack.create()
        async with (
            refused(grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN"),
            watching(stack.stub, delivery_id) as call,
            asyncio.timeout(60),
        ):
            await call.read()
            assert stack.app.server is not None
            stopping = asyncio.create_task(stack.app.server.stop(5))
            try:
                await call.read()
            finally:
                await stopping


def test_a_token_names_the_same_place_again() -> None:
    whole = LogPosition.through((3, 0, 2**40))
    in_part = whole.moved(1, Place(7, 4_000)).moved(4, Place(1))

    assert position_of(7, token_of(7, whole)) == whole
    assert position_of(7, token_of(7, in_part)) == in_part
    assert in_part.revision == 3 + 6 + 2**40 + 0 + 1
    assert not in_part.covers((3, 7, 0))
    assert in_part.covers((3, 6, 0))
    assert in_part.is_ahead_of((3, 6))
    assert not whole.is_ahead_of((3, 0, 2**40, 5))
