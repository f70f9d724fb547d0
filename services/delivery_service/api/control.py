"""Pause, Resume and Stop: commands on a delivery that is being sent, or on one recipient domain of it."""

from collections.abc import Awaitable, Callable
from datetime import datetime

from campaign.delivery.v1 import delivery_service_pb2 as pb
from campaign.delivery.v1 import domain_pause_pb2
from delivery_service import convert
from delivery_service.api.validation import delivery_id_of
from delivery_service.domain.address import recipient_domain_of
from delivery_service.domain.delivery import Delivery, DeliveryKind
from delivery_service.domain.domain_pauses import DomainPause
from delivery_service.domain.lifecycle import Channel, Command, next_state
from delivery_service.domain.problems import DeliveryChanged, KindProblem, LimitReached
from delivery_service.settings import Settings
from delivery_service.store.control import Control
from delivery_service.store.deliveries import Deliveries
from service_runtime.access import caller
from service_runtime.clock import Clock
from service_runtime.problems import InvalidInput

_WRITE_TRIES_MAX = 20


class ControlCalls:
    """A repeated command changes nothing, and gets the same answer. `changed`: wakes workers and watchers."""

    def __init__(
        self,
        deliveries: Deliveries,
        control: Control,
        settings: Settings,
        clock: Clock,
        changed: Callable[[int], None],
    ) -> None:
        self._deliveries = deliveries
        self._control = control
        self._settings = settings
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

    async def pause_domain(self, request: domain_pause_pb2.PauseDomainRequest) -> domain_pause_pb2.PauseDomainResponse:
        delivery_id, domain = delivery_id_of(request.delivery_id), _domain_of(request.recipient_domain)
        pauser, limit = caller().subject, self._settings.paused_domains_max
        for _ in range(_WRITE_TRIES_MAX):
            delivery = await self._sent_by_domain(delivery_id, Command.PAUSE_DOMAIN)
            if delivery.channel is not Channel.EMAIL:
                raise InvalidInput.of("recipient_domain", "is only for an EMAIL: other channels have no domains")
            pauses, now = delivery.domain_pauses, self._clock.now()
            if not pauses.holds(domain):
                if len(pauses.paused) >= limit:
                    raise LimitReached("paused_domains_max", limit, "resume a domain, or pause the delivery")
                paused = pauses.with_pause(DomainPause(domain, pauser, now))
                if not await self._control.set_domain_pauses(delivery, paused, now):
                    continue
                self._changed(delivery_id)
                delivery = await self._deliveries.get(delivery_id)
            return domain_pause_pb2.PauseDomainResponse(
                delivery=convert.delivery_to_pb(delivery),
                in_flight_count=await self._control.in_flight_to_domain(delivery_id, domain),
            )
        raise DeliveryChanged(delivery_id, "")

    async def resume_domain(
        self, request: domain_pause_pb2.ResumeDomainRequest
    ) -> domain_pause_pb2.ResumeDomainResponse:
        delivery_id, domain = delivery_id_of(request.delivery_id), _domain_of(request.recipient_domain)
        for _ in range(_WRITE_TRIES_MAX):
            delivery = await self._sent_by_domain(delivery_id, Command.RESUME_DOMAIN)
            pauses = delivery.domain_pauses
            if pauses.holds(domain):
                now = self._clock.now()
                if not await self._control.set_domain_pauses(delivery, pauses.without(domain), now, resumed=True):
                    continue
                self._changed(delivery_id)
                delivery = await self._deliveries.get(delivery_id)
            return domain_pause_pb2.ResumeDomainResponse(delivery=convert.delivery_to_pb(delivery))
        raise DeliveryChanged(delivery_id, "")

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

    async def _sent_by_domain(self, delivery_id: int, command: Command) -> Delivery:
        """The delivery, if the command may be given to it."""
        delivery = await self._deliveries.get(delivery_id)
        if delivery.kind is DeliveryKind.RECURRING:
            advice = "its children do the sending: give the command to one of them"
            spoken = command.name.lower().replace("_", " ")
            raise KindProblem(delivery_id, delivery.kind.name, spoken, ("PLAIN", "CHILD"), advice)
        next_state(delivery_id, delivery.state, command)
        return delivery

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
                return await self._deliveries.get(delivery_id)  # in whatever state workers have taken it to since
        raise DeliveryChanged(delivery_id, "")


def _domain_of(text: str) -> str:
    recipient_domain = recipient_domain_of(text)
    if recipient_domain is None:
        raise InvalidInput.of(
            "recipient_domain", f"{text[:40]!r} is not a domain: give what stands behind the @, such as example.com"
        )
    return recipient_domain
