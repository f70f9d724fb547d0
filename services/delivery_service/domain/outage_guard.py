"""The outage guard: when so many addresses of one domain bounce hard that their provider is to be doubted, not they."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GuardLimits:
    """When a domain leaves its baseline."""

    hard_bounces_min: int
    """Fewer in the latest time are no outage; 0: no domain is ever guarded."""
    share_min: float
    """A share of hard bounces below this one is no outage."""
    factor: float
    """How many times the usual share it takes."""


@dataclass(frozen=True, slots=True)
class DomainResults:
    """What became of messages to a domain."""

    delivered: int
    hard: int

    @property
    def hard_share(self) -> float:
        """Of hard bounces; 0 if nothing is known."""
        total = self.delivered + self.hard
        return self.hard / total if total else 0.0


def leaves_baseline(recent: DomainResults, usual: DomainResults, limits: GuardLimits) -> bool:
    """Whether the latest results are out of keeping with the usual ones."""
    if not limits.hard_bounces_min or recent.hard < limits.hard_bounces_min:
        return False
    return recent.hard_share >= max(limits.share_min, limits.factor * usual.hard_share)


def describe(recent: DomainResults, usual: DomainResults) -> str:
    """The same for a person."""
    total = recent.delivered + recent.hard
    return f"{recent.hard:,} of {total:,} bounced hard ({recent.hard_share:.1%}); usual are {usual.hard_share:.1%}"
