"""The facts that the feedback figures report: who, what, in which order. The same for us, the ceiling and the peer."""

import random
from dataclasses import dataclass
from typing import Final

JITTER: Final = 50_000
"""How many places feedback may come before or after its place in the order of relaying."""
BOUNCE_SHARE: Final = 0.03
DUPLICATE_SHARE: Final = 0.05
START_US: Final = 1_790_000_000_000_000
SEED: Final = 1


@dataclass(frozen=True, slots=True)
class Audience:
    """Deliveries of equal size: `number` goes to delivery `number % deliveries`."""

    first_delivery_id: int
    deliveries: int
    recipients: int
    """Of all deliveries together."""

    def place(self, number: int) -> tuple[int, int]:
        """(delivery_id, recipient) of the event numbered so, from 0."""
        return self.first_delivery_id + number % self.deliveries, number // self.deliveries + 1

    @property
    def per_delivery(self) -> int:
        """Recipients of each delivery."""
        return self.recipients // self.deliveries


@dataclass(frozen=True, slots=True)
class Fact:
    """What one event reports. A repetition is equal."""

    delivery_id: int
    recipient: int
    bounced: bool
    time_us: int

    @property
    def diagnostic(self) -> str:
        """What the receiving server said: a text of its own for each message, as they do."""
        if self.bounced:
            return f"550 5.1.1 <person{self.recipient}@example.com>: Recipient address rejected: User unknown"
        return f"250 2.0.0 Ok: queued as {self.recipient:X}"


def facts(audience: Audience, *, repeated: bool = True) -> list[Fact]:
    """One fact a recipient in jittered order and, if wanted, repetitions of some."""
    source = random.Random(SEED)
    keyed: list[tuple[float, int]] = []
    for number in range(audience.recipients):
        key = number + source.random() * JITTER
        keyed.append((key, number))
        if repeated and source.random() < DUPLICATE_SHARE:
            keyed.append((key + source.random() * JITTER, number))
    keyed.sort()
    bounced = [source.random() < BOUNCE_SHARE for _ in range(audience.recipients)]
    return [Fact(*audience.place(number), bounced[number], START_US + number) for _, number in keyed]
