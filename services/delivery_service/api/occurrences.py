"""Occurrences of recurring deliveries: those to come, those that have come, and the totals over the children."""

import asyncio
from datetime import UTC, datetime, timedelta

from campaign.delivery.v1 import occurrence_pb2 as pb
from delivery_service import convert
from delivery_service.api.schedules import schedule_of
from delivery_service.api.validation import delivery_id_of, enums_of, page_size_of, page_token, place_of
from delivery_service.domain.delivery import Delivery, DeliveryKind
from delivery_service.domain.problems import KindProblem
from delivery_service.domain.recurrence import OccurrenceState, occurrences
from delivery_service.domain.schedule import Schedule, zone
from delivery_service.settings import Settings
from delivery_service.store.deliveries import Deliveries
from delivery_service.store.recurrences import FIRST_PAGE, Recurrences
from service_runtime.clock import Clock
from service_runtime.problems import InvalidInput

_PREVIEWED_DEFAULT = 10
_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001  # local times have no zone
_SECOND = timedelta(seconds=1)


class OccurrenceCalls:
    """Reads only."""

    def __init__(self, deliveries: Deliveries, recurrences: Recurrences, settings: Settings, clock: Clock) -> None:
        self._deliveries = deliveries
        self._recurrences = recurrences
        self._settings = settings
        self._clock = clock

    async def preview(self, request: pb.PreviewOccurrencesRequest) -> pb.PreviewOccurrencesResponse:
        count = request.count or _PREVIEWED_DEFAULT
        if count < 0:
            raise InvalidInput.of("count", f"is {count}: give 1 to {self._settings.occurrences_previewed_max}")
        schedule = await self._schedule(request)
        after = self._clock.now()
        if request.HasField("after_time"):
            try:
                after = request.after_time.ToDatetime(UTC)
            except (ValueError, OverflowError):
                raise InvalidInput.of("after_time", "is not a time of the years 1 to 9999") from None
            if not 1971 <= after.year <= 2400:
                raise InvalidInput.of("after_time", "must be of the years 1971 to 2400")
        limit = min(count, self._settings.occurrences_previewed_max)
        # In a thread: a rule may take long to expand, and other calls must not wait for it.
        found = await asyncio.to_thread(occurrences, schedule, after, limit)
        response = pb.PreviewOccurrencesResponse()
        time_zone = zone(schedule.time_zone)
        offset_before: timedelta | None = None
        for occurrence in found:
            offset = occurrence.due_time.astimezone(time_zone).utcoffset()
            assert offset is not None
            response.occurrences.add(
                local_time=convert.local_time(occurrence.local_time),
                due_time=convert.timestamp(occurrence.due_time),
                utc_offset_seconds=int(offset.total_seconds()),
                local_time_kind=convert.local_time_kind(occurrence.kind),
                offset_changed=offset_before is not None and offset != offset_before,
            )
            offset_before = offset
        return response

    async def list(self, request: pb.ListOccurrencesRequest) -> pb.ListOccurrencesResponse:
        states = enums_of("states", request.states, {int(state): state for state in OccurrenceState})
        size = page_size_of(request.page_size, self._settings.page_size_default, self._settings.page_size_max)
        delivery = await self._recurring(request.delivery_id, "list its occurrences")
        before = FIRST_PAGE
        if request.page_token:
            try:
                before = _EPOCH + place_of(request.page_token, 0) * _SECOND
            except OverflowError:
                raise InvalidInput.of(
                    "page_token", "is not a token of this list: pass next_page_token on unchanged, or nothing"
                ) from None
        found = await self._recurrences.page(delivery.delivery_id, sorted(states), before, size + 1)
        return pb.ListOccurrencesResponse(
            occurrences=[convert.occurrence_to_pb(occurrence) for occurrence in found[:size]],
            next_page_token=page_token((found[size - 1].local_time - _EPOCH) // _SECOND) if len(found) > size else "",
        )

    async def totals(self, request: pb.GetRecurrenceTotalsRequest) -> pb.GetRecurrenceTotalsResponse:
        delivery = await self._recurring(request.delivery_id, "give its totals")
        totals = await self._recurrences.totals(delivery.delivery_id)
        return pb.GetRecurrenceTotalsResponse(totals=convert.totals_to_pb(delivery, totals, self._clock.now()))

    async def _schedule(self, request: pb.PreviewOccurrencesRequest) -> Schedule:
        match request.WhichOneof("source"):
            case "delivery_id":
                delivery = await self._recurring(request.delivery_id, "preview its occurrences")
                assert delivery.schedule is not None
                return delivery.schedule
            case "schedule":
                if not request.schedule.HasField("recurrence"):
                    raise InvalidInput.of("schedule.recurrence", "is not set: give a rule to preview")
                resolved = await schedule_of(request.schedule, self._settings, self._clock.now(), "schedule")
                return resolved.schedule
        raise InvalidInput.of("source", "is not set: give delivery_id or schedule")

    async def _recurring(self, text: str, command: str) -> Delivery:
        delivery = await self._deliveries.get(delivery_id_of(text))
        if delivery.kind is not DeliveryKind.RECURRING:
            raise KindProblem(
                delivery.delivery_id,
                delivery.kind.name,
                command,
                (DeliveryKind.RECURRING.name,),
                "it does not recur: name a recurring delivery",
            )
        return delivery
