"""The bare stream that relaying is held against: the same bytes, prebuilt, to the same MTA side, and nothing else.

Options: target, messages, batch, in_flight (batches without an answer), token (if the other side wants one).
"""

import asyncio
import time
from typing import Any

import grpc.aio

from campaign.delivery.v1 import delivery_pb2
from campaign.mta.v1 import relay_service_pb2 as pb
from service_runtime.client import StaticToken, open_channel
from tests.bench.seeding import HTML
from tests.bench.workload import Bench, Report, main

METHOD = "/campaign.mta.v1.RelayService/Relay"


def requests_of(messages: int, size: int) -> list[bytes]:
    """What DeliveryService sends for a seeded delivery of that many."""
    content = delivery_pb2.Content(subject="Hello {{ first_name }}", html=HTML, from_address="news@example.com")
    requests = [pb.RelayRequest(template=pb.RelayTemplate(delivery_id="1000000000000", content=content))]
    for sequence, begin in enumerate(range(1, messages + 1, size), start=1):
        batch = pb.RelayBatch(sequence=sequence, delivery_id="1000000000000")
        for i in range(begin, min(begin + size, messages + 1)):
            batch.messages.add(
                message_id=f"1000000000000-{i}",
                address=f"person{i}@mail{i % 97}.example.com",
                attributes_json=f'{{"first_name":"Anna{i}","city":"Paris"}}',
                deadline_us=1_795_415_948_000_000,
            )
        requests.append(pb.RelayRequest(batch=batch))
    return [request.SerializeToString() for request in requests]


async def work(bench: Bench, options: Report) -> None:
    requests = requests_of(options["messages"], options["batch"])
    token = StaticToken(options["token"]) if "token" in options else None
    async with open_channel(options["target"], token) as channel:
        await channel.channel_ready()
        stream: Any = channel.stream_stream(METHOD, request_serializer=None, response_deserializer=None)
        bench.report(ready=True)
        await bench.word()
        began = time.perf_counter()
        call: Any = stream()
        places = asyncio.Semaphore(options["in_flight"])

        async def send() -> None:
            await call.write(requests[0])
            for request in requests[1:]:
                await places.acquire()
                await call.write(request)
            await call.done_writing()

        sending = asyncio.create_task(send())
        answers = 0
        while await call.read() is not grpc.aio.EOF:
            places.release()
            answers += 1
        await sending
        assert answers == len(requests) - 1
        bench.report(seconds=time.perf_counter() - began)


if __name__ == "__main__":
    main(work)
