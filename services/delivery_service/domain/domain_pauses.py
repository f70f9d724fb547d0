"""Recipient domains that are paused within a delivery: messages to them wait, while the rest of it goes on."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from delivery_service.domain.breaker import PauseCause


@dataclass(frozen=True, slots=True)
class DomainPause:
    """Who or what holds the messages to a domain, since when, and why."""

    recipient_domain: str
    pauser: str
    pause_time: datetime
    cause: PauseCause = PauseCause.COMMAND
    detail: str = ""


@dataclass(frozen=True, slots=True)
class DomainPauses:
    """All of one delivery. `paused` has a domain once at the most, by name."""

    paused: tuple[DomainPause, ...] = ()
    overruled: Mapping[str, frozenset[PauseCause]] = field(default_factory=dict)
    """Causes of the breaker's that someone has resumed a domain over: it is not paused for them again."""

    def holds(self, recipient_domain: str) -> bool:
        """Whether messages to the domain wait."""
        return any(pause.recipient_domain == recipient_domain for pause in self.paused)

    def with_pause(self, pause: DomainPause) -> "DomainPauses":
        """With one more domain paused."""
        paused = sorted((*self.paused, pause), key=lambda each: each.recipient_domain)
        return DomainPauses(tuple(paused), self.overruled)

    def without(self, recipient_domain: str) -> "DomainPauses":
        """With a domain resumed; if the breaker had paused it, its cause is overruled."""
        overruled = dict(self.overruled)
        for pause in self.paused:
            if pause.recipient_domain == recipient_domain and pause.cause is not PauseCause.COMMAND:
                overruled[recipient_domain] = self.overruled_of(recipient_domain) | {pause.cause}
        kept = tuple(pause for pause in self.paused if pause.recipient_domain != recipient_domain)
        return DomainPauses(kept, overruled)

    def overruled_of(self, recipient_domain: str) -> frozenset[PauseCause]:
        """The causes overruled for one domain."""
        return self.overruled.get(recipient_domain, frozenset())


NO_DOMAIN_PAUSES: Final = DomainPauses()
