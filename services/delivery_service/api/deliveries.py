"""Drafts: create, get, list, update; and the two commands that take one on: prepare and confirm."""

import secrets
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final
from uuid import uuid4

from campaign.delivery.v1 import delivery_pb2
from campaign.delivery.v1 import delivery_service_pb2 as pb
from delivery_service import convert
from delivery_service.api.validation import (
    delivery_id_of,
    enums_of,
    page_size_of,
    page_token,
    place_of,
    require_valid,
    text_violation,
)
from delivery_service.domain.delivery import VALIDITY_MAX, Confirmation, Content, Delivery
from delivery_service.domain.identifiers import new_delivery_id
from delivery_service.domain.lifecycle import Channel, Command, DeliveryState, next_state
from delivery_service.domain.problems import DeliveryChanged, PlanChanged, RequestIdReused
from delivery_service.domain.status import FeedbackMode
from delivery_service.settings import Settings
from delivery_service.store.deliveries import FIRST_PAGE, Deliveries
from service_runtime.access import caller
from service_runtime.clock import Clock
from service_runtime.problems import FieldViolation, InvalidInput

_CONTENT_FIELDS: Final = tuple(Content.__dataclass_fields__)
_UPDATABLE: Final = ("label", "feedback_mode", "validity_period", "content", *(f"content.{f}" for f in _CONTENT_FIELDS))
_REQUEST_ID_CHARACTERS_MAX: Final = 100
_WRITE_TRIES_MAX: Final = 20
"""How often a command reads again because someone else wrote in between."""


class DeliveryCalls:
    """`wake_workers` is called when a delivery may have work for them."""

    def __init__(
        self, deliveries: Deliveries, settings: Settings, clock: Clock, wake_workers: Callable[[], None]
    ) -> None:
        self._deliveries = deliveries
        self._settings = settings
        self._clock = clock
        self._wake_workers = wake_workers

    async def create(self, request: pb.CreateDeliveryRequest) -> pb.CreateDeliveryResponse:
        given = request.delivery
        now = self._clock.now()
        channel = _channel(given.channel)
        draft = Delivery(
            delivery_id=new_delivery_id(now, secrets.randbits(20)),
            label=given.label,
            channel=channel,
            feedback_mode=_feedback_mode(given.feedback_mode, channel),
            content=_content(given.content),
            validity_period=_validity(given),
            state=DeliveryState.EDITING,
            creator=caller().subject,
            create_time=now,
            update_time=now,
        )
        self._require_fitting(draft)
        while not await self._deliveries.create(draft):
            draft = replace(draft, delivery_id=new_delivery_id(now, secrets.randbits(20)))
        return pb.CreateDeliveryResponse(delivery=convert.delivery_to_pb(draft))

    async def get(self, request: pb.GetDeliveryRequest) -> pb.GetDeliveryResponse:
        delivery = await self._deliveries.get(delivery_id_of(request.delivery_id))
        return pb.GetDeliveryResponse(delivery=convert.delivery_to_pb(delivery))

    async def list(self, request: pb.ListDeliveriesRequest) -> pb.ListDeliveriesResponse:
        states = enums_of("states", request.states, {int(state): state for state in DeliveryState})
        size = page_size_of(request.page_size, self._settings.page_size_default, self._settings.page_size_max)
        below = place_of(request.page_token, FIRST_PAGE)
        found = await self._deliveries.page(sorted(states), below, size + 1)
        return pb.ListDeliveriesResponse(
            deliveries=[convert.delivery_to_pb(delivery) for delivery in found[:size]],
            next_page_token=page_token(found[size - 1].delivery_id) if len(found) > size else "",
        )

    async def update(self, request: pb.UpdateDeliveryRequest) -> pb.UpdateDeliveryResponse:
        given, paths = request.delivery, list(request.update_mask.paths)
        delivery_id = delivery_id_of(given.delivery_id, "delivery.delivery_id")
        if not paths:
            raise InvalidInput.of("update_mask", f"is empty: name the fields to change, of {', '.join(_UPDATABLE)}")
        require_valid(
            FieldViolation("update_mask", f"{path!r} can't be changed: name fields of {', '.join(_UPDATABLE)}")
            for path in paths
            if path not in _UPDATABLE
        )

        def edit(delivery: Delivery) -> Delivery:
            if given.etag and given.etag != str(delivery.version):
                raise DeliveryChanged(delivery_id, str(delivery.version))
            edited = _edited(delivery, given, paths)
            self._require_fitting(edited)
            if any(path != "label" for path in paths):
                return replace(edited, state=next_state(delivery_id, delivery.state, Command.EDIT))
            return edited

        for _ in range(_WRITE_TRIES_MAX):
            edited = replace(edit(await self._deliveries.get(delivery_id)), update_time=self._clock.now())
            if await self._deliveries.update(edited):
                delivery = await self._deliveries.get(delivery_id)
                return pb.UpdateDeliveryResponse(delivery=convert.delivery_to_pb(delivery))
        raise DeliveryChanged(delivery_id, "")

    async def prepare(self, request: pb.PrepareDeliveryRequest) -> pb.PrepareDeliveryResponse:
        delivery_id = delivery_id_of(request.delivery_id)
        for _ in range(_WRITE_TRIES_MAX):
            delivery = await self._deliveries.get(delivery_id)
            if delivery.state is DeliveryState.PREPARING:
                return pb.PrepareDeliveryResponse(delivery=convert.delivery_to_pb(delivery))
            next_state(delivery_id, delivery.state, Command.PREPARE)
            if await self._deliveries.begin_preparation(delivery, caller().subject, self._clock.now()):
                self._wake_workers()
                delivery = await self._deliveries.get(delivery_id)
                return pb.PrepareDeliveryResponse(delivery=convert.delivery_to_pb(delivery))
        raise DeliveryChanged(delivery_id, "")

    async def confirm_send(self, request: pb.ConfirmSendRequest) -> pb.ConfirmSendResponse:
        """Checks in the order role (the interceptor's), state, digest; one compare-and-set confirms.

        Whoever loses the race for it reads again, and finds the winner's confirmation: its own if the request_id is.
        """
        delivery_id = delivery_id_of(request.delivery_id)
        require_valid([text_violation("request_id", request.request_id, _REQUEST_ID_CHARACTERS_MAX)])
        if not request.plan_digest:
            raise InvalidInput.of("plan_digest", "is empty: give the digest of the plan that you confirm")
        request_id = request.request_id or str(uuid4())
        for _ in range(_WRITE_TRIES_MAX):
            delivery = await self._deliveries.get(delivery_id)
            if not request.validate_only:
                known = await self._deliveries.confirmation(delivery_id, request_id)
                if known is not None:
                    if known.plan_digest != request.plan_digest:
                        raise RequestIdReused(delivery_id, request_id)
                    return _confirmed(delivery, known.confirm_time, known)
            next_state(delivery_id, delivery.state, Command.CONFIRM)
            digest = delivery.plan.plan_digest if delivery.plan else ""
            if digest != request.plan_digest:
                raise PlanChanged(delivery_id, digest)
            now = self._clock.now()
            if request.validate_only:
                return _confirmed(delivery, now, None)
            confirmation = Confirmation(caller().subject, now, digest, request_id)
            if await self._deliveries.confirm(delivery, confirmation):
                self._wake_workers()
                return _confirmed(delivery, now, confirmation)
        raise DeliveryChanged(delivery_id, "")

    def _require_fitting(self, delivery: Delivery) -> None:
        limits, content = self._settings, delivery.content
        body_max = limits.body_bytes_max
        require_valid(
            [
                text_violation("delivery.label", delivery.label, limits.label_characters_max),
                text_violation("delivery.content.subject", content.subject, limits.subject_characters_max),
                text_violation("delivery.content.from_address", content.from_address, limits.address_characters_max),
                text_violation("delivery.content.from_name", content.from_name, limits.label_characters_max),
                text_violation(
                    "delivery.content.reply_to_address", content.reply_to_address, limits.address_characters_max
                ),
                _body_violation("delivery.content.html", content.html, body_max),
                _body_violation("delivery.content.text", content.text, body_max),
            ]
        )


