"""When a recipient domain leaves its baseline."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from delivery_service.domain.outage_guard import DomainResults, GuardLimits, describe, leaves_baseline

LIMITS = GuardLimits(hard_bounces_min=100, share_min=0.2, factor=5.0)
USUAL = DomainResults(delivered=9_800, hard=200)  # 2 %


@pytest.mark.parametrize(
    ("recent", "usual", "left"),
    [
        (DomainResults(0, 99), USUAL, False),  # too few to tell
        (DomainResults(0, 100), USUAL, True),
        (DomainResults(401, 100), USUAL, False),  # below the least share
        (DomainResults(400, 100), USUAL, True),
        (DomainResults(400, 100), DomainResults(900, 100), False),  # 20 % of late, usual are 10 %
        (DomainResults(100, 100), DomainResults(900, 100), True),
        (DomainResults(0, 100), DomainResults(0, 0), True),  # a domain of which nothing is known
        (DomainResults(0, 100), DomainResults(100, 100), False),  # a domain that is always like that
    ],
)
def test_a_domain_leaves_its_baseline(recent: DomainResults, usual: DomainResults, left: bool) -> None:
    assert leaves_baseline(recent, usual, LIMITS) is left


def test_no_domain_is_guarded_when_the_guard_is_off() -> None:
    assert not leaves_baseline(DomainResults(0, 10**6), USUAL, GuardLimits(0, 0.2, 5.0))


@given(st.integers(0, 1_000), st.integers(0, 1_000), st.integers(0, 1_000), st.integers(0, 1_000))
def test_more_hard_bounces_never_end_a_suspicion(delivered: int, hard: int, before: int, hard_before: int) -> None:
    usual = DomainResults(before, hard_before)
    if leaves_baseline(DomainResults(delivered, hard), usual, LIMITS):
        assert leaves_baseline(DomainResults(delivered, hard + 1), usual, LIMITS)


def test_a_person_is_told_the_numbers() -> None:
    assert describe(DomainResults(400, 100), USUAL) == "100 of 500 bounced hard (20.0%); usual are 2.0%"
