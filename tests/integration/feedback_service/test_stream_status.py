"""FeedbackService between real streams: what is acked, when, and what happens when either side goes away."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import grpc.aio
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from campaign.delivery.v1 import observation_service_pb2 as observation_pb
from campaign.feedback.v1 import feedback_service_pb2 as pb
from campaign.feedback.v1.feedback_service_pb2_grpc import FeedbackServiceStub
from campaign.feedback.v1.qualification_service_pb2 import RequalifyRequest
from campaign.feedback.v1.qualification_service_pb2_grpc import QualificationServiceStub
from tests.support.eventually import eventually
from tests.support.feedback_stack import (
    NOT_SERVING,
    SERVING,
    FeedbackStack,
    MtaClient,
    delivered,
    feedback_stack,
    numbered,
)
from tests.support.statuses import refused

UNKNOWN_MESSAGE = observation_pb.REJECTION_REASON_UNKNOWN_MESSAGE
MALFORMED = observation_pb.REJECTION_REASON_MALFORMED


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[FeedbackStack]:
    async with feedback_stack(tmp_path) as running:
        yield running


async def test_a_batch_is_acked_only_after_delivery_service_acked_it(stack: FeedbackStack) -> None:
    stack.delivery.acking.clear()
    mta = await stack.mta("mta-1")
    await mta.send(delivered("a", "b"))
    await eventually(lambda: stack.delivery.received == ["a", "b"])
    assert mta.acked_through == 0
    assert stack.app.budget.held == 2
    stack.delivery.acking.set()
    await mta.acked()
    assert stack.delivery.committed == ["a", "b"]
    assert stack.app.budget.held == 0


async def test_the_terms_of_the_stream_are_told_first(stack: FeedbackStack) -> None:
    mta = await stack.mta("mta-1")
    assert mta.accepted.batch_size_max == 5_000
    assert mta.accepted.outstanding_batches_max == 64


async def test_a_half_closed_stream_ends_with_ok_once_all_is_acked(stack: FeedbackStack) -> None:
    stack.delivery.acking.clear()
    mta = await stack.mta("mta-1")
    await mta.send(delivered("a"))
    await mta.call.done_writing()
    await eventually(lambda: stack.delivery.received)
    assert not mta.call.done()
    stack.delivery.acking.set()
    await mta.acked()
    assert await mta.call.code() == grpc.StatusCode.OK


async def test_the_token_and_the_sources_are_shown_to_delivery_service(stack: FeedbackStack) -> None:
    assert stack.delivery.tokens[0].startswith("Bearer ey")
    assert stack.delivery.replica_ids[0]
    first, second = await stack.mta("mta-1"), await stack.mta("mta-2")
    await eventually(lambda: sorted(stack.delivery.reports[-1]) == ["mta-1", "mta-2"])
    await first.close()
    await eventually(lambda: stack.delivery.reports[-1] == ["mta-2"])
    await second.send(delivered("a"))
    await second.acked()
    assert list(stack.delivery.batches[0].source_ids) == ["mta-2"]


async def test_a_stream_cut_by_the_mta_still_gets_its_events_applied_and_can_be_resent(stack: FeedbackStack) -> None:
    stack.delivery.acking.clear()
    mta = await stack.mta("mta-1")
    await mta.send(delivered("a"))
    await eventually(lambda: stack.delivery.received == ["a"])
    await mta.close()
    await eventually(lambda: stack.app.handler.open_streams == 0)
    stack.delivery.acking.set()
    again = await stack.mta("mta-1")
    await again.send(delivered("a"))
    await again.acked()
    await eventually(lambda: stack.app.budget.held == 0)
    assert stack.delivery.committed == ["a", "a"]


async def test_a_cut_of_the_stream_to_delivery_service_loses_nothing(stack: FeedbackStack) -> None:
    stack.delivery.acking.clear()
    mta = await stack.mta("mta-1")
    ids = numbered("m", 30)
    for message_id in ids:
        await mta.send(delivered(message_id))
    await eventually(lambda: stack.delivery.received)
    before = len(stack.delivery.batches)
    stack.delivery.cut()
    await eventually(lambda: stack.delivery.streams_opened == 2)
    stack.delivery.acking.set()
    await mta.acked()
    assert set(stack.delivery.committed) == set(ids)
    again = [i for batch in stack.delivery.batches[before:] for i in batch.observations.message_ids]
    assert again == ids, "all that was un-acked, in its order"
    assert stack.app.budget.held == 0


async def test_many_cuts_under_load_lose_nothing(stack: FeedbackStack) -> None:
    mtas = [await stack.mta(f"mta-{n}") for n in range(4)]

    async def report(mta: MtaClient, name: str) -> None:
        for at in range(0, 2_000, 100):
            await mta.send(delivered(*(f"{name}-{i}" for i in range(at, at + 100))))

    sending = [asyncio.create_task(report(mta, str(n))) for n, mta in enumerate(mtas)]
    for opened in range(1, 5):
        await streams_opened(stack, opened)
        stack.delivery.cut()
    await asyncio.gather(*sending)
    for mta in mtas:
        await mta.acked()
    assert set(stack.delivery.committed) == {f"{n}-{i}" for n in range(4) for i in range(2_000)}
    assert stack.app.budget.held == 0


async def test_delivery_service_away_means_acks_are_held_and_health_is_not_serving(tmp_path: Path) -> None:
    async with feedback_stack(tmp_path, delivery_away=True) as stack:
        assert await stack.health() == NOT_SERVING
        mta = await stack.mta("mta-1")
        await mta.send(delivered("a"))
        await eventually(lambda: stack.app.budget.held == 1)
        assert mta.acked_through == 0
        await stack.delivery.start()
        await mta.acked()
        assert await stack.health() == SERVING
        await stack.delivery.stop()
        await eventually(lambda: not stack.app.client.is_connected)
        await eventually(lambda: not stack.app.server.is_serving)
        assert await stack.health() == NOT_SERVING
        await mta.send(delivered("b"))
        await stack.delivery.start()
        await mta.acked()
        assert stack.delivery.committed == ["a", "b"]


async def test_an_ack_waits_for_all_the_batches_that_a_large_one_was_spread_over(tmp_path: Path) -> None:
    async with feedback_stack(tmp_path, apply_batch_size_preferred=10) as stack:
        stack.delivery.outstanding_batches_max = 1
        stack.delivery.cut()
        await eventually(lambda: stack.delivery.streams_opened == 2)
        await stack.is_connected()
        stack.delivery.acking.clear()
        mta = await stack.mta("mta-1")
        ids = numbered("m", 25)
        await mta.send(delivered(*ids[:5]))
        await mta.send(delivered(*ids[5:]))
        await eventually(lambda: stack.delivery.received)
        assert mta.acked_through == 0
        stack.delivery.acking.set()
        await mta.acked()
        assert stack.delivery.received == ids
        assert all(len(batch.observations.message_ids) <= 10 for batch in stack.delivery.batches)


async def test_a_smaller_limit_of_delivery_service_is_respected(stack: FeedbackStack) -> None:
    stack.delivery.batch_size_max = 7
    stack.delivery.cut()
    await eventually(lambda: stack.delivery.streams_opened == 2)
    mta = await stack.mta("mta-1")
    ids = numbered("m", 100)
    stack.delivery.reject = lambda batch: [
        observation_pb.ObservationRejection(index=row, reason=UNKNOWN_MESSAGE)
        for row, message_id in enumerate(batch.observations.message_ids)
        if message_id == "m-63"
    ]
    await mta.send(delivered(*ids))
    await mta.acked()
    assert stack.delivery.committed == ids
    assert [(r.sequence, r.index) for r in mta.rejections] == [(1, 63)]


async def test_batches_are_divided_before_they_exceed_the_bytes_that_a_message_may_have(tmp_path: Path) -> None:
    async with feedback_stack(tmp_path, apply_batch_bytes_max=64 * 1024) as stack:
        mta = await stack.mta("mta-1")
        events = delivered(*numbered("m", 500))
        for event in events:
            event.diagnostic = "x" * 1_000
        await mta.send(events)
        await mta.acked()
        assert len(stack.delivery.committed) == 500
        assert max(batch.ByteSize() for batch in stack.delivery.batches) <= 64 * 1024


async def test_rejections_of_both_services_come_back_with_sequence_and_index(stack: FeedbackStack) -> None:
    stack.delivery.reject = lambda batch: [
        *(
            observation_pb.ObservationRejection(index=row, reason=UNKNOWN_MESSAGE, detail="no such message")
            for row, message_id in enumerate(batch.observations.message_ids)
            if message_id.startswith("unknown")
        ),
        *(
            observation_pb.ObservationRejection(index=row, tracking=True, reason=UNKNOWN_MESSAGE)
            for row, message_id in enumerate(batch.tracking_facts.message_ids)
            if message_id.startswith("unknown")
        ),
    ]
    mta = await stack.mta("mta-1")
    opened = delivered("unknown-1", "b")
    for event in opened:
        event.kind = pb.MTA_EVENT_KIND_OPEN
    await mta.send([*delivered("a", "", "unknown-2"), *opened])
    await mta.send(delivered("c", "d"))
    await mta.send(delivered("e", "unknown-3"))
    await mta.acked()
    assert [(r.sequence, r.index, r.reason) for r in mta.rejections] == [
        (1, 1, MALFORMED),
        (1, 2, UNKNOWN_MESSAGE),
        (1, 3, UNKNOWN_MESSAGE),
        (3, 1, UNKNOWN_MESSAGE),
    ]
    assert "message_id" in mta.rejections[0].detail


async def test_a_batch_of_bad_events_alone_is_acked_in_its_turn(stack: FeedbackStack) -> None:
    stack.delivery.acking.clear()
    mta = await stack.mta("mta-1")
    await mta.send(delivered("a"))
    await eventually(lambda: stack.delivery.received == ["a"])
    await mta.send(delivered("", ""))
    await eventually(lambda: stack.app.budget.held == 3)
    assert mta.acked_through == 0
    stack.delivery.acking.set()
    await mta.acked()
    assert [(r.sequence, r.index) for r in mta.rejections] == [(2, 0), (2, 1)]
    await mta.send(delivered(""))
    await mta.acked()
    assert len(stack.delivery.batches) == 1
    assert stack.app.budget.held == 0


async def test_rejections_beyond_an_acks_limit_are_spread_over_several(tmp_path: Path) -> None:
    async with feedback_stack(tmp_path, rejections_per_ack_max=10) as stack:
        stack.delivery.acking.clear()
        mta = await stack.mta("mta-1")
        await mta.send(delivered("a"))
        await eventually(lambda: stack.delivery.received)
        for _ in range(8):
            await mta.send(delivered(*[""] * 6))
        await eventually(lambda: stack.app.budget.held == 49)
        stack.delivery.acking.set()
        await mta.acked()
        assert len(mta.rejections) == 48
        assert mta.ack_count >= 4


async def test_un_acked_events_of_the_process_are_bounded_and_the_rest_is_not_read(tmp_path: Path) -> None:
    async with feedback_stack(tmp_path, unacked_events_max=1_000, batch_size_max=100) as stack:
        stack.delivery.acking.clear()
        mtas = [await stack.mta(f"mta-{n}") for n in range(3)]
        sending = [asyncio.create_task(send_many(mta, 10, 100)) for mta in mtas]
        await eventually(lambda: stack.app.budget.held == 1_000)
        await asyncio.gather(*sending)
        assert stack.app.budget.held == 1_000
        stack.delivery.acking.set()
        for mta in mtas:
            await mta.acked()
        assert len(stack.delivery.committed) == 3_000
        assert stack.app.budget.held == 0


async def test_a_stream_is_not_read_beyond_its_outstanding_batches(tmp_path: Path) -> None:
    async with feedback_stack(tmp_path, outstanding_batches_max=3) as stack:
        stack.delivery.acking.clear()
        mta, other = await stack.mta("mta-1"), await stack.mta("mta-2")
        await send_many(mta, 10, 1)
        await other.send(delivered("other"))
        await eventually(lambda: stack.app.budget.held_by("mta-2") == 1)
        await eventually(lambda: stack.app.budget.held_by("mta-1") == 3)
        stack.delivery.acking.set()
        await mta.acked()
        await other.acked()


async def test_a_source_that_does_not_read_its_acks_is_stopped_by_flow_control(tmp_path: Path) -> None:
    async with feedback_stack(tmp_path, outstanding_batches_max=2, stream_window_bytes=64 * 1024) as stack:
        stack.delivery.acking.clear()
        mta = await stack.mta("mta-1")
        flood = asyncio.create_task(send_many(mta, 1_000, 100))
        await eventually(lambda: stack.app.budget.held == 200)
        reached = mta.sequence
        stack.delivery.acking.set()
        await eventually(lambda: mta.sequence > reached + 50)
        flood.cancel()
        await asyncio.wait((flood,))


async def test_a_small_source_is_served_beside_a_flooding_one(tmp_path: Path) -> None:
    async with feedback_stack(
        tmp_path, unacked_events_max=2_000, batch_size_max=500, apply_batch_size_preferred=500
    ) as stack:
        floods = [await stack.mta("flood") for _ in range(4)]
        small = await stack.mta("small")
        stack.delivery.acking.clear()
        sending = [asyncio.create_task(send_many(mta, 20, 500)) for mta in floods]
        await eventually(lambda: stack.app.budget.held == 2_000)
        await small.send(delivered("small"))
        stack.delivery.acking.set()
        await small.acked()
        total = 4 * 20 * 500
        assert len(stack.delivery.committed) < total / 2, "it did not wait for the flood to end"
        await asyncio.gather(*sending)
        for mta in floods:
            await mta.acked()


async def test_single_event_frames_of_fifty_streams_are_merged_into_few_batches(stack: FeedbackStack) -> None:
    stub = stack.stub("mta")
    mtas = [await stack.mta(f"mta-{n}", stub) for n in range(50)]
    stack.delivery.acking.clear()
    await asyncio.gather(*(send_many(mta, 64, 1) for mta in mtas))
    await eventually(lambda: stack.app.budget.held == 50 * 64)
    stack.delivery.acking.set()
    for mta in mtas:
        await mta.acked()
    assert len(stack.delivery.committed) == 50 * 64
    assert len(stack.delivery.batches) <= 8
    assert sum(mta.ack_count for mta in mtas) <= 50 * 8, "acks are coalesced"


@pytest.mark.parametrize(
    ("requests", "field"),
    [
        ([pb.StreamStatusRequest()], "request"),
        ([pb.StreamStatusRequest(batch=pb.MtaEventBatch(sequence=1))], "request"),
        ([pb.StreamStatusRequest(open=pb.StreamOpen(protocol_version=1))], "open.source_id"),
        ([pb.StreamStatusRequest(open=pb.StreamOpen(source_id="m" * 201, protocol_version=1))], "open.source_id"),
        ([pb.StreamStatusRequest(open=pb.StreamOpen(source_id="m\0", protocol_version=1))], "open.source_id"),
        ([pb.StreamStatusRequest(open=pb.StreamOpen(source_id="m"))], "open.protocol_version"),
        ([pb.StreamStatusRequest(open=pb.StreamOpen(source_id="m", protocol_version=1))] * 2, "request"),
        (
            [
                pb.StreamStatusRequest(open=pb.StreamOpen(source_id="m", protocol_version=1)),
                pb.StreamStatusRequest(batch=pb.MtaEventBatch(sequence=2, events=delivered("a"))),
            ],
            "batch.sequence",
        ),
        (
            [
                pb.StreamStatusRequest(open=pb.StreamOpen(source_id="m", protocol_version=1)),
                pb.StreamStatusRequest(batch=pb.MtaEventBatch(sequence=1)),
            ],
            "batch.events",
        ),
        (
            [
                pb.StreamStatusRequest(open=pb.StreamOpen(source_id="m", protocol_version=1)),
                pb.StreamStatusRequest(batch=pb.MtaEventBatch(sequence=1, events=delivered(*["a"] * 5_001))),
            ],
            "batch.events",
        ),
    ],
)
async def test_a_stream_that_breaks_the_contract_is_refused(
    stack: FeedbackStack, requests: list[pb.StreamStatusRequest], field: str
) -> None:
    call = stack.stub("mta").StreamStatus(iter(requests))
    async with refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD") as refusal:
        async for _ in call:
            pass
    assert refusal.fields == [field]


async def test_no_more_streams_than_the_limit_are_open(tmp_path: Path) -> None:
    async with feedback_stack(tmp_path, streams_max=2) as stack:
        first, _ = await stack.mta("mta-1"), await stack.mta("mta-2")
        async with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "LIMIT_REACHED") as refusal:
            async for _ in stack.stub("mta").StreamStatus(iter([])):
                pass
        assert refusal.metadata == {"limit": "streams_max", "value": "2"}
        await first.close()
        await eventually(lambda: stack.app.handler.open_streams == 1)
        await stack.mta("mta-3")


async def test_only_an_mta_may_report(stack: FeedbackStack) -> None:
    async with refused(grpc.StatusCode.PERMISSION_DENIED, "ROLE_MISSING") as refusal:
        async for _ in stack.stub("start-deliveries", "feedback").StreamStatus(iter([])):
            pass
    assert refusal.metadata["required_role"] == "mta"


async def test_a_caller_without_a_token_is_refused(stack: FeedbackStack) -> None:
    async with (
        grpc.aio.insecure_channel(stack.app.address) as channel,
        refused(grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"),
    ):
        async for _ in FeedbackServiceStub(channel).StreamStatus(iter([])):
            pass


async def test_a_stop_lets_what_is_in_flight_be_acked_and_then_ends_the_streams(stack: FeedbackStack) -> None:
    stack.delivery.acking.clear()
    mta, idle = await stack.mta("mta-1"), await stack.mta("mta-2")
    await mta.send(delivered("a"))
    await eventually(lambda: stack.delivery.received == ["a"])
    stopping = asyncio.create_task(stack.app.stop())
    async with refused(grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN"):
        await raise_status(idle)
    assert not mta.call.done()
    stack.delivery.acking.set()
    await mta.acked()
    async with refused(grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN"):
        await raise_status(mta)
    await stopping
    assert stack.app.handler.open_streams == 0


async def test_a_stop_gives_its_notice_before_it_ends_a_stream(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    async with feedback_stack(tmp_path, shutdown_notice_seconds=0.3) as stack:
        mta = await stack.mta("mta-1")
        started = loop.time()
        stopping = asyncio.create_task(stack.app.stop())
        async with refused(grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN"):
            await raise_status(mta)
        assert loop.time() - started >= 0.3
        await stopping


async def test_a_stop_does_not_wait_for_ever_for_delivery_service(tmp_path: Path) -> None:
    async with feedback_stack(tmp_path, drain_seconds=0.1, shutdown_grace_seconds=1.0) as stack:
        stack.delivery.acking.clear()
        mta = await stack.mta("mta-1")
        await mta.send(delivered("a"))
        await eventually(lambda: stack.delivery.received == ["a"])
        await asyncio.wait_for(stack.app.stop(), 60)
        assert mta.acked_through == 0
        assert await mta.call.code() == grpc.StatusCode.UNAVAILABLE


@pytest.mark.expects_errors
async def test_a_refusal_as_wrong_is_logged_and_tried_again_after_a_pause(
    stack: FeedbackStack, caplog: pytest.LogCaptureFixture
) -> None:
    stack.delivery.refuse_with = grpc.StatusCode.INVALID_ARGUMENT
    stack.delivery.cut()
    mta = await stack.mta("mta-1")
    await mta.send(delivered("a"))
    await eventually(lambda: "DeliveryService refuses what it is sent" in caplog.messages)
    assert mta.acked_through == 0
    stack.delivery.refuse_with = None
    await mta.acked()
    assert stack.delivery.committed == ["a"]


async def test_a_stream_that_is_never_acked_is_opened_again(tmp_path: Path) -> None:
    async with feedback_stack(tmp_path, ack_seconds_max=0.2) as stack:
        stack.delivery.acking.clear()
        mta = await stack.mta("mta-1")
        await mta.send(delivered("a"))
        await streams_opened(stack, 2)
        stack.delivery.acking.set()
        await mta.acked()


async def test_the_metrics_tell_what_went_through(stack: FeedbackStack) -> None:
    stack.delivery.reject = lambda _: [observation_pb.ObservationRejection(index=0, reason=UNKNOWN_MESSAGE)]
    mta = await stack.mta("mta-1")
    bounce = pb.MtaEvent(
        message_id="b", kind=pb.MTA_EVENT_KIND_BOUNCE, event_time_us=delivered("b")[0].event_time_us, diagnostic="no"
    )
    await mta.send([*delivered("a", ""), bounce])
    await mta.acked()
    reader, writer = await asyncio.open_connection("127.0.0.1", int(stack.app.admin_address.rpartition(":")[2]))
    writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
    page = (await reader.read()).decode()
    writer.close()
    await writer.wait_closed()
    for line in (
        'feedback_events_received_total{kind="DELIVERY"} 1.0',
        'feedback_events_received_total{kind="BOUNCE"} 1.0',
        'feedback_events_rejected_total{reason="MALFORMED"} 1.0',
        'feedback_events_rejected_total{reason="UNKNOWN_MESSAGE"} 1.0',
        "feedback_events_acked_total 3.0",
        "feedback_failures_not_defined_total 1.0",
        "feedback_events_unacked 0.0",
        "feedback_streams_open 1.0",
        "feedback_delivery_service_connected 1.0",
        "feedback_apply_seconds_count 1.0",
    ):
        assert line in page.splitlines()


async def streams_opened(stack: FeedbackStack, count: int) -> None:
    """Waits until the stream to DeliveryService was opened that often."""
    await eventually(lambda: stack.delivery.streams_opened >= count)


async def send_many(mta: MtaClient, frames: int, events_per_frame: int) -> None:
    """Sends frames of events, all with ids of their own."""
    for frame in range(frames):
        await mta.send(delivered(*(f"{id(mta):x}-{frame}-{i}" for i in range(events_per_frame))))


async def raise_status(mta: MtaClient) -> None:
    """Waits for the end of the stream and raises its status as an error."""
    code, details = await mta.call.code(), await mta.call.details()
    trailing = await mta.call.trailing_metadata()
    raise grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing, details)


async def test_a_requalification_that_delivery_service_does_not_serve_says_so(stack: FeedbackStack) -> None:
    rules = QualificationServiceStub(stack.channel("administration"))
    async with refused(grpc.StatusCode.UNAVAILABLE, "DELIVERY_SERVICE_UNAVAILABLE"):
        await rules.Requalify(RequalifyRequest(since_time=Timestamp(seconds=1_800_000_000 - 10**8))).read()
