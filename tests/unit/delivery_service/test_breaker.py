"""When a delivery pauses by itself."""

import pytest

from delivery_service.domain.breaker import PauseCause, Sample, Thresholds, trip

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
