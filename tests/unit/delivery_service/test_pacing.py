"""The pacing of a delivery: a token bucket over its own messages."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from delivery_service.domain.pacing import Grant, Pacing, grant

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_the_first_wave_goes_at_once() -> None:
    assert grant(Pacing(1_000, 600), 0, 0, None, NOW) == Grant(1_000, NOW)


def test_then_messages_go_at_an_even_rate() -> None:
    assert grant(Pacing(0, 3_600), 10, 10, NOW, NOW + timedelta(seconds=5)) == Grant(5, NOW + timedelta(seconds=5))


def test_a_fraction_of_a_message_stays_due() -> None:
    assert grant(Pacing(0, 60), 1, 1, NOW, NOW + timedelta(seconds=50)) == Grant(0, NOW)


def test_a_rate_of_less_than_one_a_minute_lets_messages_go() -> None:
    assert grant(Pacing(0, 2), 1, 1, NOW, NOW + timedelta(minutes=30)) == Grant(1, NOW + timedelta(minutes=30))


def test_after_a_long_pause_nothing_is_made_up_for_in_a_rush() -> None:
    later = NOW + timedelta(hours=5)
    assert grant(Pacing(0, 3_600), 10, 10, NOW, later) == Grant(60, later)


def test_nothing_more_goes_while_an_hours_worth_has_not_left() -> None:
    later = NOW + timedelta(seconds=30)
    assert grant(Pacing(0, 3_600), 3_700, 100, NOW, later) == Grant(0, later)


def test_a_clock_that_goes_back_lets_nothing_go() -> None:
    assert grant(Pacing(0, 3_600), 10, 10, NOW, NOW - timedelta(hours=1)).messages == 0


@given(
    rate=st.integers(1, 10_000),
    first=st.integers(0, 5_000),
    steps=st.lists(st.tuples(st.integers(0, 7_200_000), st.integers(0, 10_000)), max_size=30),
)
def test_no_hour_sees_more_than_the_first_wave_and_an_hours_worth(
    rate: int, first: int, steps: list[tuple[int, int]]
) -> None:
    pacing, now, until, granted, left = Pacing(first, rate), NOW, None, 0, 0
    for milliseconds, leaving in steps:
        now += timedelta(milliseconds=milliseconds)
        given_now = grant(pacing, granted, left, until, now)
        granted, until = granted + given_now.messages, given_now.time
        left = min(granted, left + leaving)
        assert granted <= first + rate * (now - NOW) / timedelta(hours=1) + 1
        assert granted - left <= max(first, rate)
