"""The Apply stream: what it refuses, what it rejects singly, when it acks, and what it survives."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import grpc.aio
import pytest

from campaign.delivery.v1 import delivery_pb2, send_log_pb2
from campaign.delivery.v1 import delivery_service_pb2 as pb
from campaign.delivery.v1 import observation_service_pb2 as observation_pb
from delivery_service.store import apply_writer
from delivery_service.store.apply_writer import ApplySettings, ApplyWriter
from delivery_service.store.database import DatabaseSettings, open_pool
from delivery_service.store.hand_over import HandOver
from delivery_service.store.observations import ObservationColumns
from service_runtime.clock import SystemClock
from tests.support.delivery_stack import DeliveryStack, Fact, Observed, batch_of, delivery_stack, facts_of, people
from tests.support.eventually import eventually
from tests.support.invariants import assert_laws
from tests.support.postgres import connected
from tests.support.seeding import seed_delivery, seed_delivery_over
from tests.support.statuses import refused

DELIVERED, DEFERRED = send_log_pb2.OUTCOME_DELIVERED, send_log_pb2.OUTCOME_DEFERRED
BOUNCED = send_log_pb2.OUTCOME_BOUNCED
UNKNOWN = observation_pb.REJECTION_REASON_UNKNOWN_MESSAGE
MALFORMED = observation_pb.REJECTION_REASON_MALFORMED
CLICK, OPEN = send_log_pb2.TIMELINE_ENTRY_KIND_CLICK, send_log_pb2.TIMELINE_ENTRY_KIND_OPEN
TIME_US = 1_790_000_100_000_000


def opened(replica_id: str = "test") -> observation_pb.ApplyRequest:
    return observation_pb.ApplyRequest(open=observation_pb.ApplyOpen(replica_id=replica_id))


def batch(sequence: int, *observed: Observed) -> observation_pb.ApplyRequest:
    columns = batch_of(observed)
    columns.sequence = sequence
    return observation_pb.ApplyRequest(batch=columns)


def delivered(delivery_id: str, recipients: range) -> list[Observed]:
    return [Observed(f"{delivery_id}-{recipient}", DELIVERED, TIME_US) for recipient in recipients]


@asynccontextmanager
async def stream_of(stack: DeliveryStack, *requests: observation_pb.ApplyRequest) -> AsyncIterator[Any]:
    """A bare Apply call with these requests written."""
    call: Any = stack.observations.Apply()
    try:
        for request in requests:
            await call.write(request)
        yield call
    finally:
        call.cancel()


async def acks(call: Any, number: int) -> list[int]:
    return [(await call.read()).ack.acked_through for _ in range(number)]


@asynccontextmanager
async def slots_held(stack: DeliveryStack, delivery_id: str) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Holds the slot locks of a delivery; gives the function that lets go."""
    async with connected(stack.dsn) as connection:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute("select from delivery_counter where delivery_id = $1 for update", int(delivery_id))
        yield transaction.rollback


async def waiting_for_locks(dsn: str) -> int:
    async with connected(dsn) as connection:
        return int(
            await connection.fetchval(
                "select count(*) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
            )
        )


# What the stream refuses as a whole.


async def test_a_stream_that_does_not_begin_with_open_is_refused(common: DeliveryStack) -> None:
    async with (
        stream_of(common, batch(1)) as call,
        refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD") as problem,
    ):
        await call.read()

    assert problem.fields == ["open"]


async def test_a_stream_without_any_request_is_refused(common: DeliveryStack) -> None:
    async with stream_of(common) as call, refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD") as problem:
        await call.done_writing()
        await call.read()

    assert problem.fields == ["open"]


@pytest.mark.parametrize("replica_id", ["", "x" * 201, "a\x00b"], ids=["empty", "too long", "with NUL"])
async def test_a_replica_id_out_of_bounds_is_refused(common: DeliveryStack, replica_id: str) -> None:
    async with (
        stream_of(common, opened(replica_id)) as call,
        refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD") as problem,
    ):
        await call.read()

    assert problem.fields == ["open.replica_id"]


async def test_a_second_open_is_refused(common: DeliveryStack) -> None:
    async with (
        stream_of(common, opened(), opened()) as call,
        refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD") as problem,
    ):
        assert (await call.read()).HasField("accepted")
        await call.read()

    assert problem.fields == ["request"]


