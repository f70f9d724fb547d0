"""Drafts: create, get, list, update; and the two commands that take one on: prepare and confirm."""

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final
from uuid import uuid4

from campaign.delivery.v1 import delivery_pb2
from campaign.delivery.v1 import delivery_service_pb2 as pb
from delivery_service import convert
from delivery_service.api.audience_options import audience_options_of
from delivery_service.api.schedules import ResolvedSchedule, schedule_of
from delivery_service.api.validation import (
    delivery_id_of,
    enums_of,
    page_size_of,
    page_token,
    place_of,
    require_valid,
    text_violation,
)
from delivery_service.domain.delivery import VALIDITY_MAX, Confirmation, Content, Delivery, DeliveryKind
from delivery_service.domain.identifiers import new_delivery_id
from delivery_service.domain.lifecycle import Channel, Command, DeliveryState, next_state
from delivery_service.domain.pacing import MESSAGES_PER_HOUR_MAX, Pacing
from delivery_service.domain.problems import (
    ApprovalMissing,
    DeliveryChanged,
    PlanChanged,
    RequestIdReused,
    SecondPersonNeeded,
    child_is_fixed,
)
from delivery_service.domain.recurrence import occurrences
from delivery_service.domain.status import FeedbackMode
from delivery_service.settings import Settings
from delivery_service.store.deliveries import FIRST_PAGE, Deliveries
from service_runtime.access import caller
from service_runtime.clock import Clock
from service_runtime.problems import FieldViolation, InvalidInput

