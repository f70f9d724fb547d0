"""Schedules of the contract: checked, and resolved to the instant that they stand for."""

import asyncio
from dataclasses import dataclass
from datetime import datetime, timedelta

from campaign.delivery.v1 import schedule_pb2
from delivery_service.domain.recurrence import check_recurrence
from delivery_service.domain.schedule import (
    AggregationPeriod,
    Recurrence,
    Schedule,
    ScheduleProblem,
    parse_local_time,
    resolve,
    zone,
)
from delivery_service.settings import Settings
from service_runtime.problems import FieldViolation, InvalidInput

_LATENESS_SECONDS_MIN = 60


@dataclass(frozen=True, slots=True)
class ResolvedSchedule:
    """A schedule, and the instant that it stands for: of a recurrence, that of its first occurrence."""

    schedule: Schedule
    contact_time: datetime


async def schedule_of(given: schedule_pb2.Schedule, settings: Settings, now: datetime, field: str) -> ResolvedSchedule:
    """The schedule in a request; InvalidInput. `field` is its name there."""
    try:
        schedule = Schedule(
            parse_local_time("local_time", given.local_time),
            given.time_zone,
            _recurrence(given.recurrence, settings, field) if given.HasField("recurrence") else None,
        )
        time_zone = zone(schedule.time_zone)
        if not 1971 <= schedule.local_time.year <= (now + timedelta(days=settings.schedule_days_ahead_max)).year:
            raise _too_far(settings)
        contact_time = resolve(schedule.local_time, time_zone).instant
        if schedule.recurrence is not None:
            # In a thread: a rule may take long to expand, and other calls must not wait for it.
            first = await asyncio.to_thread(
                check_recurrence,
                schedule,
                rule_characters_max=settings.recurrence_rule_characters_max,
                count_max=settings.recurrence_count_max,
            )
            contact_time = first.due_time
        if contact_time > now + timedelta(days=settings.schedule_days_ahead_max):
            raise _too_far(settings)
    except ScheduleProblem as problem:
        raise InvalidInput.of(f"{field}.{problem.field}", problem.description) from None
    return ResolvedSchedule(schedule, contact_time)


def _too_far(settings: Settings) -> ScheduleProblem:
    return ScheduleProblem(
        "local_time", f"is too far away: give a time of at most {settings.schedule_days_ahead_max} days ahead"
    )


def _recurrence(given: schedule_pb2.Recurrence, settings: Settings, field: str) -> Recurrence:
    try:
        period = AggregationPeriod(given.aggregation_period or AggregationPeriod.NONE)
    except ValueError:
        raise ScheduleProblem(
            "recurrence.aggregation_period", f"is {given.aggregation_period}: give NONE, DAY, WEEK or MONTH"
        ) from None
    if given.request_confirmation and period is not AggregationPeriod.NONE:
        raise InvalidInput(
            [
                FieldViolation(
                    f"{field}.recurrence.request_confirmation",
                    f"is set with aggregation_period {period.name}: only with NONE can each child be confirmed",
                ),
                FieldViolation(
                    f"{field}.recurrence.aggregation_period",
                    f"is {period.name} with request_confirmation: give NONE, or don't request confirmations",
                ),
            ]
        )
    return Recurrence(
        rule=given.rule,
        end=parse_local_time("recurrence.local_end_time", given.local_end_time) if given.local_end_time else None,
        aggregation_period=period,
        request_confirmation=given.request_confirmation,
        max_lateness=_max_lateness(given, settings),
    )


def _max_lateness(given: schedule_pb2.Recurrence, settings: Settings) -> timedelta:
    if not given.HasField("max_lateness"):
        return timedelta(seconds=settings.recurrence_max_lateness_default_seconds)
    limit = settings.recurrence_max_lateness_limit_seconds
    seconds = given.max_lateness.seconds + given.max_lateness.nanos / 1e9
    if not _LATENESS_SECONDS_MIN <= seconds <= limit:
        raise ScheduleProblem(
            "recurrence.max_lateness", f"is {seconds:g} s: give {_LATENESS_SECONDS_MIN} to {limit:g} s"
        )
    return timedelta(seconds=seconds)
