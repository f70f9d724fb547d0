"""Local times and the instants that they stand for."""

# ruff: noqa: DTZ001  # local times have no zone

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from delivery_service.domain.schedule import LocalTimeKind, ScheduleProblem, parse_local_time, resolve, zone

PARIS = zone("Europe/Paris")
ZONES = ["Europe/Paris", "America/New_York", "Australia/Lord_Howe", "Pacific/Apia", "Asia/Kolkata", "UTC"]


def local(text: str) -> datetime:
    return parse_local_time("local_time", text)


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("zone_name", "local_time", "instant", "kind"),
    [
        ("Europe/Paris", "2026-03-02T09:00", "2026-03-02T08:00", LocalTimeKind.ORDINARY),
        ("Europe/Paris", "2026-07-02T09:00", "2026-07-02T07:00", LocalTimeKind.ORDINARY),
        # 02:00 to 03:00 does not exist: the first instant after it.
        ("Europe/Paris", "2026-03-29T01:59:59", "2026-03-29T00:59:59", LocalTimeKind.ORDINARY),
        ("Europe/Paris", "2026-03-29T02:00", "2026-03-29T01:00", LocalTimeKind.GAP),
        ("Europe/Paris", "2026-03-29T02:30", "2026-03-29T01:00", LocalTimeKind.GAP),
        ("Europe/Paris", "2026-03-29T03:00", "2026-03-29T01:00", LocalTimeKind.ORDINARY),
        # 02:00 to 03:00 comes twice: the earlier one.
        ("Europe/Paris", "2026-10-25T02:30", "2026-10-25T00:30", LocalTimeKind.OVERLAP),
        ("Europe/Paris", "2026-10-25T03:00", "2026-10-25T02:00", LocalTimeKind.ORDINARY),
        # Half an hour, and a whole day.
        ("Australia/Lord_Howe", "2026-10-04T02:15", "2026-10-03T15:30", LocalTimeKind.GAP),
        ("Pacific/Apia", "2011-12-30T09:00", "2011-12-30T10:00", LocalTimeKind.GAP),
    ],
)
def test_a_local_time_stands_for_one_instant(
    zone_name: str, local_time: str, instant: str, kind: LocalTimeKind
) -> None:
    resolved = resolve(local(local_time), zone(zone_name))

    assert (resolved.instant, resolved.kind) == (utc(instant), kind)


@settings(deadline=None)
@given(
    st.sampled_from(ZONES),
    st.datetimes(datetime(2000, 1, 1), datetime(2037, 12, 31)).map(lambda m: m.replace(microsecond=0)),
)
def test_an_instant_shows_the_local_time_unless_the_clocks_skip_it(zone_name: str, local_time: datetime) -> None:
    resolved = resolve(local_time, zone(zone_name))
    shown = resolved.instant.astimezone(zone(zone_name)).replace(tzinfo=None)

    if resolved.kind is LocalTimeKind.GAP:
        just_before = (resolved.instant - timedelta(seconds=1)).astimezone(zone(zone_name)).replace(tzinfo=None)
        assert just_before < local_time < shown or local_time == just_before + timedelta(seconds=1)
    else:
        assert shown == local_time


@settings(deadline=None)
@given(
    st.sampled_from(ZONES),
    st.datetimes(datetime(2026, 1, 1), datetime(2026, 12, 31)),
    st.timedeltas(timedelta(0), timedelta(days=3)),
)
def test_a_later_local_time_never_stands_for_an_earlier_instant(
    zone_name: str, local_time: datetime, step: timedelta
) -> None:
    earlier = resolve(local_time.replace(microsecond=0), zone(zone_name))
    later = resolve((local_time + step).replace(microsecond=0), zone(zone_name))

    assert earlier.instant <= later.instant


@pytest.mark.parametrize(
    "name", ["", "Nowhere/City", "Europe", "../etc/passwd", "/etc/localtime", "localtime", "Europe/Paris\n", "x" * 500]
)
def test_what_is_no_zone_is_refused(name: str) -> None:
    with pytest.raises(ScheduleProblem) as problem:
        zone(name)

    assert problem.value.field == "time_zone"


@pytest.mark.parametrize(
    "text", ["", "tomorrow", "2026-03-29", "2026-03-29T09:00:00Z", "2026-03-29T09:00+02:00", "2026-02-30T09:00"]
)
def test_what_is_no_local_time_is_refused(text: str) -> None:
    with pytest.raises(ScheduleProblem) as problem:
        parse_local_time("recurrence.local_end_time", text)

    assert problem.value.field == "recurrence.local_end_time"
