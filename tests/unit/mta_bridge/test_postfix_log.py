"""The times of syslog, which leave out the year and the zone."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from mta_bridge.domain.postfix_log import PostfixLog
from mta_bridge.domain.reports import Report
from mta_bridge.domain.tokens import Tokens
from service_runtime.clock import to_microseconds

PARIS = ZoneInfo("Europe/Paris")


def time_of(stamp: str, now: datetime) -> int:
    log = PostfixLog(Tokens([b"a key that only the tests know"]), lambda _: None, lambda _: "7-1", PARIS)
    status = "to=<a@mail.test>, relay=mx.test[192.0.2.1]:25, delay=0.2, dsn=2.0.0, status=sent (250 ok)"
    found = log.read(f"{stamp} mta postfix/smtp[17]: 4jXx9m1RCqz0001: {status}", now)
    assert isinstance(found, Report)
    return found.event_time_us


@pytest.mark.parametrize(
    ("stamp", "now", "written"),
    [
        ("Mar  3 10:00:00", datetime(2026, 3, 3, 9, 0, 5, tzinfo=UTC), datetime(2026, 3, 3, 10, tzinfo=PARIS)),
        ("Dec 31 23:59:59", datetime(2027, 1, 1, 8, tzinfo=UTC), datetime(2026, 12, 31, 23, 59, 59, tzinfo=PARIS)),
        # The year has begun where the log is written, and not yet in UTC.
        ("Jan  1 00:30:00", datetime(2026, 12, 31, 23, 30, 1, tzinfo=UTC), datetime(2027, 1, 1, 0, 30, tzinfo=PARIS)),
        ("Feb 29 12:00:00", datetime(2029, 1, 5, tzinfo=UTC), datetime(2028, 2, 29, 12, tzinfo=PARIS)),
        ("2026-03-03T10:00:00.5+01:00", datetime(2026, 3, 4, tzinfo=UTC), datetime(2026, 3, 3, 9, 0, 0, 500_000, UTC)),
    ],
)
def test_a_stamp_is_of_the_last_such_day(stamp: str, now: datetime, written: datetime) -> None:
    assert time_of(stamp, now) == to_microseconds(written)


@pytest.mark.parametrize("stamp", ["Feb 30 12:00:00", "Abc  1 12:00:00", "2026-13-45Tnoon"])
def test_a_stamp_that_is_no_time_costs_only_its_own_line(stamp: str) -> None:
    """FeedbackService rejects the event by itself. A reader that ended would read the same line again, for ever."""
    assert time_of(stamp, datetime(2026, 3, 3, tzinfo=UTC)) == 0
