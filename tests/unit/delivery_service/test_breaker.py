"""When a delivery pauses by itself."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from delivery_service.domain.breaker import PauseCause, Sample, Thresholds, may_trip, trip

THRESHOLDS = Thresholds(hard_bounce_share=0.05, complaint_share=0.001, sample_min=1_000)
NOTHING: frozenset[PauseCause] = frozenset()


@pytest.mark.parametrize(
    ("sample", "cause"),
    [
        (Sample(1_000, 49, 0), None),
        (Sample(1_000, 50, 0), PauseCause.HARD_BOUNCES),
        (Sample(999, 999, 999), None),
        (Sample(1_000, 0, 1), PauseCause.COMPLAINTS),
        (Sample(10_000, 0, 9), None),
        (Sample(10_000, 500, 10), PauseCause.HARD_BOUNCES),
    ],
)
def test_it_trips_at_the_threshold_and_not_below_the_sample(sample: Sample, cause: PauseCause | None) -> None:
    found = trip(sample, THRESHOLDS, NOTHING)
    assert (found.cause if found else None) == cause


def test_a_cause_that_was_overruled_does_not_trip_again_and_the_other_does() -> None:
    found = trip(Sample(10_000, 5_000, 5_000), THRESHOLDS, frozenset({PauseCause.HARD_BOUNCES}))
    assert found is not None
    assert found.cause is PauseCause.COMPLAINTS
    assert trip(Sample(10_000, 5_000, 5_000), THRESHOLDS, frozenset(PauseCause)) is None


def test_a_share_of_zero_switches_a_rule_off() -> None:
    assert trip(Sample(10_000, 10_000, 10_000), Thresholds(0, 0, 1), NOTHING) is None


def test_the_detail_gives_numbers_and_threshold() -> None:
    found = trip(Sample(1_000, 61, 0), THRESHOLDS, NOTHING)
    assert found is not None
    assert found.detail == "61 of 1,000 bounced hard: the threshold is 5.00%"


@pytest.mark.parametrize(
    ("known", "may"),
    [
        (Sample(0, 49, 0), False),  # not even if the least that is judged were all
        (Sample(0, 50, 0), True),
        (Sample(1_100, 50, 0), False),  # it was more already
        (Sample(1_100, 55, 0), True),
        (Sample(0, 0, 1), True),
    ],
)
def test_an_older_count_of_what_was_handed_over_tells_what_need_not_be_counted_anew(known: Sample, may: bool) -> None:
    assert may_trip(known, THRESHOLDS, NOTHING) is may


@given(
    older=st.integers(0, 20_000), more=st.integers(0, 20_000), hard=st.integers(0, 2_000), complained=st.integers(0, 20)
)
def test_what_may_not_trip_by_an_older_count_does_not_by_the_true_one(
    older: int, more: int, hard: int, complained: int
) -> None:
    if trip(Sample(older + more, hard, complained), THRESHOLDS, NOTHING):
        assert may_trip(Sample(older, hard, complained), THRESHOLDS, NOTHING)


def test_the_least_number_of_failures_that_can_trip_is_the_share_of_the_sample() -> None:
    assert (THRESHOLDS.hard_bounces_min, THRESHOLDS.complaints_min) == (50, 1)
    assert (Thresholds(0, 0, 1_000).hard_bounces_min, Thresholds(0, 0, 1_000).complaints_min) == (0, 0)
