"""When an alert is raised: rules over one sample."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from delivery_service.domain.alerts import Alert, AlertCause, AlertLimits, AlertSample, alerts
from delivery_service.domain.breaker import PauseCause
from delivery_service.domain.domain_pauses import DomainPause
from delivery_service.domain.lifecycle import DeliveryState

NOW = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
LIMITS = AlertLimits(
    start_pending=timedelta(minutes=20),
    soft_share=0.05,
    hard_share=0.05,
    sample_min=50,
    throughput_messages_per_hour=1_000,
    throughput_after=timedelta(minutes=20),
    throughput_below_share=0.8,
    silence=timedelta(hours=1),
)
WELL = AlertSample(
    delivery_id=1,
    label="all is well",
    state=DeliveryState.IN_PROGRESS,
    due_time=NOW - timedelta(hours=1),
    start_time=NOW - timedelta(hours=1),
    to_deliver=10_000,
    handed_over=5_000,
    relayed=100,
    soft=10,
    hard=10,
    newest_event_time=NOW,
    validity_closed=False,
)


def found(sample: AlertSample, limits: AlertLimits = LIMITS) -> list[Alert]:
    return list(alerts(sample, limits, NOW))


def test_nothing_is_raised_while_all_is_well() -> None:
    assert found(WELL) == []


@pytest.mark.parametrize(
    ("sample", "cause"),
    [
        (replace(WELL, state=DeliveryState.PREPARATION_FAILED), AlertCause.PREPARATION_FAILED),
        (replace(WELL, state=DeliveryState.START_PENDING), AlertCause.START_PENDING),
        (replace(WELL, soft=251), AlertCause.SOFT_BOUNCES),
        (replace(WELL, hard=251), AlertCause.HARD_BOUNCES),
        (replace(WELL, handed_over=999), AlertCause.LOW_THROUGHPUT),
        (replace(WELL, relayed=2_501, newest_event_time=NOW - timedelta(hours=1)), AlertCause.FEEDBACK_SILENT),
        (
            replace(WELL, state=DeliveryState.PAUSED, pause_cause=PauseCause.COMPLAINTS),
            AlertCause.PAUSED_BY_BREAKER,
        ),
    ],
    ids=lambda value: value.name if isinstance(value, AlertCause) else "",
)
def test_each_cause_is_found(sample: AlertSample, cause: AlertCause) -> None:
    (alert,) = found(sample)
    assert alert.cause is cause
    assert alert.detail


@pytest.mark.parametrize(
    "sample",
    [
        replace(WELL, state=DeliveryState.START_PENDING, due_time=NOW - timedelta(minutes=19)),
        replace(WELL, soft=250, hard=250),
        replace(WELL, handed_over=49, to_deliver=50, soft=49, hard=0),
        replace(WELL, handed_over=0, to_deliver=0, relayed=0, soft=0, hard=0, newest_event_time=None),
        replace(WELL, handed_over=999, start_time=NOW - timedelta(minutes=19)),
        replace(WELL, handed_over=400, to_deliver=500),
        replace(WELL, handed_over=600, paced_messages_per_hour=1_000),
        replace(WELL, relayed=5_000),
        replace(WELL, relayed=5_000, newest_event_time=NOW - timedelta(days=5), validity_closed=True),
        replace(WELL, state=DeliveryState.PAUSED, pause_cause=PauseCause.COMMAND),
    ],
)
def test_what_is_within_its_limit_raises_nothing(sample: AlertSample) -> None:
    assert found(sample) == []


def test_a_share_of_zero_switches_its_rule_off() -> None:
    assert found(replace(WELL, soft=5_000), replace(LIMITS, soft_share=0)) == []


def test_domains_that_the_breaker_paused_are_one_alert_and_those_of_a_person_none() -> None:
    by_breaker = [
        DomainPause(f"domain{i}.example", "circuit breaker", NOW, PauseCause.HARD_BOUNCES, "61 of 1,000 bounced hard")
        for i in range(12)
    ]
    by_person = DomainPause("person.example", "someone", NOW)
    (alert,) = found(replace(WELL, paused_domains=(*by_breaker, by_person)))
    assert alert.cause is AlertCause.PAUSED_BY_BREAKER
    assert "domain0.example: 61 of 1,000 bounced hard; domain1.example" in alert.detail
    assert alert.detail.endswith("and 2 more")
    assert found(replace(WELL, paused_domains=(by_person,))) == []
