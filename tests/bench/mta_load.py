"""An MTA's side of StreamStatus: reports prebuilt frames over several streams, each on a connection of its own.

Options: target, token, audience (first_delivery_id, deliveries, recipients), streams, frame_events, outstanding_frames,
events_per_second (0: as fast as it goes).
"""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from campaign.feedback.v1 import feedback_service_pb2 as pb
from tests.bench.events import Audience, Fact, facts
from tests.bench.http2 import Connection, Stream, framed
from tests.bench.workload import Bench, Report, main

METHOD = "/campaign.feedback.v1.FeedbackService/StreamStatus"


class Source:
    """One stream: its frames, how many of them are sent, and how many acked."""

    def __init__(self, frames: list[bytes], outstanding_max: int) -> None:
        self._frames = frames
        self._outstanding_max = outstanding_max
        self._connection: Connection | None = None
        self._stream: Stream | None = None
        self._sent = 0
        self._allowed = 0
        self.acked = 0
        self.rejected = 0
        self.accepted = asyncio.Event()
        self.finished = asyncio.Event()
        self.failed = False

    async def open(self, target: str, token: str, source_id: str) -> None:
        """Opens the stream; returns when the server has accepted it."""
        self._connection = await Connection.open(target)
        self._stream = self._connection.call(METHOD, token, self._heard, self._ended)
        opening = pb.StreamStatusRequest(open=pb.StreamOpen(source_id=source_id, protocol_version=1))
        self._connection.send(self._stream, framed(opening.SerializeToString()))
        await self.accepted.wait()

    def allow(self, frames: int) -> None:
        """So many frames in all may be sent by now."""
        self._allowed = min(frames, len(self._frames))
        self._send()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    def _send(self) -> None:
        assert self._connection is not None
        assert self._stream is not None
        end = min(self._allowed, self.acked + self._outstanding_max)
        while self._sent < end:
            self._connection.send(self._stream, self._frames[self._sent])
            self._sent += 1

    def _heard(self, message: bytes) -> None:
        response = pb.StreamStatusResponse.FromString(message)
        if response.HasField("accepted"):
            self._outstanding_max = min(self._outstanding_max, response.accepted.outstanding_batches_max)
            self.accepted.set()
            return
        self.acked = response.ack.acked_through
        self.rejected += len(response.ack.rejections)
        if self.acked == len(self._frames):
            self.finished.set()
        self._send()

    def _ended(self) -> None:
        self.failed = self.failed or not self.finished.is_set()
        self.accepted.set()
        self.finished.set()


def event(fact: Fact) -> pb.MtaEvent:
    """What an MTA says of one fact."""
    return pb.MtaEvent(
        message_id=f"{fact.delivery_id}-{fact.recipient}",
        kind=pb.MTA_EVENT_KIND_BOUNCE if fact.bounced else pb.MTA_EVENT_KIND_DELIVERY,
        event_time_us=fact.time_us,
        smtp_code=550 if fact.bounced else 250,
        enhanced_code="5.1.1" if fact.bounced else "2.0.0",
        diagnostic=fact.diagnostic,
        attempt=1,
    )


def frames_of(reported: Sequence[Fact], streams: int, frame_events: int) -> list[list[bytes]]:
    """The frames of each stream, dealt out in turn."""
    frames: list[list[bytes]] = [[] for _ in range(streams)]
    for number, begin in enumerate(range(0, len(reported), frame_events)):
        mine = frames[number % streams]
        batch = pb.MtaEventBatch(sequence=len(mine) + 1, events=map(event, reported[begin : begin + frame_events]))
        mine.append(framed(pb.StreamStatusRequest(batch=batch).SerializeToString()))
    return frames


async def work(bench: Bench, options: Report) -> None:
    reported = facts(Audience(**options["audience"]))
    frame_events: int = options["frame_events"]
    frames = frames_of(reported, options["streams"], frame_events)
    sources = [Source(mine, options["outstanding_frames"]) for mine in frames]
    for number, source in enumerate(sources):
        await source.open(options["target"], options["token"], f"mta-{number}")
    bench.report(ready=not any(source.failed for source in sources), events=len(reported))
    await bench.word()
    began = time.perf_counter()
    pacing = asyncio.create_task(_allow(sources, began, options["events_per_second"] / frame_events))
    for source, mine in zip(sources, frames, strict=True):
        if mine:
            await source.finished.wait()
    seconds = time.perf_counter() - began
    pacing.cancel()
    bench.report(
        seconds=seconds,
        events=len(reported),
        rejected=sum(source.rejected for source in sources),
        failed=sum(source.failed for source in sources),
    )
    for source in sources:
        source.close()


async def _allow(sources: Sequence[Source], began: float, frames_per_second: float) -> None:
    everything: Any = 2**62
    if not frames_per_second:
        for source in sources:
            source.allow(everything)
        return
    while True:
        due = int((time.perf_counter() - began) * frames_per_second)
        for number, source in enumerate(sources):
            source.allow((due + len(sources) - 1 - number) // len(sources))
        await asyncio.sleep(0.005)


if __name__ == "__main__":
    main(work)
