"""Recurrence rules of RFC 5545: read, checked and bounded here, expanded by dateutil.

The rule speaks of nominal local times; each stands for one instant (domain/schedule.py). Nominal times that fall on one
instant, since the clocks skip some of them, are one occurrence: the last of them.

The work of expanding a rule is bounded, whatever the rule:
- FREQ is HOURLY at the least, a count is bounded, and where dateutil would look at every hour without ever finding
  anything (BYSETPOS with HOURLY or DAILY) the rule is refused.
- dateutil looks for the next occurrence up to the year 9999. The calendar repeats every 400 years to the day and the
  weekday, so rules are expanded in the last centuries of that time: a rule that can't occur is found out after a few of
  them, not after eighty. And before a rule looks at every day or hour of them, the days that it wants are looked for
  year by year.
- A rule without a count is not expanded from its beginning, but from a little before the time that is asked about.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from enum import IntEnum
from itertools import islice
from typing import Any, Final

from dateutil.rrule import DAILY, HOURLY, MONTHLY, WEEKLY, YEARLY, rrule, weekday

from delivery_service.domain.schedule import (
    AggregationPeriod,
    LocalTimeKind,
    Recurrence,
    Schedule,
    ScheduleProblem,
    resolve,
    zone,
)

_FREQUENCIES: Final = {"YEARLY": YEARLY, "MONTHLY": MONTHLY, "WEEKLY": WEEKLY, "DAILY": DAILY, "HOURLY": HOURLY}
_UNITS: Final = {HOURLY: timedelta(hours=1), DAILY: timedelta(days=1), WEEKLY: timedelta(weeks=1)}
_WEEKDAYS: Final = {name: number for number, name in enumerate(("MO", "TU", "WE", "TH", "FR", "SA", "SU"))}
_BYDAY: Final = re.compile(r"([+-]?[1-9]\d?)?(MO|TU|WE|TH|FR|SA|SU)")
_UNTIL: Final = re.compile(r"(\d{8})(?:T(\d{6})(Z?))?")
_LISTS: Final = {  # the part, dateutil's name of it, its range, whether from the end too
    "BYMONTH": ("bymonth", 1, 12, False),
    "BYMONTHDAY": ("bymonthday", 1, 31, True),
    "BYYEARDAY": ("byyearday", 1, 366, True),
    "BYWEEKNO": ("byweekno", 1, 53, True),
    "BYHOUR": ("byhour", 0, 23, False),
    "BYMINUTE": ("byminute", 0, 59, False),
    "BYSECOND": ("bysecond", 0, 59, False),
    "BYSETPOS": ("bysetpos", 1, 366, True),
}
_DAY_LIMITS: Final = ("bymonth", "bymonthday", "byweekday")
"""To HOURLY and DAILY rules they say which days are wanted, as they do to a YEARLY one."""
_MINUTES_MAX: Final = 6
_INTERVAL_MAX: Final = 1_000
_CYCLE_YEARS: Final = 400
_LAST_CYCLE_BEGINS: Final = 9_600
_MARGIN: Final = timedelta(days=2)
"""More than a nominal time and its instant are ever apart, the days that zones have skipped included."""


class OccurrenceState(IntEnum):
    """What became of an occurrence; the numbers are stored."""

    DUE = 1
    SPAWNED = 2
    SKIPPED = 3
    AGGREGATED = 4


@dataclass(frozen=True, slots=True)
class Occurrence:
    """One occurrence: its nominal local time (naive), and the instant that it stands for."""

    local_time: datetime
    due_time: datetime
    kind: LocalTimeKind


def check_recurrence(schedule: Schedule, *, rule_characters_max: int, count_max: int) -> Occurrence:
    """The first occurrence of a schedule's recurrence; ScheduleProblem if there is something wrong with it."""
    recurrence = schedule.recurrence
    assert recurrence is not None
    if len(recurrence.rule) > rule_characters_max:
        raise ScheduleProblem(
            "recurrence.rule", f"has {len(recurrence.rule)} characters: at most {rule_characters_max} are allowed"
        )
    count = _parts(recurrence.rule).get("count", 0)
    if count > count_max:
        raise ScheduleProblem("recurrence.rule", f"has COUNT={count}: at most {count_max} are allowed")
    first = next(iter(occurrences(schedule, None, 1)), None)
    if first is None:
        raise ScheduleProblem("recurrence.rule", "never occurs from local_time on: correct the rule, or its end")
    return first


