"""The audience in Postgres: chunks of recipients, each committed with its number."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import asyncpg

from delivery_service.domain.lifecycle import Channel, Command, DeliveryState, next_state
from delivery_service.domain.plan import chain_audience_digest
from delivery_service.domain.problems import (
    ChunkOutOfOrder,
    DeliveryNotFound,
    LimitReached,
    LogDropped,
    UploadNotFound,
    child_is_fixed,
)
from delivery_service.store.queries import query
from delivery_service.store.recipient_rows import COLUMNS, copy_source


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some recipients of one upload, encoded (`recipient_rows`). `digested` goes into the audience's digest."""

    number: int
    rows: Sequence[bytes]
    digested: bytes


@dataclass(frozen=True, slots=True)
class UploadProgress:
    """How far an upload has come; `recipient_count` is that of the whole delivery."""

    last_chunk: int
    added_count: int
    recipient_count: int


class Recipients:
    """Adds recipients to drafts."""

    def __init__(self, pool: asyncpg.Pool, recipients_per_delivery_max: int) -> None:
        self._pool = pool
        self._recipients_max = recipients_per_delivery_max

    async def upload_progress(self, delivery_id: int, upload_id: str) -> UploadProgress:
        """How far an upload has come; UploadNotFound if no chunk of it was committed."""
        row = await self._pool.fetchrow(query("get_upload"), delivery_id, upload_id)
        if row is None:
            raise UploadNotFound(delivery_id, upload_id)
        return UploadProgress(row["last_chunk"], row["added_count"], 0)

    async def channel(self, delivery_id: int) -> Channel:
        """The delivery's channel, which never changes: it says how addresses are judged. DeliveryNotFound."""
        channel = await self._pool.fetchval(query("get_channel"), delivery_id)
        if channel is None:
            raise DeliveryNotFound(delivery_id)
        return Channel(channel)

    async def add_chunk(self, delivery_id: int, upload_id: str, chunk: Chunk, now: datetime) -> UploadProgress:
        """Adds one chunk, whole or not at all, and its number with it; a chunk that is in already changes nothing.

        Problems: DeliveryNotFound, StateProblem, ChunkOutOfOrder, LimitReached.
        """
        number = chunk.number
        async with self._pool.acquire() as connection, connection.transaction():
            draft = await connection.fetchrow(query("lock_draft"), delivery_id)
            if draft is None:
                raise DeliveryNotFound(delivery_id)
            upload = await connection.fetchrow(query("get_upload"), delivery_id, upload_id)
            last_chunk, added_count = (upload["last_chunk"], upload["added_count"]) if upload else (0, 0)
            recipient_count: int = draft["recipient_count"]
            if number <= last_chunk:
                return UploadProgress(last_chunk, added_count, recipient_count)
            if number > last_chunk + 1:
                raise ChunkOutOfOrder(upload_id, last_chunk + 1, number)
            if draft["is_child"]:
                raise child_is_fixed(delivery_id)
            state = DeliveryState(draft["state"])
            after = next_state(delivery_id, state, Command.EDIT)
            if draft["log_dropped_time"] is not None:
                raise LogDropped(delivery_id, draft["log_dropped_time"], "add recipients")
            if recipient_count + len(chunk.rows) > self._recipients_max:
                raise LimitReached(
                    "recipients_per_delivery_max", self._recipients_max, "split the audience into several deliveries"
                )
            await connection.copy_to_table(
                "recipient",
                source=copy_source(delivery_id, recipient_count + 1, chunk.rows),
                columns=COLUMNS,
                format="binary",
            )
            progress = await connection.fetchrow(
                query("add_chunk"),
                delivery_id,
                upload_id,
                number,
                len(chunk.rows),
                chain_audience_digest(draft["audience_digest"], chunk.digested),
                after,
                now,
                state is not DeliveryState.EDITING,
            )
            assert progress is not None  # the delivery is locked
            return UploadProgress(number, progress["added_count"], progress["recipient_count"])
