"""AddRecipients: a client stream of numbered chunks, each read while the one before it is being committed."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Final, Self

import orjson

from campaign.delivery.v1 import delivery_service_pb2 as pb
from delivery_service.api.validation import delivery_id_of, require_valid, text_violation
from delivery_service.domain.address import judge_address
from delivery_service.domain.lifecycle import Channel
from delivery_service.settings import Settings
from delivery_service.store.recipient_rows import encoded_row
from delivery_service.store.recipients import Chunk, Recipients, UploadProgress
from service_runtime.clock import Clock
from service_runtime.problems import FieldViolation, InvalidInput

_UPLOAD_ID_CHARACTERS_MAX: Final = 100
_RECIPIENTS_PER_TURN: Final = 250
"""Of the event loop: about a millisecond."""


class RecipientCalls:
    """Takes audiences of any size in bounded memory: two chunks at a time."""

    def __init__(self, recipients: Recipients, settings: Settings, clock: Clock) -> None:
        self._recipients = recipients
        self._settings = settings
        self._clock = clock

    async def add(self, requests: AsyncIterator[pb.AddRecipientsRequest]) -> pb.AddRecipientsResponse:
        """What is committed stays, however the stream ends: its client goes on behind the last chunk."""
        first = await anext(requests, None)
        if first is None or first.WhichOneof("request") != "open":
            raise InvalidInput.of("open", "must be the first request of the stream")
        delivery_id = delivery_id_of(first.open.delivery_id, "open.delivery_id")
        upload_id = _upload_id_of(first.open.upload_id, "open.upload_id")
        channel = await self._recipients.channel(delivery_id)
        channel = await self._recipients.channel(delivery_id)
        progress: UploadProgress | None = None
        committing: asyncio.Task[UploadProgress] | None = None
        async with asyncio.TaskGroup() as tasks:  # a chunk that fails ends the wait for the next one
            async for request in requests:
                try:
                    chunk = await self._chunk(request, channel)
                finally:
                    # After the work of reading, which Postgres' work on the chunk before has gone along with; and that
                    # one is taken also if this one is wrong.
                    if committing is not None:
                        progress = await committing
                committing = tasks.create_task(
                    self._recipients.add_chunk(delivery_id, upload_id, chunk, self._clock.now())
                )
            if committing is not None:
                progress = await committing
        if progress is None:
            raise InvalidInput.of("chunk", "is missing: send at least one chunk of recipients")
        return pb.AddRecipientsResponse(
            last_chunk=progress.last_chunk, added_count=progress.added_count, recipient_count=progress.recipient_count
        )

    async def progress(self, request: pb.GetRecipientUploadRequest) -> pb.GetRecipientUploadResponse:
        delivery_id = delivery_id_of(request.delivery_id)
        upload_id = _upload_id_of(request.upload_id, "upload_id")
        progress = await self._recipients.upload_progress(delivery_id, upload_id)
        return pb.GetRecipientUploadResponse(last_chunk=progress.last_chunk, added_count=progress.added_count)

    async def _chunk(self, request: pb.AddRecipientsRequest, channel: Channel) -> Chunk:
        """A chunk, checked, as it is stored. In turns: Postgres is fed with the one before in between."""
        if request.WhichOneof("request") != "chunk":
            raise InvalidInput.of("request", "must be a chunk after open")
        chunk = request.chunk
        if chunk.number < 1:
            raise InvalidInput.of("chunk.number", f"is {chunk.number}: number chunks from 1")
        limit = self._settings.recipients_per_chunk_max
        if not 1 <= len(chunk.recipients) <= limit:
            raise InvalidInput.of("chunk.recipients", f"has {len(chunk.recipients)} entries: give 1 to {limit} a chunk")
        rows: list[bytes] = []
        violations: list[FieldViolation] = []
        for begin in range(0, len(chunk.recipients), _RECIPIENTS_PER_TURN):
            people = _People.read(chunk.recipients[begin : begin + _RECIPIENTS_PER_TURN])
            if not people.surely_sound(self._settings):
                violations += people.violations(begin, self._settings)
            judged = [judge_address(channel, address) for address in people.addresses]
            rows += map(encoded_row, judged, people.profile_ids, people.attributes_json)
            await asyncio.sleep(0)
        require_valid(violations)
        return Chunk(chunk.number, rows, chunk.SerializeToString(deterministic=True))


@dataclass(frozen=True, slots=True)
class _People:
    """Some recipients as columns: what is true of all of a column is seen in one look."""

    profile_ids: list[str]
    addresses: list[str]
    attributes: list[dict[str, str]]
    attributes_json: list[bytes]

    @classmethod
    def read(cls, people: Sequence[pb.NewRecipient]) -> Self:
        maps = [new.attributes for new in people]
        attributes = [
            {name: of_message[name] for name in of_message} for of_message in maps
        ]  # dict() is thrice as slow
        return cls(
            [new.profile_id for new in people],
            [new.address for new in people],
            attributes,
            [orjson.dumps(each) for each in attributes],
        )

    def surely_sound(self, limits: Settings) -> bool:
        """Whether it is seen at a glance that all are within the limits: nearly always. Attributes as JSON are never
        shorter than they are."""
        longest_json = max(map(len, self.attributes_json))
        names_max = limits.attribute_key_characters_max
        return (
            max(map(len, self.profile_ids)) <= limits.profile_id_characters_max
            and max(map(len, self.addresses)) <= limits.address_characters_max
            and max(map(len, self.attributes)) <= limits.attributes_per_recipient_max
            and longest_json <= limits.attributes_bytes_max
            and (longest_json <= names_max or max(map(len, chain.from_iterable(self.attributes))) <= names_max)
            and b"\\u0000" not in b"".join(self.attributes_json)
            and "\x00" not in "".join(self.profile_ids)
            and "\x00" not in "".join(self.addresses)
        )

    def violations(self, first: int, limits: Settings) -> Iterator[FieldViolation]:
        """What is wrong with each of them; `first`: the place of the first one in its chunk."""
        columns = zip(self.profile_ids, self.addresses, self.attributes, strict=True)
        for index, (profile_id, address, attributes) in enumerate(columns, start=first):
            yield from recipient_violations(f"chunk.recipients[{index}]", profile_id, address, attributes, limits)


def _upload_id_of(text: str, field: str) -> str:
    if not text:
        raise InvalidInput.of(field, "is empty: name the upload, e.g. by a UUID")
    require_valid([text_violation(field, text, _UPLOAD_ID_CHARACTERS_MAX)])
    return text


def recipient_violations(
    path: str, profile_id: str, address: str, attributes: Mapping[str, str], limits: Settings
) -> list[FieldViolation]:
    """What is too long in a recipient, or can't be stored."""
    size = sum(len(key.encode()) + len(value.encode()) for key, value in attributes.items())
    checks = [
        text_violation(f"{path}.profile_id", profile_id, limits.profile_id_characters_max),
        text_violation(f"{path}.address", address, limits.address_characters_max),
        *(
            text_violation(f"{path}.attributes[{key[:40]!r}]", key, limits.attribute_key_characters_max)
            or text_violation(f"{path}.attributes[{key[:40]!r}]", value, limits.attributes_bytes_max)
            for key, value in attributes.items()
        ),
    ]
    if len(attributes) > limits.attributes_per_recipient_max:
        count_max = limits.attributes_per_recipient_max
        checks.append(FieldViolation(f"{path}.attributes", f"has {len(attributes)}: at most {count_max} are allowed"))
    if size > limits.attributes_bytes_max:
        bytes_max = limits.attributes_bytes_max
        checks.append(FieldViolation(f"{path}.attributes", f"has {size} bytes: at most {bytes_max} are allowed"))
    return [violation for violation in checks if violation is not None]