def _confirmed(delivery: Delivery, start_time: datetime, confirmation: Confirmation | None) -> pb.ConfirmSendResponse:
    plan = delivery.plan
    return pb.ConfirmSendResponse(
        to_deliver=plan.to_deliver if plan else 0,
        start_time=convert.timestamp(start_time),
        warnings=convert.plan_to_pb(plan).warnings if plan else [],
        confirmation=convert.confirmation_to_pb(confirmation) if confirmation else None,
    )


def _body_violation(field: str, text: str, bytes_max: int) -> FieldViolation | None:
    size = len(text.encode())
    if size > bytes_max:
        return FieldViolation(field, f"has {size} bytes: at most {bytes_max} are allowed")
    return text_violation(field, text, bytes_max)


def _channel(number: int) -> Channel:
    if number == 0:
        return Channel.EMAIL
    if number not in Channel.__members__.values():
        raise InvalidInput.of("delivery.channel", f"is {number}: give EMAIL, SMS or PUSH")
    return Channel(number)


def _feedback_mode(number: int, channel: Channel) -> FeedbackMode:
    if number == 0:
        return FeedbackMode.WITH_EFS if channel is Channel.EMAIL else FeedbackMode.WITHOUT_EFS
    if number not in FeedbackMode.__members__.values():
        raise InvalidInput.of("delivery.feedback_mode", f"is {number}: give WITH_EFS or WITHOUT_EFS")
    if number == FeedbackMode.WITH_EFS and channel is not Channel.EMAIL:
        raise InvalidInput.of(
            "delivery.feedback_mode", f"is WITH_EFS on channel {channel.name}: it is of EMAIL alone; give WITHOUT_EFS"
        )
    return FeedbackMode(number)


def _validity(given: delivery_pb2.Delivery) -> timedelta:
    if not given.HasField("validity_period"):
        return VALIDITY_MAX
    try:
        period = given.validity_period.ToTimedelta()
    except (OverflowError, ValueError):
        period = timedelta.max
    if not timedelta() < period <= timedelta(days=366):
        raise InvalidInput.of("delivery.validity_period", "must be more than 0 and at most 366 days")
    return period


def _content(given: delivery_pb2.Content) -> Content:
    return Content(**{name: getattr(given, name) for name in _CONTENT_FIELDS})


def _edited(delivery: Delivery, given: delivery_pb2.Delivery, paths: list[str]) -> Delivery:
    """The delivery with the masked fields taken from the request."""
    edited = delivery
    for path in paths:
        match path.partition("."):
            case ("label", _, _):
                edited = replace(edited, label=given.label)
            case ("feedback_mode", _, _):
                edited = replace(edited, feedback_mode=_feedback_mode(given.feedback_mode, delivery.channel))
            case ("validity_period", _, _):
                edited = replace(edited, validity_period=_validity(given))
            case ("content", _, ""):
                edited = replace(edited, content=_content(given.content))
            case ("content", _, name):
                edited = replace(edited, content=replace(edited.content, **{name: getattr(given.content, name)}))
    return edited