def occurrences(schedule: Schedule, after: datetime | None, limit: int) -> list[Occurrence]:
    """The next occurrences after an instant (None: from the first on), at most `limit`."""
    return list(islice(_distinct(_resolved(schedule, after)), limit))


def period_of(period: AggregationPeriod, local_time: datetime) -> date | None:
    """The first day of the aggregation period that a local time is in; None without aggregation."""
    day = local_time.date()
    match period:
        case AggregationPeriod.NONE:
            return None
        case AggregationPeriod.DAY:
            return day
        case AggregationPeriod.WEEK:
            return day - timedelta(days=day.weekday())
        case AggregationPeriod.MONTH:
            return day.replace(day=1)


def _resolved(schedule: Schedule, after: datetime | None) -> Iterator[Occurrence]:
    assert schedule.recurrence is not None
    time_zone = zone(schedule.time_zone)
    beginning = schedule.local_time
    if after is not None:
        beginning = max(beginning, after.astimezone(time_zone).replace(tzinfo=None) - _MARGIN)
    for local_time in _nominal(schedule, schedule.recurrence, beginning):
        resolved = resolve(local_time, time_zone)
        if after is None or resolved.instant > after:
            yield Occurrence(local_time, resolved.instant, resolved.kind)


def _distinct(found: Iterator[Occurrence]) -> Iterator[Occurrence]:
    """Of several at one instant the last."""
    held: Occurrence | None = None
    for occurrence in found:
        if held is not None and held.due_time != occurrence.due_time:
            yield held
        held = occurrence
    if held is not None:
        yield held


