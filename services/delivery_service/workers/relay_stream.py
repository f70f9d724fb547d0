"""One Relay stream to the MTA side: batches go out, answers come back in any order, each to whoever waits for it."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

import grpc
import grpc.aio

from campaign.mta.v1 import relay_service_pb2 as pb
from delivery_service.workers.relay_request import relay_request

_METHOD: Final = "/campaign.mta.v1.RelayService/Relay"

RelayCall: TypeAlias = "grpc.aio.StreamStreamCall[bytes, pb.RelayResponse]"
"""Takes requests as they travel."""

log = logging.getLogger(__name__)


def open_relay(channel: grpc.aio.Channel, metadata: Sequence[tuple[str, str]] = ()) -> RelayCall:
    """A Relay call."""
    method: Any = channel.stream_stream(
        _METHOD, request_serializer=None, response_deserializer=pb.RelayResponse.FromString
    )
    call: RelayCall = method(metadata=metadata)
    return call


class RelayBroken(Exception):
    """The stream ended before the answer came. Nothing is known of the batch: relay it again."""


class Halted(Exception):
    """The batch was not to be written any more."""


class RelayStream:
    """Lives from `start` to its first failure or `close`; then a new one is opened. Writes are one at a time: two
    concurrent writes on one stream fail."""

    def __init__(self, call: RelayCall, answer_timeout_seconds: float) -> None:
        self._call = call
        self._answer_timeout_seconds = answer_timeout_seconds
        self._writing = asyncio.Lock()
        self._sequence = 0
        self._waiting: dict[int, asyncio.Future[pb.RelayResponse]] = {}
        self._templates: dict[int, str] = {}
        """Delivery to the digest of the plan whose content this stream carried last."""
        self._reader = asyncio.create_task(self._read(), name="relay-answers")

    @property
    def broken(self) -> bool:
        """Whether it can no longer be used."""
        return self._reader.done()

    async def relay(
        self,
        delivery_id: int,
        plan_digest: str,
        template: Callable[[], pb.RelayTemplate],
        batch: bytes,
        may_leave: Callable[[], bool],
    ) -> pb.RelayResponse:
        """Hands a batch (relay_batch) over and waits for its answer. RelayBroken if it never comes; Halted if it may
        not leave when its turn comes. A delivery may be edited between its proofs, so it has a template for each plan.
        """
        answer: asyncio.Future[pb.RelayResponse] = asyncio.get_running_loop().create_future()
        sequence = 0
        try:
            # The limit is on the writing too: an MTA side that doesn't read lets a write wait for ever.
            async with asyncio.timeout(self._answer_timeout_seconds):
                async with self._writing:
                    if self.broken:
                        raise RelayBroken
                    if not may_leave():
                        raise Halted
                    if self._templates.get(delivery_id) != plan_digest:
                        await self._call.write(pb.RelayRequest(template=template()).SerializeToString())
                        self._templates[delivery_id] = plan_digest
                    self._sequence = sequence = self._sequence + 1
                    self._waiting[sequence] = answer
                    await self._call.write(relay_request(sequence, batch))
                return await answer
        except TimeoutError as error:
            self._call.cancel()
            raise RelayBroken("the MTA side did not answer in time") from error
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # A write ends like this also when another batch's timeout has cancelled the call.
            raise RelayBroken("the stream was cancelled") from error
        except (grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.InvalidStateError) as error:
            raise RelayBroken(str(error)) from error
        finally:
            self._waiting.pop(sequence, None)

    async def close(self) -> None:
        """Ends the stream; batches without an answer are broken."""
        self._call.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)

    async def _read(self) -> None:
        """Gives answers to those who wait, until the stream ends."""
        reason = "the stream ended"
        try:
            async for response in self._call:
                answer = self._waiting.get(response.sequence)
                if answer is not None and not answer.done():
                    answer.set_result(response)
        except grpc.aio.AioRpcError as error:
            reason = f"{error.code().name}: {error.details()}"
            log.warning("the relay stream broke", extra={"action": "relay", "code": error.code().name})
        except asyncio.CancelledError:
            # Either our own `close` has cancelled the call, which is how its reader learns of it, or this task is
            # cancelled: it ends here in both cases.
            reason = "the stream was cancelled"
        finally:
            for answer in self._waiting.values():
                if not answer.done():
                    answer.set_exception(RelayBroken(reason))
                    answer.exception()  # whoever waited may be gone: not an error of its own
