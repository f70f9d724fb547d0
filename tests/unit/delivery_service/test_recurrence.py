"""Recurrence rules: what they expand to, what is refused, and how much work they can make."""

# ruff: noqa: DTZ001  # local times have no zone

from contextlib import suppress
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from itertools import islice
from typing import Any

import pytest
from dateutil.rrule import rrulestr
from hypothesis import given, settings
from hypothesis import strategies as st

from delivery_service.domain import recurrence
from delivery_service.domain.recurrence import Occurrence, check_recurrence, occurrences, period_of
from delivery_service.domain.schedule import (
    AggregationPeriod,
    LocalTimeKind,
    Recurrence,
    Schedule,
    ScheduleProblem,
    resolve,
)

START = datetime(2026, 3, 27, 2, 30)


def schedule(rule: str, start: datetime = START, zone: str = "Europe/Paris", end: datetime | None = None) -> Schedule:
    return Schedule(start, zone, Recurrence(rule, end))


def check(given_schedule: Schedule) -> Occurrence:
    return check_recurrence(given_schedule, rule_characters_max=500, count_max=10_000)


def local_times(found: list[Occurrence]) -> list[str]:
    return [occurrence.local_time.isoformat(timespec="minutes") for occurrence in found]


def test_a_daily_rule_keeps_its_local_time_over_both_changes_of_the_clocks() -> None:
    spring = occurrences(schedule("FREQ=DAILY"), None, 4)
    autumn = occurrences(schedule("FREQ=DAILY"), datetime(2026, 10, 24, tzinfo=UTC), 3)

    assert [o.due_time.isoformat() for o in spring] == [
        "2026-03-27T01:30:00+00:00",
        "2026-03-28T01:30:00+00:00",
        "2026-03-29T01:00:00+00:00",  # 02:30 is skipped that night
        "2026-03-30T00:30:00+00:00",
    ]
    assert [o.kind for o in spring[1:]] == [LocalTimeKind.ORDINARY, LocalTimeKind.GAP, LocalTimeKind.ORDINARY]
    assert [o.due_time.hour for o in autumn] == [0, 0, 1]
    assert [o.kind for o in autumn[:2]] == [LocalTimeKind.ORDINARY, LocalTimeKind.OVERLAP]


def test_nominal_times_that_fall_on_one_instant_are_one_occurrence() -> None:
    night = schedule("FREQ=HOURLY;BYMINUTE=0,30", datetime(2026, 3, 29, 1, 0))

    found = occurrences(night, None, 5)

    # 02:00 and 02:30 stand for the same instant as 03:00.
    assert [t[11:] for t in local_times(found)] == ["01:00", "01:30", "03:00", "03:30", "04:00"]
    assert len({occurrence.due_time for occurrence in found}) == 5


def test_an_hourly_rule_sends_once_in_the_hour_that_comes_twice() -> None:
    night = schedule("FREQ=HOURLY", datetime(2026, 10, 25, 1, 0))

    assert [o.due_time.hour for o in occurrences(night, None, 4)] == [23, 0, 2, 3]


@pytest.mark.parametrize(
    ("rule", "end", "last"),
    [
        ("FREQ=DAILY;COUNT=3", None, "2026-03-29T02:30"),
        ("FREQ=DAILY;UNTIL=20260329", None, "2026-03-29T02:30"),
        ("FREQ=DAILY;UNTIL=20260329T023000", None, "2026-03-29T02:30"),
        ("FREQ=DAILY;UNTIL=20260329T022959", None, "2026-03-28T02:30"),
        ("FREQ=DAILY;UNTIL=20260328T013000Z", None, "2026-03-28T02:30"),
        ("FREQ=DAILY;UNTIL=20260328T012959Z", None, "2026-03-27T02:30"),
        ("FREQ=DAILY", datetime(2026, 3, 28, 2, 30), "2026-03-28T02:30"),
        ("FREQ=DAILY;COUNT=9", datetime(2026, 3, 28, 2, 30), "2026-03-28T02:30"),
    ],
)
def test_a_rule_ends_where_it_says(rule: str, end: datetime | None, last: str) -> None:
    assert local_times(occurrences(schedule(rule, end=end), None, 100))[-1] == last


