"""Brings the recipients of a CSV file into a delivery: in chunks, out of the file, and on from where it was cut."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import grpc
import grpc.aio

from campaign.delivery.v1 import delivery_service_pb2 as pb
from campaign_cli.client import DeliveryClient, Patience
from campaign_cli.recipients_csv import BadLine, Recipient, read_recipients

CHUNK_RECIPIENTS_MAX = 2_000
CHUNK_BYTES_MAX = 1024 * 1024
"""Recipients with many attributes make smaller chunks: a message has its limit too."""
RECIPIENT_OVERHEAD_BYTES = 16
ATTRIBUTE_OVERHEAD_BYTES = 8
BAD_LINES_SHOWN = 20


@dataclass(slots=True)
class Rejects:
    """The bad lines of a file: all are counted, the first ones kept, each written out if there is where to."""

    output: TextIO | None = None
    count: int = 0
    first: list[BadLine] = field(default_factory=list)
    _last_line: int = 0

    def add(self, bad: BadLine) -> None:
        """Takes a bad line. The file is read again after a cut: a line counts the first time only."""
        if bad.line <= self._last_line:
            return
        self._last_line = bad.line
        self.count += 1
        if len(self.first) < BAD_LINES_SHOWN:
            self.first.append(bad)
        if self.output is not None:
            self.output.write(f"{bad.line}\t{bad.cause}\t{bad.text}\n")


def read_chunks(path: Path, rejects: Rejects) -> Iterator[pb.RecipientChunk]:
    """The file as numbered chunks, always cut at the same places. Raises `HeaderProblem`."""
    chunk, size = pb.RecipientChunk(number=1), 0
    with path.open("rb") as file:
        for row in read_recipients(file):
            if isinstance(row, BadLine):
                rejects.add(row)
                continue
            row_bytes = _size(row)
            is_full = len(chunk.recipients) == CHUNK_RECIPIENTS_MAX or size + row_bytes > CHUNK_BYTES_MAX
            if is_full and chunk.recipients:
                yield chunk
                chunk, size = pb.RecipientChunk(number=chunk.number + 1), 0
            chunk.recipients.add(profile_id=row.profile_id, address=row.address, attributes=row.attributes)
            size += row_bytes
    if chunk.recipients:
        yield chunk


async def upload_recipients(
    client: DeliveryClient,
    delivery_id: str,
    upload_id: str,
    chunks: Callable[[], Iterator[pb.RecipientChunk]],
    on_sent: Callable[[int], None],
) -> int:
    """Adds all chunks, each exactly once however often the stream is cut; returns the number of recipients added.

    `chunks` starts over at each call. `on_sent` is told how many recipients have been sent so far.
    """
    patience = Patience(client.patience_seconds)
    last_chunk = 0
    while True:
        try:
            added = await _stream(client, delivery_id, upload_id, chunks(), last_chunk, on_sent)
        except grpc.aio.AioRpcError as error:
            await patience.wait_after(error)
            last_chunk, before = await _find_last_chunk(client, delivery_id, upload_id), last_chunk
            if last_chunk > before:
                patience.reset()
        else:
            return added


async def _stream(
    client: DeliveryClient,
    delivery_id: str,
    upload_id: str,
    chunks: Iterator[pb.RecipientChunk],
    last_chunk: int,
    on_sent: Callable[[int], None],
) -> int:
    call = client.stub.AddRecipients()
    sent = 0
    try:
        await call.write(_open(delivery_id, upload_id))
        for chunk in chunks:
            if chunk.number > last_chunk:
                await call.write(pb.AddRecipientsRequest(chunk=chunk))
            sent += len(chunk.recipients)
            on_sent(sent)
        await call.done_writing()
    except (asyncio.InvalidStateError, grpc.aio.AioRpcError):
        pass  # the call has ended before its time: its status says why
    except BaseException:
        call.cancel()  # half an audience must not look like a whole one
        raise
    return int((await call).added_count)


def _open(delivery_id: str, upload_id: str) -> pb.AddRecipientsRequest:
    return pb.AddRecipientsRequest(open=pb.RecipientUploadOpen(delivery_id=delivery_id, upload_id=upload_id))


async def _find_last_chunk(client: DeliveryClient, delivery_id: str, upload_id: str) -> int:
    request = pb.GetRecipientUploadRequest(delivery_id=delivery_id, upload_id=upload_id)
    try:
        return int((await client.call(client.stub.GetRecipientUpload, request)).last_chunk)
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.NOT_FOUND:
            return 0  # cut before the first chunk was committed
        raise


def _size(row: Recipient) -> int:
    """About what it takes in the message; text that is not ASCII takes more than it has characters."""
    attributes = sum(
        ATTRIBUTE_OVERHEAD_BYTES + len(name.encode()) + len(value.encode()) for name, value in row.attributes.items()
    )
    return RECIPIENT_OVERHEAD_BYTES + len(row.profile_id.encode()) + len(row.address.encode()) + attributes
