"""How fast the simulator takes messages and reports on them: `python -m tests.bench.mta_simulator_rates 1000000`.

One process for the simulator; this one relays on several streams and acknowledges all feedback at once.
"""

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio

from campaign.delivery.v1 import delivery_pb2 as delivery_pb
from campaign.feedback.v1 import feedback_service_pb2 as feedback_pb
from campaign.feedback.v1 import feedback_service_pb2_grpc as feedback_grpc
from campaign.mta.v1 import relay_service_pb2 as relay_pb
from campaign.mta.v1 import relay_service_pb2_grpc as relay_grpc
from service_runtime.client import StaticToken, open_channel
from service_runtime.development_keys import PUBLIC_KEY_FILE, DevelopmentKeys

STREAMS = 4
BATCH_MESSAGES = 500
IN_FLIGHT = 4
HTML = "<p>Dear {{ first_name }}</p>" + "<p>Lorem ipsum dolor sit amet.</p>" * 50 + "{% if gold %}Gold{% endif %}"


class Sink(feedback_grpc.FeedbackServiceServicer):
    """Acknowledges everything as it comes."""

    def __init__(self) -> None:
        self.events = 0
        self.last = 0.0
        self.open = asyncio.Event()
        self.open.set()

    async def StreamStatus(
        self, request_iterator: AsyncIterator[feedback_pb.StreamStatusRequest], context: Any
    ) -> AsyncIterator[feedback_pb.StreamStatusResponse]:
        accepted = feedback_pb.StreamAccepted(batch_size_max=5_000, outstanding_batches_max=16)
        yield feedback_pb.StreamStatusResponse(accepted=accepted)
        async for request in request_iterator:
            if request.HasField("batch"):
                await self.open.wait()
                self.events += len(request.batch.events)
                self.last = time.monotonic()
                ack = feedback_pb.StreamAck(acked_through=request.batch.sequence)
                yield feedback_pb.StreamStatusResponse(ack=ack)


async def relay(channel: grpc.aio.Channel, first: int, count: int, content: delivery_pb.Content) -> None:
    call = relay_grpc.RelayServiceStub(channel).Relay()
    await call.write(relay_pb.RelayRequest(template=relay_pb.RelayTemplate(delivery_id="7", content=content)))
    places = asyncio.Semaphore(IN_FLIGHT)

    async def send() -> None:
        for number in range(first, first + count, BATCH_MESSAGES):
            await places.acquire()
            batch = relay_pb.RelayBatch(sequence=number + 1, delivery_id="7")
            for person in range(number, min(number + BATCH_MESSAGES, first + count)):
                batch.messages.add(
                    message_id=f"451893744120889345.{person}.x7Yq",
                    address=f"person{person}@mail{person % 97}.test",
                    attributes_json='{"first_name": "Anna", "gold": "yes"}',
                )
            await call.write(relay_pb.RelayRequest(batch=batch))
        await call.done_writing()

    sending = asyncio.create_task(send())
    async for _ in call:
        places.release()
    await sending


def resident_mib(process_id: int) -> int:
    status = Path(f"/proc/{process_id}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) // 1_024


async def main(messages: int, *options: str) -> None:
    keys, sink = DevelopmentKeys.generate(), Sink()
    server = grpc.aio.server()
    feedback_grpc.add_FeedbackServiceServicer_to_server(sink, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        keys.write(folder)
        (folder / "token").write_text(keys.sign("mta", ["mta"]))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "mta_simulator", "--listen", "127.0.0.1:0"),
            *("--feedback-target", f"127.0.0.1:{port}", "--token-file", str(folder / "token")),
            *("--jwt-public-key-file", str(folder / PUBLIC_KEY_FILE), *options),
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        listening = json.loads(await process.stdout.readline())
        async with open_channel(listening["address"], StaticToken(keys.sign("relay", ["relay"]))) as channel:
            lines = process.stdout
            for number, (label, content, held) in enumerate(
                (
                    ("no template", delivery_pb.Content(subject="Hi", text="Hi"), False),
                    ("templates", delivery_pb.Content(subject="Hi {{ first_name }}", html=HTML), False),
                    ("feedback held until all is relayed", delivery_pb.Content(subject="Hi", text="Hi"), True),
                )
            ):
                share = messages // STREAMS
                first = number * messages
                sink.events = 0
                if held:
                    sink.open.clear()
                started = time.monotonic()
                await asyncio.gather(*(relay(channel, first + n * share, share, content) for n in range(STREAMS)))
                relayed = time.monotonic()
                if held:
                    await asyncio.sleep(5)  # until everything is due
                    sink.open.set()
                reporting = time.monotonic() if held else started
                while True:
                    truth = json.loads(await lines.readline())
                    if truth["idle"] and truth["accepted"] + truth["refused"] == first + messages:
                        break
                print(
                    f"{label}: {messages / (relayed - started):,.0f} messages/s relayed; {sink.events:,} events, "
                    f"{sink.events / (sink.last - reporting):,.0f}/s; {resident_mib(process.pid)} MiB"
                )
        process.terminate()
        await process.wait()
    await server.stop(0)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), *sys.argv[2:]))
