"""The command's calls against a DeliveryService that goes away in the middle of them."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from campaign.delivery.v1 import delivery_service_pb2 as pb
from campaign.delivery.v1.delivery_pb2 import (
    DELIVERY_STATE_FINISHED,
    DELIVERY_STATE_IN_PROGRESS,
    FEEDBACK_MODE_WITH_EFS,
    Delivery,
    DeliveryState,
    Plan,
)
from campaign.delivery.v1.delivery_service_pb2_grpc import (
    DeliveryServiceServicer,
    DeliveryServiceStub,
    add_DeliveryServiceServicer_to_server,
)
from campaign.delivery.v1.kpis_pb2 import KpiProjection, Kpis
from campaign_cli.client import DeliveryClient
from campaign_cli.send import confirm_send
from campaign_cli.upload import CHUNK_RECIPIENTS_MAX, Rejects, read_chunks, upload_recipients
from campaign_cli.watch import follow
from service_runtime.client import open_channel

Context = grpc.aio.ServicerContext[Any, Any]


class FlakyDelivery(DeliveryServiceServicer):
    """Keeps what it was sent, and is away after each of the given numbers of chunks, calls or messages."""

    def __init__(self) -> None:
        self.chunks: dict[int, pb.RecipientChunk] = {}
        self.chunks_before_cut = [1, 0, 100]
        self.first_chunks: list[int] = []
        self.upload_ids: set[str] = set()
        self.confirm_requests: list[pb.ConfirmSendRequest] = []
        self.watches: list[list[Kpis]] = []

    async def AddRecipients(
        self, request_iterator: AsyncIterator[pb.AddRecipientsRequest], context: Context
    ) -> pb.AddRecipientsResponse:
        allowed = self.chunks_before_cut.pop(0)
        self.upload_ids.add((await anext(request_iterator)).open.upload_id)
        taken = 0
        async for request in request_iterator:
            if taken == allowed:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "going away")
            if taken == 0:
                self.first_chunks.append(request.chunk.number)
            assert request.chunk.number not in self.chunks
            self.chunks[request.chunk.number] = request.chunk
            taken += 1
        return pb.AddRecipientsResponse(
            last_chunk=max(self.chunks), added_count=sum(len(chunk.recipients) for chunk in self.chunks.values())
        )

    async def GetRecipientUpload(
        self, request: pb.GetRecipientUploadRequest, context: Context
    ) -> pb.GetRecipientUploadResponse:
        assert request.upload_id in self.upload_ids
        if not self.chunks:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such upload")
        return pb.GetRecipientUploadResponse(last_chunk=max(self.chunks))

    async def GetDelivery(self, request: pb.GetDeliveryRequest, context: Context) -> pb.GetDeliveryResponse:
        await context.abort(grpc.StatusCode.NOT_FOUND, "no such delivery")

    async def ConfirmSend(self, request: pb.ConfirmSendRequest, context: Context) -> pb.ConfirmSendResponse:
        self.confirm_requests.append(request)
        if len(self.confirm_requests) < 3:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "going away")
        return pb.ConfirmSendResponse(to_deliver=1)

    async def WatchKpis(self, request: pb.WatchKpisRequest, context: Context) -> AsyncIterator[pb.WatchKpisResponse]:
        for kpis in self.watches.pop(0):
            yield pb.WatchKpisResponse(kpis=kpis)
            yield pb.WatchKpisResponse(heartbeat=pb.Heartbeat())
        await context.abort(grpc.StatusCode.UNAVAILABLE, "going away")


class RecordingScreen:
    interval_seconds = 0.0

    def __init__(self) -> None:
        self.revisions: list[int] = []
        self.notes: list[str] = []

    def __enter__(self) -> "RecordingScreen":
        return self

    def __exit__(self, *error: object) -> None:
        return

    def show(self, kpis: Kpis) -> None:
        self.revisions.append(kpis.revision)

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def service() -> FlakyDelivery:
    return FlakyDelivery()  # type: ignore[abstract]  # what the command does not call here stays unimplemented


@pytest.fixture
async def client(service: FlakyDelivery) -> AsyncIterator[DeliveryClient]:
    server = grpc.aio.server()
    add_DeliveryServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with open_channel(f"127.0.0.1:{port}", None) as channel:
        yield DeliveryClient(DeliveryServiceStub(channel), patience_seconds=5.0)
    await server.stop(0)


async def test_a_cut_upload_goes_on_after_the_last_chunk_committed(
    client: DeliveryClient, service: FlakyDelivery, tmp_path: Path
) -> None:
    count = 3 * CHUNK_RECIPIENTS_MAX + 1
    lines = [f"P{n},p{n}@mail.test" if n % 1_000 else "bad" for n in range(1, count + 1)]
    path = tmp_path / "people.csv"
    path.write_text("\n".join(["id,email", *lines]) + "\n")
    rejects, sent = Rejects(), list[int]()

    added = await upload_recipients(client, "1", "upload", lambda: read_chunks(path, rejects), sent.append)

    assert service.first_chunks == [1, 2]
    assert service.upload_ids == {"upload"}
    received = [each.profile_id for number in sorted(service.chunks) for each in service.chunks[number].recipients]
    assert received == [f"P{n}" for n in range(1, count + 1) if n % 1_000]
    assert added == sent[-1] == len(received)
    assert rejects.count == count - len(received)


async def test_an_upload_that_is_cut_before_its_first_chunk_starts_over(
    client: DeliveryClient, service: FlakyDelivery
) -> None:
    service.chunks_before_cut = [0, 100]
    chunks = [pb.RecipientChunk(number=1, recipients=[pb.NewRecipient(address="a@mail.test")])]
    assert await upload_recipients(client, "1", "upload", lambda: iter(chunks), lambda _: None) == 1
    assert service.first_chunks == [1]


async def test_a_repeated_confirmation_has_the_same_request_id(client: DeliveryClient, service: FlakyDelivery) -> None:
    delivery = Delivery(delivery_id="1", plan=Plan(plan_digest="digest"))
    assert (await confirm_send(client, delivery)).to_deliver == 1
    assert len(service.confirm_requests) == 3
    assert len({request.request_id for request in service.confirm_requests}) == 1
    assert {request.plan_digest for request in service.confirm_requests} == {"digest"}


async def test_a_watch_is_opened_again_and_never_goes_back(client: DeliveryClient, service: FlakyDelivery) -> None:
    def kpis(
        revision: int, state: DeliveryState.ValueType = DELIVERY_STATE_IN_PROGRESS, *, final: bool = False
    ) -> Kpis:
        return Kpis(
            delivery_id="1",
            revision=revision,
            state=state,
            feedback_mode=FEEDBACK_MODE_WITH_EFS,
            with_efs=KpiProjection(final=final),
        )

    service.watches = [
        [kpis(1), kpis(2)],
        [],
        [kpis(2), kpis(3, DELIVERY_STATE_FINISHED), kpis(4, DELIVERY_STATE_FINISHED, final=True), kpis(5)],
    ]
    screen = RecordingScreen()
    last = await follow(client, ["1"], screen)
    assert screen.revisions == [1, 2, 3, 4]
    assert last["1"].revision == 4
    assert any("reconnecting" in note for note in screen.notes)
    assert screen.notes[-1] == ""


async def test_what_patience_does_not_help_is_raised_at_once(client: DeliveryClient) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await client.get_delivery("1")
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND
