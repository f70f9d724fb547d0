"""A client of AddRecipients with prebuilt chunks. Options: target, token, delivery_id, recipients."""

import time
from collections.abc import AsyncIterator

import grpc.aio

from campaign.delivery.v1 import delivery_service_pb2 as pb
from service_runtime.client import StaticToken, open_channel
from tests.bench.workload import Bench, Report, main

CHUNK = 5_000
METHOD = "/campaign.delivery.v1.DeliveryService/AddRecipients"


def address(number: int) -> str:
    """One in a hundred is malformed, one in a hundred empty, two in a hundred repeat an earlier one."""
    match number % 100:
        case 17:
            return f"person{number}@@example"
        case 34:
            return ""
        case 51 | 68:
            number -= 1
    return f"person{number}@Mail{number % 97}.Example.com"


def chunks(delivery_id: str, recipients: int) -> list[bytes]:
    """All requests of the upload."""
    opened = pb.RecipientUploadOpen(delivery_id=delivery_id, upload_id="bench")
    requests = [pb.AddRecipientsRequest(open=opened)]
    for number, begin in enumerate(range(0, recipients, CHUNK), start=1):
        people = [
            pb.NewRecipient(
                profile_id=f"profile-{i}", address=address(i), attributes={"first_name": f"Anna{i}", "city": "Paris"}
            )
            for i in range(begin, min(begin + CHUNK, recipients))
        ]
        requests.append(pb.AddRecipientsRequest(chunk=pb.RecipientChunk(number=number, recipients=people)))
    return [request.SerializeToString() for request in requests]


async def work(bench: Bench, options: Report) -> None:
    requests = chunks(options["delivery_id"], options["recipients"])
    async with open_channel(options["target"], StaticToken(options["token"])) as channel:
        await channel.channel_ready()
        upload: grpc.aio.StreamUnaryMultiCallable = channel.stream_unary(  # type: ignore[type-arg]
            METHOD, request_serializer=None, response_deserializer=pb.AddRecipientsResponse.FromString
        )

        async def send() -> AsyncIterator[bytes]:
            for request in requests:
                yield request

        bench.report(ready=True)
        await bench.word()
        began = time.perf_counter()
        response = await upload(send())
        bench.report(seconds=time.perf_counter() - began, added=response.added_count)


if __name__ == "__main__":
    main(work)