def test_the_first_time_is_an_occurrence_only_if_the_rule_says_so() -> None:
    assert check(schedule("FREQ=WEEKLY;BYDAY=MO")).local_time == datetime(2026, 3, 30, 2, 30)


RULES = [
    "FREQ=HOURLY;INTERVAL=5",
    "FREQ=HOURLY;INTERVAL=2;BYDAY=MO,WE;BYHOUR=3,9,14",
    "FREQ=HOURLY;BYMONTH=2,7;BYMONTHDAY=-1;BYMINUTE=0,15",
    "FREQ=DAILY;INTERVAL=3",
    "FREQ=DAILY;BYDAY=SA,SU;BYHOUR=8,20",
    "FREQ=DAILY;INTERVAL=2;BYMONTHDAY=1,15,-1",
    "FREQ=WEEKLY;INTERVAL=2;BYDAY=SU,MO,TH;WKST=SU",
    "FREQ=WEEKLY;BYDAY=MO,TU,WE,TH,FR;BYSETPOS=-1",
    "FREQ=WEEKLY;INTERVAL=3;BYMONTH=1,6",
    "FREQ=MONTHLY;BYDAY=-1FR",
    "FREQ=MONTHLY;BYMONTHDAY=31",
    "FREQ=MONTHLY;INTERVAL=5;BYDAY=MO,TU,WE,TH,FR;BYSETPOS=1,-1",
    "FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=29",
    "FREQ=YEARLY;BYWEEKNO=1,53;BYDAY=WE",
    "FREQ=YEARLY;BYYEARDAY=-1,100",
    "FREQ=DAILY;COUNT=400",
    "FREQ=HOURLY;INTERVAL=11;COUNT=2000",
]


@pytest.mark.parametrize("rule", RULES)
@settings(deadline=None, max_examples=8)
@given(
    start=st.datetimes(datetime(2024, 1, 1), datetime(2031, 12, 31)).map(lambda m: m.replace(microsecond=0)),
    after=st.timedeltas(timedelta(0), timedelta(days=70)),  # the plain expansion of hours is slow
)
def test_the_short_cuts_give_what_plain_expansion_gives(rule: str, start: datetime, after: timedelta) -> None:
    # In UTC, where nominal times are instants.
    beginning = start + after

    found = occurrences(schedule(rule, start, "UTC"), beginning.replace(tzinfo=UTC), 5)

    plain = (moment for moment in rrulestr(rule, dtstart=start) if moment > beginning)
    assert [occurrence.local_time for occurrence in found] == list(islice(plain, 5))


@pytest.mark.parametrize(
    "rule",
    [
        "FREQ=HOURLY;BYMONTH=2;BYMONTHDAY=30",
        "FREQ=DAILY;BYMONTH=4;BYMONTHDAY=31",
        "FREQ=DAILY;INTERVAL=7;BYDAY=MO",  # from a Friday
        "FREQ=WEEKLY;BYDAY=MO;BYSETPOS=200",
        "FREQ=MONTHLY;BYMONTH=2;BYMONTHDAY=31",
        "FREQ=MONTHLY;BYDAY=MO;BYSETPOS=6",
        "FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=30",
        "FREQ=YEARLY;BYYEARDAY=366;BYMONTH=1",
        "FREQ=HOURLY;INTERVAL=2;BYHOUR=3",  # from an even hour
        "FREQ=DAILY;UNTIL=20260101",
        "FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=30;BYHOUR=0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23",
    ],
)
@pytest.mark.timeout(30)
def test_a_rule_that_never_occurs_is_found_out_in_bounded_time(rule: str) -> None:
    with pytest.raises(ScheduleProblem, match="never occurs") as problem:
        check(schedule(rule))

    assert problem.value.field == "recurrence.rule"


