"""One Relay stream used by several batches at once."""

import asyncio

import grpc.aio
import pytest

from campaign.delivery.v1 import delivery_pb2
from campaign.mta.v1 import relay_service_pb2 as pb
from delivery_service.store.relay_parts import PartMessages
from delivery_service.workers.relay_request import relay_batch
from delivery_service.workers.relay_stream import Halted, RelayBroken, RelayStream, open_relay
from tests.support.eventually import eventually
from tests.support.mta_side import MtaSide

BATCH_BYTES = 200_000
"""More than the MTA side's window: a write of it waits until it is read."""


def batch(number: int) -> bytes:
    return relay_batch(1, PartMessages([number], ["anna@example.com"], ["x" * BATCH_BYTES]), 0)


def template() -> pb.RelayTemplate:
    return pb.RelayTemplate(delivery_id="1", content=delivery_pb2.Content(subject="Hello"))


async def test_batches_that_wait_to_be_written_are_broken_when_another_ones_timeout_ends_the_stream() -> None:
    """As any other break is told; a cancellation that nobody asked for would end their tasks without a word."""
    mta = MtaSide()
    mta.open.clear()
    await mta.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{mta.port}") as channel:
            stream = RelayStream(open_relay(channel), answer_timeout_seconds=0.3)
            first = asyncio.create_task(stream.relay(1, "plan", template, batch(9), lambda: True))
            await eventually(lambda: mta.batches_waiting)  # it has been read, and gets no answer
            others = [stream.relay(1, "plan", template, batch(number), lambda: True) for number in range(1, 4)]
            ended = await asyncio.gather(first, *others, return_exceptions=True)
            await stream.close()
    finally:
        mta.open.set()
        await mta.stop()

    assert [type(one) for one in ended] == [RelayBroken] * 4


async def test_a_batch_that_may_not_leave_when_its_turn_comes_is_not_written() -> None:
    mta = MtaSide()
    await mta.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{mta.port}") as channel:
            stream = RelayStream(open_relay(channel), answer_timeout_seconds=10)
            with pytest.raises(Halted):
                await stream.relay(1, "plan", template, batch(1), lambda: False)
            assert (await stream.relay(1, "plan", template, batch(2), lambda: True)).sequence == 1
            await stream.close()
    finally:
        await mta.stop()

    assert set(mta.relayed) == {"1-2"}
