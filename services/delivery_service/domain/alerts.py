"""When to alert whoever looks after the sends. Pure rules over what is known of one delivery."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import IntEnum

from delivery_service.domain.breaker import PauseCause
from delivery_service.domain.domain_pauses import DomainPause
from delivery_service.domain.lifecycle import DeliveryState

_DOMAINS_TOLD_MAX = 10


class AlertCause(IntEnum):
    """What is wrong; the numbers are stored."""

    PREPARATION_FAILED = 1
    START_PENDING = 2
    SOFT_BOUNCES = 3
    HARD_BOUNCES = 4
    LOW_THROUGHPUT = 5
    FEEDBACK_SILENT = 6
    PAUSED_BY_BREAKER = 7
    OUTAGE_SUSPECTED = 8


@dataclass(frozen=True, slots=True)
class AlertLimits:
    """When is wrong. A share, or a rate, of 0 switches its rule off; below the sample no share is judged."""

    start_pending: timedelta
    soft_share: float
    hard_share: float
    sample_min: int
    throughput_messages_per_hour: int
    throughput_after: timedelta
    throughput_below_share: float
    """Of the messages handed over: once so many have left, how fast the rest does is no alarm."""
    silence: timedelta


@dataclass(frozen=True, slots=True)
class AlertSample:
    """What is known of a delivery."""

    delivery_id: int
    label: str
    state: DeliveryState
    due_time: datetime | None
    start_time: datetime | None
    to_deliver: int
    handed_over: int
    relayed: int
    soft: int
    hard: int
    newest_event_time: datetime | None
    validity_closed: bool
    pause_cause: PauseCause = PauseCause.NONE
    pause_detail: str = ""
    paced_messages_per_hour: int | None = None
    paused_domains: tuple[DomainPause, ...] = ()


@dataclass(frozen=True, slots=True)
class Alert:
    """One cause, in words for a person."""

    cause: AlertCause
    detail: str


def alerts(sample: AlertSample, limits: AlertLimits, now: datetime) -> Iterator[Alert]:
    """What is wrong with a delivery at this moment."""
    match sample.state:
        case DeliveryState.PREPARATION_FAILED:
            yield Alert(AlertCause.PREPARATION_FAILED, "its preparation failed: see plan.errors")
        case DeliveryState.START_PENDING if sample.due_time and now - sample.due_time >= limits.start_pending:
            yield Alert(AlertCause.START_PENDING, f"it was due at {sample.due_time:%H:%M:%S} UTC and has not started")
        case DeliveryState.PAUSED if sample.pause_cause > PauseCause.COMMAND:
            yield Alert(AlertCause.PAUSED_BY_BREAKER, f"the circuit breaker paused it: {sample.pause_detail}")
        case DeliveryState.IN_PROGRESS:
            yield from _broken_domains(sample)
            yield from _slow(sample, limits, now)
    yield from _bounces(sample, limits)
    yield from _silence(sample, limits, now)


def _broken_domains(sample: AlertSample) -> Iterator[Alert]:
    """One alert for all of them: it is raised once a day."""
    broken = [pause for pause in sample.paused_domains if pause.cause > PauseCause.COMMAND]
    if broken:
        told = "; ".join(f"{pause.recipient_domain}: {pause.detail}" for pause in broken[:_DOMAINS_TOLD_MAX])
        more = f" and {len(broken) - _DOMAINS_TOLD_MAX} more" if len(broken) > _DOMAINS_TOLD_MAX else ""
        yield Alert(AlertCause.PAUSED_BY_BREAKER, f"the circuit breaker paused recipient domains: {told}{more}")


def _bounces(sample: AlertSample, limits: AlertLimits) -> Iterator[Alert]:
    if sample.handed_over < limits.sample_min:
        return
    for cause, number, share, how in (
        (AlertCause.SOFT_BOUNCES, sample.soft, limits.soft_share, "softly"),
        (AlertCause.HARD_BOUNCES, sample.hard, limits.hard_share, "hard"),
    ):
        if share and number > share * sample.handed_over:
            yield Alert(cause, f"{number:,} of {sample.handed_over:,} bounced {how}: the limit is {share:.2%}")


def _slow(sample: AlertSample, limits: AlertLimits, now: datetime) -> Iterator[Alert]:
    if sample.start_time is None or now - sample.start_time < limits.throughput_after:
        return
    if sample.handed_over >= limits.throughput_below_share * sample.to_deliver:
        return
    wanted = float(limits.throughput_messages_per_hour)
    if sample.paced_messages_per_hour is not None:  # slow on purpose
        wanted = min(wanted, sample.paced_messages_per_hour / 2)
    rate = sample.handed_over * timedelta(hours=1) / (now - sample.start_time)
    if rate < wanted:
        done = f"{sample.handed_over:,} of {sample.to_deliver:,} messages have left"
        yield Alert(AlertCause.LOW_THROUGHPUT, f"{done}, {rate:,.0f} an hour: the limit is {wanted:,.0f}")


def _silence(sample: AlertSample, limits: AlertLimits, now: datetime) -> Iterator[Alert]:
    newest = sample.newest_event_time
    if newest is None or sample.validity_closed or sample.handed_over < limits.sample_min:
        return
    if sample.relayed * 2 > sample.handed_over and now - newest >= limits.silence:
        told = f"{sample.relayed:,} of {sample.handed_over:,} messages were never reported on"
        yield Alert(AlertCause.FEEDBACK_SILENT, f"{told}, and nothing was since {newest:%Y-%m-%d %H:%M:%S} UTC")