@pytest.mark.parametrize("sequences", [[2], [0], [1, 1], [1, 3]], ids=str)
async def test_a_sequence_that_does_not_grow_by_one_from_one_is_refused(
    common: DeliveryStack, sequences: list[int]
) -> None:
    async with (
        stream_of(common, opened(), *map(batch, sequences)) as call,
        refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD") as problem,
    ):
        assert (await call.read()).HasField("accepted")
        for _ in sequences:
            await call.read()

    assert problem.fields == ["batch.sequence"]


async def test_what_came_before_a_wrong_sequence_is_acked_first(common: DeliveryStack) -> None:
    delivery_id = await common.sent(2)

    async with stream_of(common, opened(), batch(1, *delivered(delivery_id, range(1, 3))), batch(7)) as call:
        assert (await call.read()).HasField("accepted")
        assert await acks(call, 1) == [1]
        async with refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"):
            await call.read()

    assert (await common.kpis(delivery_id)).outcomes.delivered == 2


STATUS_COLUMNS = [field.name for field in observation_pb.StatusObservations.DESCRIPTOR.fields]
FACT_COLUMNS = [field.name for field in observation_pb.TrackingFacts.DESCRIPTOR.fields]


@pytest.mark.parametrize("column", [name for name in STATUS_COLUMNS if name != "message_ids"])
async def test_status_columns_of_unequal_length_are_refused_by_name(common: DeliveryStack, column: str) -> None:
    request = batch(1, *delivered("1", range(1, 3)))
    getattr(request.batch.observations, column).pop()

    async with (
        stream_of(common, opened(), request) as call,
        refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD") as problem,
    ):
        await call.read()
        await call.read()

    assert problem.fields == [f"batch.observations.{column}"]


@pytest.mark.parametrize(
    "details",
    [
        observation_pb.ObservationDetails(indexes=[0], mta_event_kinds=[4]),
        observation_pb.ObservationDetails(indexes=[2], mta_event_kinds=[4], vendor_classes=[""]),
        observation_pb.ObservationDetails(indexes=[0], mta_event_kinds=[-1], vendor_classes=[""]),
        observation_pb.ObservationDetails(indexes=[0], mta_event_kinds=[4], vendor_classes=["x" * 101]),
        observation_pb.ObservationDetails(indexes=[0], mta_event_kinds=[4], vendor_classes=["\x00"]),
    ],
    ids=["unequal", "index", "kind", "long", "nul"],
)
async def test_unsound_details_are_refused(common: DeliveryStack, details: observation_pb.ObservationDetails) -> None:
    request = batch(1, *delivered("1", range(1, 3)))
    request.batch.details.CopyFrom(details)

    async with (
        stream_of(common, opened(), request) as call,
        refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD"),
    ):
        await call.read()
        await call.read()


@pytest.mark.parametrize("column", [name for name in FACT_COLUMNS if name != "message_ids"])
async def test_fact_columns_of_unequal_length_are_refused_by_name(common: DeliveryStack, column: str) -> None:
    columns = facts_of([Fact("1-1"), Fact("1-2")])
    columns.sequence = 1
    getattr(columns.tracking_facts, column).pop()

    async with (
        stream_of(common, opened(), observation_pb.ApplyRequest(batch=columns)) as call,
        refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD") as problem,
    ):
        await call.read()
        await call.read()

    assert problem.fields == [f"batch.tracking_facts.{column}"]


@pytest.mark.parametrize("group", ["observations", "tracking_facts"])
async def test_columns_without_message_ids_are_refused(common: DeliveryStack, group: str) -> None:
    request = observation_pb.ApplyRequest(batch=observation_pb.ObservationBatch(sequence=1))
    getattr(request.batch, group).event_times_us.append(TIME_US)

    async with (
        stream_of(common, opened(), request) as call,
        refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD") as problem,
    ):
        await call.read()
        await call.read()

    assert problem.fields == [f"batch.{group}.event_times_us"]


async def test_an_empty_batch_is_acked(common: DeliveryStack) -> None:
    async with stream_of(common, opened(), batch(1)) as call:
        await call.read()
        assert await acks(call, 1) == [1]


async def test_a_batch_beyond_the_limit_is_refused(database: str, tmp_path: Path) -> None:
    async with delivery_stack(database, tmp_path, apply_batch_size_max=4) as stack:
        delivery_id = await stack.sent(5)
        request = batch(1, *delivered(delivery_id, range(1, 4)))
        facts = facts_of([Fact(f"{delivery_id}-1"), Fact(f"{delivery_id}-2")])
        request.batch.tracking_facts.CopyFrom(facts.tracking_facts)
        async with (
            stream_of(stack, opened(), request) as call,
            refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD") as problem,
        ):
            assert (await call.read()).accepted.batch_size_max == 4
            await call.read()

        assert problem.fields == ["batch"]
        assert (await stack.kpis(delivery_id)).outcomes.delivered == 0
    await assert_laws(database)


