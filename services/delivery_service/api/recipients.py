"""AddRecipients: a client stream of numbered chunks, each read while the one before it is being committed."""

import asyncio
from collections.abc import AsyncIterator, Mapping

import orjson

from campaign.delivery.v1 import delivery_service_pb2 as pb
from delivery_service.api.validation import delivery_id_of, require_valid, text_violation
from delivery_service.domain.address import address_problem, normalise_address
from delivery_service.domain.lifecycle import Channel
from delivery_service.settings import Settings
from delivery_service.store.recipients import Chunk, RecipientRow, Recipients, UploadProgress
from service_runtime.clock import Clock
from service_runtime.problems import FieldViolation, InvalidInput

_UPLOAD_ID_CHARACTERS_MAX = 100


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
                    chunk = self._chunk(request, channel)
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

    def _chunk(self, request: pb.AddRecipientsRequest, channel: Channel) -> Chunk:
        """A chunk, checked, as it is stored."""
        if request.WhichOneof("request") != "chunk":
            raise InvalidInput.of("request", "must be a chunk after open")
        chunk = request.chunk
        if chunk.number < 1:
            raise InvalidInput.of("chunk.number", f"is {chunk.number}: number chunks from 1")
        limit = self._settings.recipients_per_chunk_max
        if not 1 <= len(chunk.recipients) <= limit:
            raise InvalidInput.of("chunk.recipients", f"has {len(chunk.recipients)} entries: give 1 to {limit} a chunk")
        rows: list[RecipientRow] = []
        violations: list[FieldViolation] = []
        for index, new in enumerate(chunk.recipients):
            of_message = new.attributes
            attributes = {name: of_message[name] for name in of_message}  # thrice as fast as dict(of_message)
            encoded = orjson.dumps(attributes)
            if not self._surely_sound(new.profile_id, new.address, attributes, encoded):
                path = f"chunk.recipients[{index}]"
                violations += recipient_violations(path, new.profile_id, new.address, attributes, self._settings)
            address = normalise_address(channel, new.address)
            rows.append(RecipientRow(address_problem(channel, address), new.profile_id, address, encoded.decode()))
        require_valid(violations)
        return Chunk(chunk.number, rows, chunk.SerializeToString(deterministic=True))

    def _surely_sound(self, profile_id: str, address: str, attributes: dict[str, str], encoded: bytes) -> bool:
        """Whether a few comparisons suffice to see that a recipient is within the limits: nearly always. `encoded` are
        its attributes as JSON, which is never shorter than they are."""
        limits = self._settings
        return (
            len(profile_id) <= limits.profile_id_characters_max
            and len(address) <= limits.address_characters_max
            and len(attributes) <= limits.attributes_per_recipient_max
            and len(encoded) <= limits.attributes_bytes_max
            and (
                len(encoded) <= limits.attribute_key_characters_max
                or max(map(len, attributes)) <= limits.attribute_key_characters_max
            )
            and b"\\u0000" not in encoded
            and "\x00" not in profile_id
            and "\x00" not in address
        )


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
