"""What users see of an outcome, in either feedback mode. Only outcomes are stored; this is computed on the way out."""

from enum import IntEnum
from typing import Final

from delivery_service.domain.outcome import Outcome


class FeedbackMode(IntEnum):
    """Which projection a delivery shows. EFS: Email Feedback Service."""

    WITH_EFS = 1
    WITHOUT_EFS = 2


class Status(IntEnum):
    """The visible status of a send log."""

    PENDING = 1
    SENT = 2
    FAILED = 3
    CANCELED = 4


_WITH_EFS: Final = {
    Outcome.PREPARED: Status.PENDING,
    Outcome.CANCELED: Status.CANCELED,
    Outcome.RELAYED: Status.PENDING,
    Outcome.DEFERRED: Status.FAILED,
    Outcome.EXPIRED: Status.FAILED,
    Outcome.DELIVERED: Status.SENT,
    Outcome.BOUNCED: Status.FAILED,
}
_WITHOUT_EFS: Final = {
    Outcome.PREPARED: Status.PENDING,
    Outcome.CANCELED: Status.CANCELED,
    Outcome.RELAYED: Status.SENT,
    Outcome.DEFERRED: Status.SENT,
    Outcome.EXPIRED: Status.FAILED,
    Outcome.DELIVERED: Status.SENT,
    Outcome.BOUNCED: Status.FAILED,
}
STATUS_OF: Final = {FeedbackMode.WITH_EFS: _WITH_EFS, FeedbackMode.WITHOUT_EFS: _WITHOUT_EFS}
"""The two projections: mode → outcome → status."""


def outcomes_shown_as(mode: FeedbackMode, statuses: frozenset[Status]) -> frozenset[Outcome]:
    """The outcomes that the mode shows as one of these statuses: turns a filter on statuses into one on rows."""
    return frozenset(outcome for outcome, status in STATUS_OF[mode].items() if status in statuses)


def reason_shown(mode: FeedbackMode, outcome: Outcome) -> bool:
    """Whether the mode shows failure type, reason and diagnostic: not those of a message that it shows as sent."""
    return STATUS_OF[mode][outcome] is Status.FAILED
