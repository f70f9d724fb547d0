"""The KPIs: pure functions of the counts by outcome (and by failure type), the same rows seen in either mode."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Final

from delivery_service.domain.lifecycle import Channel, DeliveryState
from delivery_service.domain.outcome import FAILING, FailureType, Outcome
from delivery_service.domain.status import STATUS_OF, FeedbackMode, Status


@dataclass(frozen=True, slots=True)
class Rate:
    """A share with what it is made of. An empty base gives no rate, never NaN."""

    count: int
    base: int

    @property
    def rate(self) -> float | None:
        return self.count / self.base if self.base else None


@dataclass(frozen=True, slots=True)
class Counts:
    """Send logs of one delivery by outcome, and the failing ones by type. The outcomes add up to T, always."""

    by_outcome: Mapping[Outcome, int]
    hard: Mapping[Outcome, int] = field(default_factory=lambda: MappingProxyType({}))
    ignored: Mapping[Outcome, int] = field(default_factory=lambda: MappingProxyType({}))

    def of(self, *outcomes: Outcome) -> int:
        return sum(self.by_outcome.get(outcome, 0) for outcome in outcomes)

    @property
    def to_deliver(self) -> int:
        """T."""
        return sum(self.by_outcome.values())

    def by_status(self, mode: FeedbackMode) -> dict[Status, int]:
        """By what the mode shows."""
        statuses = dict.fromkeys(Status, 0)
        for outcome in Outcome:
            statuses[STATUS_OF[mode][outcome]] += self.of(outcome)
        return statuses

    def failed_as(self, failure_type: FailureType, shown: frozenset[Outcome]) -> int:
        """Of the outcomes shown as failed, those of this type. What no one typed counts as soft."""
        hard = sum(self.hard.get(outcome, 0) for outcome in shown)
        ignored = sum(self.ignored.get(outcome, 0) for outcome in shown)
        if failure_type is FailureType.HARD:
            return hard
        if failure_type is FailureType.IGNORED:
            return ignored
        return self.of(*shown) - hard - ignored


DELIVERED_OUTCOMES: Final = {
    FeedbackMode.WITH_EFS: frozenset({Outcome.DELIVERED}),
    FeedbackMode.WITHOUT_EFS: frozenset({Outcome.RELAYED, Outcome.DEFERRED, Outcome.DELIVERED}),
}
"""Outcomes counted as delivered, by mode."""

BOUNCES_AND_ERRORS_OUTCOMES: Final = {
    FeedbackMode.WITH_EFS: frozenset({Outcome.DEFERRED, Outcome.EXPIRED, Outcome.BOUNCED}),
    FeedbackMode.WITHOUT_EFS: frozenset({Outcome.EXPIRED, Outcome.BOUNCED}),
}
"""Outcomes counted as bounces and errors, by mode."""


@dataclass(frozen=True, slots=True)
class EngagementRates:
    """Who did so among the mode's delivered, all counted at the same moment: never above 100 %."""

    opened: int = 0
    clicked: int = 0
    delivered: int = 0
    unsubscribed: int = 0
    complained: int = 0


@dataclass(frozen=True, slots=True)
class Engagement:
    """Opens, clicks, unsubscribes and complaints of one delivery as last refreshed: recipients who did so, and how
    often it was done. `as_of_time` None: not yet."""

    opened: int = 0
    clicked: int = 0
    opens: int = 0
    clicks: int = 0
    unsubscribed: int = 0
    unsubscribes: int = 0
    complained: int = 0
    complaints: int = 0
    rates: Mapping[FeedbackMode, EngagementRates] = field(default_factory=lambda: MappingProxyType({}))
    as_of_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class Projection:
    """The figures of one delivery in one mode."""

    delivered: Rate
    bounces_and_errors: Rate
    processed: int
    delivered_of_not_canceled: Rate
    bounces_and_errors_of_not_canceled: Rate
    delivered_min_final: int
    delivered_max_final: int
    statuses: Mapping[Status, int]
    failures: Mapping[FailureType, int]
    opened: Rate
    clicked: Rate | None
    unsubscribed: Rate
    complained: Rate

    @property
    def final(self) -> bool:
        """Nothing is undecided: the bounds have met."""
        return self.delivered_min_final == self.delivered_max_final