@pytest.mark.parametrize("version", [-1, 40_000])
async def test_a_rules_version_out_of_range_is_refused(common: DeliveryStack, version: int) -> None:
    request = batch(1, Observed("1-1", DELIVERED))
    request.batch.rules_version = version

    async with (
        stream_of(common, opened(), request) as call,
        refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD") as problem,
    ):
        await call.read()
        await call.read()

    assert problem.fields == ["batch.rules_version"]


async def test_streams_beyond_the_limit_are_refused_until_one_ends(database: str, tmp_path: Path) -> None:
    async with delivery_stack(database, tmp_path, apply_streams_max=2) as stack:

        async def accepted() -> bool:
            async with stream_of(stack, opened()) as call:
                return bool((await call.read()).HasField("accepted"))

        async with stream_of(stack, opened()) as one, stream_of(stack, opened()) as two:
            assert (await one.read()).HasField("accepted")
            assert (await two.read()).HasField("accepted")
            async with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "LIMIT_REACHED") as problem:
                await accepted()
        assert problem.metadata == {"limit": "apply_streams_max", "value": "2"}

        async def let_in() -> bool:
            try:
                return await accepted()
            except grpc.aio.AioRpcError:
                return False

        assert await eventually(let_in)


# When it acks.


async def test_an_ack_comes_only_after_the_commit(common: DeliveryStack) -> None:
    delivery_id = await common.sent(2)

    async with slots_held(common, delivery_id) as let_go, common.apply_stream() as stream:
        sending = asyncio.create_task(stream.send(batch_of(delivered(delivery_id, range(1, 3)))))
        await eventually(lambda: waiting_for_locks(common.dsn))
        assert not sending.done()
        await let_go()
        ack = await sending

    assert ack.acked_through == 1
    assert (await common.kpis(delivery_id)).outcomes.delivered == 2


async def test_up_to_four_batches_overlap_and_are_acked_in_order(common: DeliveryStack) -> None:
    """The first batch is held up; the others commit meanwhile, but none is acked before it. The fifth is not begun."""
    held = await common.sent(1)
    others = [await common.sent(1) for _ in range(4)]

    async with slots_held(common, held) as let_go, stream_of(common, opened()) as call:
        assert (await call.read()).accepted.outstanding_batches_max == 4
        # The writer that waits for the lock holds up what comes after it on its connection: one that uses the other.
        free = [other for other in others if int(other) % 2 != int(held) % 2]
        for sequence, delivery_id in enumerate([held, *others], start=1):
            await call.write(batch(sequence, *delivered(delivery_id, range(1, 2))))
        reading = asyncio.create_task(acks(call, 5))

        async def committed() -> bool:
            return all([(await common.kpis(other)).outcomes.delivered == 1 for other in free if other != others[-1]])

        await eventually(committed)
        assert (await common.kpis(others[-1])).outcomes.delivered == 0
        assert not reading.done()
        await let_go()
        assert await reading == [1, 2, 3, 4, 5]


async def test_a_held_up_stream_does_not_hold_up_another(common: DeliveryStack) -> None:
    held, other = await common.sent(1), await common.sent(1)
    while int(held) % 2 == int(other) % 2:  # another writer's connection
        other = await common.sent(1)

    async with slots_held(common, held) as let_go, common.apply_stream() as slow:
        sending = asyncio.create_task(slow.send(batch_of(delivered(held, range(1, 2)))))
        await eventually(lambda: waiting_for_locks(common.dsn))
        await common.apply(*delivered(other, range(1, 2)))
        assert not sending.done()
        await let_go()
        await sending

    assert (await common.kpis(other)).outcomes.delivered == 1


# What it rejects singly.


