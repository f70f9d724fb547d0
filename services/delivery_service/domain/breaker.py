"""The circuit breaker: when a delivery, or one recipient domain of it, pauses by itself, before it ruins the sender's
reputation."""

import math
from dataclasses import dataclass, replace
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

    @property
    def hard_bounces_min(self) -> int:
        """With fewer, nothing trips; 0: the rule is off."""
        return math.ceil(self.hard_bounce_share * self.sample_min)

    @property
    def complaints_min(self) -> int:
        """The same for complaints."""
        return math.ceil(self.complaint_share * self.sample_min)


@dataclass(frozen=True, slots=True)
class Sample:
    """What is known of a delivery, or of one recipient domain of it, so far."""

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
    """Whether it must pause. Causes that someone has resumed over don't count any more."""
    if sample.handed_over < thresholds.sample_min:
        return None
    for cause, number, share, what in (
        (PauseCause.HARD_BOUNCES, sample.hard_bounces, thresholds.hard_bounce_share, "bounced hard"),
        (PauseCause.COMPLAINTS, sample.complained, thresholds.complaint_share, "complained"),
    ):
        if share and cause not in overruled and number >= share * sample.handed_over:
            return Trip(cause, f"{number:,} of {sample.handed_over:,} {what}: the threshold is {share:.2%}")
    return None


def may_trip(sample: Sample, thresholds: Thresholds, overruled: frozenset[PauseCause]) -> bool:
    """Whether it must pause if no more were handed over than are known of, or than it takes to judge. If not even then,
    they need not be counted anew: more of them only make a share smaller."""
    least = replace(sample, handed_over=max(sample.handed_over, thresholds.sample_min))
    return trip(least, thresholds, overruled) is not None