def _nominal(schedule: Schedule, recurrence: Recurrence, beginning: datetime) -> Iterator[datetime]:
    """The nominal local times from `beginning` on."""
    parts = _parts(recurrence.rule)
    start = schedule.local_time
    until = _until(parts.pop("until", None), schedule)
    if recurrence.end is not None:
        until = min(until or recurrence.end, recurrence.end)
    unit = _UNITS.get(parts["freq"])
    if unit is not None and "count" not in parts:
        step = unit * parts.get("interval", 1)
        start += max(0, (beginning - start) // step - 1) * step
    shift = max(0, _LAST_CYCLE_BEGINS - start.year) // _CYCLE_YEARS * _CYCLE_YEARS
    beginning_shifted = _shifted(start, shift)
    wanted_days = {name: parts[name] for name in _DAY_LIMITS if name in parts}
    if unit is not None and wanted_days and next(iter(rrule(YEARLY, beginning_shifted, **wanted_days)), None) is None:
        return
    try:
        expanded = rrule(dtstart=beginning_shifted, **parts)
    except ValueError:  # hours that the interval never meets
        return
    for shifted in expanded:
        local_time = _shifted(shifted, -shift)
        if until is not None and local_time > until:
            return
        if local_time >= beginning:
            yield local_time


def _shifted(moment: datetime, years: int) -> datetime:
    """The same day of the same week, whole cycles of the calendar away."""
    return moment.replace(year=moment.year + years)


def _until(text: str | None, schedule: Schedule) -> datetime | None:
    if text is None:
        return None
    found = _UNTIL.fullmatch(text)
    try:
        assert found is not None
        day, time, utc = found.groups()
        if time is None:  # that day still counts
            return datetime.strptime(day, "%Y%m%d") + timedelta(hours=23, minutes=59, seconds=59)  # noqa: DTZ007
        moment = datetime.strptime(day + time, "%Y%m%d%H%M%S")  # noqa: DTZ007
        if not utc:
            return moment
        return moment.replace(tzinfo=UTC).astimezone(zone(schedule.time_zone)).replace(tzinfo=None)
    except (AssertionError, ValueError, OverflowError):
        raise _wrong(f"UNTIL={text[:30]} is not a time: write it as 20261231T235959Z") from None


def _parts(rule: str) -> dict[str, Any]:
    """The parts of a rule, as dateutil takes them, but for `until`, which is still a text; ScheduleProblem."""
    found: dict[str, str] = {}
    for part in rule.upper().removeprefix("RRULE:").split(";"):
        name, equals, value = part.partition("=")
        if not equals or not value:
            raise _wrong(f"{part[:30]!r} is not NAME=VALUE")
        if name in found:
            raise _wrong(f"{name[:30]} comes twice")
        found[name] = value
    result: dict[str, Any] = {}
    for name, value in found.items():
        match name:
            case "FREQ":
                if value not in _FREQUENCIES:
                    raise _wrong(f"FREQ={value[:30]} is not one of {', '.join(_FREQUENCIES)}")
                result["freq"] = _FREQUENCIES[value]
            case "INTERVAL":
                result["interval"] = _number(name, value, 1, _INTERVAL_MAX)
            case "COUNT":
                result["count"] = _number(name, value, 1, 10**9)
            case "UNTIL":
                if _UNTIL.fullmatch(value) is None:
                    raise _wrong(f"UNTIL={value[:30]} is not a time: write it as 20261231T235959Z")
                result["until"] = value
            case "WKST":
                if value not in _WEEKDAYS:
                    raise _wrong(f"WKST={value[:30]} is not a weekday: write MO, TU, …")
                result["wkst"] = _WEEKDAYS[value]
            case "BYDAY":
                result["byweekday"] = [_weekday(each) for each in value.split(",")]
            case _ if name in _LISTS:
                argument, low, high, from_the_end = _LISTS[name]
                numbers = [_number(name, each, -high if from_the_end else low, high) for each in value.split(",")]
                if low == 1 and 0 in numbers:
                    raise _wrong(f"{name} has a 0")
                result[argument] = sorted(set(numbers))
            case _:
                raise _wrong(f"{name[:30]} is not a part of a rule that is supported")
    if "freq" not in result:
        raise _wrong("has no FREQ")
    _require_sensible(result)
    return result


def _require_sensible(parts: dict[str, Any]) -> None:
    """What RFC 5545 rules out, and what could make endless work."""
    frequency = parts["freq"]
    if "count" in parts and "until" in parts:
        raise _wrong("has COUNT and UNTIL: give one of them")
    if len(parts.get("byminute", ())) > _MINUTES_MAX or len(parts.get("bysecond", ())) > 1:
        raise _wrong(f"occurs too often: at most {_MINUTES_MAX} values of BYMINUTE and one of BYSECOND are allowed")
    if frequency != YEARLY and ("byyearday" in parts or "byweekno" in parts):
        raise _wrong("has BYYEARDAY or BYWEEKNO: they need FREQ=YEARLY")
    if frequency == WEEKLY and "bymonthday" in parts:
        raise _wrong("has BYMONTHDAY, which FREQ=WEEKLY does not take")
    ordinals = any(day.n for day in parts.get("byweekday", ()))
    if ordinals and (frequency not in (YEARLY, MONTHLY) or "byweekno" in parts):
        raise _wrong("numbers a weekday, which needs FREQ=MONTHLY or YEARLY without BYWEEKNO")
    if "bysetpos" in parts:
        if frequency in (HOURLY, DAILY):
            raise _wrong("has BYSETPOS: it needs FREQ=WEEKLY, MONTHLY or YEARLY")
        if not any(name.startswith("by") and name != "bysetpos" for name in parts):
            raise _wrong("has BYSETPOS alone: it needs another BY part to choose from")


def _weekday(text: str) -> weekday:
    found = _BYDAY.fullmatch(text)
    if found is None or abs(int(found[1] or 1)) > 53:
        raise _wrong(f"BYDAY={text[:30]} is not a weekday: write MO, or 1MO, or -1FR")
    return weekday(_WEEKDAYS[found[2]], int(found[1]) if found[1] else None)


def _number(name: str, text: str, low: int, high: int) -> int:
    if re.fullmatch(r"[+-]?\d{1,9}", text) and low <= int(text) <= high:
        return int(text)
    raise _wrong(f"{name}={text[:30]} is not a number from {low} to {high}")


def _wrong(description: str) -> ScheduleProblem:
    return ScheduleProblem("recurrence.rule", f"{description}: correct the rule")
