"""AddRecipients: resumable, numbered without gaps, within its limits, and never half done."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc
import grpc.aio
import orjson
import pytest

from campaign.delivery.v1 import delivery_pb2
from campaign.delivery.v1 import delivery_service_pb2 as pb
from tests.support.delivery_stack import DeliveryStack, delivery_stack, people
from tests.support.eventually import eventually
from tests.support.invariants import assert_laws
from tests.support.postgres import connected
from tests.support.statuses import refused

EDITING, READY = delivery_pb2.DELIVERY_STATE_EDITING, delivery_pb2.DELIVERY_STATE_READY


def opening(delivery_id: str, upload_id: str) -> pb.AddRecipientsRequest:
    return pb.AddRecipientsRequest(open=pb.RecipientUploadOpen(delivery_id=delivery_id, upload_id=upload_id))


def chunk(number: int, recipients: Sequence[pb.NewRecipient]) -> pb.AddRecipientsRequest:
    return pb.AddRecipientsRequest(chunk=pb.RecipientChunk(number=number, recipients=recipients))


async def upload(stack: DeliveryStack, *requests: pb.AddRecipientsRequest) -> pb.AddRecipientsResponse:
    async def each() -> AsyncIterator[pb.AddRecipientsRequest]:
        for request in requests:
            yield request

    return await stack.stub.AddRecipients(each())


async def progress(stack: DeliveryStack, delivery_id: str, upload_id: str) -> pb.GetRecipientUploadResponse:
    request = pb.GetRecipientUploadRequest(delivery_id=delivery_id, upload_id=upload_id)
    return await stack.stub.GetRecipientUpload(request)


async def stored(stack: DeliveryStack, delivery_id: str) -> list[tuple[int, str]]:
    async with connected(stack.dsn) as connection:
        rows = await connection.fetch(
            "select recipient, profile_id from recipient where delivery_id = $1 order by recipient", int(delivery_id)
        )
    return [(row["recipient"], row["profile_id"]) for row in rows]


async def test_an_upload_that_was_cut_goes_on_where_it_was(common: DeliveryStack) -> None:
    delivery_id, upload_id = await common.create(), str(uuid4())
    chunks = [chunk(number, people(10, first=10 * number)) for number in range(1, 6)]

    call: Any = common.stub.AddRecipients()
    await call.write(opening(delivery_id, upload_id))
    await call.write(chunks[0])
    await call.write(chunks[1])

    async def two_in() -> bool:
        try:
            return (await progress(common, delivery_id, upload_id)).last_chunk == 2
        except grpc.aio.AioRpcError:
            return False

    await eventually(two_in)
    call.cancel()
    response = await upload(common, opening(delivery_id, upload_id), *chunks[2:])

    assert (response.last_chunk, response.added_count, response.recipient_count) == (5, 50, 50)
    assert await stored(common, delivery_id) == [(n, f"p{n + 9}") for n in range(1, 51)]


async def test_chunks_that_are_in_already_are_skipped(common: DeliveryStack) -> None:
    delivery_id, upload_id = await common.create(), str(uuid4())
    chunks = [chunk(number, people(10, first=10 * number)) for number in range(1, 4)]

    await upload(common, opening(delivery_id, upload_id), *chunks[:2])
    digest_parts = await stored(common, delivery_id)
    response = await upload(common, opening(delivery_id, upload_id), *chunks)
    again = await upload(common, opening(delivery_id, upload_id), chunks[0])

    assert (response.last_chunk, response.added_count, response.recipient_count) == (3, 30, 30)
    assert again == response
    assert (await stored(common, delivery_id))[:20] == digest_parts


async def test_a_repeated_chunk_leaves_a_ready_delivery_ready(common: DeliveryStack) -> None:
    delivery_id, upload_id = await common.create(), str(uuid4())
    await upload(common, opening(delivery_id, upload_id), chunk(1, people(3)))
    ready = await common.prepare(delivery_id)

    await upload(common, opening(delivery_id, upload_id), chunk(1, people(3)))

    assert await common.delivery(delivery_id) == ready


async def test_a_gap_between_chunks_is_out_of_range_and_tells_what_to_send(common: DeliveryStack) -> None:
    delivery_id, upload_id = await common.create(), str(uuid4())

    async with refused(grpc.StatusCode.OUT_OF_RANGE, "CHUNK_OUT_OF_ORDER") as problem:
        await upload(common, opening(delivery_id, upload_id), chunk(1, people(2)), chunk(3, people(2)))

    assert problem.metadata == {"upload_id": upload_id, "expected_chunk": "2", "chunk": "3"}
    assert (await progress(common, delivery_id, upload_id)).last_chunk == 1
    assert len(await stored(common, delivery_id)) == 2


async def test_uploads_at_once_get_distinct_numbers_without_gaps(common: DeliveryStack) -> None:
    delivery_id = await common.create()

    async def one(name: str) -> pb.AddRecipientsResponse:
        chunks = (chunk(number, [pb.NewRecipient(profile_id=name) for _ in range(7)]) for number in range(1, 11))
        return await upload(common, opening(delivery_id, name), *chunks)

    responses = await asyncio.gather(*(one(name) for name in ("a", "b", "c")))

    assert {response.added_count for response in responses} == {70}
    rows = await stored(common, delivery_id)
    assert [number for number, _ in rows] == list(range(1, 211))
    assert (await common.delivery(delivery_id)).recipient_count == 210


async def test_one_upload_sent_twice_at_once_is_taken_once(common: DeliveryStack) -> None:
    delivery_id, upload_id = await common.create(), str(uuid4())
    chunks = [chunk(number, people(7, first=7 * number)) for number in range(1, 9)]

    responses = await asyncio.gather(*(upload(common, opening(delivery_id, upload_id), *chunks) for _ in range(3)))

    assert {(response.last_chunk, response.added_count) for response in responses} == {(8, 56)}
    assert await stored(common, delivery_id) == [(n, f"p{n + 6}") for n in range(1, 57)]


async def test_adding_to_a_ready_delivery_takes_it_back_to_editing(common: DeliveryStack) -> None:
    ready = await common.ready(5)
    before = await common.kpis(ready.delivery_id)

    await common.add(ready.delivery_id, people(1, first=100))

    delivery, kpis = await common.delivery(ready.delivery_id), await common.kpis(ready.delivery_id)
    assert delivery.state == EDITING
    assert not delivery.HasField("plan")
    assert delivery.etag != ready.etag
    assert (before.to_deliver, kpis.to_deliver, kpis.outcomes.prepared) == (5, 0, 0)
    assert kpis.revision > before.revision


async def test_adding_after_a_failed_preparation_goes_back_to_editing_and_raises_the_revision(
    common: DeliveryStack,
) -> None:
    failed = await common.prepare(await common.create(content=delivery_pb2.Content()))
    assert failed.state == delivery_pb2.DELIVERY_STATE_PREPARATION_FAILED
    before = await common.kpis(failed.delivery_id)

    await common.add(failed.delivery_id, people(1))

    kpis = await common.kpis(failed.delivery_id)
    assert kpis.state == EDITING
    assert kpis.revision > before.revision


@pytest.mark.parametrize("state", [2, *range(5, 11)], ids=delivery_pb2.DeliveryState.Name)
async def test_nothing_can_be_added_while_preparing_or_once_confirmed(common: DeliveryStack, state: int) -> None:
    ready = await common.ready(2)
    async with connected(common.dsn) as connection:
        # Out of the workers' reach.
        await connection.execute(
            "update relay_part set available_time = 'infinity' where delivery_id = $1", int(ready.delivery_id)
        )
        set_state = (
            "update delivery set state = $2, preparation_token = gen_random_uuid(), "
            "preparation_lease_time = 'infinity' where delivery_id = $1"
        )
        await connection.execute(set_state, int(ready.delivery_id), state)
        try:
            async with refused(grpc.StatusCode.FAILED_PRECONDITION, "DELIVERY_STATE") as problem:
                await common.add(ready.delivery_id, people(1, first=10))
        finally:
            await connection.execute(set_state, int(ready.delivery_id), READY)

    assert problem.metadata["allowed_states"] == "EDITING, READY, PREPARATION_FAILED"
    assert len(await stored(common, ready.delivery_id)) == 2


async def test_an_unknown_delivery_is_not_found(common: DeliveryStack) -> None:
    async with refused(grpc.StatusCode.NOT_FOUND, "DELIVERY_NOT_FOUND"):
        await common.add("12345", people(1))


async def test_an_upload_that_has_committed_nothing_is_not_found(common: DeliveryStack) -> None:
    delivery_id = await common.create()

    async with refused(grpc.StatusCode.NOT_FOUND, "UPLOAD_NOT_FOUND") as problem:
        await progress(common, delivery_id, "none")

    assert problem.metadata == {"delivery_id": delivery_id, "upload_id": "none"}


@pytest.mark.parametrize("upload_id", ["", "x" * 101, "a\x00b"], ids=["empty", "too long", "with NUL"])
async def test_an_upload_id_out_of_bounds_is_refused_by_both_calls(common: DeliveryStack, upload_id: str) -> None:
    delivery_id = await common.create()

    async with refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD") as adding:
        await upload(common, opening(delivery_id, upload_id), chunk(1, people(1)))
    async with refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD") as asking:
        await progress(common, delivery_id, upload_id)

    assert (adding.fields, asking.fields) == (["open.upload_id"], ["upload_id"])


@pytest.mark.parametrize(
    ("shape", "field"),
    [
        ("nothing", "open"),
        ("chunk first", "open"),
        ("two opens", "request"),
        ("no chunk", "chunk"),
        ("no number", "chunk.number"),
        ("no recipients", "chunk.recipients"),
        ("no delivery", "open.delivery_id"),
    ],
)
async def test_a_misshapen_upload_is_refused_by_name(common: DeliveryStack, shape: str, field: str) -> None:
    delivery_id = await common.create()
    start = opening(delivery_id, "u")
    requests = {
        "nothing": [],
        "chunk first": [chunk(1, people(1))],
        "two opens": [start, start],
        "no chunk": [start],
        "no number": [start, chunk(0, people(1))],
        "no recipients": [start, chunk(1, [])],
        "no delivery": [opening("", "u")],
    }[shape]

    async with refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD") as problem:
        await upload(common, *requests)

    assert problem.fields == [field]
    assert await stored(common, delivery_id) == []


def _attributes(**attributes: str) -> pb.NewRecipient:
    return pb.NewRecipient(attributes=attributes)


@pytest.mark.parametrize(
    ("recipient", "field"),
    [
        (pb.NewRecipient(profile_id="x" * 201), "profile_id"),
        (pb.NewRecipient(profile_id="\x00"), "profile_id"),
        (pb.NewRecipient(address="x" * 321), "address"),
        (pb.NewRecipient(address="a\x00@example.com"), "address"),
        (pb.NewRecipient(attributes={f"k{n}": "" for n in range(101)}), "attributes"),
        (pb.NewRecipient(attributes={"k" * 101: ""}), f"attributes['{'k' * 40}']"),
        (_attributes(k="\x00"), "attributes['k']"),
        (pb.NewRecipient(attributes={"\x00": "v"}), "attributes['\\x00']"),
        (_attributes(a="x" * 9_000, b="x" * 9_000), "attributes"),
        (_attributes(a="\U0001f600" * 4_096), "attributes"),  # 16 KiB in bytes, with its key one more
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)
async def test_a_recipient_beyond_a_limit_is_refused_by_name_and_nothing_is_half_done(
    common: DeliveryStack, recipient: pb.NewRecipient, field: str
) -> None:
    delivery_id, upload_id = await common.create(), str(uuid4())

    async with refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD") as problem:
        await upload(
            common,
            opening(delivery_id, upload_id),
            chunk(1, people(2)),
            chunk(2, [*people(1, first=9), recipient, *people(1, first=10)]),
        )

    assert problem.fields == [f"chunk.recipients[1].{field}"]
    assert (await progress(common, delivery_id, upload_id)).last_chunk == 1
    assert [profile for _, profile in await stored(common, delivery_id)] == ["p1", "p2"]


async def test_a_recipient_far_down_a_large_chunk_is_named_by_its_place(common: DeliveryStack) -> None:
    delivery_id = await common.create()
    recipients = people(1_200)
    recipients[700].profile_id = "x" * 201
    recipients[1_199].address = "\x00"

    async with refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD") as problem:
        await upload(common, opening(delivery_id, "u"), chunk(1, recipients))

    assert problem.fields == ["chunk.recipients[700].profile_id", "chunk.recipients[1199].address"]


async def test_a_large_chunk_is_stored_in_its_order_and_as_it_was_sent(common: DeliveryStack) -> None:
    delivery_id = await common.create()
    recipients = [
        pb.NewRecipient(profile_id=f"ü{n}", address=f" ü{n}@EXAMPLE.com", attributes={f"k{n}": "é\n" * n} if n else {})
        for n in range(1_100)
    ]

    await upload(common, opening(delivery_id, "u"), chunk(1, recipients))

    async with connected(common.dsn) as connection:
        rows = await connection.fetch(
            "select * from recipient where delivery_id = $1 order by recipient", int(delivery_id)
        )
    assert [(row["recipient"], row["address_problem"], row["profile_id"], row["address"]) for row in rows] == [
        (n + 1, 0, f"ü{n}", f"ü{n}@example.com") for n in range(1_100)
    ]
    assert [orjson.loads(row["attributes"]) for row in rows] == [dict(each.attributes) for each in recipients]


async def test_the_greatest_allowed_recipient_is_taken_and_relayed_as_it_is(common: DeliveryStack) -> None:
    delivery_id = await common.create()
    attributes = {f"{n:03}" + "k" * 97: "é" * 31 for n in range(100)}
    greatest = pb.NewRecipient(profile_id="ü" * 200, address="person@example.com", attributes=attributes)

    await common.add(delivery_id, [greatest])
    await common.confirm(await common.prepare(delivery_id))
    await common.in_state(delivery_id, delivery_pb2.DELIVERY_STATE_FINISHED)

    message = common.mta.messages[f"{delivery_id}-1"]
    assert orjson.loads(message.attributes_json) == attributes
    assert (await common.send_log(delivery_id)).send_log.profile_id == "ü" * 200


async def test_a_chunk_beyond_its_limit_is_refused(database: str, tmp_path: Path) -> None:
    async with delivery_stack(database, tmp_path, recipients_per_chunk_max=3) as stack:
        delivery_id = await stack.create()
        async with refused(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD") as problem:
            await upload(stack, opening(delivery_id, "u"), chunk(1, people(3)), chunk(2, people(4)))

        assert problem.fields == ["chunk.recipients"]
        assert len(await stored(stack, delivery_id)) == 3


async def test_recipients_beyond_the_deliverys_limit_are_refused_chunk_by_chunk(database: str, tmp_path: Path) -> None:
    async with delivery_stack(database, tmp_path, recipients_per_delivery_max=5) as stack:
        delivery_id = await stack.create()
        async with refused(grpc.StatusCode.RESOURCE_EXHAUSTED, "LIMIT_REACHED") as problem:
            await upload(stack, opening(delivery_id, "u"), chunk(1, people(3)), chunk(2, people(3, first=4)))
        assert problem.metadata == {"limit": "recipients_per_delivery_max", "value": "5"}
        # The same chunk, smaller, still fits.
        response = await upload(stack, opening(delivery_id, "u"), chunk(2, people(2, first=4)))

        assert (response.last_chunk, response.recipient_count) == (2, 5)
        assert (await stack.prepare(delivery_id)).plan.to_deliver == 5
    await assert_laws(database)


async def test_an_edit_during_an_upload_loses_neither(common: DeliveryStack) -> None:
    delivery_id = await common.create()

    async def rename(number: int) -> None:
        request = pb.UpdateDeliveryRequest(
            delivery=delivery_pb2.Delivery(delivery_id=delivery_id, content=delivery_pb2.Content(subject=f"s{number}"))
        )
        request.update_mask.paths.append("content.subject")
        await common.stub.UpdateDelivery(request)

    async def rename_often() -> None:
        for number in range(20):
            await rename(number)

    chunks = [chunk(number, people(2, first=2 * number)) for number in range(1, 21)]
    await asyncio.gather(upload(common, opening(delivery_id, "u"), *chunks), rename_often())

    delivery = await common.delivery(delivery_id)
    assert (delivery.recipient_count, delivery.content.subject) == (40, "s19")
    assert len(await stored(common, delivery_id)) == 40