async def test_observations_of_unknown_messages_are_rejected_and_kept_as_dead_letters(stack: DeliveryStack) -> None:
    sent = await stack.sent(2)
    drafted = await stack.create()
    excluding = await stack.create()
    await stack.add(excluding, [*people(1), pb.NewRecipient(address="not an address"), *people(1)])
    await stack.confirm(await stack.prepare(excluding))
    await stack.in_state(excluding, delivery_pb2.DELIVERY_STATE_FINISHED)
    unknown = [
        f"{sent}-3",  # beyond the audience
        "123-1",  # no such delivery
        f"{drafted}-1",  # never prepared
        f"{excluding}-2",  # excluded: malformed address
        f"{excluding}-3",  # excluded: duplicate
        "",
        "not-ours",
        f"{sent}",
        f"{sent}-0",
        f"{sent}--1",
        f"{sent}-99999999999",
        f"{sent}-1-1",
        "9" * 30 + "-1",
        "a\x00b",
        "x" * 5_000,
    ]

    ack = await stack.apply(
        Observed(f"{sent}-1", DELIVERED),
        *(Observed(message_id, BOUNCED, smtp_code=550, diagnostic="no such user") for message_id in unknown),
        Observed(f"{sent}-2", DELIVERED),
    )

    assert sorted(rejection.index for rejection in ack.rejections) == list(range(1, len(unknown) + 1))
    assert {rejection.reason for rejection in ack.rejections} == {UNKNOWN}
    assert (await stack.kpis(sent)).outcomes.delivered == 2
    assert (await stack.kpis(excluding)).outcomes.relayed == 1
    letters = (await stack.stub.ListDeadLetters(pb.ListDeadLettersRequest())).dead_letters
    assert sorted(letter.message_id for letter in letters) == sorted(
        "a�b" if "\x00" in message_id else message_id[:200] for message_id in unknown
    )
    assert {(letter.outcome, letter.tracking_kind) for letter in letters} == {(BOUNCED, 0)}
    assert {(letter.source_id, letter.smtp_code, letter.diagnostic) for letter in letters} == {
        ("mta-1", 550, "no such user")
    }


async def test_tracking_facts_of_unknown_messages_become_dead_letters_too(common: DeliveryStack) -> None:
    delivery_id = await common.sent(1)

    ack = await common.track(Fact(f"{delivery_id}-1"), Fact(f"{delivery_id}-2", CLICK), Fact("not ours"))

    assert {(r.index, r.tracking, r.reason) for r in ack.rejections} == {(1, True, UNKNOWN), (2, True, UNKNOWN)}
    newest = (await common.stub.ListDeadLetters(pb.ListDeadLettersRequest(page_size=2))).dead_letters
    assert {(letter.message_id, letter.outcome, letter.tracking_kind) for letter in newest} == {
        (f"{delivery_id}-2", 0, CLICK),
        ("not ours", 0, OPEN),
    }


async def test_nothing_can_be_reported_on_messages_that_were_never_confirmed(stack: DeliveryStack) -> None:
    """A delivery that is READY, or edited since, has send logs that nobody has handed to an MTA yet."""
    delivery = await stack.ready(3)
    edited = await stack.ready(3)
    await stack.add(edited.delivery_id, people(1, first=10))

    for delivery_id in (delivery.delivery_id, edited.delivery_id):
        ack = await stack.apply(Observed(f"{delivery_id}-1", DELIVERED))
        assert [rejection.reason for rejection in ack.rejections] == [UNKNOWN]
        tracked = await stack.track(Fact(f"{delivery_id}-1"))
        assert [rejection.reason for rejection in tracked.rejections] == [UNKNOWN]
        async with connected(stack.dsn) as connection:
            assert await connection.fetchval("select count(*) from tracking_log") == 0
        # What counts: preparing again and sending still adds up.
        await stack.confirm(await stack.prepare(delivery_id))
        await stack.in_state(delivery_id, delivery_pb2.DELIVERY_STATE_FINISHED)
        kpis = await stack.kpis(delivery_id)
        assert kpis.outcomes.relayed == kpis.to_deliver


async def test_dead_letters_are_listed_newest_first_in_pages(stack: DeliveryStack) -> None:
    for number in range(5):
        await stack.apply(Observed(f"nothing {number}", DELIVERED))

    seen, token, pages = [], "", 0
    while pages == 0 or token:
        request = pb.ListDeadLettersRequest(page_size=2, page_token=token)
        page = await stack.stub.ListDeadLetters(request)
        seen += [letter.message_id for letter in page.dead_letters]
        token, pages = page.next_page_token, pages + 1

    assert seen == [f"nothing {number}" for number in (4, 3, 2, 1, 0)]
    assert pages == 3


async def test_dead_letters_are_a_ring_of_the_newest(database: str, tmp_path: Path) -> None:
    async with delivery_stack(database, tmp_path, dead_letters_max=5) as stack:
        for begin in range(0, 12, 3):
            await stack.apply(*(Observed(f"nothing {number}", DELIVERED) for number in range(begin, begin + 3)))

        letters = (await stack.stub.ListDeadLetters(pb.ListDeadLettersRequest())).dead_letters

    assert [letter.message_id for letter in letters] == [f"nothing {number}" for number in (11, 10, 9, 8, 7)]


def _with(**fields: Any) -> dict[str, Any]:
    return {"outcome": DEFERRED, "event_time_us": TIME_US, **fields}


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        (_with(outcome=send_log_pb2.OUTCOME_UNSPECIFIED), "outcomes"),
        (_with(outcome=send_log_pb2.OUTCOME_PREPARED), "outcomes"),
        (_with(outcome=send_log_pb2.OUTCOME_CANCELED), "outcomes"),
        (_with(outcome=99), "outcomes"),
        (_with(event_time_us=0), "event_times_us"),
        (_with(event_time_us=-(2**63)), "event_times_us"),
        (_with(event_time_us=2**63 - 1), "event_times_us"),
        (_with(smtp_code=-1), "smtp_codes"),
        (_with(smtp_code=199), "smtp_codes"),
        (_with(smtp_code=600), "smtp_codes"),
        (_with(smtp_code=2**31 - 1), "smtp_codes"),
        (_with(failure_type=99), "failure_types"),
        (_with(reason=99), "reasons"),
        (_with(attempt=-1), "attempts"),
        (_with(attempt=2**31 - 1), "attempts"),
        (_with(enhanced_code="5." * 20), "enhanced_codes"),
        (_with(enhanced_code="5\x00"), "enhanced_codes"),
        (_with(diagnostic="x" * 1_001), "diagnostics"),
        (_with(diagnostic="a\x00b"), "diagnostics"),
    ],
    ids=lambda value: value if isinstance(value, str) else repr(list(value.items())[-1])[:40],
)
async def test_a_malformed_observation_is_rejected_by_itself_naming_the_field(
    common: DeliveryStack, fields: dict[str, Any], named: str
) -> None:
    delivery_id = await common.sent(3)

    ack = await common.apply(
        Observed(f"{delivery_id}-1", DELIVERED),
        Observed(f"{delivery_id}-2", **fields),
        Observed(f"{delivery_id}-3", DELIVERED),
    )

    assert [(r.index, r.tracking, r.reason) for r in ack.rejections] == [(1, False, MALFORMED)]
    assert ack.rejections[0].detail.startswith(named)
    assert len(ack.rejections[0].detail) <= 200
    outcomes = (await common.kpis(delivery_id)).outcomes
    assert (outcomes.delivered, outcomes.relayed) == (2, 1)


@pytest.mark.parametrize(
    "fact",
    [
        Fact("", kind=send_log_pb2.TIMELINE_ENTRY_KIND_UNSPECIFIED),
        Fact("", kind=send_log_pb2.TIMELINE_ENTRY_KIND_TRANSITION),
        Fact("", event_time_us=0),
        Fact("", url="x" * 2_001),
        Fact("", url="https://example.com/\x00"),
    ],
    ids=["unspecified", "transition", "time", "long url", "NUL in url"],
)
async def test_a_malformed_fact_is_rejected_by_itself(common: DeliveryStack, fact: Fact) -> None:
    delivery_id = await common.sent(2)

    ack = await common.track(
        Fact(f"{delivery_id}-1"),
        Fact(f"{delivery_id}-1", fact.kind, fact.event_time_us, fact.url),
        Fact(f"{delivery_id}-2"),
    )

    assert [(r.index, r.tracking, r.reason) for r in ack.rejections] == [(1, True, MALFORMED)]
    async with connected(common.dsn) as connection:
        kept = await connection.fetchval("select count(*) from tracking_log where delivery_id = $1", int(delivery_id))
    assert kept == 2


async def test_the_longest_values_that_are_allowed_are_applied(common: DeliveryStack) -> None:
    delivery_id = await common.sent(1)
    widest = "\U0001f600" * 1_000

    ack = await common.apply(
        Observed(f"{delivery_id}-1", DEFERRED, TIME_US, 3, 9, 599, "5" * 20, widest, 32_767),
    )
    tracked = await common.track(Fact(f"{delivery_id}-1", CLICK, url="\U0001f600" * 2_000))

    assert not ack.rejections
    assert not tracked.rejections
    assert (await common.send_log(delivery_id)).send_log.diagnostic == widest


# What only Postgres refuses.


@asynccontextmanager
async def writer_on(dsn: str, **settings: Any) -> AsyncIterator[ApplyWriter]:
    database = DatabaseSettings(dsn)
    pool = await open_pool(database)
    writer = ApplyWriter(pool, database, ApplySettings(**settings), SystemClock(), lambda _: None)
    tasks = [asyncio.create_task(run, name=name) for name, run in writer.runs()]
    try:
        yield writer
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await pool.close()


