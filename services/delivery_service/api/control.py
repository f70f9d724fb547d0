"""Pause, Resume and Stop: commands on a delivery that is being sent."""

from collections.abc import Awaitable, Callable
from datetime import datetime

from campaign.delivery.v1 import delivery_service_pb2 as pb
from delivery_service import convert
from delivery_service.api.validation import delivery_id_of
from delivery_service.domain.delivery import Delivery
from delivery_service.domain.lifecycle import Command, next_state
from delivery_service.domain.problems import DeliveryChanged
from delivery_service.store.control import Control
from delivery_service.store.deliveries import Deliveries
from service_runtime.access import caller
from service_runtime.clock import Clock

_WRITE_TRIES_MAX = 20


class ControlCalls:
    """A repeated command changes nothing, and gets the same answer. `changed`: wakes workers and watchers."""

    def __init__(self, deliveries: Deliveries, control: Control, clock: Clock, changed: Callable[[int], None]) -> None:
        self._deliveries = deliveries
        self._control = control
        self._clock = clock
        self._changed = changed

    async def pause(self, request: pb.PauseDeliveryRequest) -> pb.PauseDeliveryResponse:
        delivery_id = delivery_id_of(request.delivery_id)
        pauser = caller().subject

        async def pause(delivery_id: int, now: datetime) -> bool:
            return await self._control.pause(delivery_id, pauser, now)

        delivery = await self._carry_out(delivery_id, Command.PAUSE, pause)
        return pb.PauseDeliveryResponse(
            delivery=convert.delivery_to_pb(delivery), in_flight_count=await self._control.in_flight(delivery_id)
        )

    async def resume(self, request: pb.ResumeDeliveryRequest) -> pb.ResumeDeliveryResponse:
        delivery = await self._carry_out(delivery_id_of(request.delivery_id), Command.RESUME, self._control.resume)
        return pb.ResumeDeliveryResponse(delivery=convert.delivery_to_pb(delivery))

    async def stop(self, request: pb.StopDeliveryRequest) -> pb.StopDeliveryResponse:
        delivery_id = delivery_id_of(request.delivery_id)
        stopper = caller().subject

        async def stop(delivery_id: int, now: datetime) -> bool:
            return await self._control.stop(delivery_id, stopper, now)

        stopped = await self._carry_out(delivery_id, Command.STOP, stop)
        if stopped.stop_in_flight is None:
            await self._control.note_stop_in_flight(delivery_id, await self._control.in_flight(delivery_id))
            stopped = await self._deliveries.get(delivery_id)
        return pb.StopDeliveryResponse(delivery=convert.delivery_to_pb(stopped))

    async def _carry_out(
        self, delivery_id: int, command: Command, write: Callable[[int, datetime], Awaitable[bool]]
    ) -> Delivery:
        """Takes the delivery to the command's state, unless it is there already; StateProblem if it may not go."""
        for _ in range(_WRITE_TRIES_MAX):
            delivery = await self._deliveries.get(delivery_id)
            after = next_state(delivery_id, delivery.state, command)
            if after is delivery.state:
                return delivery
            if await write(delivery_id, self._clock.now()):
                self._changed(delivery_id)
        raise DeliveryChanged(delivery_id, "")
