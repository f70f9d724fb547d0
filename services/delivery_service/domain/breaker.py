"""The circuit breaker: when a delivery pauses by itself, before it ruins the sender's reputation."""

from dataclasses import dataclass
from enum import IntEnum


class PauseCause(IntEnum):
    """Why a delivery is paused; the numbers are stored."""

    NONE = 0
    COMMAND = 1
    HARD_BOUNCES = 2
    COMPLAINTS = 3


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Shares of the messages handed over; a share of 0 switches its rule off. Below the sample, nothing trips."""

    hard_bounce_share: float
    complaint_share: float
    sample_min: int


@dataclass(frozen=True, slots=True)
class Sample:
    """What is known of a delivery so far."""

    handed_over: int
    """The base. Not those with a fate: refusals come at once, deliveries later, and at first all fates are bad ones."""
    hard_bounces: int
    complained: int
    """Recipients who complained."""


@dataclass(frozen=True, slots=True)
class Trip:
    """Why to pause, for the store and for a person."""

    cause: PauseCause
    detail: str


def trip(sample: Sample, thresholds: Thresholds, overruled: frozenset[PauseCause]) -> Trip | None:
    """Whether the delivery must pause. Causes that someone has resumed over don't count any more."""
    if sample.handed_over < thresholds.sample_min:
        return None
    for cause, number, share, what in (
        (PauseCause.HARD_BOUNCES, sample.hard_bounces, thresholds.hard_bounce_share, "bounced hard"),
        (PauseCause.COMPLAINTS, sample.complained, thresholds.complaint_share, "complained"),
    ):
        if share and cause not in overruled and number >= share * sample.handed_over:
            return Trip(cause, f"{number:,} of {sample.handed_over:,} {what}: the threshold is {share:.2%}")
    return None