def columns_of(*rows: tuple[int, int, str]) -> ObservationColumns:
    """(delivery, recipient, diagnostic) as bounces."""
    columns = ObservationColumns()
    for delivery_id, recipient, diagnostic in rows:
        values = (delivery_id, recipient, 6, TIME_US, 1, 1, 550, "5.0.0", diagnostic, 1, 1)
        for name, value in zip(ObservationColumns.__dataclass_fields__, values, strict=True):
            getattr(columns, name).append(value)
    return columns


async def waits_for_a_lock(dsn: str) -> bool:
    async with connected(dsn) as connection:
        waiting = "select exists (select from pg_locks where not granted)"
        return bool(await connection.fetchval(waiting))


@pytest.mark.parametrize("poison", ["a\x00b", "\ud800"], ids=["refused by the server", "refused by the driver"])
async def test_a_batch_that_postgres_refuses_for_its_data_costs_only_the_bad_ones(database: str, poison: str) -> None:
    await seed_delivery(database, 1, list(range(1, 41)))
    await seed_delivery(database, 2, list(range(1, 41)))
    rows = [(1 + i % 2, 1 + i // 2, poison if i in (7, 8, 63) else "") for i in range(80)]

    async with writer_on(database) as writer:
        refusal = await writer.apply(columns_of(*rows, (3, 1, "no such delivery"), (1, 99, "no such recipient")))

    assert refusal.malformed == [7, 8, 63]
    assert refusal.unknown == [80, 81]
    async with connected(database) as connection:
        bounced = await connection.fetchval("select sum(bounced) from delivery_counter")
    assert bounced == 77
    await assert_laws(database)


async def test_batches_of_several_callers_are_told_apart_when_one_holds_bad_data(database: str) -> None:
    """The writer merges what waits for it; each caller hears of its own rows alone."""
    await seed_delivery(database, 1, list(range(1, 61)))

    async with writer_on(database, writers=1) as writer:
        answers = await asyncio.gather(
            *(
                writer.apply(
                    columns_of(*((1, first + i, "\x00" if i == first // 10 else "") for i in range(10)), (1, 99, ""))
                )
                for first in range(1, 61, 10)
            )
        )

    assert [(answer.malformed, answer.unknown) for answer in answers] == [([n], [10]) for n in range(6)]
    await assert_laws(database)


async def test_a_delivery_is_known_whatever_else_the_process_has_seen(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cache of slot counts is bounded: what it forgets within a batch must not seem to be unknown."""
    monkeypatch.setattr(apply_writer, "_SLOT_COUNTS_CACHED_MAX", 2)
    for delivery_id in range(1, 6):
        await seed_delivery(database, delivery_id, [1])

    async with writer_on(database) as writer:
        for known in ((1, 2), (1, 3), (2, 4, 5), (5, 1)):
            refusal = await writer.apply(columns_of(*((delivery_id, 1, str(known)) for delivery_id in known)))
            assert refusal.unknown == []

    await assert_laws(database)


# What it survives.


async def test_nothing_is_lost_when_postgres_ends_all_connections_in_mid_stream(stack: DeliveryStack) -> None:
    recipients, per_batch = 2_000, 50
    delivery_id = await stack.sent(recipients)
    batches = [delivered(delivery_id, range(begin, begin + per_batch)) for begin in range(1, recipients, per_batch)]

    async def cut() -> None:
        async with connected(stack.dsn) as connection:
            await connection.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity "
                "where datname = current_database() and application_name = 'delivery_service'"
            )

    acked = 0
    endings: list[grpc.StatusCode] = []
    while acked < len(batches):
        assert len(endings) < 50
        start = acked
        try:
            async with stream_of(stack, opened()) as call:
                await call.read()
                for sequence, observed in enumerate(batches[start : start + 10], start=1):
                    await call.write(batch(sequence, *observed))
                    if sequence == 5:
                        await cut()
                    assert await acks(call, 1) == [sequence]
                    acked = start + sequence
        except grpc.aio.AioRpcError as error:
            endings.append(error.code())

    assert (await stack.kpis(delivery_id)).outcomes.delivered == recipients
    assert set(endings) <= {grpc.StatusCode.UNAVAILABLE}


async def test_a_stream_cancelled_in_mid_batch_is_made_good_by_a_resend(common: DeliveryStack) -> None:
    delivery_id = await common.sent(100)
    observed = delivered(delivery_id, range(1, 101))

    async with slots_held(common, delivery_id) as let_go:
        async with stream_of(common, opened(), batch(1, *observed)) as call:
            await call.read()
            await eventually(lambda: waiting_for_locks(common.dsn))
        await let_go()
    ack = await common.apply(*observed)

    assert not ack.rejections
    assert (await common.kpis(delivery_id)).outcomes.delivered == 100


async def test_two_streams_at_once_about_the_same_recipients_agree(common: DeliveryStack) -> None:
    delivery_id = await common.sent(300)
    soft = [Observed(f"{delivery_id}-{n}", DEFERRED, TIME_US, 1, 6) for n in range(1, 301)]
    final = delivered(delivery_id, range(1, 151)) + [
        Observed(f"{delivery_id}-{n}", BOUNCED, TIME_US, 2, 2) for n in range(151, 301)
    ]

    async def play(observed: list[Observed]) -> None:
        async with common.apply_stream() as stream:
            for _ in range(2):
                for begin in range(0, 300, 60):
                    assert not (await stream.send(batch_of(observed[begin : begin + 60]))).rejections

    await asyncio.gather(play(soft), play(final), play(final[::-1]), play(soft[::-1]))

    kpis = await common.kpis(delivery_id)
    assert (kpis.outcomes.delivered, kpis.outcomes.bounced) == (150, 150)
    assert kpis.with_efs.failures.hard == 150


async def test_one_batch_over_many_small_deliveries_is_applied_whole(database: str, tmp_path: Path) -> None:
    async with delivery_stack(database, tmp_path) as stack:
        async with connected(database) as connection:
            for delivery_id in range(1, 201):
                await seed_delivery_over(connection, delivery_id, [1, 2])
        observed = [Observed(f"{delivery_id}-{n}", DELIVERED) for delivery_id in range(1, 201) for n in (1, 2)]

        assert not (await stack.apply(*observed)).rejections

        async with connected(database) as connection:
            assert await connection.fetchval("select sum(delivered) from delivery_counter") == 400
    await assert_laws(database)


# Facts beside the outcome.


async def test_tracking_facts_count_once_under_repetition_and_concurrency(common: DeliveryStack) -> None:
    delivery_id = await common.sent(3)
    facts = [
        Fact(f"{delivery_id}-1", OPEN, TIME_US),
        Fact(f"{delivery_id}-1", OPEN, TIME_US + 1),
        Fact(f"{delivery_id}-1", CLICK, TIME_US + 2, "https://example.com/a"),
        Fact(f"{delivery_id}-1", CLICK, TIME_US + 2, "https://example.com/b"),
        Fact(f"{delivery_id}-2", CLICK, TIME_US, "https://example.com/a"),
        Fact(f"{delivery_id}-3", send_log_pb2.TIMELINE_ENTRY_KIND_COMPLAINT, TIME_US),
        Fact(f"{delivery_id}-3", send_log_pb2.TIMELINE_ENTRY_KIND_AUTO_REPLY, TIME_US),
        Fact(f"{delivery_id}-3", send_log_pb2.TIMELINE_ENTRY_KIND_UNSUBSCRIBE, TIME_US),
    ]

    answers = await asyncio.gather(*(common.track(*facts, *reversed(facts)) for _ in range(4)))

    assert not any(answer.rejections for answer in answers)
    response = await common.stub.ComputeStatistics(pb.ComputeStatisticsRequest(delivery_id=delivery_id))
    engagement = response.kpis.engagement
    assert (engagement.opened, engagement.clicked, engagement.opens, engagement.clicks) == (2, 2, 2, 3)
    assert response.kpis.outcomes.relayed == 3  # no outcome has changed


async def test_facts_and_observations_of_one_batch_are_both_applied(common: DeliveryStack) -> None:
    delivery_id = await common.sent(2)
    columns = batch_of(delivered(delivery_id, range(1, 3)))
    columns.tracking_facts.CopyFrom(facts_of([Fact(f"{delivery_id}-1"), Fact("9-9")]).tracking_facts)
    columns.observations.smtp_codes[1] = 1

    async with common.apply_stream() as stream:
        ack = await stream.send(columns)

    assert {(r.index, r.tracking, r.reason) for r in ack.rejections} == {(1, False, MALFORMED), (1, True, UNKNOWN)}
    assert (await common.kpis(delivery_id)).outcomes.delivered == 1
    kinds = [entry.kind for entry in (await common.send_log(delivery_id)).timeline]
    assert OPEN in kinds


# Which sources are connected.


async def test_source_reports_show_as_sources_connected(database: str, tmp_path: Path) -> None:
    async with delivery_stack(database, tmp_path, source_silence_seconds=3.0) as stack:
        delivery_id = await stack.sent(1)

        def report(*sources: str) -> observation_pb.ApplyRequest:
            return observation_pb.ApplyRequest(source_report=observation_pb.SourceReport(source_ids=sources))

        async def connected_sources(number: int) -> None:
            async def seen() -> bool:
                return (await stack.kpis(delivery_id)).freshness.sources_connected == number

            await eventually(seen)

        async with stream_of(stack, opened("a"), report("mta-1", "mta-2")) as one:
            async with stream_of(stack, opened("b"), report("mta-2", "mta-3")) as two:
                await connected_sources(3)
                await two.write(report("mta-3"))
                await one.write(report("mta-1"))
                await connected_sources(2)
            await one.write(report())
            await connected_sources(1)
        await connected_sources(0)  # the other replica has fallen silent


@pytest.mark.parametrize(
    "sources", [["mta-1", "mta-1"], ["mta\x00"], ["x" * 10_000]], ids=["twice", "with NUL", "too long"]
)
async def test_an_odd_source_report_does_not_break_the_stream(common: DeliveryStack, sources: list[str]) -> None:
    delivery_id = await common.sent(1)
    report = observation_pb.ApplyRequest(source_report=observation_pb.SourceReport(source_ids=sources))

    async with stream_of(common, opened(), report, batch(1, *delivered(delivery_id, range(1, 2)))) as call:
        await call.read()
        assert await acks(call, 1) == [1]

    assert (await common.kpis(delivery_id)).outcomes.delivered == 1


async def test_a_replica_that_comes_back_after_its_silence_is_counted_again(database: str, tmp_path: Path) -> None:
    async with delivery_stack(database, tmp_path) as stack, connected(database) as connection:
        report = observation_pb.ApplyRequest(source_report=observation_pb.SourceReport(source_ids=["mta-1"]))
        async with stream_of(stack, opened("a"), report) as call:
            await call.read()
            rows = "select count(*) from feedback_source where report_time > now() - interval '1 minute'"
            await eventually(lambda: connection.fetchval(rows))
            await connection.execute("update feedback_source set report_time = now() - interval '1 hour'")
            await call.write(report)
            assert await eventually(lambda: connection.fetchval(rows)) == 1


async def test_what_nobody_waits_for_any_more_is_not_kept_for_the_database(database: str) -> None:
    """While it is away, streams are cut and come again with the same: what they left behind would fill the memory."""
    await seed_delivery(database, 1, [1, 2, 3, 4])
    async with connected(database) as holder, writer_on(database, writers=1) as writer:
        async with holder.transaction():
            await holder.execute("select from delivery_counter where delivery_id = 1 for update")
            begun = asyncio.create_task(writer.apply(columns_of((1, 1, ""))))
            await eventually(lambda: waits_for_a_lock(database))
            left, kept = (asyncio.create_task(writer.apply(columns_of((1, recipient, "")))) for recipient in (2, 3))
            handed_over = asyncio.create_task(writer.apply_hand_over(HandOver(1, [4], [1_800_000_000_000_000])))
            await asyncio.sleep(0)
            left.cancel()
            handed_over.cancel()
            await asyncio.gather(left, handed_over, return_exceptions=True)
        await asyncio.gather(begun, kept)
        async with connected(database) as connection:
            changed = await connection.fetch("select recipient from send_log where outcome <> 0 order by recipient")
    assert [row["recipient"] for row in changed] == [1, 3]
    await assert_laws(database)


async def test_a_stopping_service_ends_the_stream_as_unavailable(database: str, tmp_path: Path) -> None:
    async with delivery_stack(database, tmp_path) as stack, stream_of(stack, opened()) as call:
        await call.read()
        async with refused(grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN"):
            stopping = asyncio.create_task(stack.app.stop())
            await call.read()
        await stopping


async def test_a_missing_table_is_not_taken_for_bad_data(database: str) -> None:
    """Only what Postgres says about the data is bisected: a batch is not thrown away for a broken schema."""
    await seed_delivery(database, 1, [1])
    async with connected(database) as connection:
        await connection.execute("alter table late_observation rename to mislaid")
        await connection.execute("alter table transition rename to mislaid_too")
    pool = await open_pool(DatabaseSettings(database))
    writer = ApplyWriter(pool, DatabaseSettings(database), ApplySettings(writers=1), SystemClock(), lambda _: None)
    ((name, run),) = writer.runs()
    running = asyncio.create_task(run, name=name)
    applying = asyncio.create_task(writer.apply(columns_of((1, 1, ""))))
    try:
        with pytest.raises(asyncpg.UndefinedTableError):
            await running  # the process stops: an operator must look
        assert not applying.done()
    finally:
        applying.cancel()
        await asyncio.gather(applying, return_exceptions=True)
        await pool.close()
