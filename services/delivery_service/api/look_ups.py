"""Looking things up after a send: one message as it was sent, one person's messages, KPIs by group, tracking facts."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Final

import orjson

from campaign.delivery.v1 import delivery_pb2, send_log_pb2
from campaign.delivery.v1 import look_ups_pb2 as pb
from delivery_service import convert
from delivery_service.api.page_tokens import PageTokens
from delivery_service.api.send_log_filters import mode_of, recipient_of
from delivery_service.api.validation import delivery_id_of, enums_of, page_size_of, require_valid, text_violation
from delivery_service.domain.address import normalise_address
from delivery_service.domain.delivery import Delivery
from delivery_service.domain.kpis import Counts
from delivery_service.domain.lifecycle import HAS_SEND_LOGS, Channel
from delivery_service.domain.outcome import Outcome
from delivery_service.domain.problems import AlreadyRunning, MessageNotRendered, StateProblem
from delivery_service.domain.status import FeedbackMode, reason_shown
from delivery_service.settings import Settings
from delivery_service.store.deliveries import Deliveries
from delivery_service.store.look_ups import GroupBy, LookUps, MessagePlace, ProfileMessage, TrackingPlace
from message_template.message import NotRendered, compiled
from message_template.sandbox import InvalidTemplate
from service_runtime.clock import from_microseconds, to_microseconds
from service_runtime.problems import InvalidInput

_MESSAGES: Final = PageTokens(b"m", "qi")
_TRACKING: Final = PageTokens(b"t", "ihq16s")
_TRACKING_KINDS: Final = {int(kind): int(kind) for kind in range(3, 8)}


class LookUpCalls:
    """Every answer is bounded, whatever is asked for."""

    def __init__(self, deliveries: Deliveries, look_ups: LookUps, settings: Settings) -> None:
        self._deliveries = deliveries
        self._look_ups = look_ups
        self._settings = settings
        self._tolerance = timedelta(seconds=settings.event_time_ahead_tolerance_seconds)

    async def render_message(self, request: pb.RenderMessageRequest) -> pb.RenderMessageResponse:
        delivery_id, recipient = delivery_id_of(request.delivery_id), recipient_of(request.recipient)
        delivery = await self._deliveries.get(delivery_id)
        require_send_logs(delivery, "render message")
        async with self._deliveries.log_kept(delivery_id):
            row = await self._look_ups.recipient_message(delivery_id, recipient)
        content = delivery.content
        attributes: dict[str, str] = orjson.loads(row["attributes"])
        try:
            template = compiled(content.subject, content.html, content.text)
            # The sandbox bounds the work, but not to what the event loop may be kept from other calls for.
            rendered = await asyncio.to_thread(template.render, attributes)
        except InvalidTemplate as error:
            raise MessageNotRendered(delivery_id, recipient, str(error)) from error
        except NotRendered as error:
            raise MessageNotRendered(delivery_id, recipient, str(error)) from error
        return pb.RenderMessageResponse(
            address=row["address"],
            from_address=content.from_address,
            from_name=content.from_name,
            reply_to_address=content.reply_to_address,
            subject=rendered.subject,
            html=rendered.html,
            text=rendered.text,
            handed_over=row["outcome"] >= Outcome.RELAYED,
        )

    async def list_profile_messages(self, request: pb.ListProfileMessagesRequest) -> pb.ListProfileMessagesResponse:
        limits = self._settings
        if bool(request.profile_id) == bool(request.address):
            raise InvalidInput.of("profile_id", "give either a profile_id or an address, and not both")
        require_valid(
            [
                text_violation("profile_id", request.profile_id, limits.profile_id_characters_max),
                text_violation("address", request.address, limits.address_characters_max),
            ]
        )
        channel = int(request.channel)
        if channel and channel not in Channel.__members__.values():
            raise InvalidInput.of("channel", f"is {channel}: give EMAIL, SMS or PUSH, or nothing")
        size = page_size_of(request.page_size, limits.page_size_default, limits.page_size_max)
        behind = MessagePlace()
        if request.page_token:
            behind = MessagePlace(*map(int, _MESSAGES.place(request.page_token)))
        if request.profile_id:
            page = await self._look_ups.messages_of_profile(request.profile_id, channel, behind, size)
        else:
            email = normalise_address(Channel.EMAIL, request.address)
            other = normalise_address(Channel.SMS, request.address)
            page = await self._look_ups.messages_of_address(email, other, channel, behind, size)
        return pb.ListProfileMessagesResponse(
            messages=[self._message(message) for message in page.messages],
            next_page_token=_MESSAGES.token(*page.next_place) if page.next_place else "",
        )

    def _message(self, message: ProfileMessage) -> pb.ProfileMessage:
        return pb.ProfileMessage(
            send_log=convert.send_log_to_pb(message.send_log, message.feedback_mode, self._tolerance),
            label=message.label,
            channel=delivery_pb2.Channel.ValueType(message.channel),
            state=delivery_pb2.DeliveryState.ValueType(message.state),
            feedback_mode=delivery_pb2.FeedbackMode.ValueType(message.feedback_mode),
            start_time=convert.timestamp(message.start_time),
        )

    async def kpi_breakdown(self, request: pb.GetKpiBreakdownRequest) -> pb.GetKpiBreakdownResponse:
        delivery_id = delivery_id_of(request.delivery_id)
        by = _group_by(request.by)
        limits = self._settings
        if request.groups_max < 0:
            raise InvalidInput.of("groups_max", f"is {request.groups_max}: give 0 for the default, or a number")
        groups_max = min(request.groups_max or limits.breakdown_groups_default, limits.breakdown_groups_max)
        delivery = await self._deliveries.get(delivery_id)
        require_send_logs(delivery, "break down KPIs")
        mode = mode_of(request.feedback_mode, delivery)
        shown = frozenset(outcome for outcome in Outcome if reason_shown(mode, outcome))
        async with self._deliveries.log_kept(delivery_id):
            found = await self._look_ups.breakdown(delivery_id, by, shown, groups_max)
        if found is None:
            raise AlreadyRunning(delivery_id, "a break-down")
        groups = found.groups
        if by is GroupBy.HOUR:
            groups = sorted(groups, key=lambda group: int(group.key or 0))
        return pb.GetKpiBreakdownResponse(
            groups=[_group(by, group.key, group.counts, mode) for group in groups],
            other=_group(by, "", found.other, mode) if found.other else None,
            other_groups=found.other_groups,
            outcomes=convert.outcomes_to_pb(found.counters),
            statuses=convert.statuses_to_pb(found.counters.by_status(mode)),
            revision=sum(found.slot_revisions),
            resume_token=convert.resume_token(delivery_id, found.slot_revisions),
        )

    async def list_tracking_events(self, request: pb.ListTrackingEventsRequest) -> pb.ListTrackingEventsResponse:
        delivery_id = delivery_id_of(request.delivery_id)
        kinds = enums_of("kinds", request.kinds, _TRACKING_KINDS)
        recipient = recipient_of(request.recipient) if request.recipient else None
        size = page_size_of(request.page_size, self._settings.page_size_default, self._settings.page_size_max)
        behind = _tracking_place(request.page_token) if request.page_token else None
        await self._deliveries.get(delivery_id)
        async with self._deliveries.log_kept(delivery_id):
            page = await self._look_ups.tracking_events(delivery_id, kinds, recipient, behind, size)
        token = ""
        if (place := page.next_place) is not None:
            url_hash = bytes.fromhex(place.url_hash)
            token = _TRACKING.token(place.recipient, place.kind, to_microseconds(place.event_time), url_hash)
        return pb.ListTrackingEventsResponse(
            events=[
                pb.TrackingEvent(
                    recipient=row["recipient"],
                    kind=send_log_pb2.TimelineEntryKind.ValueType(row["kind"]),
                    event_time=convert.timestamp(row["event_time"]),
                    commit_time=convert.timestamp(row["commit_time"]),
                    url=row["url"],
                )
                for row in page.rows
            ],
            next_page_token=token,
        )


def require_send_logs(delivery: Delivery, work: str) -> None:
    """StateProblem before the delivery is prepared."""
    if delivery.state not in HAS_SEND_LOGS:
        allowed = [state.name for state in sorted(HAS_SEND_LOGS)]
        raise StateProblem(delivery.delivery_id, delivery.state.name, work, allowed)


def _group_by(number: int) -> GroupBy:
    if number not in GroupBy.__members__.values():
        raise InvalidInput.of("by", f"is {number}: give RECIPIENT_DOMAIN, REASON or HOUR")
    return GroupBy(number)


def _tracking_place(token: str) -> TrackingPlace:
    recipient, kind, event_time_us, url_hash = _TRACKING.place(token)
    assert isinstance(url_hash, bytes)
    try:
        return TrackingPlace(int(recipient), int(kind), from_microseconds(int(event_time_us)), url_hash.hex())
    except OverflowError:
        raise InvalidInput.of("page_token", "is not a token of this list: pass next_page_token on unchanged") from None


def _group(by: GroupBy, key: str, counts: Counts, mode: FeedbackMode) -> pb.KpiGroup:
    group = pb.KpiGroup(
        volume=counts.to_deliver,
        outcomes=convert.outcomes_to_pb(counts),
        statuses=convert.statuses_to_pb(counts.by_status(mode)),
    )
    match by:
        case GroupBy.RECIPIENT_DOMAIN if key:
            group.recipient_domain = key
        case GroupBy.REASON if key not in ("", "0"):
            group.reason = send_log_pb2.Reason.ValueType(int(key))
        case GroupBy.HOUR if key:
            group.hour_start_time.FromDatetime(datetime.fromtimestamp(int(key), UTC))
    return group