@dataclass(frozen=True, slots=True)
class DeliveryKpis:
    """Everything a KPI message tells about one delivery at one exact point of its log."""

    delivery_id: int
    channel: Channel
    state: DeliveryState
    feedback_mode: FeedbackMode
    slot_revisions: tuple[int, ...]
    counts: Counts
    validity_closed: bool
    engagement: Engagement
    commit_time: datetime | None
    newest_event_time: datetime | None
    settled: bool = False

    @property
    def revision(self) -> int:
        """Strictly increasing per delivery: every change raises one slot's revision."""
        return sum(self.slot_revisions)

    @property
    def handed_over(self) -> int:
        return self.counts.of(*(outcome for outcome in Outcome if outcome >= Outcome.RELAYED))

    @property
    def unresolved(self) -> int:
        """Handed over, never reported on, and the validity period is closed: not guessed at."""
        return self.counts.of(Outcome.RELAYED) if self.validity_closed else 0

    @property
    def undecided(self) -> int:
        """Messages whose end is still waited for."""
        reported = self.counts.of(Outcome.PREPARED, Outcome.DEFERRED)
        return reported + (0 if self.validity_closed else self.counts.of(Outcome.RELAYED))

    @property
    def lag(self) -> timedelta:
        """How far the log trails the MTA's clock; a clock ahead gives zero."""
        if self.commit_time is None or self.newest_event_time is None:
            return timedelta()
        return max(self.commit_time - self.newest_event_time, timedelta())

    def modes(self) -> tuple[FeedbackMode, ...]:
        """The projections that exist for this channel: EFS is of email alone."""
        return tuple(FeedbackMode) if self.channel is Channel.EMAIL else (FeedbackMode.WITHOUT_EFS,)

    def projection(self, mode: FeedbackMode) -> Projection:
        """The figures in one mode (design, section 5)."""
        counts, total = self.counts, self.counts.to_deliver
        delivered = counts.of(*DELIVERED_OUTCOMES[mode])
        bounces = counts.of(*BOUNCES_AND_ERRORS_OUTCOMES[mode])
        processed = delivered + bounces
        base = total if mode is FeedbackMode.WITH_EFS else processed
        not_canceled = total - counts.of(Outcome.CANCELED)

        relayed = counts.of(Outcome.RELAYED)
        settled_relayed = relayed if self.validity_closed and mode is FeedbackMode.WITHOUT_EFS else 0
        delivered_min = counts.of(Outcome.DELIVERED) + settled_relayed

        statuses = counts.by_status(mode)
        shown_failed = frozenset(outcome for outcome in FAILING if STATUS_OF[mode][outcome] is Status.FAILED)
        rates = self.engagement.rates.get(mode, EngagementRates())
        return Projection(
            delivered=Rate(delivered, base),
            bounces_and_errors=Rate(bounces, base),
            processed=processed,
            delivered_of_not_canceled=Rate(delivered, not_canceled),
            bounces_and_errors_of_not_canceled=Rate(bounces, not_canceled),
            delivered_min_final=delivered_min,
            delivered_max_final=delivered_min + self.undecided,
            statuses=statuses,
            failures={
                kind: counts.failed_as(kind, shown_failed)
                for kind in (FailureType.SOFT, FailureType.HARD, FailureType.IGNORED)
            },
            opened=Rate(rates.opened, rates.delivered),
            clicked=Rate(rates.clicked, rates.delivered) if self.channel is Channel.EMAIL else None,
            unsubscribed=Rate(rates.unsubscribed, rates.delivered),
            complained=Rate(rates.complained, rates.delivered),
        )
