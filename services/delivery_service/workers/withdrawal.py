"""Asks the MTA side what became of messages that must not leave any more."""

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import grpc.aio

from campaign.mta.v1 import relay_service_pb2 as pb
from delivery_service.domain.identifiers import message_ids
from delivery_service.workers.relay_answers import UnsoundAnswer, require_sound

log = logging.getLogger(__name__)

_DECIDED: Final = frozenset((pb.RELAY_VERDICT_ACCEPTED, pb.RELAY_VERDICT_REFUSED, pb.RELAY_VERDICT_WITHDRAWN))

Withdraw = Callable[[pb.WithdrawRequest], Awaitable[pb.WithdrawResponse]]
"""The MTA side's verb."""


async def withdrawn(withdraw: Withdraw, delivery_id: int, recipients: Sequence[int]) -> pb.WithdrawResponse | None:
    """What became of messages that must not leave any more, decided for each of them; None: unknown for now."""
    ids = message_ids(delivery_id, recipients)
    try:
        answer = await withdraw(pb.WithdrawRequest(delivery_id=str(delivery_id), message_ids=ids))
        require_sound(answer, len(recipients))
        if not _DECIDED.issuperset(answer.verdicts):
            raise UnsoundAnswer("the MTA side did not decide about a withdrawal")
    except (grpc.aio.AioRpcError, UnsoundAnswer) as error:
        detail = error.code().name if isinstance(error, grpc.aio.AioRpcError) else str(error)
        log.warning(
            "messages could not be withdrawn; trying again",
            extra={"action": "withdraw", "delivery_id": delivery_id, "error": detail},
        )
        return None
    return answer
