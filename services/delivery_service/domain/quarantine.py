"""When an address is quarantined: a pure function of everything that was reported about it, in event-time order.

So it doesn't matter in which order, how often or how late reports come in: the same reports give the same verdict.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import IntEnum

from delivery_service.domain.outcome import FailureType, Reason

NOT_THE_ADDRESS = frozenset((Reason.REFUSED,))
"""Blocks that concern the sender: they count as soft, and never quarantine at once."""
NEVER_COUNTED = frozenset((Reason.QUARANTINED_ADDRESS, Reason.DENYLISTED_ADDRESS))
"""What we said ourselves, and no MTA did."""


class AddressStatus(IntEnum):
    """What an address's reports come to; the numbers are stored."""

    NONE = 0
    WITH_ERRORS = 1
    PROVISIONAL = 2
    """It bounced hard while its domain was guarded: it is still written to, and the next report decides."""
    QUARANTINED = 3


@dataclass(frozen=True, slots=True)
class QuarantineRules:
    """The product's numbers; each is a setting."""

    errors_max: int = 5
    """The soft error that quarantines."""
    significant_after: timedelta = timedelta(hours=24)
    """An error sooner after the last significant one is not significant."""
    reset_after: timedelta = timedelta(days=10)
    """Errors whose last significant one is so old count no more."""
    mailbox_full_reset_after: timedelta = timedelta(days=30)
    """The same if that one was a full mailbox."""

    def lapse(self, reason: Reason) -> timedelta:
        """How long an error with this reason counts."""
        return self.mailbox_full_reset_after if reason is Reason.MAILBOX_FULL else self.reset_after

    @property
    def longest(self) -> timedelta:
        """After this time no error counts."""
        return max(self.reset_after, self.mailbox_full_reset_after)


@dataclass(frozen=True, slots=True, order=True)
class Report:
    """One report about a message to the address: a success (no failure type), or a failure. Ordered by event time; at
    the same moment a success is the first."""

    event_time: datetime
    failure_type: FailureType
    reason: Reason = Reason.NONE
    delivery_id: int = 0
    recipient: int = 0
    outcome: int = 0


@dataclass(frozen=True, slots=True)
class Guard:
    """A time in which hard bounces of the address's domain are doubted; no end: it lasts."""

    begin: datetime
    end: datetime | None = None

    def covers(self, moment: datetime) -> bool:
        return self.begin <= moment and (self.end is None or moment < self.end)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the reports come to."""

    status: AddressStatus = AddressStatus.NONE
    error_count: int = 0
    """Significant soft errors in a row."""
    decisive: Report | None = None
    """What quarantined the address, else the last error that counts."""
    since: datetime | None = None
    """Reports before this one changed nothing of the verdict: they may be forgotten."""


def judge(reports: Iterable[Report], rules: QuarantineRules, guards: Sequence[Guard] = ()) -> Verdict:
    """The verdict on an address. The first report that quarantines it decides: nothing later releases it."""
    count = 0
    significant: Report | None = None
    doubted: Report | None = None
    since: datetime | None = None
    for report in sorted(set(reports)):
        weight = _weight(report)
        if weight is None:
            continue
        if significant and _lapsed(significant, report.event_time, rules):
            count, significant = 0, None
        if doubted and _lapsed(doubted, report.event_time, rules):
            doubted = None
        if significant is None and doubted is None:
            since = report.event_time
        match weight:
            case FailureType.NONE:
                count, significant, doubted, since = 0, None, None, report.event_time
            case FailureType.HARD if any(guard.covers(report.event_time) for guard in guards):
                doubted = report
            case FailureType.HARD:
                return Verdict(AddressStatus.QUARANTINED, count, report, since)
            case FailureType.SOFT:
                if significant and report.event_time - significant.event_time < rules.significant_after:
                    continue
                count, significant = count + 1, report
                if count >= rules.errors_max:
                    return Verdict(AddressStatus.QUARANTINED, count, report, since)
    if doubted is not None:
        return Verdict(AddressStatus.PROVISIONAL, count, doubted, since)
    if significant is not None:
        return Verdict(AddressStatus.WITH_ERRORS, count, significant, since)
    return Verdict(since=since)


def counted_now(
    error_count: int, last_error: datetime | None, reason: Reason, rules: QuarantineRules, now: datetime
) -> int:
    """The error count at this moment: errors that are old enough count no more."""
    return 0 if last_error is not None and now - last_error >= rules.lapse(reason) else error_count


def _weight(report: Report) -> FailureType | None:
    """How a report counts; None: not at all."""
    if report.failure_type is FailureType.IGNORED or report.reason in NEVER_COUNTED:
        return None
    if report.failure_type is FailureType.HARD and report.reason in NOT_THE_ADDRESS:
        return FailureType.SOFT
    return report.failure_type


def _lapsed(error: Report, now: datetime, rules: QuarantineRules) -> bool:
    return now - error.event_time >= rules.lapse(error.reason)