_CONTENT_FIELDS: Final = tuple(Content.__dataclass_fields__)
_UPDATABLE: Final = (
    "label",
    "feedback_mode",
    "validity_period",
    "schedule",
    "requires_approval",
    "pacing",
    "audience_options",
    "audience_options.control_group",
    "audience_options.suppression_lists",
    "content",
    *(f"content.{field}" for field in _CONTENT_FIELDS),
)
_REQUEST_ID_CHARACTERS_MAX: Final = 100
_INSTANT: Final = timedelta(microseconds=1)
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
        scheduled = await self._scheduled(given)
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
            schedule=scheduled.schedule if scheduled else None,
            contact_time=scheduled.contact_time if scheduled else None,
            requires_approval=given.requires_approval,
            pacing=_pacing(given, self._settings.recipients_per_delivery_max),
            audience_options=audience_options_of(given.audience_options, self._settings, "delivery.audience_options"),
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
        parent_id = None
        if request.parent_delivery_id:
            parent_id = delivery_id_of(request.parent_delivery_id, "parent_delivery_id")
        found = await self._deliveries.page(sorted(states), below, size + 1, parent_id)
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
        scheduled = await self._scheduled(given) if "schedule" in paths else None

        def edit(delivery: Delivery) -> Delivery:
            if given.etag and given.etag != str(delivery.version):
                raise DeliveryChanged(delivery_id, str(delivery.version))
            edited = _edited(delivery, given, paths, self._settings)
            if "schedule" in paths:  # none given: at once, and nothing is left of the old one
                edited = replace(
                    edited,
                    schedule=scheduled.schedule if scheduled else None,
                    contact_time=scheduled.contact_time if scheduled else None,
                )
            self._require_fitting(edited)
            if any(path != "label" for path in paths):
                if delivery.kind is DeliveryKind.CHILD:
                    raise child_is_fixed(delivery_id)
                state = next_state(delivery_id, delivery.state, Command.EDIT)
                delivery.require_log("edit it")
                return replace(edited, state=state)
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
            delivery.require_log("prepare it")
            if await self._deliveries.begin_preparation(delivery, caller().subject, self._clock.now()):
                self._wake_workers()
                delivery = await self._deliveries.get(delivery_id)
                return pb.PrepareDeliveryResponse(delivery=convert.delivery_to_pb(delivery))
        raise DeliveryChanged(delivery_id, "")

    async def confirm_send(self, request: pb.ConfirmSendRequest) -> pb.ConfirmSendResponse:
        """Checks in the order role (the interceptor's), state, digest, approval; one compare-and-set confirms.

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
                    return _confirmed(delivery, known.confirm_time, known.start_time, known)
            next_state(delivery_id, delivery.state, Command.CONFIRM)
            delivery.require_log("confirm its sending")
            digest = delivery.plan.plan_digest if delivery.plan else ""
            if digest != request.plan_digest:
                raise PlanChanged(delivery_id, digest)
            _require_approval(delivery)
            now = self._clock.now()
            start_time = await _start_time(delivery, now)
            if request.validate_only:
                return _confirmed(delivery, now, start_time, None)
            confirmation = Confirmation(caller().subject, now, digest, request_id, start_time)
            if await self._deliveries.confirm(delivery, confirmation):
                self._wake_workers()
                return _confirmed(delivery, now, start_time, confirmation)
        raise DeliveryChanged(delivery_id, "")

    async def _scheduled(self, given: delivery_pb2.Delivery) -> ResolvedSchedule | None:
        """None: at once."""
        if not given.HasField("schedule"):
            return None
        return await schedule_of(given.schedule, self._settings, self._clock.now(), "delivery.schedule")

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


def _require_approval(delivery: Delivery) -> None:
    if not delivery.requires_approval:
        return
    if delivery.approval is None:
        raise ApprovalMissing(delivery.delivery_id, delivery.plan.plan_digest if delivery.plan else "")
    if delivery.approval.approver == caller().subject:
        raise SecondPersonNeeded(delivery.delivery_id, caller().subject, "has approved it, and can't confirm it")


async def _start_time(delivery: Delivery, now: datetime) -> datetime | None:
    """When sending starts if it is confirmed now; None: never, since no occurrence is to come."""
    if delivery.schedule is not None and delivery.is_recurring:
        # In a thread: a rule may take long to expand, and other calls must not wait for it.
        following = await asyncio.to_thread(occurrences, delivery.schedule, now - _INSTANT, 1)
        return following[0].due_time if following else None
    return max(delivery.contact_time or now, now)


def _confirmed(
    delivery: Delivery, confirm_time: datetime, start_time: datetime | None, confirmation: Confirmation | None
) -> pb.ConfirmSendResponse:
    plan = delivery.plan
    return pb.ConfirmSendResponse(
        to_deliver=plan.to_deliver if plan else 0,
        start_time=convert.timestamp(start_time),
        warnings=[
            *(convert.plan_to_pb(plan).warnings if plan else ()),
            *_schedule_warnings(delivery, confirm_time, start_time),
        ],
        confirmation=convert.confirmation_to_pb(confirmation) if confirmation else None,
    )


def _schedule_warnings(
    delivery: Delivery, confirm_time: datetime, start_time: datetime | None
) -> list[delivery_pb2.PlanIssue]:
    if delivery.contact_time is None or delivery.contact_time >= confirm_time:
        return []
    if not delivery.is_recurring:
        return [delivery_pb2.PlanIssue(field="schedule.local_time", description="has passed: sending starts at once")]
    description = "has no occurrence to come: nothing is sent"
    if start_time is not None:
        description = "has occurrences before the confirmation: they are not made up for"
    return [delivery_pb2.PlanIssue(field="schedule.recurrence", description=description)]


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


def _pacing(given: delivery_pb2.Delivery, first_wave_max: int) -> Pacing | None:
    if not given.HasField("pacing"):
        return None
    first, rate = given.pacing.first_wave_count, given.pacing.messages_per_hour
    if not 1 <= rate <= MESSAGES_PER_HOUR_MAX:
        raise InvalidInput.of(
            "delivery.pacing.messages_per_hour",
            f"is {rate}: give 1 to {MESSAGES_PER_HOUR_MAX:,}, or leave pacing unset to send as fast as it goes",
        )
    if not 0 <= first <= first_wave_max:
        raise InvalidInput.of("delivery.pacing.first_wave_count", f"is {first}: give 0 to {first_wave_max:,}")
    return Pacing(first, rate)


def _edited(delivery: Delivery, given: delivery_pb2.Delivery, paths: list[str], limits: Settings) -> Delivery:
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
            case ("requires_approval", _, _):
                edited = replace(edited, requires_approval=given.requires_approval)
            case ("pacing", _, _):
                edited = replace(edited, pacing=_pacing(given, limits.recipients_per_delivery_max))
            case ("audience_options", _, part):
                options = audience_options_of(given.audience_options, limits, "delivery.audience_options")
                if part:
                    options = replace(edited.audience_options, **{part: getattr(options, part)})
                edited = replace(edited, audience_options=options)
            case ("content", _, ""):
                edited = replace(edited, content=_content(given.content))
            case ("content", _, name):
                edited = replace(edited, content=replace(edited.content, **{name: getattr(given.content, name)}))
    return edited
