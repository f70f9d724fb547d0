"""When a delivery starts: a local time in a zone, and the instant that it stands for.

A local time that the zone's clocks skip (a gap) stands for the first instant after the gap, one that comes twice (an
overlap) for the earlier one: so a send is never earlier than what was written, and there is always exactly one instant.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from typing import Final
from zoneinfo import ZoneInfo

_ZONE: Final = re.compile(r"[A-Za-z][A-Za-z0-9_+-]{0,30}(/[A-Za-z0-9_+-]{1,30}){0,3}")
_NOT_ZONES: Final = frozenset({"localtime", "posixrules", "Factory"})
"""Files beside the zones, some of them the machine's own setting."""
_LOCAL_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d)?")


class ScheduleProblem(ValueError):
    """A schedule can't be: the field of it that is wrong, and what to do."""

    def __init__(self, field: str, description: str) -> None:
        super().__init__(f"{field} {description}")
        self.field = field
        self.description = description


class LocalTimeKind(IntEnum):
    """How a zone's clocks treat a local time."""

    ORDINARY = 1
    GAP = 2
    OVERLAP = 3


class AggregationPeriod(IntEnum):
    """What one child of a recurring delivery holds; the numbers are stored."""

    NONE = 1
    DAY = 2
    WEEK = 3
    MONTH = 4


@dataclass(frozen=True, slots=True)
class Recurrence:
    """How a delivery recurs. `end` is a local time, the last one that counts."""

    rule: str
    end: datetime | None = None
    aggregation_period: AggregationPeriod = AggregationPeriod.NONE
    request_confirmation: bool = False
    max_lateness: timedelta = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Schedule:
    """A local time (naive) in a zone; with a recurrence, the time from which its rule counts."""

    local_time: datetime
    time_zone: str
    recurrence: Recurrence | None = None

    def canonical(self) -> str:
        """All of it in one text, for the plan's digest."""
        parts = [self.local_time.isoformat(), self.time_zone]
        if self.recurrence is not None:
            given = self.recurrence
            parts += [
                given.rule,
                given.end.isoformat() if given.end else "",
                given.aggregation_period.name,
                "to be confirmed" if given.request_confirmation else "by the system",
                str(given.max_lateness.total_seconds()),
            ]
        return "|".join(parts)


@dataclass(frozen=True, slots=True)
class Resolved:
    """The instant that a local time stands for, in UTC."""

    instant: datetime
    kind: LocalTimeKind


def zone(name: str) -> ZoneInfo:
    """An IANA zone by its name; ScheduleProblem."""
    if _ZONE.fullmatch(name) and name not in _NOT_ZONES:
        try:
            return ZoneInfo(name)
        except (KeyError, ValueError, OSError):  # unknown, malformed, a folder
            pass
    raise ScheduleProblem("time_zone", f"{name[:60]!r} is not an IANA time zone: give one such as Europe/Paris")


def parse_local_time(field: str, text: str) -> datetime:
    """A local time as it is written; ScheduleProblem."""
    if _LOCAL_TIME.fullmatch(text):
        try:
            return datetime.fromisoformat(text)
        except ValueError:
            pass
    raise ScheduleProblem(
        field, f"{text[:40]!r} is not a local time: write it as 2026-03-29T09:00:00, without an offset"
    )


def resolve(local_time: datetime, time_zone: ZoneInfo) -> Resolved:
    """The one instant that a local time stands for."""
    earlier = local_time.replace(tzinfo=time_zone, fold=0)
    later = local_time.replace(tzinfo=time_zone, fold=1)
    before, after = _offset(earlier), _offset(later)
    if before == after:
        return Resolved(earlier.astimezone(UTC), LocalTimeKind.ORDINARY)
    if before > after:
        return Resolved(earlier.astimezone(UTC), LocalTimeKind.OVERLAP)
    return Resolved(_end_of_gap(later, earlier, time_zone), LocalTimeKind.GAP)


def _end_of_gap(low: datetime, high: datetime, time_zone: ZoneInfo) -> datetime:
    """The first instant with the new offset. Read with the offset after the gap, a local time within it is an instant
    before the change; with the offset before it, one after the change."""
    new = _offset(low)
    first, last = int(low.astimezone(UTC).timestamp()), int(high.astimezone(UTC).timestamp())
    while last - first > 1:
        middle = (first + last) // 2
        if _offset(datetime.fromtimestamp(middle, time_zone)) == new:
            last = middle
        else:
            first = middle
    return datetime.fromtimestamp(last, UTC)


def _offset(moment: datetime) -> timedelta:
    offset = moment.utcoffset()
    assert offset is not None
    return offset