def test_a_rule_without_a_count_is_not_expanded_from_its_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[Any] = []

    def counted(*given: Any) -> Any:
        looked_at.append(given)
        return resolve(*given)

    monkeypatch.setattr(recurrence, "resolve", counted)

    found = occurrences(schedule("FREQ=HOURLY"), datetime(2126, 3, 27, tzinfo=UTC), 2)

    assert found[0].due_time == datetime(2126, 3, 27, 0, 30, tzinfo=UTC)
    assert len(looked_at) < 200


@pytest.mark.parametrize(
    "rule",
    [
        "",
        "DAILY",
        "FREQ=",
        "FREQ=MINUTELY",
        "FREQ=SECONDLY",
        "BYDAY=MO",
        "FREQ=DAILY;FREQ=DAILY",
        "FREQ=DAILY;INTERVAL=0",
        "FREQ=DAILY;INTERVAL=1001",
        "FREQ=DAILY;COUNT=0",
        "FREQ=DAILY;COUNT=10001",
        "FREQ=DAILY;COUNT=3;UNTIL=20270101",
        "FREQ=DAILY;UNTIL=soon",
        "FREQ=DAILY;UNTIL=20261399",
        "FREQ=DAILY;BYHOUR=24",
        "FREQ=DAILY;BYMINUTE=0,1,2,3,4,5,6",
        "FREQ=DAILY;BYSECOND=0,30",
        "FREQ=DAILY;BYSETPOS=1;BYHOUR=9",
        "FREQ=MONTHLY;BYSETPOS=1",
        "FREQ=MONTHLY;BYMONTHDAY=0",
        "FREQ=WEEKLY;BYMONTHDAY=1",
        "FREQ=WEEKLY;BYDAY=1MO",
        "FREQ=WEEKLY;BYDAY=XX",
        "FREQ=MONTHLY;BYDAY=60MO",
        "FREQ=DAILY;BYWEEKNO=1",
        "FREQ=YEARLY;BYWEEKNO=1;BYDAY=1MO",
        "FREQ=YEARLY;BYEASTER=0",
        "FREQ=DAILY;WKST=1",
        "FREQ=DAILY;X-NAME=1",
        "FREQ=DAILY;;",
        "FREQ=DAILY\nRRULE:FREQ=DAILY",
        "FREQ=DAILY;BYHOUR=" + "1," * 300 + "1",
    ],
)
def test_a_rule_that_is_not_sound_is_refused_by_name(rule: str) -> None:
    with pytest.raises(ScheduleProblem) as problem:
        check(schedule(rule))

    assert problem.value.field == "recurrence.rule"


@settings(deadline=None)
@given(st.text(alphabet="FREQ=DAILYBUNTCO;,0123456789-+MOSEPH \n", max_size=60))
def test_any_text_is_a_rule_or_a_problem(text: str) -> None:
    with suppress(ScheduleProblem):
        check(schedule(f"FREQ=MONTHLY;{text}"))


@pytest.mark.parametrize(
    ("period", "first_day"),
    [
        (AggregationPeriod.NONE, None),
        (AggregationPeriod.DAY, date(2026, 3, 4)),
        (AggregationPeriod.WEEK, date(2026, 3, 2)),
        (AggregationPeriod.MONTH, date(2026, 3, 1)),
    ],
)
def test_a_period_is_known_by_its_first_day(period: AggregationPeriod, first_day: date | None) -> None:
    assert period_of(period, datetime(2026, 3, 4, 23, 59)) == first_day


def test_a_schedule_is_written_in_one_way() -> None:
    one = schedule("FREQ=DAILY")

    assert one.canonical() != replace(one, recurrence=None).canonical()
