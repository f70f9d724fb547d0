"""Where ranges end."""

from datetime import UTC, datetime, timedelta

from delivery_service.domain.identifiers import creation_time, first_id_at, new_delivery_id
from delivery_service.domain.retention import OpenRange, RangeKind, next_range

NOW = datetime(2026, 11, 29, 9, 0, tzinfo=UTC)
SPAN, AHEAD = timedelta(days=91), timedelta(days=7)


def opened(begin: datetime, newest: datetime | None = None) -> OpenRange:
    return OpenRange(RangeKind.LOG, first_id_at(begin), None if newest is None else first_id_at(newest))


def test_an_id_tells_when_it_was_made() -> None:
    assert creation_time(new_delivery_id(NOW, 12345)) == NOW
    assert first_id_at(NOW) <= new_delivery_id(NOW, 0) < first_id_at(NOW + timedelta(milliseconds=1))


def test_no_range_is_made_before_its_time() -> None:
    assert next_range(opened(NOW + AHEAD + timedelta(seconds=1)), SPAN, NOW, AHEAD) is None


def test_a_range_is_made_ahead_of_its_first_delivery_and_ends_at_a_multiple_of_the_span() -> None:
    new = next_range(opened(NOW + AHEAD), SPAN, NOW, AHEAD)

    assert new is not None
    end = creation_time(new.end_id)
    assert NOW + AHEAD < end <= NOW + AHEAD + SPAN
    assert (end - datetime(1970, 1, 1, tzinfo=UTC)) % SPAN == timedelta()
    assert new.suffix == f"from_{end:%Y%m%d}"


def test_a_range_that_nobody_made_in_time_ends_behind_its_newest_delivery() -> None:
    newest = NOW + timedelta(days=1_000)  # of a replica whose clock is far ahead

    new = next_range(opened(NOW, newest), SPAN, NOW, AHEAD)

    assert new is not None
    assert first_id_at(newest) < new.end_id <= first_id_at(newest + SPAN)
    # And the range behind it waits for its time.
    assert next_range(OpenRange(RangeKind.LOG, new.end_id, None), SPAN, NOW, AHEAD) is None
