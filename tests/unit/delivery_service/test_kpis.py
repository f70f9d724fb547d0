"""The KPI formulas: identities that hold for any counts, and the product's arithmetic."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from delivery_service.domain.kpis import Counts, DeliveryKpis, Engagement, EngagementRates
from delivery_service.domain.lifecycle import Channel, DeliveryState
from delivery_service.domain.outcome import FAILING, FailureType, Outcome
from delivery_service.domain.status import STATUS_OF, FeedbackMode, Status

NOW = datetime(2026, 3, 2, tzinfo=UTC)


def kpis(
    counts: Counts, *, channel: Channel = Channel.EMAIL, closed: bool = False, engagement: Engagement | None = None
) -> DeliveryKpis:
    return DeliveryKpis(
        delivery_id=1,
        channel=channel,
        state=DeliveryState.FINISHED,
        feedback_mode=FeedbackMode.WITH_EFS,
        slot_revisions=(3, 4),
        counts=counts,
        validity_closed=closed,
        engagement=engagement or Engagement(),
        commit_time=NOW,
        newest_event_time=None,
    )


@st.composite
def _counts(draw: st.DrawFn) -> Counts:
    by_outcome = {outcome: draw(st.integers(0, 50)) for outcome in Outcome}
    hard = {outcome: draw(st.integers(0, by_outcome[outcome])) for outcome in FAILING}
    ignored = {outcome: draw(st.integers(0, by_outcome[outcome] - hard[outcome])) for outcome in FAILING}
    return Counts(by_outcome, hard, ignored)


@given(_counts(), st.sampled_from(FeedbackMode), st.booleans())
def test_the_figures_are_consistent_whatever_the_counts(counts: Counts, mode: FeedbackMode, closed: bool) -> None:
    shown = kpis(counts, closed=closed).projection(mode)

    assert shown.processed == shown.delivered.count + shown.bounces_and_errors.count
    assert sum(shown.statuses.values()) == counts.to_deliver
    assert sum(shown.failures.values()) == shown.statuses[Status.FAILED] == shown.bounces_and_errors.count
    assert all(number >= 0 for number in shown.failures.values())
    assert shown.statuses[Status.SENT] == shown.delivered.count
    assert shown.delivered_min_final <= shown.delivered_max_final <= counts.to_deliver
    assert shown.delivered_min_final <= shown.delivered.count or mode is FeedbackMode.WITH_EFS
    for share in (shown.delivered, shown.bounces_and_errors):
        assert (share.rate is None) == (share.base == 0)
        assert 0 <= (share.rate or 0) <= 1
    if mode is FeedbackMode.WITHOUT_EFS and shown.processed:
        assert (shown.delivered.rate or 0) + (shown.bounces_and_errors.rate or 0) == pytest.approx(1)


@given(_counts())
def test_both_modes_agree_once_nothing_is_undecided(counts: Counts) -> None:
    decided = Counts({o: n for o, n in counts.by_outcome.items() if o > Outcome.DEFERRED or o is Outcome.CANCELED})
    one, other = (kpis(decided).projection(mode) for mode in FeedbackMode)

    assert one.final
    assert other.final
    assert one.delivered.count == other.delivered.count
    assert one.statuses == other.statuses


def test_with_efs_the_base_is_all_to_deliver_and_without_it_is_what_was_processed() -> None:
    counts = Counts({Outcome.PREPARED: 4, Outcome.RELAYED: 3, Outcome.DELIVERED: 2, Outcome.BOUNCED: 1})
    shown = kpis(counts)

    with_efs, without = shown.projection(FeedbackMode.WITH_EFS), shown.projection(FeedbackMode.WITHOUT_EFS)

    assert (with_efs.delivered.count, with_efs.delivered.base) == (2, 10)
    assert (with_efs.bounces_and_errors.count, with_efs.bounces_and_errors.base) == (1, 10)
    assert (without.delivered.count, without.delivered.base) == (5, 6)
    assert (without.bounces_and_errors.count, without.bounces_and_errors.base) == (1, 6)
    assert shown.handed_over == 6
    assert shown.revision == 7


def test_an_empty_delivery_has_no_rates() -> None:
    shown = kpis(Counts({})).projection(FeedbackMode.WITHOUT_EFS)

    assert shown.delivered.rate is None
    assert shown.opened.rate is None


def test_relayed_messages_are_undecided_until_the_validity_closes_and_then_unresolved() -> None:
    counts = Counts({Outcome.RELAYED: 5, Outcome.DELIVERED: 2})

    running, closed = kpis(counts), kpis(counts, closed=True)

    assert running.unresolved == 0
    assert running.projection(FeedbackMode.WITH_EFS).delivered_max_final == 7
    assert closed.unresolved == 5
    assert closed.projection(FeedbackMode.WITH_EFS).final
    assert closed.projection(FeedbackMode.WITH_EFS).delivered_min_final == 2
    assert closed.projection(FeedbackMode.WITHOUT_EFS).delivered_min_final == 7


def test_canceled_messages_stay_in_the_base_and_a_second_rate_leaves_them_out() -> None:
    counts = Counts({Outcome.CANCELED: 5, Outcome.DELIVERED: 5})
    shown = kpis(counts).projection(FeedbackMode.WITH_EFS)

    assert shown.delivered.rate == 0.5
    assert shown.delivered_of_not_canceled.rate == 1.0


def test_the_failures_split_counts_what_no_one_typed_as_soft() -> None:
    counts = Counts(
        {Outcome.DEFERRED: 3, Outcome.EXPIRED: 2, Outcome.BOUNCED: 6}, {Outcome.BOUNCED: 4}, {Outcome.DEFERRED: 1}
    )
    shown = kpis(counts)

    with_efs, without = (shown.projection(mode).failures for mode in FeedbackMode)

    assert with_efs == {FailureType.SOFT: 6, FailureType.HARD: 4, FailureType.IGNORED: 1}
    assert without == {FailureType.SOFT: 4, FailureType.HARD: 4, FailureType.IGNORED: 0}


def test_opened_and_clicked_are_rates_over_the_delivered_of_the_same_moment() -> None:
    engagement = Engagement(rates={FeedbackMode.WITH_EFS: EngagementRates(3, 1, 4)})
    shown = kpis(Counts({Outcome.DELIVERED: 100}), engagement=engagement).projection(FeedbackMode.WITH_EFS)

    assert (shown.opened.count, shown.opened.base) == (3, 4)
    assert shown.clicked is not None
    assert shown.clicked.rate == 0.25


def test_the_click_rate_and_efs_are_of_email_alone() -> None:
    shown = kpis(Counts({Outcome.RELAYED: 1}), channel=Channel.SMS)

    assert shown.modes() == (FeedbackMode.WITHOUT_EFS,)
    assert shown.projection(FeedbackMode.WITHOUT_EFS).clicked is None


def test_an_mta_clock_ahead_gives_no_negative_lag() -> None:
    ahead = DeliveryKpis(
        **{
            **{name: getattr(kpis(Counts({})), name) for name in DeliveryKpis.__dataclass_fields__},
            "newest_event_time": NOW + timedelta(hours=1),
        }
    )

    assert ahead.lag == timedelta()


def test_every_outcome_has_a_status_in_both_modes() -> None:
    for mode in FeedbackMode:
        assert set(STATUS_OF[mode]) == set(Outcome)
