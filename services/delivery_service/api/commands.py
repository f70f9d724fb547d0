"""The commands that take a delivery back, or away, or copy it: unconfirm, cancel, decline, delete, duplicate."""

import secrets
from collections.abc import Awaitable, Callable

from campaign.delivery.v1 import commands_pb2 as pb
from delivery_service import convert
from delivery_service.api.validation import delivery_id_of, require_valid, text_violation
from delivery_service.domain.delivery import Delivery, DeliveryKind
from delivery_service.domain.identifiers import new_delivery_id
from delivery_service.domain.lifecycle import Command, next_state
from delivery_service.domain.problems import AlreadyRunning, DeliveryChanged, KindProblem, child_is_fixed
from delivery_service.settings import Settings
from delivery_service.store.commands import Commands, Deletion
from delivery_service.store.deliveries import Deliveries
from service_runtime.access import caller
from service_runtime.clock import Clock

_WRITE_TRIES_MAX = 20
"""How often a command reads again because someone else wrote in between."""


class CommandCalls:
    """`changed` is called with each delivery changed, to wake watchers and workers."""

    def __init__(
        self,
        deliveries: Deliveries,
        commands: Commands,
        settings: Settings,
        clock: Clock,
        changed: Callable[[int], None],
    ) -> None:
        self._deliveries = deliveries
        self._commands = commands
        self._settings = settings
        self._clock = clock
        self._changed = changed

    async def unconfirm(self, request: pb.UnconfirmRequest) -> pb.UnconfirmResponse:
        async def write(delivery: Delivery) -> bool:
            next_state(delivery.delivery_id, delivery.state, Command.UNCONFIRM)
            return await self._commands.unconfirm(delivery, self._clock.now())

        delivery = await self._carry_out(request.delivery_id, write)
        return pb.UnconfirmResponse(delivery=convert.delivery_to_pb(delivery))

    async def cancel_preparation(self, request: pb.CancelPreparationRequest) -> pb.CancelPreparationResponse:
        async def write(delivery: Delivery) -> bool:
            _require_no_child(delivery)
            next_state(delivery.delivery_id, delivery.state, Command.CANCEL_PREPARATION)
            return await self._commands.cancel_preparation(delivery, self._clock.now())

        delivery = await self._carry_out(request.delivery_id, write)
        return pb.CancelPreparationResponse(delivery=convert.delivery_to_pb(delivery))

    async def decline(self, request: pb.DeclineRequest) -> pb.DeclineResponse:
        async def write(delivery: Delivery) -> bool:
            if delivery.kind is not DeliveryKind.CHILD:
                advice = "only a child of a recurring delivery can be declined; delete a draft instead"
                raise KindProblem(
                    delivery.delivery_id, delivery.kind.name, "decline", (DeliveryKind.CHILD.name,), advice
                )
            next_state(delivery.delivery_id, delivery.state, Command.DECLINE)
            return await self._commands.decline(
                delivery.delivery_id, delivery.version, caller().subject, self._clock.now()
            )

        delivery = await self._carry_out(request.delivery_id, write)
        return pb.DeclineResponse(delivery=convert.delivery_to_pb(delivery))

    async def delete(self, request: pb.DeleteDeliveryRequest) -> pb.DeleteDeliveryResponse:
        delivery_id = delivery_id_of(request.delivery_id)
        for _ in range(_WRITE_TRIES_MAX):
            delivery = await self._deliveries.get(delivery_id)
            if request.etag and request.etag != str(delivery.version):
                raise DeliveryChanged(delivery_id, str(delivery.version))
            _require_no_child(delivery)
            next_state(delivery_id, delivery.state, Command.DELETE)
            match await self._commands.delete(delivery, self._clock.now()):
                case Deletion.DONE:
                    self._changed(delivery_id)
                    return pb.DeleteDeliveryResponse()
                case Deletion.BEING_COPIED:
                    raise AlreadyRunning(delivery_id, "a copy of the audience")
                case Deletion.CHANGED:
                    continue
        raise DeliveryChanged(delivery_id, "")

    async def duplicate(self, request: pb.DuplicateDeliveryRequest) -> pb.DuplicateDeliveryResponse:
        original_id = delivery_id_of(request.delivery_id)
        require_valid([text_violation("label", request.label, self._settings.label_characters_max)])
        while True:
            original = await self._deliveries.get(original_id)  # not there, or not any more: DeliveryNotFound
            if request.with_audience:
                original.require_log("copy its audience")
            if request.with_audience and original.is_collecting:
                raise AlreadyRunning(original_id, "a copy of the audience")
            now = self._clock.now()
            delivery_id = new_delivery_id(now, secrets.randbits(20))
            if await self._commands.duplicate(
                delivery_id, original_id, request.label, caller().subject, now, with_audience=request.with_audience
            ):
                self._changed(delivery_id)
                delivery = await self._deliveries.get(delivery_id)
                return pb.DuplicateDeliveryResponse(delivery=convert.delivery_to_pb(delivery))

    async def _carry_out(self, text: str, write: Callable[[Delivery], Awaitable[bool]]) -> Delivery:
        """Reads and writes until nobody has written in between; gives the delivery as it is then."""
        delivery_id = delivery_id_of(text)
        for _ in range(_WRITE_TRIES_MAX):
            if await write(await self._deliveries.get(delivery_id)):
                self._changed(delivery_id)
                return await self._deliveries.get(delivery_id)
        raise DeliveryChanged(delivery_id, "")


def _require_no_child(delivery: Delivery) -> None:
    if delivery.kind is DeliveryKind.CHILD:
        raise child_is_fixed(delivery.delivery_id)
